package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/api/apitest"
	"reconciler/reconcile"
	"reconciler/spec"
)

var now = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func objects() []api.Object {
	return []api.Object{
		{Kind: spec.KindVirtualMachine, Name: "web-1", UID: "u1", Host: "host1", Sync: "OutOfSync", Health: "Healthy", Revision: "r1",
			Status: map[string]any{"power": "Running"}},
		{Kind: spec.KindDisk, Name: "web-1-root", UID: "u2", Host: "host1", Sync: "Synced", Health: "Healthy", Revision: "r1"},
		{Kind: spec.KindDisk, Name: "old", UID: "u3", Host: "host1", Sync: "Synced", Health: "Healthy", Revision: "r1", Quarantined: true},
	}
}

func plan() *reconcile.Plan {
	p := &reconcile.Plan{
		APIVersion: spec.APIVersion, Kind: "Plan", Revision: "0123456789abcdef0123456789abcdef01234567",
		Hosts: []reconcile.HostDigest{{Host: "host1", Digest: "sha256:aa", ObservedAt: now}},
		Actions: []reconcile.Action{
			{ID: "1111111111", Kind: spec.KindVirtualMachine, Name: "web-1", UID: "u1", Host: "host1", Op: reconcile.OpUpdate,
				Cause: reconcile.CauseRevision, Impact: reconcile.ImpactRestart, State: reconcile.Held, Reason: "budget",
				Changes: []reconcile.Change{{Field: "spec.memory.size", From: "512Mi", To: "1Gi", Impact: reconcile.ImpactRestart}}},
			{ID: "2222222222", Kind: spec.KindDisk, Name: "web-1-root", UID: "u2", Host: "host1", Op: reconcile.OpUpdate,
				Cause: reconcile.CauseRevision, Impact: reconcile.ImpactLive, State: reconcile.Ready,
				Changes: []reconcile.Change{{Field: "spec.size", From: "1Gi", To: "2Gi", Impact: reconcile.ImpactLive}}},
		},
	}
	p.Settle()
	return p
}

// start serves an agent in dir until the test ends.
func start(t *testing.T, dir string, a api.Agent) {
	t.Helper()
	l, err := api.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server did not end within 20 s")
		}
		if _, err := os.Stat(filepath.Join(dir, api.SocketName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
}

func dial(t *testing.T, dir string) *api.Client {
	t.Helper()
	c, err := api.Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		t.Errorf("%s:\n got %s\nwant %s", what, g, w)
	}
}

// Every call does through the socket what it does to the agent itself.
func TestCalls(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 25))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a := apitest.New(now, objects(), plan())
	a.SetConsole("web-1", api.Console{Socket: "/run/x", Log: "/var/y"})
	a.SetProgress("grow Disk/web-1-root", "done")
	start(t, dir, a)
	c := dial(t, dir)
	ctx := t.Context()

	p, err := c.Plan(ctx, api.PlanRequest{Rev: "0123", Base: "b"})
	if err != nil {
		t.Fatal(err)
	}
	direct, _ := a.Plan(ctx, api.PlanRequest{Base: "b"})
	same(t, "plan", p, direct)

	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"suspend", func() error {
			return c.Suspend(ctx, api.SuspendRequest{Object: "VirtualMachine/web-1", Reason: "repair", Until: now.Add(time.Hour)})
		}},
		{"suspend all", func() error { return c.Suspend(ctx, api.SuspendRequest{Reason: "all"}) }},
		{"resume", func() error { return c.Resume(ctx, api.ResumeRequest{}) }},
		{"allow", func() error {
			return c.Allow(ctx, api.AllowRequest{ID: "11111111", For: time.Hour, Reason: "checked"})
		}},
		{"accept", func() error { return c.Accept(ctx, api.AcceptRequest{Rev: "ffff", Reason: "rewritten"}) }},
		{"restart", func() error { return c.Restart(ctx, api.MachineRequest{Name: "web-1", Force: true}) }},
		{"stop", func() error {
			_, err := c.Stop(ctx, api.MachineRequest{Name: "web-1", Force: true})
			return err
		}},
	} {
		if err := call.do(); err != nil {
			t.Errorf("%s: %v", call.name, err)
		}
	}
	u, err := c.Undelete(ctx, api.UndeleteRequest{Name: "old"})
	if err != nil || !strings.Contains(u.YAML, "kind: Disk") {
		t.Errorf("undelete: %+v, %v", u, err)
	}
	if err := c.Revert(ctx, api.RevertRequest{Object: "VirtualMachine/web-1", Reason: "not wanted"}); err != nil {
		t.Errorf("revert: %v", err)
	}
	found, err := c.Import(ctx, api.ImportRequest{Objects: []string{"Disk/stray"}})
	if err != nil || len(found.Documents) != 1 || !found.Documents[0].Adopted || len(found.Notes) != 1 {
		t.Errorf("import: %+v, %v", found, err)
	}
	g, err := c.Access(ctx, api.AccessRequest{Disk: "web-1-root", Initiators: []string{"iqn.x"}, For: time.Hour})
	if err != nil || g.Password == "" || !g.Until.Equal(now.Add(time.Hour)) {
		t.Errorf("access: %+v, %v", g, err)
	}
	list, err := c.ListAccess(ctx)
	if err != nil || len(list) != 1 || list[0].ID != g.ID || list[0].Password != "" {
		t.Errorf("list access: %+v, %v", list, err)
	}
	if err := c.EndAccess(ctx, api.EndAccessRequest{ID: g.ID}); err != nil {
		t.Errorf("end access: %v", err)
	}
	if r, err := c.ClearReservations(ctx, api.ClearRequest{Disk: "web-1-root"}); err != nil || r.Cleared == nil {
		t.Errorf("clear reservations: %+v, %v", r, err)
	}
	console, err := c.Console(ctx, "web-1")
	if err != nil {
		t.Error(err)
	}
	same(t, "console", console, api.Console{Socket: "/run/x", Log: "/var/y"})

	var progress []string
	p, err = c.Reconcile(ctx, api.ReconcileRequest{Wait: true}, func(s string) { progress = append(progress, s) })
	if err != nil {
		t.Fatal(err)
	}
	same(t, "progress", progress, []string{"grow Disk/web-1-root", "done"})
	if !p.Empty() {
		t.Error("a plan is left after reconcile --wait")
	}
	if p, err := c.Reconcile(ctx, api.ReconcileRequest{}, nil); err != nil || p != nil {
		t.Errorf("reconcile without wait: %v, %v", p, err)
	}

	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantSt, _ := a.Status(ctx)
	same(t, "status", st, wantSt)
	if len(st.Suspended) != 1 || st.Suspended[0].By != "root" {
		t.Errorf("suspended: %+v", st.Suspended)
	}
	got, err := c.Objects(ctx)
	if err != nil || len(got) != 3 || got[0].Status["power"] != "Running" {
		t.Errorf("objects: %+v, %v", got, err)
	}
	// Every call that changes something was audited, with the caller.
	events, err := c.Events(ctx, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, e := range events {
		reasons = append(reasons, e.Reason)
		if e.By != "root" {
			t.Errorf("event %d by %q", e.Seq, e.By)
		}
	}
	same(t, "events", reasons, []string{"Suspend", "Suspend", "Resume", "Allow", "Accept", "Restart", "Stop", "Undelete", "Revert", "Access", "EndAccess", "ReservationsCleared", "Reconcile", "Reconcile"})
}

