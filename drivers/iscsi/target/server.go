package target

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/claim"
	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
)

var noSecret claim.Secret

// Server serves exports to initiators. All that it knows is in it.
type Server struct {
	cfg      Config
	limits   Limits
	log      *slog.Logger
	pool     bufferPool
	tasks    sync.Pool
	watch    *watch
	halfOpen *halfOpen
	// discoveries are the sessions that list targets, and need no authentication.
	discoveries *halfOpen
	portals     *portals
	state       *store

	strangers strangerLog
	heldBytes atomic.Int64 // of all sessions

	ctx   context.Context // of the server's life
	conns sync.WaitGroup

	mu       sync.RWMutex
	targets  map[string]*target
	sessions map[*session]struct{} // logged in, of all targets and of discovery
	nextTSIH uint16
}

func newServer(ctx context.Context, cfg Config) *Server {
	srv := &Server{
		cfg: cfg, limits: cfg.Limits.withDefaults(), log: cfg.Logger, ctx: ctx,
		targets:  make(map[string]*target),
		sessions: make(map[*session]struct{}),
		nextTSIH: uint16(rand.IntN(1 << 15)),
	}
	srv.tasks.New = func() any { return new(task) }
	srv.watch = newWatch(srv)
	srv.halfOpen = newHalfOpen(srv.limits.HalfOpen)
	srv.discoveries = newHalfOpen(srv.limits.Discoveries)
	srv.portals = newPortals(srv)
	return srv
}

func (srv *Server) newTask() *task { return srv.tasks.Get().(*task) }

func (srv *Server) freeTask(t *task) {
	cdb := t.cdb
	*t = task{cdb: cdb} // the CDB is overwritten before it is read
	srv.tasks.Put(t)
}

// lookup finds a target that is reached through a portal, by any spelling of its
// name.
func (srv *Server) lookup(iqn, portal string) *target {
	srv.mu.RLock()
	t := srv.targets[iqn]
	if t == nil {
		for name, other := range srv.targets {
			if scsi.FoldName(name) == scsi.FoldName(iqn) {
				t = other
			}
		}
	}
	srv.mu.RUnlock()
	if t == nil || !slices.Contains(t.describe().Portals, portal) {
		return nil
	}
	return t
}

func (srv *Server) allTargets() []*target {
	srv.mu.RLock()
	defer srv.mu.RUnlock()
	list := make([]*target, 0, len(srv.targets))
	for _, t := range srv.targets {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b *target) int {
		if a.iqn < b.iqn {
			return -1
		}
		return 1
	})
	return list
}

// grantsOf returns all grants that name an initiator.
func (srv *Server) grantsOf(initiator string) []*grant {
	var out []*grant
	for _, t := range srv.allTargets() {
		out = append(out, t.grantsOf(initiator)...)
	}
	return out
}

// visibleTo lists the targets that an initiator may log in to; one that proved
// to be a CHAP user sees that user's.
func (srv *Server) visibleTo(initiator, user string) []Export {
	var out []Export
	for _, t := range srv.allTargets() {
		if slices.ContainsFunc(t.grantsOf(initiator), func(g *grant) bool { return user == "" || g.User == user || g.User == "" }) {
			out = append(out, t.describe())
		}
	}
	return out
}

// discoveryCHAP says whether an export of a portal has discovery authenticate.
func (srv *Server) discoveryCHAP(portal string) bool {
	return slices.ContainsFunc(srv.allTargets(), func(t *target) bool {
		e := t.describe()
		return e.DiscoveryCHAP && slices.Contains(e.Portals, portal)
	})
}

func (srv *Server) hasTSIH(tsih uint16) bool {
	srv.mu.RLock()
	defer srv.mu.RUnlock()
	for s := range srv.sessions {
		if s.tsih == tsih {
			return true
		}
	}
	return false
}

func (srv *Server) addSession(s *session) {
	srv.mu.Lock()
	srv.sessions[s] = struct{}{}
	srv.mu.Unlock()
}

func (srv *Server) allSessions() []*session {
	srv.mu.RLock()
	defer srv.mu.RUnlock()
	list := make([]*session, 0, len(srv.sessions))
	for s := range srv.sessions {
		list = append(list, s)
	}
	return list
}

