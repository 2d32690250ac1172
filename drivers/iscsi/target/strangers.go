package target

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// What peers can make the server hold, and write, that have not proved who they
// are. Of a session that has, the bounds are in session.go.

// halfOpen bounds the connections that have proved nothing. When there are too
// many, the oldest goes of the address that has most: a login takes milliseconds,
// a peer that holds connections open does not, and one that opens them without end
// crowds out itself.
type halfOpen struct {
	limit int
	mu    sync.Mutex
	order []*net.TCPConn
}

func newHalfOpen(limit int) *halfOpen { return &halfOpen{limit: limit} }

func (h *halfOpen) add(nc *net.TCPConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limit <= 0 {
		return false
	}
	if len(h.order) >= h.limit {
		i := h.crowd()
		_ = h.order[i].Close()
		h.order = slices.Delete(h.order, i, i+1)
	}
	h.order = append(h.order, nc)
	return true
}

// crowd finds the oldest connection of the address that has most of them.
func (h *halfOpen) crowd() (oldest int) {
	count := make(map[netip.Addr]int, len(h.order))
	most := 0
	for _, nc := range h.order {
		a := addressOf(nc)
		count[a]++
		most = max(most, count[a])
	}
	return slices.IndexFunc(h.order, func(nc *net.TCPConn) bool { return count[addressOf(nc)] == most })
}

func addressOf(nc *net.TCPConn) netip.Addr {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// close closes all of them, and those that come.
func (h *halfOpen) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limit = 0
	for _, nc := range h.order {
		_ = nc.Close()
	}
}

func (h *halfOpen) remove(nc *net.TCPConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.order, nc); i >= 0 {
		h.order = slices.Delete(h.order, i, i+1)
	}
}

// discover makes s, of a discovery session, one of those that are bounded: it
// lasts no longer than a login, and gives way when there are too many.
func (srv *Server) discover(s *session) {
	_ = s.nc.SetDeadline(time.Now().Add(srv.limits.Login))
	if !srv.discoveries.add(s.nc) {
		_ = s.nc.Close()
	}
	srv.addSession(s)
}

const (
	strangerLines = 20
	strangerSpan  = 10 * time.Second
)

// strangerLog writes down what strangers do, so many lines in a span of time and
// then how many there were: the log lies where machines have their sockets.
type strangerLog struct {
	mu      sync.Mutex
	began   time.Time
	lines   int
	dropped int
}

// take says whether a line may be written now, and how many were not before it.
func (l *strangerLog) take(now time.Time) (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.began) >= strangerSpan {
		l.began, l.lines = now, 0
	}
	if l.lines >= strangerLines {
		l.dropped++
		return 0, false
	}
	l.lines++
	dropped, l.dropped = l.dropped, 0
	return dropped, true
}

func (srv *Server) logStranger(level slog.Level, message string, args ...any) {
	dropped, ok := srv.strangers.take(time.Now())
	if !ok {
		return
	}
	if dropped > 0 {
		args = append(args, "linesLeftOut", dropped)
	}
	srv.log.Log(srv.ctx, level, message, args...)
}

// cut shortens what a stranger said.
func cut(s string) string {
	if len(s) > maxNameLen {
		return s[:maxNameLen] + "…"
	}
	return s
}
