package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"reconciler/deadline"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Suspension stops the agent from acting on one object, or on all.
type Suspension struct {
	Key    reconcile.Key `json:"key,omitzero"` // zero: everything
	Object string        `json:"object,omitempty"`
	Reason string        `json:"reason"`
	By     string        `json:"by"`
	Since  time.Time     `json:"since"`
	// Deadline ends it; zero: it lasts until it is resumed. A clock that jumps
	// forward does not end it.
	deadline.Deadline
}

// Active says whether the suspension is in force.
func (s Suspension) Active(c deadline.Clock) bool { return !s.Surely(c) }

// Says who suspended, until when and why.
func (s Suspension) Says(c deadline.Clock) string {
	until := ""
	if !s.IsZero() {
		until = " until " + s.When(c).UTC().Format(clockFormat)
	}
	return fmt.Sprintf("suspended by %s%s: %s", s.By, until, s.Reason)
}

// Allowance releases held actions for a while.
type Allowance struct {
	// ID is an action's, all of it, a plan's digest, or KIND/NAME for an action
	// that has no id because no commit asked for it.
	ID string `json:"id"`
	// IDs are the actions of the plan whose digest ID is: a part of a plan that
	// was allowed as a whole may run, as after a crash in the middle.
	IDs    []string `json:"ids,omitempty"`
	Reason string   `json:"reason"`
	By     string   `json:"by"`
	// Deadline ends it. A clock that goes back does not prolong it.
	deadline.Deadline
}

// MinID is the least number of digits by which an operator names an action.
const MinID = 8

// covers says whether the allowance releases an action of a plan with this digest.
func (l Allowance) covers(a *reconcile.Action, digest string, c deadline.Clock) bool {
	if l.Over(c) {
		return false
	}
	if a.ID == "" {
		return l.ID == digest || l.ID == handle(a)
	}
	return l.ID == digest || l.ID == a.ID || slices.Contains(l.IDs, a.ID)
}

// Input is everything beside the plan that decides.
type Input struct {
	Have        reconcile.State
	Limits      Limits
	Ledger      Ledger
	Suspensions []Suspension
	Allowances  []Allowance
	Windows     Schedule
	// Asked are the machines whose restart an operator asked for on the host,
	// which is as good as an allowance.
	Asked     map[reconcile.Key]bool
	Ownership Ownership
	// NoPurge, where set, is why no data may be destroyed for good now.
	NoPurge string
	Now     time.Time
	// BootID and Up are the host's other clock.
	BootID string
	Up     time.Duration
}

func (in *Input) clock() deadline.Clock {
	return deadline.Clock{Now: in.Now, BootID: in.BootID, Up: in.Up}
}

// Apply holds what may not run, and what depends on it. It only ever takes
// away: nothing becomes ready by it.
func Apply(p *reconcile.Plan, in Input) {
	budgets := map[spec.Kind]*budget{}
	for _, k := range []spec.Kind{spec.KindVirtualMachine, spec.KindDisk} {
		budgets[k] = newBudget(k, in.Have, in.Limits, in.Ledger, in.clock())
	}
	digest := ""
	if len(p.Hosts) > 0 {
		digest = p.Hosts[0].Digest
	}
	allowed := func(a *reconcile.Action) bool {
		return slices.ContainsFunc(in.Allowances, func(l Allowance) bool { return l.covers(a, digest, in.clock()) })
	}
	in.Ownership.holdTaken(p, allowed)
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.State != reconcile.Ready || a.Op == reconcile.OpUnchanged {
			continue
		}
		if s := suspended(a, in); s != nil {
			hold(a, s.Says(in.clock()), strings.TrimSpace("reconciler resume "+s.Object))
			continue
		}
		if a.Op == reconcile.OpPurge && in.NoPurge != "" {
			hold(a, in.NoPurge, "")
			continue
		}
		asked := a.Op == reconcile.OpRestart && in.Asked[a.Key()]
		if !allowed(a) && !asked && in.Windows.keepOut(a, in.Now) {
			continue
		}
		c, costs := ChargeFor(a, in.Now)
		if !costs {
			continue
		}
		if why := budgets[a.Kind].refuse(a, c); why != "" && !allowed(a) {
			hold(a, why, allowCommand(a))
		}
	}
	p.Settle()
}

// Wake is the next moment at which something that is held may go on by itself;
// zero if there is none.
func Wake(p *reconcile.Plan, in Input) time.Time {
	var first time.Time
	at := func(t time.Time) {
		if t.After(in.Now) && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if p == nil || p.Summary[reconcile.OpUnchanged] == len(p.Actions) {
		return first
	}
	for _, s := range in.Suspensions {
		at(s.When(in.clock()))
	}
	for _, c := range in.Ledger {
		if !c.Made {
			at(c.ends().When(in.clock()))
		}
	}
	_, opens := in.Windows.next(in.Now)
	at(opens)
	return first
}

// allowCommand is how a held action is released on the host.
func allowCommand(a *reconcile.Action) string {
	return "reconciler allow " + shortID(a) + " --for 1h --reason …"
}

func handle(a *reconcile.Action) string { return string(a.Kind) + "/" + a.Name }

// shortID is what to give to allow.
func shortID(a *reconcile.Action) string {
	if a.ID == "" {
		return handle(a)
	}
	return a.ID[:12]
}

func suspended(a *reconcile.Action, in Input) *Suspension {
	for i, s := range in.Suspensions {
		if s.Active(in.clock()) && (s.Key == (reconcile.Key{}) || s.Key == a.Key()) {
			return &in.Suspensions[i]
		}
	}
	return nil
}

func hold(a *reconcile.Action, why, how string) {
	a.State = reconcile.Held
	a.Reason = why
	if how != "" {
		a.Reason += " (" + how + ")"
	}
}