// newSession makes the session that a login has agreed upon.
func (srv *Server) newSession(l *login) *session {
	srv.mu.Lock()
	srv.nextTSIH++
	if srv.nextTSIH == 0 { // reserved for "new session" (RFC 7143 §11.12.6)
		srv.nextTSIH++
	}
	tsih := srv.nextTSIH
	srv.mu.Unlock()
	depth, slots := srv.limits.QueueDepth, srv.limits.QueueDepth+immediateTasks
	if l.discovery {
		depth, slots = l.depth(), 0 // one request after the other, and no commands
	}
	s := &session{
		srv: srv, tgt: l.tgt, grant: l.grant, nc: l.nc, log: srv.log.With("initiator", l.initiator),
		initiator: l.initiator, isid: l.isid, tsih: tsih, cid: l.cid, chapUser: l.chapUser,
		since: time.Now(), params: l.params,
		drained: make(chan struct{}), gone: make(chan struct{}),
		expCmdSN: l.f.hdr.U32(pdu.OffCmdSN), depth: depth, held: make(map[uint32]*heldPDU),
		tasks: make([]*task, slots), freeSlots: make([]uint16, slots),
		credit: outCredit, inFree: inCredit,
	}
	s.inCond.L, s.sentCond.L = &s.mu, &s.mu
	for i := range s.freeSlots {
		s.freeSlots[i] = uint16(slots - 1 - i)
	}
	s.ctx, s.cancel = context.WithCancel(srv.ctx)
	if l.tgt != nil {
		s.nexus = scsi.NewNexus(l.initiator, l.isid, portalGroup, l.grant.ReadOnly)
		s.nexus.Owner = l.grant.Epoch
		s.log = s.log.With("target", l.tgt.iqn)
	}
	return s
}

// sessionEnded waits until nothing of a closed session is left and forgets it.
func (srv *Server) sessionEnded(s *session) {
	<-s.drained
	if s.tgt != nil {
		s.tgt.ended(s)
	} else {
		srv.discoveries.remove(s.nc)
	}
	srv.mu.Lock()
	delete(srv.sessions, s)
	srv.mu.Unlock()
	close(s.gone)
}

// serve takes a connection, one of the half-open, from its first byte to its end.
func (srv *Server) serve(nc *net.TCPConn, portal string) {
	defer srv.conns.Done()
	tune(nc)
	f, err := newFramer(nc, &srv.pool)
	if err != nil {
		srv.halfOpen.remove(nc)
		_ = nc.Close()
		return
	}
	_ = nc.SetDeadline(time.Now().Add(srv.limits.Login))
	l := &login{srv: srv, portal: portal, nc: nc, f: f, statSN: rand.Uint32()}
	s, err := l.run(srv.ctx)
	srv.halfOpen.remove(nc)
	if err != nil {
		f.release()
		var refused *loginError
		if errors.As(err, &refused) {
			l.fail(refused.status)
			srv.logStranger(slog.LevelInfo, "login refused", "initiator", cut(l.initiator), "address", nc.RemoteAddr().String(), "reason", cut(refused.reason))
		}
		_ = nc.Close()
		return
	}
	if s.tgt == nil {
		srv.logStranger(slog.LevelInfo, "discovery", "initiator", s.initiator, "address", nc.RemoteAddr().String())
	} else {
		_ = nc.SetDeadline(time.Time{})
		f = f.widened()
		s.log.Info("session begins", "address", nc.RemoteAddr().String())
	}
	f.headerDigest, f.dataDigest = s.params.headerDigest, s.params.dataDigest
	s.readLoop(f)
}

// tune sets what RFC 7143 leaves to TCP: small PDUs leave at once, and a peer
// that takes nothing for long is given up.
func tune(nc *net.TCPConn) {
	_ = nc.SetNoDelay(true)
	raw, err := nc.SyscallConn()
	if err != nil {
		return
	}
	const giveUp = 60 * time.Second
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(giveUp.Milliseconds()))
	})
}

// announceDrop tells the initiator that the session is about to end and that
// there is no use in coming back soon (RFC 7143 §11.9.1).
func (s *session) announceDrop() {
	_ = s.nc.SetWriteDeadline(time.Now().Add(time.Second))
	s.asyncEvent(pdu.AsyncDropSession, 0, 2, 0)
}

// uidBytes decodes a disk's UID for the logical unit; one that is no UUID is
// left out of the designators.
func uidBytes(uid string) (out [16]byte) {
	var n int
	var buf [32]byte
	for i := range len(uid) {
		c := uid[i]
		switch {
		case c == '-':
			continue
		case n == len(buf):
			return [16]byte{}
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return [16]byte{}
		}
		buf[n] = c
		n++
	}
	if n != len(buf) {
		return [16]byte{}
	}
	var hi, lo uint64
	for i, c := range buf {
		if i < 16 {
			hi = hi<<4 | uint64(c)
		} else {
			lo = lo<<4 | uint64(c)
		}
	}
	binary.BigEndian.PutUint64(out[:8], hi)
	binary.BigEndian.PutUint64(out[8:], lo)
	return out
}
