// Package cache keeps what tests need and what takes long to build, once for
// each machine.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is where it is kept, made if need be: RECONCILER_TESTBED, or
// reconciler-testbed in the user's cache directory.
func Dir() (string, error) {
	dir := os.Getenv("RECONCILER_TESTBED")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no cache directory, set RECONCILER_TESTBED: %w", err)
		}
		dir = filepath.Join(user, "reconciler-testbed")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// Lock waits until no other process holds the lock at path. It is given back
// by unlock, or by the end of the process.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	// A blocking flock cannot be told to stop.
	for tick := time.Tick(50 * time.Millisecond); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-tick:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another process that holds %s: %w", path, ctx.Err())
		}
	}
}

// Atomically has build fill a directory that takes the name dir only when it
// is complete.
func Atomically(dir string, build func(tmp string) error) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "building-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	// What stands there is the incomplete work of somebody's hand.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// Exists says whether there is something at path.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
