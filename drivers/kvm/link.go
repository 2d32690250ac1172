package kvm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"reconciler/drivers/kvm/qmp"
)

// SilentError says that a machine's QEMU is there and does not answer.
type SilentError struct{ PID int }

func (e *SilentError) Error() string { return fmt.Sprintf("QEMU (pid %d) does not answer QMP", e.PID) }

// errEnded says that the process of a link is gone.
var errEnded = errors.New("QEMU has ended")

const (
	firstPatience = 2 * time.Second  // for the greeting on one socket, before trying the other
	lastPatience  = 60 * time.Second // the same, after it has doubled often enough
	firstReturn   = time.Second      // on the rescue socket, until the agent's own is tried again
	lastReturn    = time.Minute      // the same, after it has doubled often enough
	redialPause   = 50 * time.Millisecond
	silentWait    = 50 * time.Millisecond // for one already known to be silent
)

// link is the connection to one QEMU process. It dials, reads events and reads
// back in the background, so that a QEMU that is silent costs its callers no
// more than the time they give it.
type link struct {
	d    *Driver
	uid  string
	proc process
	ctx  context.Context
	stop context.CancelFunc

	mu     sync.Mutex
	conn   *qmp.Conn
	up     chan struct{} // closed when conn is there
	last   *reading
	at     time.Time
	gen    uint64 // raised whenever what was read may be out of date
	read   uint64 // gen when last was begun
	flight *flight
}

type flight struct {
	since time.Time
	gen   uint64
	done  chan struct{}
	r     *reading
	err   error
}

func (d *Driver) newLink(uid string, p process) *link {
	l := &link{d: d, uid: uid, proc: p, up: make(chan struct{}), gen: 1}
	l.ctx, l.stop = context.WithCancel(d.ctx)
	go l.run()
	return l
}

func (l *link) close() { l.stop() }

// run keeps a connection until the process ends.
func (l *link) run() {
	defer l.stop()
	for patience := firstPatience; l.ctx.Err() == nil; {
		conn, rescue := l.dial(patience)
		if conn == nil {
			if l.ended() {
				break
			}
			patience = min(2*patience, lastPatience)
			continue
		}
		patience = firstPatience
		for at := subscribed(conn); at != nil; rescue = false {
			l.mu.Lock()
			if l.conn == nil {
				close(l.up)
			}
			l.conn = at.conn
			l.gen++
			l.mu.Unlock()
			own := make(chan *eventful, 1)
			ctx, cancel := context.WithCancel(l.ctx)
			var back sync.WaitGroup
			if rescue {
				back.Go(func() { l.comeBack(ctx, own) })
			}
			next := l.watch(at, own)
			cancel()
			back.Wait()
			if next == nil {
				select { // it came too late
				case late := <-own:
					late.conn.Close()
				default:
				}
			}
			l.replace(at, next)
			at = next
		}
		if l.ended() {
			break
		}
	}
	if l.d.ctx.Err() == nil {
		l.d.tell(Event{l.uid, Disconnected})
	}
}

// eventful is a connection whose events are collected.
type eventful struct {
	conn *qmp.Conn
	sub  *qmp.Subscription
}

func subscribed(conn *qmp.Conn) *eventful { return &eventful{conn, conn.Subscribe(64)} }

// dial tries the agent's socket, then the rescue socket, which outlives the
// run directory and is free when somebody else sits on the first.
func (l *link) dial(patience time.Duration) (conn *qmp.Conn, rescue bool) {
	for _, path := range []string{l.d.qmpPath(l.uid), l.d.rescuePath(l.uid)} {
		if conn := l.dialOne(l.ctx, path, patience); conn != nil {
			return conn, path == l.d.rescuePath(l.uid)
		}
		if l.ctx.Err() != nil {
			return nil, false
		}
	}
	select {
	case <-l.ctx.Done():
	case <-time.After(redialPause):
	}
	return nil, false
}

// dialOne returns nil if the socket does not lead to the process.
func (l *link) dialOne(ctx context.Context, path string, patience time.Duration) *qmp.Conn {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := qmp.Dial(ctx, path)
	if err != nil {
		return nil
	}
	if verify(ctx, conn, l.proc) != nil {
		conn.Close()
		return nil
	}
	return conn
}

// comeBack tries the agent's own socket until it answers: the rescue socket is
// for people.
func (l *link) comeBack(ctx context.Context, own chan<- *eventful) {
	for pause := firstReturn; ; pause = min(2*pause, lastReturn) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if conn := l.dialOne(ctx, l.d.qmpPath(l.uid), firstPatience); conn != nil {
			own <- subscribed(conn)
			return
		}
	}
}

