package kvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A machine's QEMU inherits its lock file and holds it while it lives, whatever
// it calls itself in the process table, where a process may write what it likes.
// The file is in a directory that only this user can write to.

// holderPatience is for a process that has ended to close its files: of a large
// one the memory goes first, and with it the command line.
const holderPatience = 2 * time.Second

// HeldError says that a machine's lock is held, and that no process is found
// that holds it.
type HeldError struct{ Lock string }

func (e *HeldError) Error() string {
	return fmt.Sprintf("a process still holds the lock of the machine's QEMU, %s, and is not found in the process table; fuser -v %[1]s may know it", e.Lock)
}

// holder finds the machine's process by its lock; nil if nobody holds it.
func (d *Driver) holder(ctx context.Context, m *machine) (*process, error) {
	path := d.lockPath(m.uid)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the machine's lock: %w", err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, holderPatience)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return nil, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("ask for the machine's lock: %w", err)
		}
		if p, err := d.opener(m, path); p != nil || err != nil {
			return p, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, &HeldError{path}
		}
	}
}

// opener is the process that has the machine's lock file open, but for this one.
func (d *Driver) opener(m *machine, path string) (*process, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("look at the machine's lock: %w", err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != path {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(link))))
		if err != nil || pid == os.Getpid() {
			continue
		}
		start, ended, err := lifeOf(pid)
		if err != nil || ended {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil || len(cmdline) == 0 { // it is about to end
			continue
		}
		p := &process{pid: pid, start: start, uuid: m.uid, owner: d.owner}
		if rec := m.snapshot(); rec != nil {
			p.name = rec.Name
			if rec.Launch != nil {
				p.launch = rec.Launch.ID
			}
		}
		return p, nil
	}
	return nil, nil
}
