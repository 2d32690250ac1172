package target

import (
	"context"
	"fmt"
	"slices"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
)

// taskState is where a task stands; guarded by its session's mu.
type taskState int

const (
	collecting taskState = iota // data-out is still to come
	queued                      // for a worker
	running
)

// task is one SCSI command between its request and its response.
type task struct {
	s         *session
	slot      uint16
	immediate bool
	attr      byte // task attribute
	read      bool
	write     bool
	state     taskState
	// reading is set while the reader fills the task in; an abort then leaves it
	// to the reader to end it.
	reading  bool
	aborted  bool
	itt      uint32
	edtl     int
	cancel   context.CancelFunc // of a long command that runs
	barriers []*barrier         // wait for the task's end

	cmd    scsi.Command
	cdb    [260]byte
	outBuf *buffer
	outMax int // bytes of data-out that will be taken
	credit int // of the session's, held

	// The data-out sequence that is being received (RFC 7143 §11.8): all of
	// unsolicited data, or one R2T's.
	got    int // bytes received, in order from 0
	seqEnd int // where the sequence ends at most
	dataSN uint32
	r2tSN  uint32
	ttt    uint32
	broken uint16 // additional sense of a sequence that went wrong
	// unsolicited is set while data may come without having been asked for.
	unsolicited bool
}

// begin takes a slot for a command, of which there is one for each place in the
// window. ok is false when the session is closed or too many immediate commands
// are outstanding.
func (s *session) begin(h *pdu.Header) (t *task, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || h.IsImmediate() && len(s.freeSlots) <= s.srv.limits.QueueDepth-s.window {
		return nil, false
	}
	slot := s.freeSlots[len(s.freeSlots)-1]
	s.freeSlots = s.freeSlots[:len(s.freeSlots)-1]
	t = s.srv.newTask()
	t.s, t.slot, t.reading = s, slot, true
	t.immediate = h.IsImmediate()
	s.tasks[slot] = t
	return t, true
}

// endLocked gives back all that the task holds but what its response took over.
func (s *session) endLocked(t *task) {
	s.tasks[t.slot] = nil
	s.freeSlots = append(s.freeSlots, t.slot)
	if !t.immediate {
		s.window--
	}
	if t.state == running {
		s.running--
		if t.attr == pdu.AttrOrdered {
			s.exclusive = false
		}
		s.drainedLocked()
	}
	s.srv.pool.put(t.outBuf)
	t.outBuf = nil
	if t.credit > 0 {
		s.credit += t.credit
		t.credit = 0
		s.grantCreditLocked()
	}
	for _, b := range t.barriers {
		b.release()
	}
	s.srv.freeTask(t)
	if len(s.parked) > 0 {
		s.nextLocked()
	}
}

// abortLocked makes sure that the task, if it does not run yet, never will, and
// that no response is sent.
func (s *session) abortLocked(t *task) {
	if t.aborted {
		return
	}
	t.aborted = true
	if t.reading {
		return
	}
	switch t.state {
	case collecting:
		if i := slices.Index(s.waiting, t); i >= 0 {
			s.waiting = slices.Delete(s.waiting, i, i+1)
		}
		s.endLocked(t)
	case queued:
		for _, list := range []*[]*task{&s.queue, &s.parked} {
			if i := slices.Index(*list, t); i >= 0 {
				*list = slices.Delete(*list, i, i+1)
				if list == &s.queue && t.attr == pdu.AttrOrdered {
					s.exclusive = false
				}
			}
		}
		s.endLocked(t)
	case running:
		if t.cancel != nil {
			t.cancel()
		}
	}
}

