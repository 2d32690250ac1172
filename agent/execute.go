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
	op      reconcile.Op // of the action that failed; another one is not held up by it
	next    time.Time
	message string
}

// rest begins the next pause.
func (f *failure) rest(now time.Time) {
	f.count++
	wait := min(firstRetry<<min(f.count-1, 16), lastRetry)
	wait += time.Duration(rand.Int64N(int64(wait)/4 + 1))
	f.next = now.Add(wait)
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
	restart  *reconcile.Restart // that it fulfilled; a.mu
	late     bool               // its pass is over; a.mu
	ended    bool               // it does not run any more; a.mu
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
	a.linger(run)
	return a.finish(ctx, run)
}

// haste is how long a pass waits for its actions where something else has
// happened meanwhile, such as the end of a machine.
const haste = 500 * time.Millisecond

// linger waits for tasks, for as long as a pass may.
func (a *Agent) linger(run map[reconcile.Key]*task) {
	began := time.Now()
	most := time.NewTimer(grace)
	defer most.Stop()
	rush := (<-chan struct{})(a.rush)
	for _, t := range run {
	wait:
		for {
			select {
			case <-t.done:
				break wait
			case <-most.C:
				return
			case <-rush:
				rush = nil
				most.Reset(max(haste-time.Since(began), 0))
			}
		}
	}
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
	// Interruptions go one at a time; the next when the last is healthy. One that
	// was asked for by name does not wait for a guest that takes its time.
	if t.action.Kind == spec.KindVirtualMachine && t.action.Impact >= reconcile.ImpactRestart && !a.asksRestart(t.action.UID) {
		select {
		case a.interruption <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-a.interruption }()
	}
	leave, err := a.lanes.enter(ctx, a.lane(t.action))
	if err != nil {
		return err
	}
	defer leave()
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
	if err := a.writeDown(); err != nil {
		return err
	}
	now := a.cfg.Now()
	var charges []policy.Charge
	var acts []*reconcile.Action
	for _, t := range run {
		acts = append(acts, t.action)
		impact := policy.Interrupts(t.action)
		admitted, _, _ := a.cfg.Windows.Admits(impact, now)
		t.windowed = admitted && len(a.cfg.Windows.For(impact)) > 0
		if c, costs := policy.ChargeFor(t.action, now); costs {
			charges = append(charges, c)
			t.charge = &c
		}
	}
	if err := a.own(acts...); err != nil {
		return err
	}
	if len(charges) > 0 {
		if err := a.keep(func(m *memory) { m.Ledger = m.Ledger.With(a.clock(), charges) }); err != nil {
			return err
		}
	}
	err := a.keepBase(func(next applications) {
		for _, t := range run {
			next.base.Begin(t.action)
		}
	})
	for k, t := range run {
		if err == nil {
			a.running[k] = t
		} else if t.charge != nil { // nothing of it begins, so nothing of it costs
			t.err = errSkipped
			a.unwritten = append(a.unwritten, t)
		}
	}
	return err
}

// finish writes down what the tasks of a pass reached; the ones that go on do
// it themselves.
func (a *Agent) finish(ctx context.Context, run map[reconcile.Key]*task) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range run {
		select {
		case <-t.done:
			a.note(ctx, t)
		default:
			t.late = true
		}
	}
	return a.writeDown()
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

// note takes a task that ended out of what runs. What it reached is true whether
// or not it can be written down. a.mu is held.
func (a *Agent) note(ctx context.Context, t *task) {
	if t.ended {
		return
	}
	t.ended = true
	k := t.action.Key()
	delete(a.running, k)
	switch {
	case errors.Is(t.err, errSkipped):
	case ctx.Err() != nil && t.err != nil:
		return
	case t.err != nil:
		a.fail(k, t)
		return
	default:
		delete(a.failures, k)
		r, asked := a.mem.Restarts[k.UID]
		if asked && (t.action.Op == reconcile.OpRestart || t.action.Op == reconcile.OpStart) {
			t.restart = &r
		}
	}
	a.unwritten = append(a.unwritten, t)
}

// writeDown takes into the records what tasks reached. What could not be written
// is written before anything else begins. a.mu is held.
func (a *Agent) writeDown() error {
	var of, based []*task
	for _, t := range a.unwritten {
		if t.restart != nil || t.err != nil && t.charge != nil {
			of = append(of, t)
		}
		if t.err == nil {
			based = append(based, t)
		}
	}
	if len(of) > 0 {
		err := a.keep(func(m *memory) {
			for _, t := range of {
				if t.restart == nil { // it never began
					m.Ledger = slices.DeleteFunc(m.Ledger, func(c policy.Charge) bool {
						return c.At.Equal(t.charge.At) && c.UID == t.charge.UID && c.Made == t.charge.Made
					})
				} else if m.Restarts[t.action.UID] == *t.restart {
					delete(m.Restarts, t.action.UID)
				}
			}
		})
		if err != nil {
			return err
		}
	}
	if len(based) > 0 {
		err := a.keepBase(func(next applications) {
			for _, t := range based {
				next.base.Finish(t.action)
				next.revisions[t.action.Key()] = t.revision
			}
		})
		if err != nil {
			return err
		}
	}
	a.unwritten = nil
	return nil
}

// fail lets an object rest before it is tried again. a.mu is held.
func (a *Agent) fail(k reconcile.Key, t *task) {
	f := a.failures[k]
	if f == nil || f.op != t.action.Op {
		f = &failure{op: t.action.Op}
		a.failures[k] = f
	}
	f.rest(a.cfg.Now())
	if message := bounded(t.err.Error()); message != f.message {
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
	a.mu.Lock()
	first := a.repeated(act)
	a.mu.Unlock()
	if first {
		a.events.did(act, want.Revision, eventReasons[act.Op], summary(act))
	}
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
