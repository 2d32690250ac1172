package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/api"
	"reconciler/internal/durable"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// aLife is what a host may be asked for, a step at a time. Every step bears
// repeating.
func aLife(s *sim) []func() error {
	ctx := context.Background()
	commit := func(files map[string]string) func() error {
		return func() error { s.commit(files); return nil }
	}
	ask := func(f func() error) func() error { return f }
	small, large := fmt.Sprintf(automatic, "512Mi"), fmt.Sprintf(automatic, "1Gi")
	const network = "---\napiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: front}\nspec: {user: {}}\n"
	return []func() error{
		commit(machines(simVM("a", small), simVM("b", small), simVM("c", small), simDisk("d"), simDisk("e"))),
		commit(machines(simVM("a", large), simVM("b", small), simVM("c", small), simDisk("d"), simDisk("e"), network)),
		ask(func() error { return s.agent.Restart(ctx, api.MachineRequest{Name: "b"}) }),
		ask(func() error {
			return s.agent.Suspend(ctx, api.SuspendRequest{Object: "VirtualMachine/c", Reason: "backup"})
		}),
		commit(map[string]string{"a.yaml": "kind: Nonsense\n"}),
		commit(machines(simVM("a", large), simVM("b", small), simDisk("d"))), // c is removed, and suspended
		ask(func() error { return s.agent.Resume(ctx, api.ResumeRequest{Object: "VirtualMachine/c"}) }),
		commit(machines(simVM("a", large+", powerState: Stopped"), simVM("b", small), simDisk("d"), network)),
		func() error {
			// What runs is moved behind the agent's back.
			s.set(spec.KindVirtualMachine, "b", func(h *reconcile.Live) {
				h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU ended", Failed: true}
			})
			return nil
		},
		commit(machines(simVM("a", large), simVM("b", small), simDisk("d"), simDisk("e"))),
		ask(func() error {
			return s.agent.Allow(ctx, api.AllowRequest{ID: strings.Repeat("a", idDigits), For: time.Hour, Reason: "test"})
		}),
		ask(func() error {
			return s.agent.Accept(ctx, api.AcceptRequest{Rev: strings.Repeat("b", 40), Reason: "test"})
		}),
	}
}

// endOf is what is there and what is remembered, as the next agent reads it.
func (s *sim) endOf() string {
	s.t.Helper()
	next, err := New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	m := next.mem
	m.LastContact = time.Time{}
	charges := map[string]bool{} // an agent that is killed may charge an object twice, which counts once
	for _, c := range m.Ledger {
		charges[fmt.Sprint(c.Kind, c.Name, c.Made)] = true
	}
	m.Ledger = nil
	for i := range m.Suspensions {
		m.Suspensions[i].Since = time.Time{}
	}
	for i := range m.Allowances {
		m.Allowances[i].Until = time.Time{}
	}
	var live []string
	for k, h := range s.state.Objects {
		live = append(live, fmt.Sprint(k, h.Disk != nil && h.Disk.Quarantined, h.VM != nil && h.VM.Power == reconcile.PowerRunning))
	}
	slices.Sort(live)
	base := map[string]any{}
	for k, b := range next.base {
		base[fmt.Sprint(k)] = []any{b, next.revisions[k]}
	}
	out, err := json.MarshalIndent(map[string]any{"memory": m, "charges": charges, "base": base, "owners": next.owners, "live": live}, "", " ")
	if err != nil {
		s.t.Fatal(err)
	}
	return string(out)
}

var errBroken = fmt.Errorf("sync: %w", unix.EIO)

