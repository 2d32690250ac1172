package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
)

// What was approved and then taken back is not approved any more, also while
// another part of the same plan still waits.
func TestWithdrawnActionIsNotApproved(t *testing.T) {
	for name, seen := range map[string]bool{"host sees the withdrawal": true, "host was down meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			w := newReviewed(t)
			w.repo.push(t, paperVM("old", "128Mi"), paperVM("db", "128Mi"), paperVM("more", "128Mi"))
			w.approve(w.approval())
			w.pass()
			if did := w.host.did(); !strings.Contains(did, "create db") {
				t.Fatalf("at first it did %q", did)
			}

			w.host.fails["db"], w.host.fails["old"] = errors.New("busy"), errors.New("busy")
			w.repo.push(t, paperVM("old", "256Mi"), paperVM("more", "128Mi"))
			w.approve(w.approval())
			if seen {
				w.pass()
			}
			w.repo.push(t, paperVM("old", "256Mi"), paperVM("db", "128Mi"), paperVM("more", "128Mi"))
			if seen {
				w.pass()
			}
			w.wantDid("")
			delete(w.host.fails, "db")
			w.repo.push(t, paperVM("old", "256Mi"), paperVM("more", "128Mi"))
			w.now = w.now.Add(lastRetry * 2)
			w.pass()
			w.wantDid("")
			delete(w.host.fails, "old")
			w.now = w.now.Add(lastRetry * 2)
			w.start(true)
			w.pass()
			w.wantDid("stop old, start old") // approved, and never taken back
		})
	}
}

// The tree of an approved change that comes again, by a revert of its revert, is
// another change, also for a host that carried out neither.
func TestApprovalOfTreeThatComesAgain(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.approve(w.approval())
	w.repo.push(t, paperVM("old", "128Mi"))
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.pass()
	w.wantDid("")
}

// Who loses the memory of approvals does not take old ones for new.
func TestLostMemoryOfApprovals(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.approve(w.approval())
	w.pass()
	w.repo.push(t, paperVM("old", "128Mi"))
	w.approve(w.approval())
	w.pass()
	w.wantDid("create new, delete new")
	if err := os.Remove(filepath.Join(w.dir, "agent", reviewFile)); err != nil {
		t.Fatal(err)
	}
	w.start(true)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.pass()
	w.wantDid("")
}

// To let the host correct what it was to leave alone is a change like any other.
func TestDriftModeNeedsReview(t *testing.T) {
	w := newReviewed(t)
	w.repo.host = ", drift: Report"
	w.repo.push(t, paperVM("old", "128Mi"))
	w.approve(w.approval())
	w.pass()
	w.wantDid("")
	for _, h := range w.host.objects {
		h.VM.Power, h.VM.Launch, h.VM.Asked = reconcile.PowerStopped, "", true
	}
	w.pass()
	w.wantDid("")
	w.repo.host = ", drift: Correct"
	w.repo.push(t, paperVM("old", "128Mi"))
	w.pass()
	w.pass()
	w.wantDid("")
	if e := w.events("NotReviewed"); len(e) != 1 || !strings.Contains(e[0].Message, "update Host/host1") {
		t.Errorf("events %+v", e)
	}
	w.approve(w.approval())
	w.pass()
	w.wantDid("start old")
}

// What an operator lets pass is what the plan shows, not what somebody makes
// look like it afterwards.
func TestAllowanceIsForWhatIsShown(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "256Mi"))
	p := w.pass()
	id := ""
	for i := range p.Actions {
		if a := &p.Actions[i]; a.Name == "old" {
			id = a.ID
		}
	}
	allow := func(id string) error {
		return w.a.Allow(t.Context(), api.AllowRequest{ID: id, For: time.Hour, Reason: "seen", Caller: api.Caller{Name: "root"}})
	}
	for _, other := range []string{strings.Repeat("0", 12), "VirtualMachine/new"} {
		var e *api.Error
		if err := allow(other); !errors.As(err, &e) || e.Code != api.NotFound {
			t.Errorf("allow %s: %v", other, err)
		}
	}
	if err := allow("VirtualMachine/old"); err != nil {
		t.Fatal(err)
	}
	if l := w.a.mem.Allowances; len(l) != 1 || l[0].ID != id {
		t.Errorf("allowances %+v, want one of %s", l, id)
	}
	w.a.mem.Allowances = nil
	if err := allow(id[:8]); err != nil {
		t.Fatal(err)
	}
	if l := w.a.mem.Allowances; len(l) != 1 || l[0].ID != id {
		t.Errorf("allowances %+v, want one of %s", l, id)
	}
	w.repo.push(t, paperVM("old", "512Mi"))
	w.pass()
	w.wantDid("")
}
