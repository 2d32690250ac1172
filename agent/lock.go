package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"reconciler/internal/owndir"
)

// ErrRunning says that another agent of the same host is at work.
var ErrRunning = errors.New("another agent is running")

// lock makes sure that there is one agent per (cluster, host): a lock in both
// directories, and in one of the whole machine against a second pair of
// directories. The kernel gives all of them back when the process ends, however
// it ends.
func (a *Agent) lock() (release func(), err error) {
	if err := owndir.Make(a.cfg.RunDir, 0o711); err != nil {
		return nil, err
	}
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
		f, err := lockFile(filepath.Join(dir, "agent.lock"))
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: it holds %s", ErrRunning, filepath.Join(dir, "agent.lock"))
		}
		if err != nil {
			return nil, err
		}
		held = append(held, func() { _ = f.Close() })
	}
	// Two agents of one host and repository with different directories would
	// each take the other's machines for unmanaged.
	give, err := exclude(a.cfg.Host, a.cfg.Repo, a.cfg.Branch)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w for host %s with other directories (%w)", ErrRunning, a.cfg.Host, err)
	}
	if err != nil {
		return nil, err
	}
	held = append(held, give)
	a.excludes = true
	held = append(held, a.freeCluster)
	return free, a.lockCluster(a.mem.Cluster)
}

// lockFile opens a file and locks it; the error of one that somebody else has
// locked is EWOULDBLOCK.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// locksDir is a directory of the machine that only this user can write to: in
// one that is open to others, anybody could keep an agent from starting.
func locksDir() (string, error) {
	dir := "/run/reconciler-agents"
	if uid := os.Geteuid(); uid != 0 {
		if dir = os.Getenv("XDG_RUNTIME_DIR"); dir == "" {
			dir = filepath.Join(os.TempDir(), "reconciler-"+strconv.Itoa(uid))
		}
		dir = filepath.Join(dir, "reconciler-agents")
		if err := owndir.Make(filepath.Dir(dir), 0o700); err != nil {
			return "", err
		}
	}
	return dir, owndir.Make(dir, 0o700)
}

// exclude holds a lock that one process of the machine can have, until it is
// given back.
func exclude(parts ...string) (release func(), err error) {
	dir, err := locksDir()
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p + "\x00"))
	}
	path := filepath.Join(dir, hex.EncodeToString(h.Sum(nil)[:16]))
	for {
		f, err := lockFile(path)
		if err != nil {
			return nil, err
		}
		// Whoever had it before may have removed the file since it was opened here:
		// then others lock the next one of its name.
		mine, err := f.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(mine, there) {
				return func() {
					_ = os.Remove(path)
					_ = f.Close()
				}, nil
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// lockCluster is the same for one host of one cluster, wherever its repository
// is said to be; the cluster is known once a revision was read.
func (a *Agent) lockCluster(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.excludes || id == "" || a.cluster != nil {
		return nil
	}
	give, err := exclude("cluster", id, a.cfg.Host)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w for host %s of cluster %s, from another repository or with other directories (%w)", ErrRunning, a.cfg.Host, id, err)
	}
	if err != nil {
		return err
	}
	a.cluster = give
	return nil
}

func (a *Agent) freeCluster() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cluster != nil {
		a.cluster()
	}
	a.cluster, a.excludes = nil, false
}