// Every write that the agent makes fails once, before and after the record is in
// place; it then goes on, or is killed. The pass that met it says so, and the next
// one acts: nothing stays under way, and the end is as if nothing had failed.
func TestFailedWrites(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm") // thousands of records, and no power failure
	}
	writes, want := 0, ""
	live := func(t *testing.T, fail int, when durable.When, killed bool) (op string) {
		s := newSim(t, nil)
		s.named = "demo-faults" // it takes no lock
		n := 0
		defer durable.Inject(func(path, o string, w durable.When) error {
			if w != when || !strings.HasPrefix(path, s.dir) {
				return nil
			}
			if n++; n == fail {
				op = o
				return errBroken
			}
			return nil
		})()
		for i, step := range aLife(s) {
			met := n < fail
			err := step()
			if err != nil && !errors.Is(err, errBroken) {
				t.Fatalf("step %d: %v", i, err)
			}
			if err != nil {
				if err := step(); err != nil {
					t.Fatalf("step %d, again: %v", i, err)
				}
			}
			_, err = s.pass()
			met = met && n >= fail
			if errors.Is(err, errBroken) {
				st, serr := s.agent.Status(t.Context())
				stalled := slices.ContainsFunc(st.Conditions, func(c status.Condition) bool {
					return c.Type == status.Stalled && c.Status == status.True && c.Reason == "RecordsNotWritten" && strings.Contains(c.Message, s.dir)
				})
				if serr != nil || !stalled {
					t.Errorf("step %d, %s: the status does not say that records cannot be written: %v, %+v", i, op, serr, st.Conditions)
				}
				if !met {
					t.Errorf("step %d, %s: an error that comes again: %v", i, op, err)
				}
			}
			if met && killed {
				s.restart()
			}
			for range 2 {
				p, err := s.pass()
				var r *refusal
				if err != nil && !errors.As(err, &r) {
					t.Fatalf("step %d, after %s failed: the next pass: %v", i, op, err)
				}
				for j := range p.Actions {
					if p.Actions[j].Reason == inProgress {
						t.Fatalf("step %d, after %s failed: %s is still under way", i, op, objectName(&p.Actions[j]))
					}
				}
			}
		}
		s.agent.mu.Lock()
		left := len(s.agent.running) + len(s.agent.unwritten)
		s.agent.mu.Unlock()
		if left > 0 {
			t.Errorf("after %s failed %d tasks are left", op, left)
		}
		if fail == 0 {
			writes, want = n, s.endOf()
		} else if got := s.endOf(); got != want {
			t.Errorf("write %d of %d, %s, failed, killed %t: the end is\n%s\nwant\n%s", fail, writes, op, killed, got, want)
		}
		return op
	}
	live(t, 0, durable.Before, false)
	if writes < 40 {
		t.Fatalf("only %d writes", writes)
	}
	met := map[string]int{}
	for n := 1; n <= writes; n++ {
		for _, when := range []durable.When{durable.Before, durable.After} {
			met[live(t, n, when, (n+int(when))%2 == 0)]++
		}
		if t.Failed() {
			return
		}
	}
	for _, name := range []string{stateFile, baseFile, ownersFile} {
		if met["write "+name] == 0 {
			t.Errorf("%s was never written: %v", name, met)
		}
	}
}

// A charge for what could not begin is no charge.
func TestFailedWriteCostsNothing(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Limits = policy.Limits{Count: 1} })
	const small = ", memory: {size: 512Mi}"
	s.commit(machines(simVM("a", small), simVM("b", small), simVM("c", small)))
	s.mustPass()
	s.commit(machines(simVM("b", small), simVM("c", small)))
	broken := true
	defer durable.Inject(func(path, op string, when durable.When) error {
		if broken && strings.HasPrefix(path, s.dir) && op == "write "+baseFile {
			return errBroken
		}
		return nil
	})()
	for range 3 {
		if _, err := s.pass(); !errors.Is(err, errBroken) {
			t.Fatalf("%v", err)
		}
	}
	s.commit(machines(simVM("a", small), simVM("c", small))) // another one is to go now
	broken = false
	s.mustPass()
	if s.live(spec.KindVirtualMachine, "b") != nil || s.live(spec.KindVirtualMachine, "a") == nil {
		t.Error("what was never begun counts against the budget")
	}
}

// The agent's directory on a file system of its own that a guest fills.
func TestRecordsOfManyObjectsOnAFullDisk(t *testing.T) {
	s := newSim(t, nil)
	fs := t.TempDir()
	if err := unix.Mount("tmpfs", fs, "tmpfs", 0, "mode=0700,size=8M"); err != nil {
		t.Skip("needs root, to mount a small file system and fill it:", err)
	}
	defer func() { _ = unix.Unmount(fs, unix.MNT_DETACH) }()
	s.cfg.StateDir = fs
	s.restart()
	var disks []string
	for i := range 200 {
		disks = append(disks, simDisk(fmt.Sprintf("disk-%03d", i)))
	}
	s.commit(machines(disks...))
	s.mustPass()
	guest, err := os.Create(fs + "/guest")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = guest.Close() }()
	fill := func() {
		for err := error(nil); err == nil; {
			_, err = guest.Write(make([]byte, 4096))
		}
	}
	fill()
	for round := range 5 {
		s.commit(machines(append(slices.Clone(disks), simVM("v", fmt.Sprintf(automatic, fmt.Sprintf("%dMi", 512+round))))...))
		s.mustPass()
		fill()
	}
	if b := s.ran(); b[len(b)-1].object != "VirtualMachine/v" {
		t.Errorf("%v", b[len(b)-1])
	}
}
