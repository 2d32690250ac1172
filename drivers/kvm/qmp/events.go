package qmp

import (
	"encoding/json"
	"time"
)

// Event is something QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time // QEMU's clock
	// Lost says that events before this one were dropped, because nobody took
	// them in time: whatever was concluded from events is invalid.
	Lost bool
}

// Subscription is a bounded queue of events. A slow reader never delays the
// connection: the oldest events are dropped and the next one is marked Lost.
type Subscription struct {
	c    chan Event
	conn *Conn
	lost bool // guarded by conn.subMu
}

// C is where events arrive. It is closed when the connection or the
// subscription is.
func (s *Subscription) C() <-chan Event { return s.c }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.conn.subMu.Lock()
	defer s.conn.subMu.Unlock()
	if _, ok := s.conn.subs[s]; ok {
		delete(s.conn.subs, s)
		close(s.c)
	}
}

// Subscribe starts a queue of up to size events, at least one.
func (c *Conn) Subscribe(size int) *Subscription {
	s := &Subscription{c: make(chan Event, max(size, 1)), conn: c}
	c.subMu.Lock()
	defer c.subMu.Unlock()
	if c.subs == nil {
		close(s.c)
		return s
	}
	c.subs[s] = struct{}{}
	return s
}

// put is only called by the reader of the connection, under subMu.
func (s *Subscription) put(e Event) {
	for {
		e.Lost = s.lost
		select {
		case s.c <- e:
			s.lost = false
			return
		default:
		}
		select {
		case <-s.c:
			s.lost = true
		default:
		}
	}
}

func (c *Conn) publish(e Event) {
	c.subMu.Lock()
	defer c.subMu.Unlock()
	for s := range c.subs {
		s.put(e)
	}
}

func (c *Conn) closeSubscriptions() {
	c.subMu.Lock()
	defer c.subMu.Unlock()
	for s := range c.subs {
		close(s.c)
	}
	c.subs = nil
}
