package policy

import (
	"fmt"
	"slices"
	"strings"

	"reconciler/deadline"
	"reconciler/reconcile"
)

// Review is what reviewers approved for a host that runs nothing else of what a
// commit asks for.
type Review struct {
	// Approved are the ids of actions that may run.
	Approved map[string]bool
	// Beyond are actions that would do more than what was approved under their
	// id, and what.
	Beyond map[string]string
	// Found says what was approved by whom, or that nothing was found.
	Found string
	// Asked are the machines whose restart an operator asked for on the host.
	Asked map[reconcile.Key]bool

	Allowances []Allowance
	Clock      deadline.Clock
}

// Unreviewed is an action that no reviewer approved.
type Unreviewed struct {
	Action *reconcile.Action
	Why    string
}

// Hold holds what a commit asks for and nobody approved, and what depends on
// it, and returns all that awaits a review, ready to run or not. Drift is not
// looked at: to correct it restores what was approved before. It comes before
// Apply, so that what is held costs no budget.
func (r Review) Hold(p *reconcile.Plan) []Unreviewed {
	digest := ""
	if len(p.Hosts) > 0 {
		digest = p.Hosts[0].Digest
	}
	var list []Unreviewed
	for i := range p.Actions {
		a := &p.Actions[i]
		why := r.objection(a)
		if why == "" || slices.ContainsFunc(r.Allowances, func(l Allowance) bool { return l.covers(a, digest, r.Clock) }) {
			continue
		}
		list = append(list, Unreviewed{a, why})
		how := strings.TrimPrefix(r.Found+"; ", "; ") + allowCommand(a)
		switch a.State {
		case reconcile.Ready:
			hold(a, why, how)
		case reconcile.Waiting: // it would be held if it waited for nothing else
			a.Reason = fmt.Sprintf("%s (%s); %s", why, how, a.Reason)
		}
	}
	if len(list) > 0 {
		p.Settle()
	}
	return list
}

// objection says why an action must not run without a further review.
func (r Review) objection(a *reconcile.Action) string {
	switch {
	case a.Op == reconcile.OpUnchanged, a.Cause != reconcile.CauseRevision && a.Cause != reconcile.CauseRetry:
		return ""
	case a.ID == "" && a.Cause == reconcile.CauseRetry:
		return "" // of a correction of drift
	case a.ID == "" && a.Op == reconcile.OpBlocked:
		return "" // it does nothing, and has its id when it can
	case a.ID == "" && (a.Op == reconcile.OpRestart || a.Op == reconcile.OpStart) && r.Asked[a.Key()]:
		return "" // of an operator, not of the commit
	case a.ID == "":
		return "no plan that was approved can contain it: it removes what was never finished"
	case r.Beyond[a.ID] != "":
		return r.Beyond[a.ID]
	case !r.Approved[a.ID]:
		return "not in the approved plan"
	}
	return ""
}

// ApprovedBy is Found of approvals: how many actions, and by whom.
func ApprovedBy(actions int, names []string) string {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	if len(names) == 0 {
		return "no approval was found"
	}
	if actions == 1 {
		return "approved: 1 action by " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("approved: %d actions by %s", actions, strings.Join(names, ", "))
}
