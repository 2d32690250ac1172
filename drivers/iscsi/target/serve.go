package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"reconciler/drivers/iscsi/scsi"
)

const (
	lockName = "target.lock"
	// maxThreads bounds the commands that may be stuck in the kernel at once, in
	// all sessions: the runtime ends a process that needs more threads.
	maxThreads = 100000
	// startGrace is how long initiators wait at a start for volumes to open, and
	// stopGrace how long a stop waits for commands in flight.
	startGrace = 2 * time.Second
	stopGrace  = 10 * time.Second
)

// ErrRunning is returned by Serve when another server has the state directory.
var ErrRunning = errors.New("another target server is running")

// Serve runs the target until ctx is done: first all that its records say,
// then what the control socket asks for. It is meant to have a process of its
// own.
func Serve(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	for _, d := range []string{cfg.StateDir, cfg.RunDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if cfg.Open == nil {
		cfg.Open = cfg.openVolume
	}
	lock, ok, err := lockFile(filepath.Join(cfg.StateDir, lockName))
	if err != nil {
		return err
	}
	if !ok {
		return ErrRunning
	}
	defer lock.Close()
	if err := markLock(lock); err != nil {
		return err
	}
	debug.SetMaxThreads(maxThreads)

	// Sessions end by close, in order, not by the caller's context.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := newServer(run, cfg)
	var damaged []error
	if srv.state, damaged, err = openStore(filepath.Join(cfg.StateDir, "exports")); err != nil {
		return err
	}
	for _, err := range damaged {
		cfg.Logger.Error("a record of an export cannot be read: it is not served before the agent puts it again", "error", err)
	}
	defer srv.state.dir.Close()
	socket, err := listenControl(cfg.RunDir)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer socket.Close()

	var background sync.WaitGroup
	background.Go(func() { srv.watch.run(run) })
	background.Go(func() { srv.keepAlive(run) })
	background.Go(func() { boundLog(run, cfg.RunDir) })
	srv.restoreAll(ctx)
	listening, deaf := context.WithCancel(run)
	defer deaf()
	background.Go(func() { srv.control(listening, run, socket) })
	cfg.Logger.Info("target serves", "exports", len(srv.allTargets()))

	<-ctx.Done()
	deaf()
	srv.portals.close()
	err = srv.shutdown()
	cancel()
	background.Wait()
	return err
}

// restoreAll serves what the records say. Portals open when the volumes have,
// or after a while: a volume that hangs holds up no other.
func (srv *Server) restoreAll(ctx context.Context) {
	grace, cancel := context.WithTimeout(ctx, startGrace)
	defer cancel()
	var all []*target
	for _, e := range srv.state.all() {
		all = append(all, srv.restore(e))
	}
	for _, t := range all {
		select {
		case <-t.opened:
		case <-grace.Done():
		}
	}
	for _, t := range all {
		e := t.describe()
		if err := srv.portals.set(e.IQN, e.Portals); err != nil {
			srv.log.Error("portal is not listened on", "target", e.IQN, "error", err)
		}
	}
}

// shutdown closes all sessions and, where nothing is in flight any more, the
// volumes.
func (srv *Server) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	srv.halfOpen.close()
	srv.discoveries.close()
	for _, s := range srv.allSessions() {
		s.close()
	}
	var errs []error
	for _, t := range srv.allTargets() {
		if err := t.remove(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	through := make(chan struct{})
	go func() { srv.conns.Wait(); close(through) }()
	select {
	case <-through:
	case <-ctx.Done():
	}
	return errors.Join(errs...)
}

// openVolume opens an export's volume. Persistent reservations are kept beside
// the state.
func (c Config) openVolume(e Export) (LogicalUnit, error) {
	reservations := reservationFile(c.StateDir, e.IQN)
	if err := os.MkdirAll(filepath.Dir(reservations), 0o700); err != nil {
		return nil, err
	}
	d, err := scsi.Open(scsi.Config{
		Path: e.Path, TargetName: e.IQN, Serial: e.Serial, UID: uidBytes(e.UID), ReadOnly: e.ReadOnly,
		ReservationFile: reservations,
		OnPanic: func(cdb []byte, value any, stack []byte) {
			c.Logger.Error("a command failed by a defect of ours: panic", "target", e.IQN, "cdb", fmt.Sprintf("% x", cdb), "panic", value, "stack", string(stack))
		},
	})
	if err != nil {
		return nil, err // not a nil *Device in an interface
	}
	return d, nil
}

func reservationFile(stateDir, iqn string) string {
	return filepath.Join(stateDir, "reservations", recordName(iqn))
}
