package target

import (
	"context"
	"net"
	"os"
	"sync"
	"time"

	"reconciler/internal/owndir"
	"reconciler/internal/unixsock"
)

// socketCheck is how often the control socket is looked for.
const socketCheck = time.Second

// controlSocket is the listener and the file that it made.
type controlSocket struct {
	net.Listener
	file os.FileInfo
}

func listenControl(runDir string) (*controlSocket, error) {
	if err := owndir.Make(runDir, 0o700); err != nil {
		return nil, err
	}
	ln, err := unixsock.Listen(socketPath(runDir))
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(socketPath(runDir))
	if err != nil {
		_ = ln.Close()
		return nil, err
	}
	return &controlSocket{ln, info}, nil
}

// there reports whether the path still leads to this socket.
func (s *controlSocket) there(runDir string) bool {
	info, err := os.Lstat(socketPath(runDir))
	return err == nil && os.SameFile(info, s.file)
}

// control serves the control socket until ctx is done; calls under way end with
// calling. The run directory may be
// lost at any time and made anew; the socket is then made anew, too, for a
// target that cannot be spoken to would have to be killed under its guests.
func (srv *Server) control(ctx, calling context.Context, s *controlSocket) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for ; s != nil; s = srv.listenAgain(ctx) {
		srv.serveSocket(ctx, calling, s, &calls)
	}
}

// serveSocket returns when the socket's file is gone, or ctx is done, and the socket
// is closed: the next server of this process may listen then.
func (srv *Server) serveSocket(ctx, calling context.Context, s *controlSocket, calls *sync.WaitGroup) {
	lost, lose := context.WithCancel(ctx)
	closed := make(chan struct{})
	context.AfterFunc(lost, func() {
		defer close(closed)
		_ = s.Close()
	})
	defer func() { lose(); <-closed }()
	calls.Go(func() {
		defer lose()
		tick := time.NewTicker(socketCheck)
		defer tick.Stop()
		for s.there(srv.cfg.RunDir) {
			select {
			case <-tick.C:
			case <-lost.Done():
				return
			}
		}
	})
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		calls.Go(func() { srv.serveControl(calling, c) })
	}
}

// listenAgain returns nil once ctx is done.
func (srv *Server) listenAgain(ctx context.Context) *controlSocket {
	for ctx.Err() == nil {
		s, err := listenControl(srv.cfg.RunDir)
		if err == nil {
			srv.log.Warn("the control socket was lost and is there again")
			return s
		}
		srv.log.Error("the control socket is lost", "error", err)
		select {
		case <-time.After(socketCheck):
		case <-ctx.Done():
		}
	}
	return nil
}
