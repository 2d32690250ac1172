package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"reconciler/forge"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// statusContext is the start of the context of a host's commit statuses.
const statusContext = "reconciler/"

// concerns says whether this host reports on a revision that is about to come
// into force: if it is to be another host after it than before. a.mu is held.
func (a *Agent) concerns(hash string, set *spec.Set) bool {
	if a.teller == nil || hash == a.mem.Good {
		return false
	}
	next := a.work(set, hash)
	var before *reconcile.Desired
	switch {
	case a.share != nil && a.shareOf == a.set:
		before = a.share
	case a.set != nil:
		before = reconcile.NewDesired(a.set, a.name(), a.mem.Good)
	}
	a.share, a.shareOf = next, set // which the pass would work out anyway
	return before == nil || !sameWork(before, next)
}

// sameWork says whether two revisions ask the same of the host.
func sameWork(a, b *reconcile.Desired) bool {
	if len(a.Objects) != len(b.Objects) {
		return false
	}
	for k, x := range a.Objects {
		y := b.Objects[k]
		if y == nil || x.Name != y.Name || x.Incarnation != y.Incarnation || x.Generation() != y.Generation() {
			return false
		}
	}
	return true
}

// tellForge hands over what is to be said of commits now. a.mu is held; it
// never waits for the forge.
func (a *Agent) tellForge() {
	if a.teller == nil || a.double() != "" {
		return
	}
	say := map[string]verdict{}
	if a.mem.Tracked != "" && a.plan != nil {
		say[a.mem.Tracked] = a.judge()
	}
	if a.mem.Refused != "" && a.mem.LastAttempted != "" {
		say[a.mem.LastAttempted] = verdict{State: forge.Failure, Text: "refused: " + a.mem.Refused, Refusal: true}
	}
	a.teller.tell(say, a.mem.Good)
}

// lastingFailure is how many attempts at an object must fail before the commit
// is said to have failed.
const lastingFailure = 3

// judge puts into one line what became of the revision in force, as far as the
// commit, and not the world, asks for something. a.mu is held.
func (a *Agent) judge() verdict {
	var failing, blocked, held, waiting []string
	todo, lasting := 0, false
	for i := range a.plan.Actions {
		act := &a.plan.Actions[i]
		if act.Op == reconcile.OpUnchanged || act.Cause != reconcile.CauseRevision && act.Cause != reconcile.CauseRetry {
			continue
		}
		f := a.failures[act.Key()]
		switch {
		case f != nil:
			// Not the action's reason, which says when it is tried again.
			failing = append(failing, act.Name+": "+f.message)
			lasting = lasting || f.count >= lastingFailure
		case act.State == reconcile.Ready, act.Reason == inProgress:
			todo++
		case act.State == reconcile.Blocked:
			blocked = append(blocked, act.Name+": "+act.Reason)
		case act.State == reconcile.Held:
			held = append(held, act.Name+": "+act.Reason)
		default:
			waiting = append(waiting, act.Name+": "+act.Reason)
		}
	}
	v := verdict{State: forge.Success}
	parts := []string{fmt.Sprintf("%d in sync", status.Summarize(a.plan).Synced)}
	part := func(state forge.State, what string, objects []string) {
		switch len(objects) {
		case 0:
			return
		case 1:
			parts = append(parts, what+" "+objects[0])
		default:
			parts = append(parts, fmt.Sprintf("%s %d (%s; …)", what, len(objects), objects[0]))
		}
		if v.State != forge.Failure {
			v.State = state
		}
	}
	broken := forge.Pending
	if lasting {
		broken = forge.Failure
	}
	part(broken, "failing:", failing)
	part(forge.Failure, "blocked:", blocked)
	part(forge.Pending, "held:", held)
	part(forge.Pending, "waiting:", waiting)
	if todo > 0 {
		parts = append(parts, fmt.Sprintf("%d to do", todo))
		if v.State != forge.Failure {
			v.State = forge.Pending
		}
	}
	v.Text = strings.Join(parts, ", ")
	return v
}

// listenAgain is how long the agent waits before it listens again: the address
// may not be there yet when the host comes up.
const listenAgain = 30 * time.Second

// listen has pushes told to us until ctx ends. Without it the agent looks at
// the repository with the interval, so no failure ends it.
func (a *Agent) listen(ctx context.Context) {
	said := ""
	for {
		err := a.cfg.Listen(ctx, func() { a.wake(trigger{fetch: true, why: "webhook"}) })
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			a.log.Warn("webhooks are not received; tried again", "error", err)
			a.events.warn("", "WebhookDown", said)
		}
		select {
		case <-time.After(listenAgain):
		case <-ctx.Done():
			return
		}
	}
}
