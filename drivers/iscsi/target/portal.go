package target

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// portals are the addresses that the server listens on: those that an export
// names, each as long as one does.
type portals struct {
	srv *Server

	mu   sync.Mutex
	list map[string]*portal
}

type portal struct {
	addr string
	refs map[string]bool // IQNs
	ln   *net.TCPListener
	err  error
	stop context.CancelFunc
}

func newPortals(srv *Server) *portals {
	return &portals{srv: srv, list: make(map[string]*portal)}
}

// set makes an export reachable through addrs and no others. The error, of the
// portals that cannot be listened on now, does not undo that: they are tried
// again until they can.
func (ps *portals) set(iqn string, addrs []string) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var errs []error
	want := make(map[string]bool)
	for _, a := range addrs {
		want[a] = true
		p := ps.list[a]
		if p == nil {
			p = ps.open(a)
		}
		p.refs[iqn] = true
		if p.err != nil {
			errs = append(errs, p.err)
		}
	}
	for a, p := range ps.list {
		if want[a] || !p.refs[iqn] {
			continue
		}
		delete(p.refs, iqn)
		if len(p.refs) == 0 {
			p.stop()
			if p.ln != nil {
				_ = p.ln.Close()
			}
			delete(ps.list, a)
		}
	}
	return errors.Join(errs...)
}

func (ps *portals) open(addr string) *portal {
	ctx, cancel := context.WithCancel(ps.srv.ctx)
	p := &portal{addr: addr, refs: make(map[string]bool), stop: cancel}
	ps.list[addr] = p
	if !ps.listenLocked(ctx, p) {
		ps.srv.conns.Go(func() { ps.retry(ctx, p) })
	}
	return p
}

// listenLocked tries to listen; Go sets SO_REUSEADDR, so that connections of an
// earlier process in TIME_WAIT are no obstacle.
func (ps *portals) listenLocked(ctx context.Context, p *portal) bool {
	ln, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.err = fmt.Errorf("portal %s: %w", p.addr, err)
		return false
	}
	p.err, p.ln = nil, ln.(*net.TCPListener)
	ps.srv.conns.Go(func() { ps.accept(ctx, p) })
	return true
}

func (ps *portals) retry(ctx context.Context, p *portal) {
	tick := time.NewTicker(ps.srv.limits.Retry)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		ps.mu.Lock()
		ok := ctx.Err() != nil || ps.listenLocked(ctx, p)
		ps.mu.Unlock()
		if ok {
			return
		}
	}
}

func (ps *portals) accept(ctx context.Context, p *portal) {
	for {
		nc, err := p.ln.AcceptTCP()
		if ctx.Err() != nil {
			if nc != nil {
				_ = nc.Close()
			}
			return
		}
		if err != nil {
			// Out of descriptors, or the peer went: neither ends the portal.
			ps.srv.logStranger(slog.LevelWarn, "accept failed", "portal", p.addr, "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			continue
		}
		// Here, so that the oldest is the one that came first.
		if !ps.srv.halfOpen.add(nc) {
			_ = nc.Close()
			continue
		}
		ps.srv.conns.Add(1)
		go ps.srv.serve(nc, p.addr)
	}
}

// errors returns why portals of an export are not listened on.
func (ps *portals) errors(addrs []string) map[string]string {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out map[string]string
	for _, a := range addrs {
		if p := ps.list[a]; p != nil && p.err != nil {
			if out == nil {
				out = make(map[string]string)
			}
			out[a] = p.err.Error()
		}
	}
	return out
}

// close stops listening.
func (ps *portals) close() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for a, p := range ps.list {
		p.stop()
		if p.ln != nil {
			_ = p.ln.Close()
		}
		delete(ps.list, a)
	}
}
