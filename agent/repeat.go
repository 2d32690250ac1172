package agent

import (
	"fmt"
	"slices"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

// repeat is an action that succeeds, and has to be done again: what it corrects
// comes back, as a guest that is resumed stops again at a disk that keeps
// returning errors. It rests like one that fails, and is told once.
type repeat struct {
	what  string // the action, and why
	count int
	at    time.Time // when it was done last
	next  time.Time
}

// repeatCalm is how long a thing must hold for its next correction to be the
// first of a series.
const repeatCalm = 10 * time.Minute

// repeats says whether an action may be one of a series, and which. Commits are
// carried out in as many steps as they take, and the starts of machines that
// ended have a back-off of their own.
func repeats(act *reconcile.Action) (what string, ok bool) {
	ok = act.Cause == reconcile.CauseDrift
	if act.Kind == spec.KindVirtualMachine && act.Op == reconcile.OpStart && act.Have != nil && act.Have.VM != nil {
		power := act.Have.VM.Power
		ok = power == reconcile.PowerPaused || power == reconcile.PowerIOError
	}
	return summary(act), ok
}

// repeated takes down that an action was done, and says whether it is the first
// of its series. a.mu is held.
func (a *Agent) repeated(act *reconcile.Action) (first bool) {
	k := act.Key()
	what, ok := repeats(act)
	if !ok {
		delete(a.repeats, k)
		return true
	}
	now := a.cfg.Now()
	r := a.repeats[k]
	if r == nil || r.what != what || now.Sub(r.at) > repeatCalm {
		r = &repeat{what: what}
		a.repeats[k] = r
	}
	r.count++
	r.at, r.next = now, now.Add(min(firstRetry<<min(r.count-1, 16), lastRetry))
	return r.count == 1
}

// rest makes an action wait that was done a moment ago, and is to be done again.
// a.mu is held.
func (a *Agent) rest(act *reconcile.Action, now time.Time) {
	r := a.repeats[act.Key()]
	if r == nil || !now.Before(r.next) {
		return
	}
	if what, ok := repeats(act); !ok || what != r.what {
		return
	}
	times := "once"
	if r.count > 1 {
		times = fmt.Sprintf("%d times in a row", r.count)
	}
	act.State = reconcile.Waiting
	act.Reason = fmt.Sprintf("%s; it was done %s and did not last, and is done again at %s", act.Reason, times, r.next.UTC().Format(time.RFC3339))
}

// resting is when the next of what rests is done, of what was done fewer than so
// many times. a.mu is held.
func (a *Agent) resting(now time.Time, fewer int) (at time.Time) {
	if a.plan == nil {
		return at
	}
	for k, r := range a.repeats {
		waits := r.count < fewer && r.next.After(now) && slices.ContainsFunc(a.plan.Actions, func(act reconcile.Action) bool {
			return act.Key() == k && act.State == reconcile.Waiting && act.Op != reconcile.OpUnchanged
		})
		if waits && (at.IsZero() || r.next.Before(at)) {
			at = r.next
		}
	}
	return at
}
