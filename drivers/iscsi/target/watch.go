package target

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	watchTick = 4 * time.Millisecond
	watchIdle = 50 // ticks without a command after which the watch sleeps
)

// watch looks after readers that run commands themselves. It sleeps while there
// are none.
type watch struct {
	srv    *Server
	asleep atomic.Bool
	bell   chan struct{}
}

func newWatch(srv *Server) *watch { return &watch{srv: srv, bell: make(chan struct{}, 1)} }

// wake is called after a reader has marked itself as running a command.
func (w *watch) wake() {
	if w.asleep.Load() && w.asleep.CompareAndSwap(true, false) {
		w.bell <- struct{}{}
	}
}

func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	for quiet := 0; ; {
		if w.look() {
			quiet = 0
		} else if quiet++; quiet > watchIdle {
			// A reader that marks itself after this store wakes us; one that did
			// before is seen by this look.
			w.asleep.Store(true)
			if !w.look() || !w.asleep.CompareAndSwap(true, false) {
				select {
				case <-w.bell:
				case <-ctx.Done():
					return
				}
			}
			quiet = 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look has the reading of every session whose reader is still running the command
// that it ran one tick ago taken over. It reports whether any session is active.
func (w *watch) look() (active bool) {
	for _, s := range w.srv.allSessions() {
		seq := s.inline.seq.Load()
		if seq&1 == 1 && seq == s.inline.watched {
			s.takeOver(seq)
		}
		if seq != s.inline.watched {
			active = true
		}
		s.inline.watched = seq
	}
	return active
}

// keepAlive asks initiators that are silent for a sign of life and drops those
// that give none (RFC 7143 §11.19).
func (srv *Server) keepAlive(ctx context.Context) {
	type seen struct {
		received uint64
		since    time.Time
		asked    bool
	}
	known := make(map[*session]*seen)
	tick := time.NewTicker(srv.limits.Nop / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		current := make(map[*session]*seen)
		for _, s := range srv.allSessions() {
			k := known[s]
			n := s.stats.received.Load()
			if k == nil || k.received != n {
				k = &seen{received: n, since: now}
			}
			current[s] = k
			switch silent := now.Sub(k.since); {
			case silent >= 2*srv.limits.Nop:
				s.log.Warn("initiator does not answer", "silence", silent.String())
				s.close()
			case silent >= srv.limits.Nop && !k.asked:
				k.asked = true
				// The connection may be stuck: whoever sends may wait for long.
				go s.ping()
			}
		}
		known = current
	}
}
