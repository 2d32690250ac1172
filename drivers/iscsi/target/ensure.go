package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/internal/owndir"
)

// EnsureConfig says how a target is started and found.
type EnsureConfig struct {
	// Exe and Args run the server: Exe Args… must call Serve. With the argument
	// "--supervise" after them it must call Supervise.
	Exe  string
	Args []string
	// Dirs as in Config.
	StateDir, RunDir string
}

// SuperviseFlag is the argument that makes the server's command a supervisor.
const SuperviseFlag = "--supervise"

const supervisorLock = "supervisor.lock"

// patience is how long a server that is there may take to answer a ping. One that
// is only being started refuses the connection, and is asked again at once.
const patience = 3 * time.Second

// Ensure makes sure that a target is running and is kept running, and returns
// when it answers; with an error if it is there and silent. Neither the
// supervisor nor the server is a child of the caller: both outlive it, and the
// server outlives the supervisor.
func Ensure(ctx context.Context, cfg EnsureConfig) error {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return err
	}
	if err := owndir.Make(cfg.RunDir, 0o700); err != nil {
		return err
	}
	if err := startKeeper(ctx, cfg); err != nil {
		return err
	}
	c := NewClient(cfg.RunDir)
	defer c.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ping, cancel := context.WithTimeout(ctx, patience)
		_, err := c.Ping(ping)
		silent := ping.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil {
			return nil
		}
		if silent {
			return fmt.Errorf("target is silent: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("target does not answer: %w", errors.Join(err, lastWords(cfg.RunDir)))
		}
	}
}

// startKeeper starts what keeps the server alive, where nothing does.
func startKeeper(ctx context.Context, cfg EnsureConfig) error {
	if lives, err := supervisorLives(ctx, filepath.Join(cfg.StateDir, supervisorLock)); lives || err != nil {
		return err
	}
	log, err := os.OpenFile(logPath(cfg.RunDir), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(cfg.Exe, append(append([]string(nil), cfg.Args...), SuperviseFlag)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// The child forks the supervisor proper off and ends: see Supervise.
	return cmd.Wait()
}

// supervisorLives tells by its lock whether there is a supervisor; two that are
// started at once settle it among themselves. One that has just been killed may
// have the lock for a moment more, while its threads end: it has to be seen with
// the file open.
func supervisorLives(ctx context.Context, path string) (bool, error) {
	const settle = time.Second // a supervisor that begins has written its id by then
	for deadline := time.Now().Add(settle); ; {
		l, free, err := lockFile(path)
		if err != nil {
			return false, err
		}
		if free {
			return false, l.Close()
		}
		if pid := lockPID(path); pid > 0 && holdsOpen(pid, path) || time.Now().After(deadline) {
			return true, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// Stop ends the supervisor and the server, and returns when the server's lock is
// free. What is not running is no error. Sessions are cut: guests wait until a
// target is there again.
func Stop(ctx context.Context, cfg EnsureConfig) error {
	// The supervisor first: it would start the server again.
	for _, name := range []string{filepath.Join(cfg.StateDir, supervisorLock), filepath.Join(cfg.StateDir, lockName)} {
		if err := stopHolder(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// stopHolder signals the process that holds a lock until it is free.
func stopHolder(ctx context.Context, path string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	signalled := 0
	for {
		l, free, err := lockFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if free {
			return l.Close()
		}
		if pid := lockPID(path); pid > 0 && pid != signalled {
			if err := signalHolder(pid, path); err != nil {
				return err
			}
			signalled = pid
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("process %d does not end: %w", signalled, ctx.Err())
		}
	}
}

// signalHolder ends a process, if it is the one that has the lock file open: the
// number alone may be another's by now.
func signalHolder(pid int, path string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !holdsOpen(pid, path) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func holdsOpen(pid int, path string) bool {
	want, err := os.Stat(path)
	if err != nil {
		return false
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if got, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && os.SameFile(got, want) {
			return true
		}
	}
	return false
}

// markLock writes the process's id to its lock file.
func markLock(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// lockPID reads the id of the process that holds, or held, a lock; 0 is none.
func lockPID(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

func logPath(runDir string) string { return filepath.Join(runDir, "target.log") }

// lastWords is the end of what the server and its supervisor have written, for
// an error of a start that failed.
func lastWords(runDir string) error {
	b, err := os.ReadFile(logPath(runDir))
	if err != nil || len(b) == 0 {
		return nil
	}
	b = b[max(0, len(b)-500):]
	return errors.New(strings.TrimSpace(string(b)))
}
