package target

import (
	"net"
	"sync"

	"reconciler/drivers/iscsi/target/pdu"
)

// outPDU is a PDU on its way out. It owns own, in which data may lie.
type outPDU struct {
	hdr  pdu.Header
	hsum [pdu.DigestLen]byte
	data []byte
	tail [3 + pdu.DigestLen]byte // padding and data digest
	ntl  int
	own  *buffer
	// credit is given back to the session's inFree once the PDU is sent.
	credit int
	sense  [2 + 252 + 2]byte // where the data segment of a SCSI Response lies
}

// pduCost is about what a PDU on its way out takes beside its data, in bytes.
const pduCost = 512

var outPDUs = sync.Pool{New: func() any { return new(outPDU) }}

// newPDU returns an empty PDU with opcode and byte 1 set.
func newPDU(op, flags byte) *outPDU {
	p := outPDUs.Get().(*outPDU)
	p.hdr = pdu.Header{op, flags}
	p.data, p.own, p.ntl, p.credit = nil, nil, 0, 0
	return p
}

// setData gives the PDU its data segment and, where negotiated, its digest.
func (s *session) setData(p *outPDU, data []byte) {
	p.data = data
	p.hdr.SetDataLen(len(data))
	if len(data) == 0 {
		return
	}
	pad := pdu.Pad(len(data))
	clear(p.tail[:pad])
	p.ntl = pad
	if s.params.dataDigest {
		pdu.PutDigest(p.tail[pad:], pdu.Digest(data))
		p.ntl += pdu.DigestLen
	}
}

// statusKind says how a PDU treats StatSN (RFC 7143 §4.2.2.2): it takes one, it
// shows the next, or it has no such field.
type statusKind int

const (
	takesStatSN statusKind = iota
	showsStatSN
	noStatSN
)

// push appends a PDU to what is to be sent, in order with all others.
func (s *session) push(p *outPDU, kind statusKind) {
	s.mu.Lock()
	s.pushLocked(p, kind)
	s.mu.Unlock()
}

func (s *session) pushLocked(p *outPDU, kind statusKind) {
	if s.closed {
		s.discardLocked(p)
		return
	}
	h := &p.hdr
	if kind != noStatSN {
		h.PutU32(pdu.OffStatSN, s.statSN)
	}
	if kind == takesStatSN {
		s.statSN++
	}
	h.PutU32(pdu.OffExpCmdSN, s.expCmdSN)
	h.PutU32(pdu.OffMaxCmdSN, s.maxCmdSNLocked())
	if s.params.headerDigest {
		pdu.PutDigest(p.hsum[:], pdu.Digest(h[:]))
	}
	s.out = append(s.out, p)
	s.outBytes += pduCost + len(p.data)
}

func (s *session) discardLocked(p *outPDU) {
	if p.credit > 0 {
		s.inFree += p.credit
		s.inCond.Broadcast()
	}
	s.srv.pool.put(p.own)
	p.data, p.own = nil, nil
	outPDUs.Put(p)
}

// flush sends what was pushed. One goroutine sends at a time; another's flush
// returns at once, its PDUs going with the next write.
func (s *session) flush() {
	s.mu.Lock()
	if s.sending {
		s.mu.Unlock()
		return
	}
	s.sending = true
	for len(s.out) > 0 {
		batch := s.out
		s.out, s.outSpare, s.outBytes = s.outSpare[:0], nil, 0
		s.mu.Unlock()
		err := s.write(batch)
		s.mu.Lock()
		for i, p := range batch {
			s.discardLocked(p)
			batch[i] = nil
		}
		s.outSpare = batch[:0]
		s.sentCond.Broadcast()
		if err != nil {
			for _, p := range s.out {
				s.discardLocked(p)
			}
			s.out = s.out[:0]
			s.sending = false
			s.mu.Unlock()
			s.close()
			return
		}
		s.stats.sent.Add(1)
	}
	s.sending = false
	s.sentCond.Broadcast()
	s.mu.Unlock()
}

// sendAll is flush that returns when what was pushed before it has been sent,
// whoever sends it: for the last words of a session.
func (s *session) sendAll() {
	s.flush()
	s.mu.Lock()
	for s.sending && !s.closed {
		s.sentCond.Wait()
	}
	s.mu.Unlock()
}

// throttle holds the reader up while a peer that does not take what it is sent
// goes on to ask: NOPs and rejects have no window of their own.
func (s *session) throttle() {
	s.mu.Lock()
	for s.sending && s.outBytes > maxOutBytes && !s.closed {
		s.sentCond.Wait()
	}
	s.mu.Unlock()
}

func (s *session) write(batch []*outPDU) error {
	vec := s.vec[:0]
	for _, p := range batch {
		vec = append(vec, p.hdr[:])
		if s.params.headerDigest {
			vec = append(vec, p.hsum[:])
		}
		if len(p.data) > 0 {
			vec = append(vec, p.data)
		}
		if p.ntl > 0 {
			vec = append(vec, p.tail[:p.ntl])
		}
	}
	s.vec = vec
	_, err := (*net.Buffers)(&vec).WriteTo(s.nc)
	return err
}

// reject answers a PDU that is not acted upon, with its header (RFC 7143 §11.17).
func (s *session) reject(h *pdu.Header, reason byte) {
	p := newPDU(pdu.OpReject, pdu.Final)
	p.hdr[2] = reason
	p.hdr.PutU32(pdu.OffITT, pdu.Reserved)
	s.setData(p, append([]byte(nil), h[:]...))
	s.push(p, takesStatSN)
}
