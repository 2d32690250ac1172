package main

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/spec"
)

// busy is an agent whose passes do not end.
type busy struct{ api.Agent }

func (busy) Reconcile(ctx context.Context, _ api.ReconcileRequest, progress func(string)) (*reconcile.Plan, error) {
	progress("Disk/big: copies")
	<-ctx.Done()
	return nil, ctx.Err()
}

func (b busy) Objects(ctx context.Context) ([]api.Object, error) {
	list, err := b.Agent.Objects(ctx)
	for i := range list {
		if list[i].Kind == spec.KindDisk && !list[i].Quarantined {
			list[i].Conditions = append(list[i].Conditions, api.Condition{Type: "Reconciling", Status: "True", Reason: "Progressing", Message: "update"})
		}
	}
	return list, err
}

func runHere(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, now: func() time.Time { return testTime }}
	code = a.run(t.Context(), args)
	return code, out.String(), errs.String()
}

// Who waits is told what is under way when the time is over, and it goes on.
func TestReconcileTimeout(t *testing.T) {
	dir := t.TempDir()
	serve(t.Fatalf, t.Cleanup, dir, busy{newAgent()})
	code, stdout, stderr := runHere(t, "reconcile", "--wait", "--timeout", "200ms", "--run-dir", dir)
	if code != exitError || !strings.Contains(stdout, "Disk/big: copies") ||
		!strings.Contains(stderr, "not done within 200ms; under way: Disk/web-1-root (update)") || !strings.Contains(stderr, "the agent goes on") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

func TestReconcileWait(t *testing.T) {
	_, dir := serveTest(t)
	code, stdout, stderr := runHere(t, "reconcile", "--wait", "--timeout", "1m", "--detailed-exitcode", "--run-dir", dir)
	if code != exitWaiting || !strings.Contains(stdout, "# the budget is spent") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	for _, args := range [][]string{{"--timeout", "1m"}, {"--wait", "--timeout", "-1s"}} {
		if code, _, stderr := runHere(t, append([]string{"reconcile", "--run-dir", dir}, args...)...); code != exitUsage {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
}

// Events go on over a restart of the agent, none twice and none left out; also
// where the agent lost its journal.
func TestEventsFollowOverRestart(t *testing.T) {
	dir := t.TempDir()
	start := func(a api.Agent) (stop func()) {
		l, err := api.Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- api.Serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	say := func(a interface{ SetObject(api.Object) }, name string) {
		a.SetObject(testObject(spec.KindVirtualMachine, name, name, "Synced", "Healthy"))
	}
	first := newAgent()
	stop := start(first)
	r := begin(t, nil, "events", "-f", "--run-dir", dir)
	say(first, "one")
	r.want("VirtualMachine/one")
	stop()
	say(first, "two") // while nobody listens
	stop = start(first)
	select {
	case line := <-r.lines:
		if !strings.Contains(line, "VirtualMachine/two") {
			t.Errorf("%q", line)
		}
	case <-time.After(patience):
		t.Fatalf("no event within %s after the restart", patience)
	}
	stop()
	other := newAgent()
	stop = start(other)
	defer stop()
	say(other, "three")
	r.want("VirtualMachine/three")
	r.cancel()
	r.end(exitDone)
	if n := strings.Count(r.errs.String(), "the agent ended"); n > 2 {
		t.Errorf("%d times told that the agent ended, want no more than 2:\n%s", n, r.errs)
	}
}

func TestStatusWindows(t *testing.T) {
	a, dir := serveTest(t)
	sunday := time.Date(2026, 11, 29, 1, 0, 0, 0, time.UTC)
	a.SetStatus(func(s *api.Status) {
		s.Windows = []api.Window{
			{Name: "weekly", Impact: "restart", TimeZone: "Europe/Berlin", Opens: sunday},
			{Name: "nightly", Impact: "live", TimeZone: "UTC", Open: true, Closes: sunday},
			{Name: "always", Impact: "live", TimeZone: "UTC", Open: true},
		}
	})
	code, stdout, stderr := runHere(t, "status", "--run-dir", dir)
	for _, want := range []string{
		"window      weekly opens Sun 2026-11-29 02:00 CET (for impact restart and more)\n",
		"window      nightly is open until Sun 2026-11-29 01:00 UTC\n", "window      always is open\n",
	} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, no %q in\n%s%s", code, want, stdout, stderr)
		}
	}
	if _, stdout, _ := runHere(t, "status", "-o", "json", "--run-dir", dir); !strings.Contains(stdout, `"opens": "2026-11-29T01:00:00Z"`) {
		t.Errorf("%s", stdout)
	}
}
