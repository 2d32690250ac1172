package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"reconciler/reconcile"
	"reconciler/status"
)

// observer asks a driver what is there. What it reads may never answer, such as
// a file system that is gone or a process the kernel holds on to; the question
// cannot be taken back, and while one stands that was given up no other is asked.
type observer struct {
	mu       sync.Mutex
	givenUp  int       // questions that still stand
	standing time.Time // when the first of them was asked
}

type sight struct {
	state reconcile.State
	err   error
}

// observe returns when ctx ends at the latest.
func (o *observer) observe(ctx context.Context, what string, d Driver, want *reconcile.Desired) (reconcile.State, error) {
	o.mu.Lock()
	givenUp, standing := o.givenUp, o.standing
	o.mu.Unlock()
	if givenUp > 0 {
		return reconcile.State{}, fmt.Errorf("observe %s: what was asked %s ago has not been answered", what, time.Since(standing).Round(time.Second))
	}
	asked, answer := time.Now(), make(chan sight, 1)
	go func() {
		s, err := d.Observe(ctx, want)
		answer <- sight{s, err}
	}()
	select {
	case a := <-answer:
		return a.state, a.err
	case <-ctx.Done():
	}
	o.mu.Lock()
	if o.givenUp++; o.givenUp == 1 {
		o.standing = asked
	}
	o.mu.Unlock()
	go func() {
		<-answer
		o.mu.Lock()
		o.givenUp--
		o.mu.Unlock()
	}()
	return reconcile.State{}, fmt.Errorf("observe %s: %w", what, ctx.Err())
}

// staleAfter is the least age at which a status counts as stale: with a short
// interval, a pass takes longer than two.
const staleAfter = 30 * time.Second

// aged is a status as it is to be shown now. One that no pass has made anew for
// two intervals says nothing of the present.
func (a *Agent) aged(h status.Host) status.Host {
	now := a.cfg.Now()
	age := now.Sub(h.ObservedAt)
	if age <= max(2*a.cfg.Interval, staleAfter) {
		return h
	}
	stale := []status.Condition{{
		Type: status.Ready, Status: status.Unknown, Reason: "Stale",
		Message: fmt.Sprintf("nothing was observed for %s: the pass that should have does not end", age.Round(time.Second)),
	}}
	status.Carry(stale, h.Conditions, now)
	for _, c := range h.Conditions {
		if c.Type != status.Ready {
			stale = append(stale, c)
		}
	}
	h.Conditions = stale
	return h
}
