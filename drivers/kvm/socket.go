package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxSocketPath is sun_path of unix(7) without its final zero.
const maxSocketPath = 107

// listen makes a socket that only the agent's user can connect to and returns
// it for QEMU to inherit. Whoever connects before QEMU is ready just waits. The
// path may be longer than an address.
func listen(path string) (_ *os.File, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() {
		if err != nil {
			f.Close()
			err = fmt.Errorf("listen on %s: %w", path, err)
		}
	}()
	// bind gives the file the descriptor's mode: there is no moment at which
	// others could connect.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, err
	}
	name := path
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		name = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return nil, err
	}
	return f, unix.Listen(fd, 16)
}
