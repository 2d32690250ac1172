package policy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"reconciler/deadline"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Window is how long an interruption counts against the budget.
const Window = 24 * time.Hour

// Limits bound what may be stopped or removed within Window. They come from
// the host's configuration, never from the repository.
type Limits struct {
	// Count and Percent: at most max(Count, Percent/100 × objects) of each kind.
	Count   int
	Percent int
}

// DefaultLimits are in force unless the host's configuration says otherwise.
var DefaultLimits = Limits{Count: 2, Percent: 10}

// Charge is one interruption that was carried out, or an object that was made.
type Charge struct {
	At     time.Time `json:"at"`
	Kind   spec.Kind `json:"kind"`
	UID    string    `json:"uid"`
	Name   string    `json:"name"`
	Remove bool      `json:"remove"` // removed, not only stopped
	// Made objects cost nothing. They do not count among those that the limit is
	// a part of: a commit could add some to remove others.
	Made bool `json:"made,omitempty"`
	// Ends is when it no longer counts. A clock that jumps forward frees nothing.
	Ends deadline.Deadline `json:"ends,omitzero"`
}

func (c *Charge) ends() deadline.Deadline {
	if c.Ends.IsZero() { // of a build that knew of wall clocks only
		return deadline.Deadline{Until: c.At.Add(Window)}
	}
	return c.Ends
}

// Ledger is the charges of the last Window, kept over restarts.
type Ledger []Charge

// Trim drops the charges that no longer count.
func (l Ledger) Trim(now deadline.Clock) Ledger {
	kept := l[:0:0]
	for _, c := range l {
		if !c.ends().Surely(now) {
			kept = append(kept, c)
		}
	}
	return kept
}

// Adopt gives charges of an earlier build their end, and brings the uptime of
// all forward; it says whether that is worth writing down.
func (l Ledger) Adopt(now deadline.Clock) (changed bool) {
	for i := range l {
		c := &l[i]
		c.Ends = c.ends()
		changed = c.Ends.Adopt(now, Window) || c.Ends.Account(now) || changed
	}
	return changed
}

// With adds charges, and drops those that no longer count. An object is made
// once, however often that is tried.
func (l Ledger) With(now deadline.Clock, add []Charge) Ledger {
	l = l.Trim(now)
	made := map[string]bool{}
	for _, c := range l {
		made[c.UID] = made[c.UID] || c.Made
	}
	for _, c := range add {
		if !c.Made || !made[c.UID] {
			c.Ends = deadline.In(now, Window)
			l = append(l, c)
		}
	}
	return l
}

// ChargeFor is what an action is written down as; ok is false where it need not be.
func ChargeFor(a *reconcile.Action, now time.Time) (c Charge, ok bool) {
	c = Charge{At: now, Kind: a.Kind, UID: a.UID, Name: a.Name}
	switch a.Op {
	case reconcile.OpCreate:
		c.Made = true
		return c, a.Kind == spec.KindVirtualMachine || a.Kind == spec.KindDisk
	case reconcile.OpStop:
		return c, a.Impact >= reconcile.ImpactStop
	case reconcile.OpDelete:
		c.Remove = true
		return c, a.Kind == spec.KindVirtualMachine
	case reconcile.OpQuarantine:
		c.Remove = true
		return c, true
	}
	return c, false
}

// budget counts one kind on one host.
type budget struct {
	limit, spent     int
	existing, active int                  // left after what was granted; active are known to run
	spentOn          map[string]time.Time // until when
}

func newBudget(kind spec.Kind, have reconcile.State, l Limits, ledger Ledger, now deadline.Clock) *budget {
	b := &budget{spentOn: map[string]time.Time{}}
	for k, h := range have.Objects {
		if k.Kind != kind || quarantined(h) {
			continue
		}
		b.existing++
		if runs(h) {
			b.active++
		}
	}
	for k := range have.Unknown {
		if k.Kind == kind && have.Objects[k] == nil {
			b.existing++
		}
	}
	total := b.existing
	ledger = ledger.Trim(now)
	made := map[string]bool{}
	for _, c := range ledger {
		k := reconcile.Key{Kind: kind, UID: c.UID}
		if c.Kind != kind || !c.Made || made[c.UID] {
			continue
		}
		made[c.UID] = true
		if _, unknown := have.Unknown[k]; unknown || have.Objects[k] != nil && !quarantined(have.Objects[k]) {
			total--
		}
	}
	for _, c := range ledger {
		if c.Kind != kind || c.Made {
			continue
		}
		// The same object stopped and then removed is one interruption.
		if b.spentOn[c.UID].IsZero() {
			b.spent++
		}
		if ends := c.ends().When(now); ends.After(b.spentOn[c.UID]) {
			b.spentOn[c.UID] = ends
		}
		if _, there := have.Objects[reconcile.Key{Kind: kind, UID: c.UID}]; !there && c.Remove && !made[c.UID] {
			total++
		}
	}
	b.limit = max(l.Count, total*l.Percent/100)
	return b
}

func quarantined(h *reconcile.Live) bool { return h.Disk != nil && h.Disk.Quarantined }

// runs says whether a machine is known to run.
func runs(h *reconcile.Live) bool {
	return h != nil && h.VM != nil && h.VM.Power != reconcile.PowerStopped && h.VM.Power != reconcile.PowerEnded
}

// refuse takes one action from the budget, or says why not and when it would be
// within it; the last machine or disk of a host never is.
func (b *budget) refuse(a *reconcile.Action, c Charge) string {
	if c.Made {
		return ""
	}
	noun := "machines"
	if a.Kind == spec.KindDisk {
		noun = "disks"
	}
	running := a.Impact >= reconcile.ImpactStop && runs(a.Have)
	switch charged := b.spentOn[a.UID]; {
	case c.Remove && b.existing == 1:
		return fmt.Sprintf("it is the last of the host's %s", noun)
	// To remove a machine is to say so of it by name, whatever the others do; to
	// stop one is a value that slips in easily.
	case running && !c.Remove && b.active == 1:
		return "it is the last machine that runs on the host"
	case charged.IsZero() && b.spent >= b.limit:
		return fmt.Sprintf("%d of the host's %s were stopped or removed within 24 hours, and the limit is %d; held until %s",
			b.spent, noun, b.limit, b.free().UTC().Format(clockFormat))
	case charged.IsZero():
		b.spent++
		b.spentOn[a.UID] = c.At.Add(Window)
	}
	if c.Remove {
		b.existing--
	}
	if running {
		b.active--
	}
	return ""
}

// free is when so many charges have passed that there is room for one more.
func (b *budget) free() time.Time {
	at := slices.SortedFunc(maps.Values(b.spentOn), time.Time.Compare)
	return at[b.spent-b.limit]
}
