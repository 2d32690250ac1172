package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
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

// errSkipped is the result of an action whose dependency failed.
var errSkipped = errors.New("skipped")

// execute runs every ready action, dependencies first, a few at a time. One
// object's failure holds up what depends on it and nothing else. The error is
// of the agent's own records only.
func (a *Agent) execute(ctx context.Context, want *reconcile.Desired, plan *reconcile.Plan, progress func(string)) error {
	run := map[reconcile.Key]*task{}
	for i := range plan.Actions {
		act := &plan.Actions[i]
		if act.State == reconcile.Ready && act.Op != reconcile.OpUnchanged {
			run[act.Key()] = &task{action: act, done: make(chan struct{})}
		}
	}
	if err := a.begin(run); err != nil {
		return err
	}
	slots := make(chan struct{}, a.cfg.Parallel)
	interruption := make(chan struct{}, 1) // one at a time; the next when the last is healthy
	var wg sync.WaitGroup
	for _, t := range run {
		wg.Go(func() {
			defer close(t.done)
			for _, k := range t.action.Dependencies() {
				if dep := run[k]; dep != nil {
					<-dep.done
					if dep.err != nil {
						t.err = errSkipped
						return
					}
				}
			}
			if t.action.Kind == spec.KindVirtualMachine && t.action.Impact >= reconcile.ImpactRestart {
				interruption <- struct{}{}
				defer func() { <-interruption }()
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			if t.err = ctx.Err(); t.err == nil {
				t.err = a.carryOut(ctx, want, t.action, progress)
			}
		})
	}
	wg.Wait()
	return a.finish(ctx, plan, run)
}

type task struct {
	action *reconcile.Action
	done   chan struct{}
	err    error
}

// begin writes down what is about to be tried, and what it costs.
func (a *Agent) begin(run map[reconcile.Key]*task) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	charged := false
	for _, t := range run {
		a.base.Begin(t.action)
		if c, costs := policy.ChargeFor(t.action, now); costs {
			a.mem.Ledger = append(a.mem.Ledger.Trim(now), c)
			charged = true
		}
	}
	if charged {
		if err := a.store.save(stateFile, a.mem); err != nil {
			return err
		}
	}
	return a.store.saveBase(a.base, a.revisions)
}

// finish writes down what was reached.
func (a *Agent) finish(ctx context.Context, plan *reconcile.Plan, run map[reconcile.Key]*task) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	asked := false
	for k, t := range run {
		switch {
		case errors.Is(t.err, errSkipped) || ctx.Err() != nil && t.err != nil:
		case t.err != nil:
			a.fail(k, t)
		default:
			delete(a.failures, k)
			a.base.Finish(t.action)
			a.revisions[k] = plan.Revision
			if _, ok := a.mem.Restarts[k.UID]; ok && t.action.Op == reconcile.OpRestart {
				delete(a.mem.Restarts, k.UID)
				asked = true
			}
		}
	}
	if asked {
		if err := a.store.save(stateFile, a.mem); err != nil {
			return err
		}
	}
	return a.store.saveBase(a.base, a.revisions)
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
		a.events.warn(objectName(t.action), "Failed", fmt.Sprintf("%s: %s", t.action.Op, message))
	}
}

func objectName(a *reconcile.Action) string { return string(a.Kind) + "/" + a.Name }

// carryOut runs one action and says so.
func (a *Agent) carryOut(ctx context.Context, want *reconcile.Desired, act *reconcile.Action, progress func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	name, began := objectName(act), a.cfg.Now()
	say := func(format string, args ...any) { progress(name + ": " + fmt.Sprintf(format, args...)) }
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
		a.log.Warn("action failed", "object", name, "op", act.Op, "cause", act.Cause, "took", took, "error", err)
		return err
	}
	say("%s done in %s", act.Op, took)
	a.log.Info("action done", "object", name, "op", act.Op, "cause", act.Cause, "impact", act.Impact.String(), "took", took)
	a.events.normal(name, string(act.Op), summary(act))
	return nil
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
