package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one that was found by its command line.
type Process struct {
	PID     int
	Cmdline string // arguments, joined by spaces
}

func (p Process) String() string { return fmt.Sprintf("%d: %s", p.PID, p.Cmdline) }

// Processes returns those whose command line holds marker, but for this one.
// The marker must be unique to the test, its temporary directory for example.
func Processes(marker string) ([]Process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if line := cmdline(pid); strings.Contains(line, marker) {
			found = append(found, Process{PID: pid, Cmdline: line})
		}
	}
	return found, nil
}

// cmdline returns a process's arguments, joined by spaces; nothing for kernel
// threads and those that have ended.
func cmdline(pid int) string {
	const tries = 1000
	for range tries {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return ""
		}
		if len(b) > 0 {
			return string(bytes.ReplaceAll(bytes.TrimRight(b, "\x00"), []byte{0}, []byte{' '}))
		}
		// In the middle of execve a process has a program and no arguments
		// yet; it must not be overlooked.
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
			return ""
		}
		runtime.Gosched()
	}
	return ""
}

// Reap kills, when the test ends, every process whose command line holds
// marker, and waits until they are gone.
func Reap(t testing.TB, marker string) {
	t.Helper()
	if len(marker) < 8 {
		t.Fatalf("reap: %q is too short to be of one test only", marker)
	}
	t.Cleanup(func() {
		if err := KillAll(marker); err != nil {
			t.Errorf("reap: %v", err)
		}
	})
}

// KillAll kills every process whose command line holds marker, again until
// there is none, for those that start others meanwhile.
func KillAll(marker string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		found, err := Processes(marker)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, p := range found {
			if err := kill(ctx, p, marker); err != nil {
				return err
			}
		}
	}
}

// kill ends one process and waits for it. The pidfd is opened first and the
// command line read again after that, so that a number used anew is spared.
func kill(ctx context.Context, p Process, marker string) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd of %v: %w", p, err)
	}
	defer unix.Close(fd)
	if !strings.Contains(cmdline(p.PID), marker) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %v: %w", p, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n == 1 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for %v: %w", p, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%v does not end: %w", p, ctx.Err())
		}
	}
}
