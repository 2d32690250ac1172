// Package unixsock listens on and connects to unix sockets whose path may be
// longer than the kernel's address holds.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path of a unix socket: sockaddr_un has 108 bytes, one
// of them for the terminating zero.
const maxPath = 107

// ErrInUse is a socket that somebody else answers on.
var ErrInUse = errors.New("another process listens on it")

// short gives a path that fits in an address. A longer one is reached through
// the directory's descriptor, which stays open until release is called.
func short(path string) (name string, release func(), err error) {
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	name = fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path))
	if len(name) > maxPath {
		unix.Close(fd)
		return "", nil, &os.PathError{Op: "open", Path: path, Err: unix.ENAMETOOLONG}
	}
	return name, func() { unix.Close(fd) }, nil
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	name, release, err := short(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		// The address in the error may be the one through the descriptor.
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	return c.(*net.UnixConn), nil
}

// Listen makes the socket at path, which only its owner may connect to, and
// takes the place of one that a dead process left. Closing the listener
// removes it.
func Listen(path string) (net.Listener, error) {
	switch c, err := Dial(context.Background(), path); {
	case err == nil:
		c.Close()
		return nil, fmt.Errorf("%s: %w", path, ErrInUse)
	case errors.Is(err, unix.ECONNREFUSED):
		// A regular file refuses connections, too.
		if info, err := os.Lstat(path); err != nil {
			return nil, err
		} else if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	case !errors.Is(err, unix.ENOENT):
		return nil, err
	}
	name, release, err := short(path)
	if err != nil {
		return nil, err
	}
	defer release()
	// The mode of the descriptor becomes that of the file when it is bound, so
	// there is no moment in which others may connect.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var chmod error
		err := rc.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := lc.Listen(context.Background(), "unix", name)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, &os.PathError{Op: "listen", Path: path, Err: err}
	}
	// The name may be the one through the descriptor, which is closed by then.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return &listener{UnixListener: l.(*net.UnixListener), path: path}, nil
}

type listener struct {
	*net.UnixListener
	path string
}

// Close stops listening and removes the socket.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err // closed before, and the path may be another's by now
	}
	return errors.Join(err, os.Remove(l.path))
}
