package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/reconcile"
)

// quick are timeouts of which a test can see the end.
var quick = timeouts{
	read: 2 * time.Second, write: 2 * time.Second, call: 300 * time.Millisecond,
	poll: 50 * time.Millisecond, heartbeat: 20 * time.Millisecond, silence: 400 * time.Millisecond,
}

// hooked is an agent of which a test says what two of the calls do.
type hooked struct {
	Agent
	reconcile func(context.Context, func(string)) (*reconcile.Plan, error)
	status    func(context.Context) (Status, error)
	events    func(context.Context) ([]Event, error)
}

func (h hooked) Reconcile(ctx context.Context, _ ReconcileRequest, progress func(string)) (*reconcile.Plan, error) {
	return h.reconcile(ctx, progress)
}

func (h hooked) Status(ctx context.Context) (Status, error) { return h.status(ctx) }

func (h hooked) Events(ctx context.Context, _ uint64, _ bool) ([]Event, error) {
	return h.events(ctx)
}

func serveQuick(t *testing.T, a Agent) *Client {
	t.Helper()
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, a, slog.New(slog.DiscardHandler), quick) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server did not end within 10 s")
		}
	})
	c, err := dialWith(dir, quick)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A pass that says nothing for longer than the client waits for a sign of life
// is not given up: the server gives them.
func TestLongPassIsHeard(t *testing.T) {
	c := serveQuick(t, hooked{reconcile: func(ctx context.Context, progress func(string)) (*reconcile.Plan, error) {
		select {
		case <-time.After(quick.silence + quick.silence/2):
			progress("late")
			return &reconcile.Plan{Kind: "Plan"}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}})
	var lines []string
	p, err := c.Reconcile(t.Context(), ReconcileRequest{Wait: true}, func(s string) { lines = append(lines, s) })
	if err != nil || p == nil || strings.Join(lines, ",") != "late" {
		t.Errorf("%v, %v, %v", p, lines, err)
	}
}

// A process that accepts and says nothing is given up.
func TestSilentAgent(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dialWith(dir, timeouts{call: 50 * time.Millisecond, write: 50 * time.Millisecond, silence: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Reconcile(t.Context(), ReconcileRequest{}, nil); CodeOf(err) != Unavailable {
		t.Errorf("reconcile: %v", err)
	}
	if _, err := c.Status(t.Context()); CodeOf(err) != Unavailable {
		t.Errorf("status: %v", err)
	}
}

func TestSlowCallEnds(t *testing.T) {
	c := serveQuick(t, hooked{status: func(ctx context.Context) (Status, error) {
		<-ctx.Done()
		return Status{}, fmt.Errorf("observe: %w", ctx.Err())
	}})
	if _, err := c.Status(t.Context()); CodeOf(err) != Unavailable || !strings.Contains(err.Error(), "observe") {
		t.Errorf("%v", err)
	}
}

// The agent learns that its caller has left.
func TestCallerLeaves(t *testing.T) {
	left, begun := make(chan struct{}), make(chan struct{})
	c := serveQuick(t, hooked{reconcile: func(ctx context.Context, _ func(string)) (*reconcile.Plan, error) {
		close(begun)
		<-ctx.Done()
		close(left)
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := c.Reconcile(ctx, ReconcileRequest{Wait: true}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Fatal("the agent did not learn within 10 s that the caller left")
	}
}

// A caller that reads slowly never holds up the agent, and is told what it missed.
func TestProgressNeverBlocks(t *testing.T) {
	q := progressQueue{wake: make(chan struct{}, 1)}
	for i := range maxQueued + 7 {
		q.add(fmt.Sprint(i))
	}
	lines := q.take()
	if len(lines) != maxQueued+1 || lines[0] != "0" || lines[maxQueued] != "… 7 lines left out" {
		t.Errorf("%d lines, last %q", len(lines), lines[len(lines)-1])
	}
	if lines := q.take(); len(lines) != 0 {
		t.Errorf("lines twice: %q", lines)
	}
}

// Neither a panic nor an error that is not the socket's ends the server.
func TestPanicIsOneCalls(t *testing.T) {
	c := serveQuick(t, hooked{
		reconcile: func(context.Context, func(string)) (*reconcile.Plan, error) { panic("broken") },
		status:    func(context.Context) (Status, error) { return Status{}, errors.New("disk on fire") },
	})
	if _, err := c.Reconcile(t.Context(), ReconcileRequest{}, nil); CodeOf(err) != Unavailable {
		t.Errorf("reconcile: %v", err)
	}
	if _, err := c.Status(t.Context()); CodeOf(err) != Internal || err.Error() != "disk on fire" {
		t.Errorf("status: %v", err)
	}
}

func TestPollEndsWithoutEvent(t *testing.T) {
	asked := 0
	c := serveQuick(t, hooked{events: func(ctx context.Context) ([]Event, error) {
		if asked++; asked < 3 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return []Event{{Seq: 1}}, nil
	}})
	events, err := c.Events(t.Context(), 0, true)
	if err != nil || len(events) != 1 || asked != 3 {
		t.Errorf("%v, %v, asked %d times", events, err, asked)
	}
}

func TestAdmitted(t *testing.T) {
	for _, tt := range []struct {
		uid  uint32
		self int
		want bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false}} {
		if got := admitted(tt.uid, tt.self); got != tt.want {
			t.Errorf("user %d to an agent of user %d: %t", tt.uid, tt.self, got)
		}
	}
}

func TestWireError(t *testing.T) {
	e := toWire(fmt.Errorf("undelete disk/a: %w", &Error{Code: Conflict, Message: "in use", Hint: "stop it"}))
	if *e != (Error{Code: Conflict, Message: "undelete disk/a: in use", Hint: "stop it"}) {
		t.Errorf("%+v", e)
	}
	if e := toWire(&Error{Code: "novel", Message: "m"}); e.Code != Internal {
		t.Errorf("%+v", e)
	}
}
