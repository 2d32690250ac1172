package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another agent of the same host is at work.
var ErrRunning = errors.New("another agent is running")

// lock makes sure that there is one agent per (cluster, host): a lock in both
// directories, and an abstract socket against a second pair of directories.
// The kernel gives all of them back when the process ends, however it ends.
func (a *Agent) lock() (release func(), err error) {
	var held []func()
	free := func() {
		for _, f := range held {
			f()
		}
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	for _, dir := range []string{a.cfg.StateDir, a.cfg.RunDir} {
		// QEMU may run as a user who must be able to pass.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("%w: it holds %s", ErrRunning, f.Name())
		}
		held = append(held, func() { _ = f.Close() })
	}
	// Two agents of one host and repository with different directories would
	// each take the other's machines for unmanaged.
	sum := sha256.Sum256([]byte(a.cfg.Host + "\x00" + a.cfg.Repo + "\x00" + a.cfg.Branch))
	name := "@reconciler/" + hex.EncodeToString(sum[:16])
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%w for host %s with other directories (%s)", ErrRunning, a.cfg.Host, name)
	}
	held = append(held, func() { _ = l.Close() })
	return free, nil
}