func TestErrorsKeepCodeAndHint(t *testing.T) {
	dir := t.TempDir()
	start(t, dir, apitest.New(now, objects(), plan()))
	c := dial(t, dir)
	for name, tt := range map[string]struct {
		err  func() error
		code api.Code
	}{
		"answer": {func() error { return c.Restart(t.Context(), api.MachineRequest{Name: "none"}) }, api.NotFound},
		"stream": {func() error {
			_, err := c.Plan(t.Context(), api.PlanRequest{Rev: "beef"})
			return err
		}, api.NotFound},
		"conflict": {func() error { return c.Resume(t.Context(), api.ResumeRequest{}) }, api.Conflict},
	} {
		if err := tt.err(); err == nil || api.CodeOf(err) != tt.code {
			t.Errorf("%s: %v, code %s", name, err, api.CodeOf(err))
		}
	}
	_, err := c.Plan(t.Context(), api.PlanRequest{Rev: "beef"})
	var e *api.Error
	if !errors.As(err, &e) || e.Hint != "push it first" {
		t.Errorf("no hint in %#v", err)
	}
}

func TestNoAgent(t *testing.T) {
	dir := t.TempDir()
	if _, err := api.Dial(dir); !errors.Is(err, api.ErrNoAgent) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := api.Dial(filepath.Join(dir, "none")); !errors.Is(err, api.ErrNoAgent) {
		t.Errorf("no directory: %v", err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, api.SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := api.Dial(dir); !errors.Is(err, api.ErrNoAgent) {
		t.Errorf("socket of a dead agent: %v", err)
	}
}

func TestEventsFollow(t *testing.T) {
	dir := t.TempDir()
	a := apitest.New(now, objects(), plan())
	start(t, dir, a)
	c := dial(t, dir)
	type result struct {
		events []api.Event
		err    error
	}
	got := make(chan result, 1)
	go func() {
		events, err := c.Events(t.Context(), 0, true)
		got <- result{events, err}
	}()
	select {
	case r := <-got:
		t.Fatalf("events before there was one: %+v", r)
	case <-time.After(50 * time.Millisecond):
	}
	a.SetObject(objects()[0])
	select {
	case r := <-got:
		if r.err != nil || len(r.events) != 1 || r.events[0].Object != "VirtualMachine/web-1" {
			t.Errorf("%+v", r)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no event within 10 s")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Events(ctx, 1, true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	dir := t.TempDir()
	a := apitest.New(now, objects(), plan())
	start(t, dir, a)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(dir, api.SocketName))
	}}}
	for name, tt := range map[string]struct {
		method, path, body string
		status             int
		message            string
	}{
		"unknown field": {"POST", "/v1/stop", `{"name":"web-1","mode":"hard"}`, 400, `unknown field "mode"`},
		"two values":    {"POST", "/v1/stop", `{"name":"web-1"} {}`, 400, "more than one"},
		"not JSON":      {"POST", "/v1/stop", `name`, 400, "request"},
		"too long":      {"POST", "/v1/stop", `{"name":"` + strings.Repeat("x", 100_000) + `"}`, 400, "too large"},
		"unknown call":  {"POST", "/v1/explode", `{}`, 404, "does not know POST"},
		"wrong method":  {"GET", "/v1/stop", "", 404, "does not know GET"},
	} {
		r, err := http.NewRequest(tt.method, "http://agent"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var e api.Error
		err = json.NewDecoder(res.Body).Decode(&e)
		res.Body.Close()
		if err != nil || res.StatusCode != tt.status || !strings.Contains(e.Message, tt.message) {
			t.Errorf("%s: %d %+v, %v", name, res.StatusCode, e, err)
		}
	}
	if events, _ := a.Events(t.Context(), 0, false); len(events) != 0 {
		t.Errorf("a bad request was carried out: %+v", events)
	}
}