// replace puts the next connection in a former one's place, or none, and closes
// that. What is under way on it is done first, where there is a next.
func (l *link) replace(last, next *eventful) {
	if next != nil {
		m := l.d.machine(l.uid)
		if m.op.Acquire(l.ctx, allOps) == nil {
			defer m.op.Release(allOps)
		}
	}
	l.mu.Lock()
	f := l.flight
	if next == nil {
		l.conn, l.up = nil, make(chan struct{})
	} else {
		l.conn = next.conn
	}
	l.gen++
	l.mu.Unlock()
	if next != nil && f != nil { // a reading that outlived who asked for it
		select {
		case <-f.done:
		case <-l.ctx.Done():
		}
	}
	last.conn.Close()
}

// verify makes sure that the socket leads to the process: its path could lead
// to another launch's.
func verify(ctx context.Context, conn *qmp.Conn, p process) error {
	chardevs, err := conn.Raw(ctx).QueryChardev()
	if err != nil {
		return err
	}
	for _, c := range chardevs {
		if c.Label == marker(p.owner, p.launch) {
			return nil
		}
	}
	return errors.New("the socket leads to another process")
}

func (l *link) ended() bool {
	there, err := l.proc.alive()
	return err == nil && !there
}

// quiet are events that change nothing of what is read back.
var quiet = map[string]bool{
	"RTC_CHANGE": true, "NIC_RX_FILTER_CHANGED": true, "VSERPORT_CHANGE": true, "BALLOON_CHANGE": true, "POWERDOWN": true,
}

// watch passes events on until the connection ends, or returns the better one
// that takes its place.
func (l *link) watch(at *eventful, own <-chan *eventful) *eventful {
	for {
		select {
		case <-l.ctx.Done():
			return nil
		case better := <-own:
			return better
		case e, ok := <-at.sub.C():
			if !ok {
				return nil
			}
			l.witness(e)
			if quiet[e.Name] && !e.Lost {
				continue
			}
			l.invalidate()
			l.d.tell(Event{l.uid, e.Name})
		}
	}
}

// invalidate makes the next reader ask QEMU.
func (l *link) invalidate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gen++
}

// connection returns the connection, waiting for it until ctx ends.
func (l *link) connection(ctx context.Context) (*qmp.Conn, error) {
	for {
		l.mu.Lock()
		conn, up := l.conn, l.up
		l.mu.Unlock()
		if conn != nil && conn.Err() == nil {
			return conn, nil
		}
		if conn != nil { // closed; the next is on its way
			up = nil
		}
		var again <-chan time.Time
		if up == nil {
			again = time.After(time.Millisecond)
		}
		select {
		case <-up:
		case <-again:
		case <-l.ctx.Done():
			return nil, errEnded
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, &SilentError{l.proc.pid}
			}
			return nil, ctx.Err()
		}
	}
}

// readBack returns what QEMU says of itself, not older than Config.MaxAge and
// the last event; with fresh, not older than the call.
func (l *link) readBack(ctx context.Context, fresh bool) (*reading, error) {
	l.mu.Lock()
	if fresh {
		l.gen++
	}
	need := l.gen
	l.mu.Unlock()
	for {
		l.mu.Lock()
		if l.last != nil && l.read >= need && time.Since(l.at) < l.d.cfg.MaxAge {
			defer l.mu.Unlock()
			return l.last, nil
		}
		f := l.flight
		if f == nil {
			f = &flight{since: time.Now(), gen: l.gen, done: make(chan struct{})}
			l.flight = f
			go l.fly(f)
		}
		l.mu.Unlock()
		if err := l.wait(ctx, f); err != nil {
			return nil, err
		}
		if f.err != nil {
			return nil, f.err
		}
		if f.gen >= need {
			return f.r, nil
		}
	}
}

// wait gives a reading under way what is left of its time. There is only ever
// one, so that a silent QEMU does not collect commands.
func (l *link) wait(ctx context.Context, f *flight) error {
	left := max(l.d.cfg.ObserveTimeout-time.Since(f.since), silentWait)
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-f.done:
		return nil
	case <-timer.C:
		return &SilentError{l.proc.pid}
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &SilentError{l.proc.pid}
		}
		return ctx.Err()
	}
}

func (l *link) fly(f *flight) {
	conn, err := l.connection(l.ctx)
	if err == nil {
		f.r, err = readMachine(l.ctx, conn)
	}
	f.err = err
	l.mu.Lock()
	if err == nil {
		l.last, l.at, l.read = f.r, time.Now(), f.gen
	}
	l.flight = nil
	l.mu.Unlock()
	close(f.done)
}
