package target

import (
	"encoding/binary"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
)

// respond ends a task that has run: its data-in and status go out, unless it was
// aborted.
func (s *session) respond(t *task, o outcome) {
	if o.N > 0 {
		s.stats.read.Add(uint64(o.N))
	}
	if len(t.cmd.Out) > 0 && o.Status == scsi.StatusGood {
		s.stats.written.Add(uint64(len(t.cmd.Out)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	silent := t.aborted || s.closed
	itt, sent := t.itt, t.r2tSN
	residual, flag := residuals(t, o)
	n := min(o.N, t.edtl)
	// The task gives its place in the window back before its status is numbered,
	// so that the status opens the window again.
	s.endLocked(t)
	if silent || n <= 0 {
		s.inFree += o.room
		if o.room > 0 {
			s.inCond.Broadcast()
		}
		s.srv.pool.put(o.in)
	}
	if silent {
		return
	}
	withStatus := n > 0 && o.Status == scsi.StatusGood
	if n > 0 {
		sent += s.dataInLocked(itt, o, n, withStatus, residual, flag)
	}
	if !withStatus {
		s.statusLocked(itt, sent, o, residual, flag)
	}
}

// residuals compares what the command moves with what the initiator expected
// (RFC 7143 §11.4.5).
func residuals(t *task, o outcome) (count uint32, flag byte) {
	moved := o.Want
	if t.read && o.Want <= t.edtl {
		moved = o.N
	}
	switch d := moved - t.edtl; {
	case d > 0:
		return uint32(d), pdu.ResidualOverflow
	case d < 0:
		return uint32(-d), pdu.ResidualUnderflow
	}
	return 0, 0
}

// dataInLocked sends n bytes of data-in, with a GOOD status in the last PDU where
// withStatus says so (RFC 7143 §11.7). It returns the number of PDUs.
func (s *session) dataInLocked(itt uint32, o outcome, n int, withStatus bool, residual uint32, flag byte) uint32 {
	var sn uint32
	burst := s.params.maxBurst
	for off := 0; off < n; {
		length := min(s.params.maxSend, n-off, burst)
		burst -= length
		last := off+length == n
		p := newPDU(pdu.OpDataIn, 0)
		h := &p.hdr
		if last || burst == 0 {
			h[1] = pdu.Final
			burst = s.params.maxBurst
		}
		h.PutU32(pdu.OffITT, itt)
		h.PutU32(pdu.OffTTT, pdu.Reserved)
		h.PutU32(pdu.OffDataSN, sn)
		h.PutU32(pdu.OffBufOffset, uint32(off))
		s.setData(p, o.in.b[off:off+length])
		kind := noStatSN
		if last {
			p.own, p.credit = o.in, o.room
			if withStatus {
				h[1] |= pdu.DataInStatus | flag
				h[3] = o.Status
				h.PutU32(pdu.OffResidual, residual)
				kind = takesStatSN
			}
		}
		s.pushLocked(p, kind)
		off += length
		sn++
	}
	return sn
}

// statusLocked sends a SCSI Response (RFC 7143 §11.4). sent counts the Data-In
// and R2T PDUs of the command.
func (s *session) statusLocked(itt, sent uint32, o outcome, residual uint32, flag byte) {
	p := newPDU(pdu.OpSCSIResponse, pdu.Final|flag)
	h := &p.hdr
	h[3] = o.Status
	h.PutU32(pdu.OffITT, itt)
	h.PutU32(pdu.OffDataSN, sent)
	h.PutU32(pdu.OffResidual, residual)
	if len(o.Sense) > 0 {
		n := copy(p.sense[2:2+252], o.Sense)
		binary.BigEndian.PutUint16(p.sense[:], uint16(n)) // §11.4.7.1, SenseLength
		s.setData(p, p.sense[:2+n])
	}
	s.pushLocked(p, takesStatSN)
}

// Additional sense that a target adds to a command whose data-out went wrong
// (RFC 7143 §11.4.7.2).
const (
	ascIncorrectAmount uint16 = 0x0c0d
	ascServiceCRC      uint16 = 0x4705
)

// failLocked ends a task that has not run with ABORTED COMMAND.
func (s *session) failLocked(t *task, asc uint16) {
	const abortedCommand = 0x0b
	o := outcome{}
	o.Status = scsi.StatusCheckCondition
	o.Sense = []byte{0: 0x70, 2: abortedCommand, 7: 10, 12: byte(asc >> 8), 13: byte(asc), 17: 0}
	itt, sent, edtl := t.itt, t.r2tSN, t.edtl
	s.endLocked(t)
	s.statusLocked(itt, sent, o, uint32(edtl), pdu.ResidualUnderflow)
}