// command acts on a SCSI Command (RFC 7143 §11.3).
func (s *session) command(h *pdu.Header, ahs, data []byte, own *buffer, f *framer) error {
	if s.lu == nil {
		s.srv.pool.put(own)
		s.unwind(h)
		s.reject(h, pdu.RejectProtocol) // a discovery session has text and logout only (§4.3)
		return nil
	}
	flags := h[1]
	edtl := int(h.U32(pdu.OffEDTL))
	write := flags&pdu.CommandWrite != 0
	final := flags&pdu.Final != 0
	switch {
	case len(data) > 0 && (!write || !s.params.immediateData || len(data) > edtl || len(data) > s.params.firstBurst),
		!final && (!write || s.params.initialR2T):
		s.srv.pool.put(own)
		return fmt.Errorf("%w: unsolicited data not agreed upon", errProtocol)
	}
	t, ok := s.begin(h)
	if !ok {
		s.srv.pool.put(own)
		s.unwind(h)
		s.reject(h, pdu.RejectImmediate)
		return nil
	}
	t.itt, t.edtl = h.ITT(), edtl
	t.write = write
	t.read = flags&pdu.CommandRead != 0
	t.attr = flags & pdu.CommandAttr
	n := copy(t.cdb[:], h[pdu.OffCDB:])
	if len(ahs) > 0 {
		rest, ok := pdu.ExtendedCDB(ahs)
		if !ok || n+len(rest) > len(t.cdb) {
			s.mu.Lock()
			s.endLocked(t)
			s.mu.Unlock()
			s.srv.pool.put(own)
			s.reject(h, pdu.RejectNotSupported)
			return nil
		}
		n += copy(t.cdb[n:], rest)
	}
	lun, ok := pdu.FlatLUN(h.LUN())
	if !ok {
		lun = h.LUN() | 1<<63 // no such unit
	}
	t.cmd = scsi.Command{Nexus: s.nexus, LUN: lun, CDB: t.cdb[:n]}
	s.stats.commands.Add(1)

	t.outMax = 0
	if write && edtl > 0 {
		t.outMax = s.lu.OutLen(t.cmd.CDB)
		if t.outMax < 0 || t.outMax > edtl {
			t.outMax = min(edtl, scsi.MaxTransfer)
		}
	}
	if !write || final && len(data) >= t.outMax {
		// All there is has come: the data is used where it lies if the command
		// runs here, before the next PDU is read.
		t.cmd.Out = data[:min(len(data), t.outMax)]
		t.outBuf = own
		return s.execute(t, f)
	}
	return s.collect(t, data, own, final)
}

// collect makes the task wait for data-out: the rest of the unsolicited, or what
// it asks for.
func (s *session) collect(t *task, data []byte, own *buffer, final bool) error {
	unsolicited := min(t.edtl, s.params.firstBurst)
	// What may come unasked is bounded by the window; a longer buffer is for
	// those that hold credit.
	room := min(t.outMax, unsolicited)
	if own != nil && cap(own.b) >= room {
		t.outBuf = own
	} else {
		t.outBuf = s.srv.pool.get(room)
		copy(t.outBuf.b, data[:min(len(data), room)])
		s.srv.pool.put(own)
	}
	t.got = len(data)
	t.dataSN = 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.handOverLocked(t) {
		return nil
	}
	if !final {
		t.unsolicited, t.seqEnd = true, unsolicited
		return nil
	}
	s.solicitLocked(t)
	return nil
}

// handOverLocked ends the reader's hold of the task; false says that the task
// was aborted meanwhile and is no more.
func (s *session) handOverLocked(t *task) bool {
	t.reading = false
	if t.aborted {
		s.endLocked(t)
		return false
	}
	return true
}

// solicitLocked asks for the next burst of data-out, as soon as there is room.
func (s *session) solicitLocked(t *task) {
	if t.outMax > len(t.outBuf.b) {
		if t.outMax > s.credit || len(s.waiting) > 0 {
			s.waiting = append(s.waiting, t)
			return
		}
		s.takeCreditLocked(t)
	}
	s.r2tLocked(t)
}

func (s *session) takeCreditLocked(t *task) {
	s.credit -= t.outMax
	t.credit = t.outMax
	b := s.srv.pool.get(t.outMax)
	copy(b.b, t.outBuf.b[:min(t.got, len(t.outBuf.b))])
	s.srv.pool.put(t.outBuf)
	t.outBuf = b
}

