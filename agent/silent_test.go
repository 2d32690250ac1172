package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/spec"
)

// daemon is the agent's loop over a sim, in real time.
type daemon struct {
	*sim
	changed chan string
	ended   chan error
}

// silentFor bounds what must happen at once, whoever is silent: those who are
// never answer.
const silentFor = 30 * time.Second

func (s *sim) daemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{sim: s, changed: make(chan string, 1), ended: make(chan error, 1)}
	s.cfg.Changed, s.cfg.Interval = d.changed, time.Hour
	s.cfg.RunDir = filepath.Join(s.dir, "r")
	s.cfg.Now, s.cfg.Uptime = nil, nil
	s.restart()
	ctx, cancel := context.WithCancel(context.Background())
	go func() { d.ended <- s.agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-d.ended:
			if err != nil {
				t.Errorf("the agent ended: %v\n%s", err, s.log)
			}
		case <-time.After(silentFor):
			t.Errorf("the agent does not end\n%s", s.log)
		}
	})
	return d
}

// crash ends a machine's process, and waits until it runs again.
func (d *daemon) crash(t *testing.T, name string) {
	t.Helper()
	d.set(spec.KindVirtualMachine, name, func(h *reconcile.Live) {
		h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU ended", Failed: true}
	})
	d.changed <- name
	d.await(t, name+" to run again", func() bool {
		h := d.observe(spec.KindVirtualMachine).Objects[d.live(spec.KindVirtualMachine, name).Key()]
		return h.VM.Power == reconcile.PowerRunning
	})
}

func (d *daemon) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(silentFor)
	for !ok() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatalf("waited %s for %s\n%s", silentFor, what, d.log)
		}
	}
}

// A forge that accepts and never answers, from before a crash: it is asked for a
// revision, told a status and asked for approvals, and a machine is back as if it
// answered.
func TestSilentForge(t *testing.T) {
	s := newSim(t, nil)
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	s.mustPass()
	s.silent.Store(true)
	s.cfg.Review = Review{Required: true, Overrides: only(t, newKey(t), "ada")}
	d := s.daemon(t)
	for _, want := range []string{"fetch", "push"} {
		d.await(t, "the forge to be asked: "+want, func() bool {
			select {
			case got := <-s.waits:
				return got == want
			default:
				return false
			}
		})
	}
	d.crash(t, "a")
	// Who asks for a pass waits for the forge, and keeps nobody else waiting.
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error, 1)
	go func() {
		_, err := s.agent.Reconcile(ctx, api.ReconcileRequest{Wait: true}, func(string) {})
		waits <- err
	}()
	d.crash(t, "a")
	cancel()
	if err := <-waits; err == nil {
		t.Error("reconcile --wait ended well without the forge")
	}
}

// A host that has no revision yet does not wait for its interval after a fetch
// that failed.
func TestFirstFetchIsTriedAgainSoon(t *testing.T) {
	s := newSim(t, nil)
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	s.broken = fmt.Errorf("dial tcp 192.0.2.1:443: connection refused")
	d := s.daemon(t)
	d.await(t, "the fetch to fail", func() bool {
		st, err := s.agent.Status(t.Context())
		return err == nil && len(st.Conditions) > 2 && strings.Contains(st.Conditions[2].Message, "connection refused")
	})
	s.mu.Lock()
	s.broken = nil
	s.mu.Unlock()
	d.await(t, "machine a", func() bool { return s.live(spec.KindVirtualMachine, "a") != nil })
}
