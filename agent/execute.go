package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
)

// failure is the back-off of one object.
type failure struct {
	count   int
	next    time.Time
	message string
}

// Bounds of the back-off and of one action.
const (
	firstRetry    = time.Second
	lastRetry     = 5 * time.Minute
	actionTimeout = 30 * time.Minute // the copy of a large image
)

// errSkipped is the result of an action that never began: its dependency failed,
// or its maintenance window closed.
var errSkipped = errors.New("skipped")

// grace is how long a pass waits for its actions. What takes longer goes on
// beside the passes after it, so that a slow guest or a large image holds up
// nobody else.
const grace = 5 * time.Second

// task is one action that runs.
type task struct {
	action   *reconcile.Action
	revision string
	done     chan struct{}
	err      error // once done is closed
	windowed bool  // it may begin because a maintenance window is open
	charge   *policy.Charge
	late     bool // its pass is over; a.mu
	noted    bool // what it reached is written down; a.mu
}

// execute starts every ready action, dependencies first, a few at a time. One
// object's failure holds up what depends on it and nothing else. The actions
// end with the agent, not with whoever waits for the pass. The error is of the
// agent's own records only.
func (a *Agent) execute(want *reconcile.Desired, plan *reconcile.Plan, progress func(string)) error {
	run := map[reconcile.Key]*task{}
	for i := range plan.Actions {
		act := &plan.Actions[i]
		if act.State == reconcile.Ready && act.Op != reconcile.OpUnchanged {
			run[act.Key()] = &task{action: act, revision: plan.Revision, done: make(chan struct{})}
		}
	}
	if err := a.begin(run); err != nil {
		return err
	}
	ctx := a.life
	for _, t := range run {
		a.tasks.Go(func() {
			t.err = a.await(ctx, run, t, want, progress)
			close(t.done)
			a.finishLate(ctx, t)
		})
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	for _, t := range run {
		select {
		case <-t.done:
		case <-late.Done():
		}
	}
	return a.finish(ctx, run)
}

// await runs one task when its dependencies are done and there is room.
func (a *Agent) await(ctx context.Context, run map[reconcile.Key]*task, t *task, want *reconcile.Desired, progress func(string)) error {
	for _, k := range t.action.Dependencies() {
		if dep := run[k]; dep != nil {
			<-dep.done
			if dep.err != nil {
				return errSkipped
			}
		}
	}
	// Interruptions go one at a time; the next when the last is healthy.
	if t.action.Kind == spec.KindVirtualMachine && t.action.Impact >= reconcile.ImpactRestart {
		a.interruption <- struct{}{}
		defer func() { <-a.interruption }()
	}
	a.slots <- struct{}{}
	defer func() { <-a.slots }()
	if err := ctx.Err(); err != nil {
		return err
	}
	// It may have waited for its turn until the window closed.
	if ok, _, _ := a.cfg.Windows.Admits(policy.Interrupts(t.action), a.cfg.Now()); t.windowed && !ok {
		return errSkipped
	}
	return a.carryOut(ctx, want, t.action, progress)
}

// begin writes down what is about to be tried, and what it costs.
func (a *Agent) begin(run map[reconcile.Key]*task) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	var charges []policy.Charge
	var acts []*reconcile.Action
	for k, t := range run {
		acts = append(acts, t.action)
		impact := policy.Interrupts(t.action)
		admitted, _, _ := a.cfg.Windows.Admits(impact, now)
		t.windowed = admitted && len(a.cfg.Windows.For(impact)) > 0
		a.base.Begin(t.action)
		a.running[k] = t
		if c, costs := policy.ChargeFor(t.action, now); costs {
			charges = append(charges, c)
			t.charge = &c
		}
	}
	if err := a.own(acts...); err != nil {
		return err
	}
	if len(charges) > 0 {
		a.mem.Ledger = a.mem.Ledger.With(now, charges)
		if err := a.store.save(stateFile, a.mem); err != nil {
			return err
		}
	}
	return a.store.saveBase(a.base, a.revisions)
}

// finish writes down what the tasks of a pass reached; the ones that go on do
// it themselves.
func (a *Agent) finish(ctx context.Context, run map[reconcile.Key]*task) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := false
	for _, t := range run {
		select {
		case <-t.done:
			changed = a.note(ctx, t) || changed
		default:
			t.late = true
		}
	}
	if changed {
		if err := a.store.save(stateFile, a.mem); err != nil {
			return err
		}
	}
	return a.store.saveBase(a.base, a.revisions)
}

