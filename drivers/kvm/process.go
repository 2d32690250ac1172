package kvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a QEMU found in the process table.
type process struct {
	pid    int
	start  uint64 // clock ticks since boot: with pid, the identity of a process
	uuid   string
	name   string
	owner  string // digest of its agent; empty if it was not started by one
	launch string
}

// marker is the id of the chardev of the agent's monitor. It stands in the
// command line and makes the process recognisable as ours.
func marker(owner, launch string) string { return "reconciler." + owner + "." + launch }

// processes returns every QEMU of the host.
func processes() ([]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("read the process table: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read the process table: %w", err)
	}
	var found []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, ok, err := inspect(pid)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b process) int { return a.pid - b.pid })
	return found, nil
}

// inspect says whether a process is a QEMU. One that has ended, or is a
// zombie, has no command line and is none.
func inspect(pid int) (process, bool, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if gone(err) {
		return process{}, false, nil
	}
	if err != nil {
		return process{}, false, fmt.Errorf("read the process table: %w", err)
	}
	if !bytes.Contains(b, []byte("qemu")) && !bytes.Contains(b, []byte("kvm")) {
		return process{}, false, nil
	}
	p, ok := parseCmdline(strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"))
	if !ok {
		return process{}, false, nil
	}
	p.pid = pid
	p.start, err = startTime(pid)
	if gone(err) {
		return process{}, false, nil
	}
	return p, err == nil, err
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// parseCmdline recognises a QEMU. One of ours is recognised by its marker even
// while the shell that becomes it has not done so yet.
func parseCmdline(argv []string) (p process, ok bool) {
	base := filepath.Base(argv[0])
	ok = strings.HasPrefix(base, "qemu-system-") || base == "qemu-kvm" || base == "kvm"
	for i := 1; i+1 < len(argv); i++ {
		switch strings.TrimPrefix(argv[i], "-") {
		case "uuid", "-uuid":
			p.uuid = strings.ToLower(argv[i+1])
		case "name", "-name":
			p.name, _, _ = strings.Cut(strings.TrimPrefix(argv[i+1], "guest="), ",")
		case "mon", "-mon":
			id, _, _ := strings.Cut(strings.TrimPrefix(argv[i+1], "chardev="), ",")
			if parts := strings.SplitN(id, ".", 3); len(parts) == 3 && parts[0] == "reconciler" {
				p.owner, p.launch, ok = parts[1], parts[2], true
			}
		}
	}
	return p, ok
}

// startTime is field 22 of /proc/PID/stat; the command in field 2 may hold anything.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return 0, fmt.Errorf("process %d: unreadable stat", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

var (
	noDeadline time.Time
	longAgo    = time.Unix(1, 0)
)

// handle refers to one process for good: it cannot become another's.
type handle struct {
	process
	f *os.File // pidfd
}

// open gets a handle, nil if the process has ended.
func (p process) open() (*handle, error) {
	fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: the number is a thread's now
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", p.pid, err)
	}
	h := &handle{process: p, f: os.NewFile(uintptr(fd), "pidfd")}
	// The number may have been used anew between the search and the open; now
	// it cannot be any more.
	now, ok, err := inspect(p.pid)
	if err != nil || !ok || now.start != p.start || now.uuid != p.uuid {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *handle) close() { h.f.Close() }

// signal sends a signal; to a process that has ended, nothing.
func (h *handle) signal(sig unix.Signal) error {
	conn, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", h.pid, serr)
	}
	return nil
}

// wait returns when the process has ended, or ctx's error.
func (h *handle) wait(ctx context.Context) error {
	conn, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	if err := h.f.SetReadDeadline(noDeadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = h.f.SetReadDeadline(longAgo) })
	defer stop()
	err = conn.Read(func(fd uintptr) bool {
		n, perr := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return perr == nil && n == 1
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("process %d does not end: %w", h.pid, ctx.Err())
	}
	return err
}

// ours searches the process table for a machine of ours.
func (d *Driver) ours(uid string) ([]process, error) {
	all, err := processes()
	return d.oursOf(all, uid), err
}

func (d *Driver) oursOf(all []process, uid string) []process {
	return slices.DeleteFunc(all, func(p process) bool { return p.uuid != uid || p.owner != d.owner })
}

// find returns the machine's process, nil if it has none.
func (d *Driver) find(uid string) (*process, error) {
	procs, err := d.ours(uid)
	if err != nil {
		return nil, err
	}
	return only(procs)
}

// findAny is find before a start: nobody else's process may have the UUID.
func (d *Driver) findAny(uid string) (*process, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.uuid == uid && p.owner != d.owner {
			return nil, taken(p)
		}
	}
	return only(d.oursOf(all, uid))
}

// only returns the process of a machine, of which there may be one at most.
func only(procs []process) (*process, error) {
	switch len(procs) {
	case 0:
		return nil, nil
	case 1:
		return &procs[0], nil
	}
	return nil, twice(procs)
}

func taken(p process) error {
	return fmt.Errorf("QEMU (pid %d) has this machine's UUID and was not started by this agent", p.pid)
}

func twice(procs []process) error {
	return fmt.Errorf("two QEMU processes have this machine's UUID (pids %d and %d): end the wrong one by hand", procs[0].pid, procs[1].pid)
}
