package target

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
)

const (
	maxQueueDepth = 1024
	// immediateTasks is how many immediate commands may be outstanding beside the
	// window (RFC 7143 §4.2.2.1 lets a target reject more).
	immediateTasks = 16
	// outCredit bounds the memory of writes that are longer than a first burst,
	// inCredit that of data-in not yet sent, in bytes per session.
	outCredit = 2 * scsi.MaxTransfer
	inCredit  = 2 * scsi.MaxTransfer
	// flushBytes is how much the reader lets gather before it sends.
	flushBytes = 256 << 10
	// maxHeldSession and maxHeld bound the requests that wait for an earlier one, in
	// bytes, of a session and of all.
	maxHeldSession = 1 << 20
	maxHeld        = 32 << 20
	// maxOutBytes is how much may wait behind a write to the connection.
	maxOutBytes = 4 << 20
)

// session is one session of one connection (MaxConnections=1) and its I_T nexus.
type session struct {
	srv       *Server
	tgt       *target // nil in a discovery session
	grant     *grant
	lu        LogicalUnit
	nexus     *scsi.Nexus
	nc        *net.TCPConn
	log       *slog.Logger
	initiator string
	isid      [6]byte
	tsih      uint16
	cid       uint16
	chapUser  string // what the initiator proved to be, in a discovery session
	since     time.Time
	// replaced counts the sessions of the same seat that this one, and those before
	// it, have ended by logging in; replacedFrom is where the last of them came from.
	replaced     int
	replacedFrom string
	params       params

	ctx    context.Context // of the session's commands
	cancel context.CancelFunc
	// drained is closed when the session is closed and nothing of it can reach
	// the volume any more.
	drained chan struct{}
	// gone is closed once the logical unit has forgotten the session, too.
	gone chan struct{}

	inline inlineState
	stats  sessionStats

	mu        sync.Mutex
	closed    bool
	expCmdSN  uint32
	depth     int // requests that may be outstanding
	window    int // those that were delivered and not answered
	transfers uint32
	statSN    uint32
	tasks     []*task  // by slot
	freeSlots []uint16 // of tasks
	running   int      // tasks that may touch the volume
	queue     []*task  // for workers
	parked    []*task  // behind an ORDERED task, it being the first or at work
	exclusive bool     // an ORDERED task has begun
	workers   int
	held      map[uint32]*heldPDU // by CmdSN, out of order
	heldBytes int
	credit    int       // of outCredit, free
	waiting   []*task   // for credit, in order
	inFree    int       // of inCredit, free
	inCond    sync.Cond // inFree grew, or closed
	textOut   []byte    // rest of a text response
	textTTT   uint32

	out      []*outPDU
	outSpare []*outPDU
	outBytes int
	sending  bool
	sentCond sync.Cond   // a write has ended, or closed
	vec      net.Buffers // the sender's
}

type sessionStats struct {
	commands, read, written atomic.Uint64
	received                atomic.Uint64 // PDUs, to tell a live peer
	sent                    atomic.Uint64
}

// heldPDU is a request that came before an earlier one (RFC 7143 §4.2.2.1).
type heldPDU struct {
	hdr  pdu.Header
	ahs  []byte
	data []byte
}

// cost is about what it takes, in bytes.
func (h *heldPDU) cost() int { return pduCost + len(h.ahs) + len(h.data) }

// close ends the session: no command begins any more, those not begun are
// dropped, long ones are told to stop, and the connection goes. It does not
// wait; drained says when the volume is out of reach. A caller may have a last
// PDU sent before: see finish.
func (s *session) close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	for _, t := range s.tasks {
		if t != nil {
			s.abortLocked(t)
		}
	}
	s.srv.heldBytes.Add(-int64(s.heldBytes))
	s.held, s.heldBytes = nil, 0
	s.inCond.Broadcast()
	s.sentCond.Broadcast()
	s.drainedLocked()
	s.mu.Unlock()
	s.cancel()
	_ = s.nc.Close()
}

// drainedLocked closes drained when the last command is through.
func (s *session) drainedLocked() {
	if s.closed && s.running == 0 {
		select {
		case <-s.drained:
		default:
			close(s.drained)
		}
	}
}

func (s *session) seat() seat { return seat{s.initiator, s.grant.Epoch} }

func (s *session) status() Session {
	st := Session{
		Initiator: s.initiator, Address: s.nc.RemoteAddr().String(), Since: s.since,
		Replaced: s.replaced, ReplacedFrom: s.replacedFrom,
		Commands: s.stats.commands.Load(), BytesRead: s.stats.read.Load(), BytesWritten: s.stats.written.Load(),
	}
	if s.grant != nil {
		st.Epoch, st.ReadOnly = s.grant.Epoch, s.grant.ReadOnly
	}
	s.mu.Lock()
	st.Draining = s.closed
	s.mu.Unlock()
	return st
}

// sequence takes a request's CmdSN (RFC 7143 §4.2.2.1): deliver it now, hold it
// until those before it have come, or ignore it, being outside of the window.
type order int

const (
	deliver order = iota
	hold
	ignore
)

