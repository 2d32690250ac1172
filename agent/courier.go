package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"reconciler/forge"
)

// errand is work outside of the host that follows from the newest of what its
// owner was handed.
type errand interface {
	// due says whether there is anything to do, and in how long.
	due(now time.Time) (wait time.Duration, ok bool)
	// carryOut does it, and says whether that went well.
	carryOut(ctx context.Context) bool
}

// Pauses after a failed errand: the first, doubled with each failure up to the last.
const (
	firstPause = 5 * time.Second
	lastPause  = 10 * time.Minute
)

// flushTime is how long `apply` waits at its end for errands that are due.
const flushTime = 10 * time.Second

// courier carries errands out beside the passes, which never wait for it.
type courier struct {
	kick  chan struct{}
	first time.Duration // firstPause but in tests

	failed int       // failures since the last success
	next   time.Time // when to try again
}

func newCourier() courier { return courier{kick: make(chan struct{}, 1), first: firstPause} }

// wake has the errand looked at again.
func (c *courier) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run carries an errand out whenever it is due, until ctx ends.
func (c *courier) run(ctx context.Context, e errand) {
	for ctx.Err() == nil {
		wait, due := e.due(time.Now())
		if due && wait == 0 {
			e.carryOut(ctx)
			continue
		}
		var timer <-chan time.Time
		if due {
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-c.kick:
		case <-ctx.Done():
		}
	}
}

// flush carries out at once what there is to do, until something fails.
func flush(ctx context.Context, e errand) {
	for ctx.Err() == nil {
		if _, due := e.due(time.Now()); !due || !e.carryOut(ctx) {
			return
		}
	}
}

// pause notes a failure, and says whether it is the first of a row.
func (c *courier) pause(now time.Time, err error) (first bool) {
	wait := min(c.first<<min(c.failed, 16), lastPause)
	wait += time.Duration(rand.Int64N(int64(wait)/4 + 1))
	var asked *forge.Error
	if errors.As(err, &asked) {
		wait = max(wait, asked.RetryAfter)
	}
	c.next = now.Add(wait)
	c.failed++
	return c.failed == 1
}

// resume notes a success, and says whether it ends a row of failures.
func (c *courier) resume() (again bool) {
	again = c.failed > 0
	c.failed, c.next = 0, time.Time{}
	return again
}

// startErrands begins to tell the forge what becomes of commits, and to bring
// drift back. stop waits for the calls under way; flush first does what is
// outstanding, for a while.
func (a *Agent) startErrands(ctx context.Context) (stop func(flushed bool)) {
	run, end := context.WithCancel(ctx)
	var errands []errand
	var wg sync.WaitGroup
	begin := func(c *courier, e errand) {
		errands = append(errands, e)
		wg.Go(func() { c.run(run, e) })
	}
	begin(&a.publisher.courier, a.publisher)
	if a.teller != nil {
		begin(&a.teller.courier, a.teller)
	}
	if a.proposer != nil {
		begin(&a.proposer.courier, a.proposer)
	}
	return func(flushed bool) {
		end()
		wg.Wait()
		if !flushed {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		for _, e := range errands {
			flush(ctx, e)
		}
	}
}
