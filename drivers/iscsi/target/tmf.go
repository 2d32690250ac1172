package target

import (
	"sync/atomic"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
)

// barrier runs done, on a goroutine of its own, when all that it waits for has
// ended. It is made with one more to wait for, so that it cannot run while tasks
// are still being added.
type barrier struct {
	n    atomic.Int64
	done func()
}

func newBarrier(done func()) *barrier {
	b := &barrier{done: done}
	b.n.Store(1)
	return b
}

func (b *barrier) release() {
	if b.n.Add(-1) == 0 {
		go b.done()
	}
}

// abort aborts the tasks that match and makes b wait for those that are at the
// volume: the response to a task management function says that it is over
// (RFC 7143 §11.6.1).
func (s *session) abort(b *barrier, match func(*task) bool) (found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if t == nil || t.aborted || !match(t) {
			continue
		}
		found = true
		b.n.Add(1)
		t.barriers = append(t.barriers, b)
		s.abortLocked(t)
	}
	return found
}

func anyTask(*task) bool { return true }

// taskManagement acts on a Task Management Function Request (RFC 7143 §11.5).
// The answer comes when the tasks concerned are over; the reader does not wait.
func (s *session) taskManagement(h *pdu.Header) {
	function := h[1] &^ pdu.Final
	itt := h.ITT()
	if s.lu == nil {
		s.reject(h, pdu.RejectProtocol)
		return
	}
	answer := func(response byte) {
		p := newPDU(pdu.OpTaskResponse, pdu.Final)
		p.hdr[2] = response
		p.hdr.PutU32(pdu.OffITT, itt)
		s.push(p, takesStatSN)
	}
	later := func(response byte) *barrier {
		return newBarrier(func() { answer(response); s.flush() })
	}
	reset := func(kind scsi.ResetKind, after func()) {
		// A reset disturbs every initiator of the unit: it takes the right to
		// write.
		if s.grant.ReadOnly {
			answer(pdu.TaskNotAuthorized)
			return
		}
		b := newBarrier(func() {
			s.lu.Reset(s.nexus, kind)
			answer(pdu.TaskComplete)
			if after == nil {
				s.flush()
				return
			}
			s.sendAll()
			after()
		})
		s.tgt.eachSession(func(o *session) { o.abort(b, anyTask) })
		b.release()
	}
	lun, flat := pdu.FlatLUN(h.LUN())
	if flat = flat && lun == 0; !flat && function != pdu.TaskWarmReset && function != pdu.TaskColdReset {
		answer(pdu.TaskLUNNotExist)
		return
	}
	switch function {
	case pdu.TaskAbort:
		ref := h.U32(pdu.OffRefTag)
		b := later(pdu.TaskComplete)
		if s.abort(b, func(t *task) bool { return t.itt == ref }) {
			b.release()
			return
		}
		answer(pdu.TaskNotExist)
	case pdu.TaskAbortSet:
		b := later(pdu.TaskComplete)
		s.abort(b, anyTask)
		b.release()
	case pdu.TaskClearSet:
		reset(scsi.ClearTaskSet, nil)
	case pdu.TaskLUReset:
		reset(scsi.LUReset, nil)
	case pdu.TaskWarmReset:
		reset(scsi.TargetReset, nil)
	case pdu.TaskColdReset:
		// All sessions end (RFC 7143 §11.5.1); the requester's after it has its
		// answer.
		reset(scsi.TargetReset, func() { s.tgt.eachSession((*session).close) })
	case pdu.TaskNexusReset:
		b := newBarrier(func() {
			s.lu.Reset(s.nexus, scsi.NexusReset)
			answer(pdu.TaskComplete)
			s.flush()
		})
		s.abort(b, anyTask)
		b.release()
	case pdu.TaskQuery, pdu.TaskQuerySet:
		ref := h.U32(pdu.OffRefTag)
		s.mu.Lock()
		found := false
		for _, t := range s.tasks {
			found = found || t != nil && !t.aborted && (function == pdu.TaskQuerySet || t.itt == ref)
		}
		s.mu.Unlock()
		if found {
			answer(pdu.TaskFunctionSuccess)
		} else {
			answer(pdu.TaskComplete)
		}
	case pdu.TaskReassign:
		answer(pdu.TaskNoReassign)
	default:
		answer(pdu.TaskNotSupported)
	}
}
