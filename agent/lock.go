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
// directories, and abstract sockets against a second pair of directories.
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
	l, err := exclude(a.cfg.Host, a.cfg.Repo, a.cfg.Branch)
	if err != nil {
		return nil, fmt.Errorf("%w for host %s with other directories (%w)", ErrRunning, a.cfg.Host, err)
	}
	held = append(held, func() { _ = l.Close() })
	a.excludes = true
	held = append(held, a.freeCluster)
	return free, a.lockCluster(a.mem.Cluster)
}

// exclude holds a name that the kernel gives to one process of the machine.
func exclude(parts ...string) (*net.UnixListener, error) {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p + "\x00"))
	}
	name := "@reconciler/" + hex.EncodeToString(h.Sum(nil)[:16])
	return net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
}

// lockCluster is the same for one host of one cluster, wherever its repository
// is said to be; the cluster is known once a revision was read.
func (a *Agent) lockCluster(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.excludes || id == "" || a.cluster != nil {
		return nil
	}
	l, err := exclude("cluster", id, a.cfg.Host)
	if err != nil {
		return fmt.Errorf("%w for host %s of cluster %s, from another repository or with other directories (%w)", ErrRunning, a.cfg.Host, id, err)
	}
	a.cluster = l
	return nil
}

func (a *Agent) freeCluster() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cluster != nil {
		_ = a.cluster.Close()
	}
	a.cluster, a.excludes = nil, false
}
