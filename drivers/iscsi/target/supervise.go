package target

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A server that dies is started again at once; one that keeps dying by itself,
	// after a pause that doubles from restartMin to restartMax. Being killed, by
	// hand or for memory, says nothing of the next one's chances.
	restartMin = 20 * time.Millisecond
	restartMax = 2 * time.Second
	// steady is how long a server runs before its death counts as the first.
	steady = 10 * time.Second
	// maxLog bounds the log file of server and supervisor.
	maxLog = 4 << 20

	detachedEnv = "RECONCILER_TARGET_SUPERVISOR"
)

// Supervise keeps a server running until ctx is done, and then leaves it alone:
// who wants it ended ends it (see Stop). There is one supervisor for a state
// directory; a second one ends at once without an error. It watches a server that
// it did not start, one of a supervisor that was killed, in the same way as its
// own: by the server's lock and its pidfd.
//
// Called by a process that Ensure has started, it first forks itself off, so that
// it is nobody's child that would have to be waited for.
func Supervise(ctx context.Context, cfg EnsureConfig, log *slog.Logger) error {
	if os.Getenv(detachedEnv) == "" {
		return detach(cfg)
	}
	lock, ok, err := lockFile(filepath.Join(cfg.StateDir, supervisorLock))
	if err != nil || !ok {
		return err
	}
	defer lock.Close()
	if err := markLock(lock); err != nil {
		return err
	}
	pause := restartMin
	for {
		begin := time.Now()
		err := watchServer(ctx, cfg)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begin) > steady || wasKilled(err) {
			pause = restartMin
		}
		log.Error("target server ended", "error", err, "restart", pause.String())
		trimLog(cfg.RunDir)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, restartMax)
	}
}

func wasKilled(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

func detach(cfg EnsureConfig) error {
	cmd := exec.Command(cfg.Exe, append(append([]string(nil), cfg.Args...), SuperviseFlag)...)
	cmd.Env = append(os.Environ(), detachedEnv+"=1")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// watchServer returns when the server that runs has ended; where none runs it
// starts one.
func watchServer(ctx context.Context, cfg EnsureConfig) error {
	l, free, err := lockFile(filepath.Join(cfg.StateDir, lockName))
	if err != nil {
		return err
	}
	if free {
		if err := l.Close(); err != nil {
			return err
		}
		return runServer(ctx, cfg)
	}
	pid := lockPID(filepath.Join(cfg.StateDir, lockName))
	if pid <= 0 {
		return errors.New("a server that does not tell its process id has the lock")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("server %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if !holdsOpen(pid, filepath.Join(cfg.StateDir, lockName)) {
		return fmt.Errorf("process %d is not the server", pid)
	}
	return waitPidfd(ctx, f)
}

// waitPidfd waits until the process of a pidfd has ended: it is readable then.
func waitPidfd(ctx context.Context, f *os.File) error {
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return errors.New("the adopted server ended")
		}
	}
	return ctx.Err()
}

// runServer starts a server in a session of its own and waits for its end. When
// ctx is done first the server goes on without us.
func runServer(ctx context.Context, cfg EnsureConfig) error {
	cmd := exec.Command(cfg.Exe, cfg.Args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("exit status 0")
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// boundLog keeps the log file bounded while the server runs.
func boundLog(ctx context.Context, runDir string) {
	tick := time.NewTicker(strangerSpan)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			trimLog(runDir)
		case <-ctx.Done():
			return
		}
	}
}

// trimLog keeps the log file bounded: it is written by appending, so it may be
// cut while it is open.
func trimLog(runDir string) {
	if info, err := os.Stat(logPath(runDir)); err == nil && info.Size() > maxLog {
		_ = os.Truncate(logPath(runDir), 0)
	}
}
