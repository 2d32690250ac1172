package target

import (
	"context"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// The run directory is lost under a session: the session goes on, and the
// server can be spoken to again.
func TestLostRunDirectory(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{testName}})
	i := logIn(t, b.args()).ready()
	if err := os.RemoveAll(b.client.path[:len(b.client.path)-len("/target.sock")]); err != nil {
		t.Fatal(err)
	}
	b.client.Close()
	waitFor(t, "the control socket to be made anew", func() bool {
		_, err := b.client.Ping(t.Context())
		return err == nil
	})
	i.write(0, pattern(512, 1))
	if st := b.status(); len(st.Sessions) != 1 {
		t.Errorf("%d sessions, want the one of before", len(st.Sessions))
	}
}

// lingering is a listener that somebody can still connect to for a while after
// Accept returned, as one may be whose file descriptor is just being closed.
type lingering struct {
	net.Listener
	closing, closed chan struct{}
	began           atomic.Bool
}

func (l *lingering) Accept() (net.Conn, error) {
	<-l.closing
	return nil, net.ErrClosed
}

func (l *lingering) Close() error {
	if l.began.Swap(true) {
		return net.ErrClosed
	}
	close(l.closing)
	<-l.closed
	return nil
}

// A server that has ended has closed its control socket: the next one of this
// process takes it for another's otherwise.
func TestControlSocketIsClosedAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(socketPath(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Lstat(socketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := &lingering{closing: make(chan struct{}), closed: make(chan struct{})}
		over := false
		var calls sync.WaitGroup
		go func() {
			srv := &Server{cfg: Config{RunDir: dir}}
			srv.serveSocket(ctx, ctx, &controlSocket{l, file}, &calls)
			over = true
		}()
		cancel()
		synctest.Wait()
		if over {
			t.Error("it returned before the socket was closed")
		}
		close(l.closed)
		synctest.Wait()
		if calls.Wait(); !over {
			t.Error("it does not return")
		}
	})
}
