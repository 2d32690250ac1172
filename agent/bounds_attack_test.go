package agent

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
)

// A commit that makes many disks must not raise what the next may remove: the
// budget is a part of those that were there a day ago.
func TestNewObjectsRaiseNoBudget(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Limits = policy.Limits{Count: 1, Percent: 10} })
	var real, dummies []string
	for i := range 10 {
		real = append(real, simDisk(fmt.Sprintf("real-%02d", i)))
	}
	for i := range 90 {
		dummies = append(dummies, simDisk(fmt.Sprintf("dummy-%02d", i)))
	}
	gone := func() (n int) {
		for k, h := range s.state.Objects {
			if k.Kind == spec.KindDisk && h.Disk.Quarantined {
				n++
			}
		}
		return n
	}
	s.commit(machines(real...))
	s.mustPass()
	s.sleep(policy.Window)
	s.commit(machines(append(real, dummies...)...))
	s.mustPass()
	s.commit(machines(dummies...))
	if p := s.mustPass(); gone() != 1 || p.Count(reconcile.Held) != 9 {
		t.Errorf("%d disks are removed, want 1", gone())
	}
	// What has been there for a day counts, with the budget of a day.
	s.sleep(policy.Window)
	s.commit(machines(dummies...))
	if s.mustPass(); gone() != 10 {
		t.Errorf("%d disks are removed a day later, want 10", gone())
	}
}

// An object that cannot be made is noted once.
func TestLedgerOfWhatIsMade(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.approve(w.approval())
	w.host.fails["new"] = errors.New("no room")
	for range 3 {
		w.pass()
		w.now = w.now.Add(time.Hour)
	}
	if n := len(w.a.mem.Ledger); n != 2 { // old and new
		t.Errorf("the ledger has %d entries: %+v", n, w.a.mem.Ledger)
	}
}