// finishLate is finish for a task whose pass is over.
func (a *Agent) finishLate(ctx context.Context, t *task) {
	a.mu.Lock()
	late := t.late
	a.mu.Unlock()
	if !late {
		return
	}
	if err := a.finish(ctx, map[reconcile.Key]*task{t.action.Key(): t}); err != nil {
		a.log.Error("what an action reached could not be written down", "error", err)
	}
	a.wake(trigger{why: "an action ended"})
}

// note takes down what one task reached, and says whether the agent's memory
// changed. a.mu is held.
func (a *Agent) note(ctx context.Context, t *task) (changed bool) {
	if t.noted {
		return false
	}
	t.noted = true
	k := t.action.Key()
	delete(a.running, k)
	switch {
	case errors.Is(t.err, errSkipped):
		if t.charge != nil { // it never began
			a.mem.Ledger = slices.DeleteFunc(slices.Clone(a.mem.Ledger), func(c policy.Charge) bool { return c == *t.charge })
			return true
		}
	case ctx.Err() != nil && t.err != nil:
	case t.err != nil:
		a.fail(k, t)
	default:
		delete(a.failures, k)
		a.base.Finish(t.action)
		a.revisions[k] = t.revision
		_, asked := a.mem.Restarts[k.UID]
		if asked && (t.action.Op == reconcile.OpRestart || t.action.Op == reconcile.OpStart) {
			delete(a.mem.Restarts, k.UID)
			return true
		}
	}
	return false
}

// fail lets an object rest before it is tried again. a.mu is held.
func (a *Agent) fail(k reconcile.Key, t *task) {
	f := a.failures[k]
	if f == nil {
		f = &failure{}
		a.failures[k] = f
	}
	f.count++
	wait := min(firstRetry<<min(f.count-1, 16), lastRetry)
	wait += time.Duration(rand.Int64N(int64(wait)/4 + 1))
	f.next = a.cfg.Now().Add(wait)
	if message := t.err.Error(); message != f.message {
		f.message = message
		a.events.failed(t.action, t.revision, fmt.Sprintf("%s: %s", t.action.Op, message))
	}
}

func objectName(a *reconcile.Action) string { return string(a.Kind) + "/" + a.Name }

// carryOut runs one action and says so.
func (a *Agent) carryOut(ctx context.Context, want *reconcile.Desired, act *reconcile.Action, progress func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	name, began := objectName(act), a.cfg.Now()
	say := func(format string, args ...any) { progress(name + ": " + fmt.Sprintf(format, args...)) }
	a.log.Debug("action", "object", name, "op", act.Op, "id", act.ID)
	var err error
	switch act.Kind {
	case spec.KindVirtualMachine:
		err = a.machine(ctx, want, act, say)
	case spec.KindDisk, spec.KindStoragePool, spec.KindImage:
		_, err = a.cfg.Storage.Apply(ctx, *act, reconcile.Inputs{BootID: a.bootID, Progress: say})
	default:
		// Declared kinds have nothing of their own on the host: base is the record.
	}
	took := a.cfg.Now().Sub(began).Round(time.Millisecond)
	if err != nil {
		say("%s failed after %s: %v", act.Op, took, err)
		a.log.Warn("action failed", "object", name, "op", act.Op, "id", act.ID, "cause", act.Cause, "took", took, "error", err)
		return err
	}
	say("%s done in %s", act.Op, took)
	a.log.Info("action done", "object", name, "op", act.Op, "id", act.ID, "cause", act.Cause, "impact", act.Impact.String(), "took", took)
	a.events.did(act, want.Revision, eventReasons[act.Op], summary(act))
	return nil
}

// eventReasons are the operations as reasons of events.
var eventReasons = map[reconcile.Op]string{
	reconcile.OpCreate: "Created", reconcile.OpUpdate: "Updated", reconcile.OpStart: "Started", reconcile.OpStop: "Stopped",
	reconcile.OpRestart: "Restarted", reconcile.OpDelete: "Deleted", reconcile.OpQuarantine: "Quarantined",
	reconcile.OpRestore: "Restored", reconcile.OpPurge: "Purged",
}

// summary says what an action did, in a line.
func summary(act *reconcile.Action) string {
	s := string(act.Op)
	if act.Op != reconcile.OpCreate {
		for _, c := range act.Changes {
			if c.Waits == "" {
				s += fmt.Sprintf(", %s %q → %q", c.Field, c.From, c.To)
			}
		}
	}
	if act.Reason != "" {
		s += " (" + act.Reason + ")"
	}
	return fmt.Sprintf("%s; cause %s", s, act.Cause)
}
