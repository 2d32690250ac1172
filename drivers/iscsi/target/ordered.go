package target

import "reconciler/drivers/iscsi/target/pdu"

// An ORDERED task runs alone: after all that came before it on the nexus, before
// all that comes later, but for HEAD OF QUEUE (SAM-5 §8.6). Nearly nobody sends
// one, so that all a SIMPLE task pays is a look at an empty list.

// orderLocked reports whether the task has to wait for its turn, and then keeps
// it.
func (s *session) orderLocked(t *task) (waits bool) {
	switch {
	case t.attr == pdu.AttrHeadOfQueue:
		return false
	case !s.exclusive && len(s.parked) == 0 && t.attr != pdu.AttrOrdered:
		return false
	case !s.exclusive && len(s.parked) == 0 && s.activeLocked() == 1:
		s.exclusive = true // an ORDERED task, and nothing else is there
		return false
	}
	t.state = queued
	s.keepLocked(t)
	s.parked = append(s.parked, t)
	return true
}

// activeLocked counts the tasks that do not wait for their turn.
func (s *session) activeLocked() int { return len(s.tasks) - len(s.freeSlots) - len(s.parked) }

// nextLocked lets the tasks run whose turn has come with the end of another.
func (s *session) nextLocked() {
	for len(s.parked) > 0 && !s.exclusive {
		t := s.parked[0]
		if t.attr == pdu.AttrOrdered {
			if s.activeLocked() > 0 {
				return
			}
			s.exclusive = true
		}
		s.parked = s.parked[1:]
		s.enqueueLocked(t)
	}
}
