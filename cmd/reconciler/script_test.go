package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reconciler/api"
	"reconciler/api/apitest"
	"reconciler/reconcile"
	"reconciler/spec"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"reconciler": main})
}

// Scripts run the real binary. `agent` serves an agent in memory at
// $WORK/run, which $RUN names; `exits CODE COMMAND…` runs a command and wants
// that exit code.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			run := filepath.Join(env.WorkDir, "run")
			env.Setenv("RUN", run)
			// The race detector lets a process linger for a second.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return os.Mkdir(run, 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": startAgent,
			"exits": exits,
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	default:
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func startAgent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: agent")
	}
	serve(ts.Fatalf, ts.Defer, ts.Getenv("RUN"), newAgent())
}

// serve answers in dir until the end of the test.
func serve(fatalf func(string, ...any), atEnd func(func()), dir string, a api.Agent) {
	l, err := api.Listen(dir)
	if err != nil {
		fatalf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()
	atEnd(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				fatalf("serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			fatalf("the agent did not end within 20 s")
		}
	})
}

var testTime = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

const testRevision = "0123456789abcdef0123456789abcdef01234567"

func testObject(kind spec.Kind, name, uid, sync, health string) api.Object {
	return api.Object{
		Kind: kind, Name: name, UID: uid, Host: "host1", Sync: sync, Health: health, Revision: testRevision,
		Conditions: []api.Condition{{Type: "Ready", Status: "True", Reason: sync, LastTransitionTime: testTime}},
		Status:     map[string]any{"op": "unchanged"},
	}
}

// newAgent has one machine whose restart is held, one disk that grows, and one
// disk in quarantine.
func newAgent() *apitest.Agent {
	vm := testObject(spec.KindVirtualMachine, "web-1", "11111111-0000-5000-8000-000000000000", "OutOfSync", "Healthy")
	vm.Conditions[0].Message = "the budget is spent"
	vm.Status = map[string]any{"power": "Running", "pid": 42, "exit": "panic\x1b[2J", "disks": map[string]any{"root": "web-1-root"}}
	disk := testObject(spec.KindDisk, "web-1-root", "22222222-0000-5000-8000-000000000000", "OutOfSync", "Progressing")
	disk.Status["reservations"] = []string{"WriteExclusive of iqn.2026-11.x:a (epoch 3)"}
	old := testObject(spec.KindDisk, "old", "33333333-0000-5000-8000-000000000000", "Synced", "Healthy")
	old.Quarantined = true
	p := &reconcile.Plan{
		APIVersion: spec.APIVersion, Kind: "Plan", Revision: testRevision,
		Hosts: []reconcile.HostDigest{{Host: "host1", Digest: "sha256:5be1", ObservedAt: testTime}},
		Actions: []reconcile.Action{
			{
				ID: "3f2a91c04b7d1111", Kind: vm.Kind, Name: vm.Name, UID: vm.UID, Host: "host1", Op: reconcile.OpRestart,
				Cause: reconcile.CauseRevision, Impact: reconcile.ImpactRestart, State: reconcile.Held, Reason: "the budget is spent",
				Changes: []reconcile.Change{{Field: "spec.memory.size", From: "512Mi", To: "1Gi", Impact: reconcile.ImpactRestart}},
			},
			{
				ID: "77aa77aa77aa2222", Kind: disk.Kind, Name: disk.Name, UID: disk.UID, Host: "host1", Op: reconcile.OpUpdate,
				Cause: reconcile.CauseRevision, Impact: reconcile.ImpactLive, State: reconcile.Ready,
				Changes: []reconcile.Change{{Field: "spec.size", From: "1Gi", To: "2Gi", Impact: reconcile.ImpactLive}},
			},
		},
	}
	p.Settle()
	a := apitest.New(testTime, []api.Object{vm, disk, old}, p)
	a.SetProgress(fmt.Sprintf("Disk/%s: update", disk.Name))
	return a
}