func (s *session) sequenceLocked(h *pdu.Header) order {
	if h.IsImmediate() {
		return deliver
	}
	sn := h.U32(pdu.OffCmdSN)
	switch d := int32(sn - s.expCmdSN); {
	case d < 0 || d > int32(s.maxCmdSNLocked()-s.expCmdSN):
		return ignore
	case d > 0:
		if _, dup := s.held[sn]; dup {
			return ignore
		}
		return hold
	}
	s.expCmdSN++
	s.window++
	return deliver
}

// unwind gives back the place in the window of a request that is done with.
func (s *session) unwind(h *pdu.Header) {
	if h.IsImmediate() {
		return
	}
	s.mu.Lock()
	s.window--
	s.mu.Unlock()
}

// maxCmdSNLocked opens the window for as many commands as there is room for. It
// never goes back: a command that is taken moves expCmdSN and window alike.
func (s *session) maxCmdSNLocked() uint32 {
	return s.expCmdSN + uint32(s.depth-s.window) - 1
}

// readLoop reads requests and acts on them until the connection ends, or until
// another goroutine has taken the reading over from it (see inlineState).
func (s *session) readLoop(f *framer) {
	err := s.read(f)
	f.release()
	if err == errTakenOver {
		return
	}
	s.log.Debug("session ended", "reason", err)
	s.close()
	s.srv.sessionEnded(s)
}

func (s *session) read(f *framer) error {
	if err := s.deliverHeld(f); err != nil { // left when the reading was taken over
		return err
	}
	for {
		if !f.ready() {
			s.flush()
		}
		s.throttle()
		if err := f.next(); err != nil {
			return err
		}
		s.stats.received.Add(1)
		if err := s.request(f); err != nil {
			if err == errDataDigest {
				// ErrorRecoveryLevel 0: the initiator is told, then the session
				// fails (RFC 7143 §7.8, §7.1.4.1).
				s.reject(&f.hdr, pdu.RejectDataDigest)
				s.flush()
			}
			return err
		}
	}
}

// request acts on the PDU that f has read the header of.
func (s *session) request(f *framer) error {
	op := f.hdr.Opcode()
	if op == pdu.OpDataOut {
		return s.dataOut(f)
	}
	data, own, err := f.segment()
	if err != nil {
		return err
	}
	switch op {
	case pdu.OpSCSICommand, pdu.OpTaskRequest, pdu.OpTextRequest, pdu.OpLogoutRequest, pdu.OpNOPOut:
	default:
		s.srv.pool.put(own)
		s.reject(&f.hdr, pdu.RejectNotSupported)
		return nil
	}
	if op == pdu.OpNOPOut && !f.hdr.IsImmediate() && f.hdr.ITT() == pdu.Reserved {
		// An answer to a NOP-In carries the next CmdSN and does not use it up;
		// not being immediate it is out of order (RFC 7143 §11.18.1).
		s.srv.pool.put(own)
		return nil
	}
	s.mu.Lock()
	o := s.sequenceLocked(&f.hdr)
	if o == hold {
		err = s.holdLocked(&f.hdr, f.ahs, data)
	}
	s.mu.Unlock()
	if o != deliver {
		s.srv.pool.put(own)
		return err
	}
	if err := s.dispatch(&f.hdr, f.ahs, data, own, f); err != nil {
		return err
	}
	return s.deliverHeld(f)
}

// holdLocked keeps a request for later. An initiator sends them in order, so that
// one which comes early on the only connection there is waits for one that was
// lost: there is little to be kept, and a session that wants more has gone wrong.
func (s *session) holdLocked(h *pdu.Header, ahs, data []byte) error {
	p := &heldPDU{*h, append([]byte(nil), ahs...), append([]byte(nil), data...)}
	if s.closed {
		return errProtocol
	}
	if s.heldBytes+p.cost() > maxHeldSession || s.srv.heldBytes.Load() > maxHeld {
		return fmt.Errorf("%w: %d bytes wait for request %d, which does not come", errProtocol, s.heldBytes, s.expCmdSN)
	}
	s.held[h.U32(pdu.OffCmdSN)] = p
	s.heldBytes += p.cost()
	s.srv.heldBytes.Add(int64(p.cost()))
	return nil
}

// deliverHeld acts on the requests that waited for one before them.
func (s *session) deliverHeld(f *framer) error {
	for {
		s.mu.Lock()
		h := s.held[s.expCmdSN]
		if h == nil {
			s.mu.Unlock()
			return nil
		}
		delete(s.held, s.expCmdSN)
		s.heldBytes -= h.cost()
		s.srv.heldBytes.Add(-int64(h.cost()))
		s.expCmdSN++
		s.window++
		s.mu.Unlock()
		if err := s.dispatch(&h.hdr, h.ahs, h.data, nil, f); err != nil {
			return err
		}
	}
}

// dispatch acts on a request whose turn it is. data lies in own, which it takes,
// or is valid until dispatch returns.
func (s *session) dispatch(h *pdu.Header, ahs, data []byte, own *buffer, f *framer) error {
	switch h.Opcode() {
	case pdu.OpSCSICommand:
		return s.command(h, ahs, data, own, f)
	case pdu.OpNOPOut:
		s.nopOut(h, data)
	case pdu.OpTaskRequest:
		s.taskManagement(h)
	case pdu.OpTextRequest:
		s.text(h, data)
	case pdu.OpLogoutRequest:
		return s.logout(h)
	}
	s.srv.pool.put(own)
	s.unwind(h)
	return nil
}
