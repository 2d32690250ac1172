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
	uid    int    // of the user it runs as
	exe    string // what it executes, as far as that may be read
	// becoming says that it is the shell that sets a limit and then executes QEMU.
	becoming bool
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
	if p.start, _, err = lifeOf(pid); err == nil {
		p.uid, err = userOf(pid)
	}
	if gone(err) {
		return process{}, false, nil
	}
	p.exe, _ = os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe")) // empty: another user's
	return p, err == nil, err
}

// counts says that a process can be a machine of this host: it runs as the
// agent's user or the guests', and executes a QEMU. Anybody can call a process
// what he likes, with any UUID.
func (d *Driver) counts(p process) bool {
	if p.uid != os.Geteuid() && (d.cfg.User == nil || p.uid != d.cfg.User.UID) {
		return false
	}
	exe := filepath.Base(strings.TrimSuffix(p.exe, " (deleted)")) // QEMU was upgraded since
	switch {
	case isQEMU(exe):
		return true
	case p.becoming, p.exe == "": // the shell that becomes ours; one that may not be looked into
		return true
	}
	return exe == filepath.Base(d.cfg.QEMU)
}

func isQEMU(program string) bool {
	return strings.HasPrefix(program, "qemu-system-") || program == "qemu-kvm" || program == "kvm"
}

// userOf is the user a process runs as: the second of the Uid line in
// /proc/PID/status. The owner of its files there is root where it may not be
// dumped.
func userOf(pid int) (int, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Uid:" {
			return strconv.Atoi(f[2])
		}
	}
	return 0, fmt.Errorf("process %d: unreadable status", pid)
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// parseCmdline recognises a QEMU. One of ours is recognised by its marker even
// while the shell that becomes it has not done so yet.
func parseCmdline(argv []string) (p process, ok bool) {
	ok = isQEMU(filepath.Base(argv[0]))
	p.becoming = len(argv) > 2 && argv[1] == "-c" && argv[2] == shell
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

// lifeOf reads when a process was started and whether it has ended and waits for
// its parent: fields 22 and 3 of /proc/PID/stat. The command in field 2 may hold
// anything.
func lifeOf(pid int) (start uint64, ended bool, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false, err
	}
	_, rest, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return 0, false, fmt.Errorf("process %d: unreadable stat", pid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0] == "Z" || f[0] == "X", err
}

// alive says whether it is still there, whatever it calls itself by now.
func (p process) alive() (bool, error) {
	start, ended, err := lifeOf(p.pid)
	if gone(err) {
		return false, nil
	}
	return err == nil && start == p.start && !ended, err
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
	if there, err := p.alive(); err != nil || !there {
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
	return slices.DeleteFunc(all, func(p process) bool { return p.uuid != uid || p.owner != d.owner || !d.counts(p) })
}

// find returns the machine's process, nil if it has none: by what it is called,
// then by the lock it holds.
func (d *Driver) find(ctx context.Context, m *machine) (*process, error) {
	procs, err := d.ours(m.uid)
	if err != nil {
		return nil, err
	}
	if len(procs) == 0 {
		return d.holder(ctx, m)
	}
	return only(procs)
}

// findAny is find before a start: nobody else's process may have the UUID.
func (d *Driver) findAny(ctx context.Context, m *machine) (*process, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.uuid == m.uid && p.owner != d.owner && d.counts(p) {
			return nil, taken(p)
		}
	}
	if procs := d.oursOf(all, m.uid); len(procs) > 0 {
		return only(procs)
	}
	return d.holder(ctx, m)
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
