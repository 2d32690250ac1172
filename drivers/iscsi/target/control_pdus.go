package target

import (
	"errors"

	"reconciler/drivers/iscsi/target/pdu"
)

var errLogout = errors.New("logged out")

// nopOut answers a ping with its data (RFC 7143 §11.18, §11.19); one without a
// task tag is itself an answer.
func (s *session) nopOut(h *pdu.Header, data []byte) {
	if h.ITT() == pdu.Reserved {
		return
	}
	p := newPDU(pdu.OpNOPIn, pdu.Final)
	p.hdr.PutU32(pdu.OffITT, h.ITT())
	p.hdr.PutU32(pdu.OffTTT, pdu.Reserved)
	if n := min(len(data), s.params.maxSend); n > 0 {
		p.own = s.srv.pool.get(n)
		s.setData(p, p.own.b[:copy(p.own.b, data[:n])])
	}
	s.push(p, takesStatSN)
}

// ping asks the initiator for a sign of life (RFC 7143 §11.19).
func (s *session) ping() {
	p := newPDU(pdu.OpNOPIn, pdu.Final)
	p.hdr.PutU32(pdu.OffITT, pdu.Reserved)
	p.hdr.PutU32(pdu.OffTTT, 1)
	s.push(p, showsStatSN)
	s.flush()
}

// asyncEvent tells the initiator what the target is about to do (RFC 7143 §11.9).
func (s *session) asyncEvent(event byte, param1, param2, param3 uint16) {
	p := newPDU(pdu.OpAsync, pdu.Final)
	h := &p.hdr
	h.PutU32(pdu.OffITT, pdu.Reserved)
	h[36] = event
	h[38], h[39] = byte(param1>>8), byte(param1)
	h[40], h[41] = byte(param2>>8), byte(param2)
	h[42], h[43] = byte(param3>>8), byte(param3)
	s.push(p, takesStatSN)
	s.flush()
}

// logout ends the session once its commands are through (RFC 7143 §11.14,
// §11.15). Only closing the session, or its one connection, is possible.
func (s *session) logout(h *pdu.Header) error {
	const closeSession, closeConnection = 0, 1
	reason := h[1] &^ pdu.Final
	itt := h.ITT()
	answer := func(response byte) {
		p := newPDU(pdu.OpLogoutResponse, pdu.Final)
		p.hdr[2] = response
		p.hdr.PutU32(pdu.OffITT, itt)
		s.push(p, takesStatSN)
		s.sendAll()
	}
	switch {
	case reason == closeConnection && h.U32(pdu.OffCID)>>16 != uint32(s.cid):
		answer(1) // CID not found
		s.unwind(h)
		return nil
	case reason != closeSession && reason != closeConnection:
		answer(2) // connection recovery is not supported
		s.unwind(h)
		return nil
	}
	through := make(chan struct{})
	b := newBarrier(func() { close(through) })
	s.mu.Lock()
	for _, t := range s.tasks {
		if t == nil {
			continue
		}
		if t.state == collecting { // its data will not come any more
			s.abortLocked(t)
			continue
		}
		b.n.Add(1)
		t.barriers = append(t.barriers, b)
	}
	s.mu.Unlock()
	b.release()
	select {
	case <-through:
		answer(0)
	case <-s.ctx.Done():
	}
	return errLogout
}