func (s *session) grantCreditLocked() {
	for len(s.waiting) > 0 && s.waiting[0].outMax <= s.credit {
		t := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.takeCreditLocked(t)
		s.r2tLocked(t)
	}
}

// r2tLocked sends an R2T for the burst that begins at t.got (RFC 7143 §11.8).
func (s *session) r2tLocked(t *task) {
	n := min(s.params.maxBurst, t.outMax-t.got)
	t.seqEnd = t.got + n
	t.dataSN = 0
	s.transfers++
	t.ttt = s.transfers<<16 | uint32(t.slot) // slots end well below 0xffff
	p := newPDU(pdu.OpR2T, pdu.Final)
	h := &p.hdr
	h.PutU32(pdu.OffITT, t.itt)
	h.PutU32(pdu.OffTTT, t.ttt)
	h.PutU32(pdu.OffDataSN, t.r2tSN)
	h.PutU32(pdu.OffBufOffset, uint32(t.got))
	h.PutU32(pdu.OffR2TLength, uint32(n))
	t.r2tSN++
	s.pushLocked(p, showsStatSN)
}

// receiverLocked finds the task that a Data-Out is for.
func (s *session) receiverLocked(itt, ttt uint32) *task {
	if ttt == pdu.Reserved {
		for _, t := range s.tasks {
			if t != nil && t.itt == itt && t.unsolicited && t.state == collecting {
				return t
			}
		}
		return nil
	}
	slot := int(ttt & 0xffff)
	if slot >= len(s.tasks) {
		return nil
	}
	t := s.tasks[slot]
	if t == nil || t.state != collecting || t.unsolicited || t.ttt != ttt || t.itt != itt {
		return nil
	}
	return t
}

// dataOut takes a SCSI Data-Out (RFC 7143 §11.7). One that is out of sequence or
// past what was asked for fails its command; no byte of that is written.
func (s *session) dataOut(f *framer) error {
	h := &f.hdr
	off, n := int(h.U32(pdu.OffBufOffset)), h.DataLen()
	final := h[1]&pdu.Final != 0
	s.mu.Lock()
	t := s.receiverLocked(h.ITT(), h.U32(pdu.OffTTT))
	if t == nil {
		s.mu.Unlock()
		return nil // of a task that was aborted; next skips the data
	}
	switch {
	case off+n > t.seqEnd, final && !t.unsolicited && off+n != t.seqEnd:
		t.broken = ascIncorrectAmount
	case h.U32(pdu.OffDataSN) != t.dataSN, off != t.got:
		t.broken = ascServiceCRC
	}
	if t.broken != 0 {
		// The task ends when the sequence does (§7.8); next skips the data.
		if final {
			s.failLocked(t, t.broken)
		}
		s.mu.Unlock()
		return nil
	}
	t.reading = true
	s.mu.Unlock()

	err := receive(f, t.outBuf.b[:min(len(t.outBuf.b), t.outMax)], off)

	s.mu.Lock()
	t.dataSN++
	t.got = off + n
	if !s.handOverLocked(t) || err != nil {
		s.mu.Unlock()
		return err
	}
	if !final {
		s.mu.Unlock()
		return nil
	}
	t.unsolicited = false
	if t.got < t.outMax {
		s.solicitLocked(t)
		s.mu.Unlock()
		return nil
	}
	t.reading = true
	s.mu.Unlock()
	t.cmd.Out = t.outBuf.b[:t.outMax]
	return s.execute(t, f)
}

// receive reads the data segment to buf[off:]; what is past the end of buf, which
// the initiator announced but the CDB does not ask for, is dropped.
func receive(f *framer, buf []byte, off int) error {
	n := f.hdr.DataLen()
	if off+n <= len(buf) {
		if n == 0 {
			return nil
		}
		return f.segmentInto(buf[off : off+n])
	}
	data, own, err := f.segment()
	if off < len(buf) {
		copy(buf[off:], data)
	}
	f.pool.put(own)
	return err
}
