package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"reconciler/reconcile"
)

// news is what the repository said when it was last asked. It is asked beside the
// passes: a forge that accepts and never answers must not keep a machine off.
type news struct {
	n         int // which asking this was
	rev       Revision
	err       error // of the fetch
	forgotten error // why it cannot be told what was in force before
	at        time.Time
}

// ask asks the repository for its newest revision. It may take as long as the
// network does.
func (a *Agent) ask(ctx context.Context) *news {
	select {
	case a.asking <- struct{}{}:
		defer func() { <-a.asking }()
	case <-ctx.Done():
		return &news{err: ctx.Err()}
	}
	n := &news{forgotten: a.witness(ctx)}
	n.rev, n.err = a.cfg.Source.Fetch(ctx)
	n.at = a.cfg.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastAsked++
	n.n = a.lastAsked
	return n
}

// heard says whether news are newer than what a pass has seen. a.pass is held.
func (a *Agent) heard(n *news) bool {
	switch {
	case n == nil, n.n > 0 && n.n <= a.lastHeard:
		return false
	case n.n == 0: // it was not even asked
		return true
	}
	a.lastHeard = n.n
	return true
}

// patience is how long a pass that is due waits for the repository. One that
// answers by then saves a pass.
const patience = 2 * time.Second

// correspondent asks the repository whenever it is told to, for Run.
type correspondent struct {
	a    *Agent
	kick chan struct{}
	news chan *news // the newest
}

func newCorrespondent(a *Agent) *correspondent {
	return &correspondent{a: a, kick: make(chan struct{}, 1), news: make(chan *news, 1)}
}

// ask has the repository asked soon. Two requests become one.
func (c *correspondent) ask() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

func (c *correspondent) run(ctx context.Context) {
	for {
		select {
		case <-c.kick:
		case <-ctx.Done():
			return
		}
		n := c.a.ask(ctx)
		select {
		case <-c.news: // nobody has looked at it yet
		default:
		}
		c.news <- n
	}
}

// asides are errands of a pass that talk to the repository. The pass does not
// wait for them; it runs again where they found something.
type asides struct {
	mu      sync.Mutex
	running map[string]chan struct{}
	found   bool
}

// aside begins an errand, unless one of that name is under way. do says whether
// it found anything that a plan depends on.
func (a *Agent) aside(name string, do func(ctx context.Context) bool) {
	s := &a.asides
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[name] != nil {
		return
	}
	if s.running == nil {
		s.running = map[string]chan struct{}{}
	}
	done := make(chan struct{})
	s.running[name] = done
	a.tasks.Go(func() {
		found := do(a.life)
		s.mu.Lock()
		delete(s.running, name)
		s.found = s.found || found
		s.mu.Unlock()
		close(done)
		if found {
			a.wake(trigger{why: name})
		}
	})
}

// awaitAsides waits for what is under way and says whether anything was found
// since the last call.
func (a *Agent) awaitAsides(ctx context.Context) bool {
	s := &a.asides
	for {
		s.mu.Lock()
		var one chan struct{}
		for _, done := range s.running {
			one = done
		}
		found := s.found
		if one == nil {
			s.found = false
		}
		s.mu.Unlock()
		if one == nil {
			return found
		}
		select {
		case <-one:
		case <-ctx.Done():
			return false
		}
	}
}

// runPass asks the repository, if fetch is set, and brings the host to the
// revision in force; it also waits for what the pass had asked and for its report.
func (a *Agent) runPass(ctx context.Context, fetch bool, progress func(string)) (plan *reconcile.Plan, err error) {
	var n *news
	if fetch {
		n = a.ask(ctx)
	}
	for {
		plan, err = a.onePass(ctx, n, progress)
		if !a.awaitAsides(ctx) || err != nil {
			break
		}
		n = nil
	}
	flush(ctx, a.publisher)
	return plan, err
}

// settlePass notes whether a pass has to be tried again before the interval is
// over: the agent has no revision at all, or could not write its records.
func (a *Agent) settlePass(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var unwritten *recordError
	if err == nil || a.set != nil && !errors.As(err, &unwritten) {
		a.again = failure{}
		return
	}
	a.again.rest(a.cfg.Now())
}
