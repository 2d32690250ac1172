package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/policy"
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

func simImage(name, sum string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Image\nmetadata: {name: %s}\nspec: {source: {http: {url: \"https://images.example/%s\"}}, sha256: \"%s\", format: raw, virtualSize: 1Gi}\n",
		name, name, strings.Repeat(sum, 64))
}

const simSmall = ", memory: {size: 512Mi}"

// hangs has actions wait until the agent ends, once they began, and counts them.
func (s *sim) hangs(which func(a *reconcile.Action) bool) func() int {
	var mu sync.Mutex
	n := 0
	s.hang = func(ctx context.Context, a *reconcile.Action) error {
		if !which(a) {
			return nil
		}
		mu.Lock()
		n++
		mu.Unlock()
		<-ctx.Done()
		return ctx.Err()
	}
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// Servers of images that send nothing, for more images than actions go at a time:
// machines come back, new disks are made, and another tenant gets its images.
func TestSlowDownloadsHoldUpTheirTenantOnly(t *testing.T) {
	s := newSim(t, func(c *Config) {
		c.Tenants = []policy.Tenant{{Name: "red", Path: "red", Kinds: policy.TenantKinds()}, {Name: "blue", Path: "blue", Kinds: policy.TenantKinds()}}
	})
	s.commit(machines(simVM("a", simSmall)))
	s.mustPass()
	began := s.hangs(func(a *reconcile.Action) bool { return a.Kind == spec.KindImage && strings.HasPrefix(a.Name, "red") })
	d := s.daemon(t)
	red := ""
	for _, digit := range "0123456789" {
		red += simImage("red-"+string(digit), string(digit))
	}
	s.commit(map[string]string{"vms.yaml": simVM("a", simSmall) + simVM("b", simSmall) + simDisk("d"), "red/images.yaml": red, "blue/image.yaml": simImage("blue", "b")})
	s.agent.wake(trigger{fetch: true})
	d.await(t, "four downloads", func() bool { return began() == 4 })
	d.crash(t, "a")
	d.await(t, "what another makes", func() bool {
		return s.live(spec.KindVirtualMachine, "b") != nil && s.live(spec.KindDisk, "d") != nil && s.live(spec.KindImage, "blue") != nil
	})
	if n := began(); n != 4 {
		t.Errorf("%d downloads of one tenant at a time, want 4", n)
	}
}

// More starts than go at a time wait for a target or a QEMU that does not answer.
func TestSilentStartsHoldUpNoOther(t *testing.T) {
	s := newSim(t, nil)
	files := simVM("a", simSmall)
	for i := range 9 {
		files += simVM(fmt.Sprintf("stuck-%d", i), simSmall)
	}
	s.commit(machines(files))
	s.mustPass()
	stuck := func(a *reconcile.Action) bool { return strings.HasPrefix(a.Name, "stuck") }
	began := s.hangs(stuck)
	for i := range 9 {
		s.set(spec.KindVirtualMachine, fmt.Sprintf("stuck-%d", i), func(h *reconcile.Live) {
			h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU ended", Failed: true}
		})
	}
	d := s.daemon(t)
	d.await(t, "four starts", func() bool { return began() >= 4 })
	d.crash(t, "a")
}

// A guest that ignores what it is asked to do holds up nobody else: neither a
// machine that ended, nor one whose restart is asked for, nor who asks for a stop.
func TestDeafGuestHoldsUpNoOther(t *testing.T) {
	for name, deafen := range map[string]func(s *sim) error{
		"a commit restarts it": func(s *sim) error {
			s.commit(machines(simVM("a", simSmall), simVM("b", simSmall), simVM("deaf", ", memory: {size: 1Gi}, updatePolicy: {restart: Automatic}")))
			s.agent.wake(trigger{fetch: true})
			return nil
		},
		"an operator restarts it": func(s *sim) error {
			return s.agent.Restart(context.Background(), api.MachineRequest{Name: "deaf"})
		},
		"an operator stops it": func(s *sim) error {
			go func() { _, _ = s.agent.Stop(context.Background(), api.MachineRequest{Name: "deaf"}) }()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, nil)
			s.commit(machines(simVM("a", simSmall), simVM("b", simSmall), simVM("deaf", simSmall)))
			s.mustPass()
			over := make(chan struct{})
			began := s.hangs(func(a *reconcile.Action) bool { return a.Name == "deaf" && a.Op == reconcile.OpStop })
			hang := s.hang
			s.hang = func(ctx context.Context, a *reconcile.Action) error { // Stop's context is the caller's
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				go func() {
					select {
					case <-over:
					case <-ctx.Done():
					}
					cancel()
				}()
				return hang(ctx, a)
			}
			d := s.daemon(t)
			t.Cleanup(func() { close(over) })
			d.await(t, "the first pass", func() bool {
				st, err := s.agent.Status(t.Context())
				return err == nil && st.Summary.Synced > 0
			})
			if err := deafen(s); err != nil {
				t.Fatal(err)
			}
			d.await(t, "the guest to be asked", func() bool { return began() == 1 })
			// A plan says what is done to it.
			p, err := s.agent.Plan(t.Context(), api.PlanRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if act := actionOf(t, p, "VirtualMachine/deaf"); act.Reason != inProgress || act.State != reconcile.Waiting || act.Op != reconcile.OpStop && act.Op != reconcile.OpRestart {
				t.Errorf("the plan: %s %s (%s)", act.Op, act.State, act.Reason)
			}
			d.crash(t, "a")
			s.ran()
			if err := s.agent.Restart(t.Context(), api.MachineRequest{Name: "b"}); err != nil {
				t.Fatal(err)
			}
			d.await(t, "the restart of b", func() bool {
				return slices.ContainsFunc(s.ran(), func(b begun) bool { return b.object == "VirtualMachine/b" && b.op == reconcile.OpStart })
			})
		})
	}
}
