package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

func berlin(t *testing.T) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func weekly(t *testing.T) policy.Schedule {
	t.Helper()
	m, err := policy.NewMaintenance("weekly", "0 2 * * 0", 4*time.Hour, berlin(t), reconcile.ImpactRestart)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Schedule{m}
}

const automatic = ", updatePolicy: {restart: Automatic}, memory: {size: %s}"

func machines(texts ...string) map[string]string {
	return map[string]string{"vms.yaml": strings.Join(texts, "")}
}

// Interruptions wait for the window and begin when it opens; what brings
// something back, or is new, does not wait for anything.
func TestWindowHoldsAndLetsGo(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Windows = weekly(t) })
	small, large := fmt.Sprintf(automatic, "512Mi"), fmt.Sprintf(automatic, "1Gi")
	s.commit(machines(simVM("a", small), simVM("b", small), simVM("c", small), simDisk("d"), simDisk("stays")))
	s.mustPass()
	if n := len(s.ran()); n != 6 { // with the pool
		t.Fatalf("%d actions made the host, want 6: to make something needs no window", n)
	}

	// A restart, a stop, two removals; and a machine more.
	s.commit(machines(simVM("a", large), simVM("b", small+", powerState: Stopped"), simVM("e", small), simDisk("stays")))
	p := s.mustPass()
	for _, b := range s.ran() {
		if b.object != "VirtualMachine/e" {
			t.Errorf("%s of %s while the window is closed", b.op, b.object)
		}
	}
	const until = "held until Sun 2026-11-29 02:00 CET, window weekly"
	for _, name := range []string{"VirtualMachine/a", "VirtualMachine/b", "VirtualMachine/c", "Disk/d"} {
		if a := actionOf(t, p, name); a.State != reconcile.Held || !strings.HasPrefix(a.Reason, until) {
			t.Errorf("%s: %s %s (%s)", name, a.Op, a.State, a.Reason)
		}
	}
	var text strings.Builder
	if err := p.WriteMarkdown(&text); err != nil || strings.Count(text.String(), until) != 4 {
		t.Errorf("markdown: %v\n%s", err, text.String())
	}
	objects, err := s.agent.Objects(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	said := 0
	for _, o := range objects {
		for _, c := range o.Conditions {
			if c.Type == status.Ready && strings.HasPrefix(c.Message, until) {
				said++
			}
		}
	}
	if said != 4 {
		t.Errorf("%d objects say that they wait for the window, want 4", said)
	}
	st, err := s.agent.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	sunday := time.Date(2026, 11, 29, 2, 0, 0, 0, berlin(t))
	if len(st.Windows) != 1 || st.Windows[0].Open || !st.Windows[0].Opens.Equal(sunday) || st.Summary.Held != 4 {
		t.Errorf("status: %+v, %+v", st.Windows, st.Summary)
	}

	// A crash in the meantime.
	s.set(spec.KindVirtualMachine, "c", func(h *reconcile.Live) {
		h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU ended", Failed: true}
	})
	s.set(spec.KindVirtualMachine, "a", func(h *reconcile.Live) {
		h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU ended", Failed: true}
	})
	s.sleep(time.Hour)
	s.mustPass()
	if b := s.ran(); len(b) != 1 || b[0].op != reconcile.OpStart || b[0].object != "VirtualMachine/a" {
		t.Errorf("after a crash: %v, want a start of a, and nothing of c, which is to go", b)
	}

	// It has its new memory with that start: there is nothing left to restart.
	for s.clock().Before(sunday) {
		s.wake()
		s.mustPass()
		if b := s.ran(); len(b) > 0 && s.clock().Before(sunday) {
			t.Fatalf("at %s: %v", s.clock(), b)
		} else if len(b) > 0 && len(b) != 3 {
			t.Errorf("when it opens: %v", b)
		}
	}
	if now := s.clock(); !now.Equal(sunday) {
		t.Errorf("the agent is awake at %s, want %s", now, sunday)
	}
	if s.live(spec.KindVirtualMachine, "c") != nil || !s.live(spec.KindDisk, "d").Disk.Quarantined {
		t.Error("the window is open and the removals are not carried out")
	}
	if st, _ := s.agent.Status(context.Background()); !st.Windows[0].Open || st.Windows[0].Closes.Sub(sunday) != 4*time.Hour {
		t.Errorf("status: %+v", st.Windows)
	}
	s.commit(machines(simVM("a", small), simVM("e", small), simDisk("stays")))
	s.sleep(4*time.Hour - time.Nanosecond)
	s.mustPass()
	if b := s.ran(); len(b) != 3 { // stop and start of a, removal of b
		t.Errorf("in the last moment of the window: %v", b)
	}
	s.commit(machines(simVM("a", large), simVM("e", small), simDisk("stays")))
	s.sleep(time.Nanosecond)
	s.mustPass()
	if b := s.ran(); len(b) != 0 {
		t.Errorf("after the window: %v", b)
	}
	// A person on the host may.
	if err := s.agent.Restart(context.Background(), api.MachineRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	s.mustPass()
	if b := s.ran(); len(b) != 2 || b[0].op != reconcile.OpStop || b[1].op != reconcile.OpStart {
		t.Errorf("a restart that was asked for: %v", b)
	}
	s.commit(machines(simVM("a", large), simDisk("stays")))
	s.mustPass()
	if err := s.agent.Allow(context.Background(), api.AllowRequest{ID: "VirtualMachine/e", For: time.Hour, Reason: "urgent"}); err != nil {
		t.Fatal(err)
	}
	s.mustPass()
	if b := s.ran(); len(b) != 1 || b[0].op != reconcile.OpDelete {
		t.Errorf("a removal that was allowed: %v", b)
	}
}

// Interruptions go one at a time. One whose turn comes after the window closed
// does not begin, and costs nothing.
func TestWindowClosesBeforeTheTurn(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Windows, c.Limits = weekly(t), policy.Limits{Count: 2} })
	running := []string{simVM("a", ", memory: {size: 512Mi}"), simVM("b", ", memory: {size: 512Mi}"), simVM("c", ", memory: {size: 512Mi}")}
	s.commit(machines(running...))
	s.mustPass()
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}, powerState: Stopped"), simVM("b", ", memory: {size: 512Mi}, powerState: Stopped"), running[2]))
	s.mustPass()
	s.ran()
	s.took = func(a *reconcile.Action) time.Duration { return 5 * time.Hour }
	s.wake()
	p := s.mustPass()
	stops := s.ran()
	if len(stops) != 1 || stops[0].op != reconcile.OpStop {
		t.Fatalf("within the window: %v, want one stop, which outlasts it", stops)
	}
	charged := slices.DeleteFunc(slices.Clone(s.agent.mem.Ledger), func(c policy.Charge) bool { return c.Made })
	if n := len(charged); n != 1 {
		t.Errorf("%d interruptions are charged, want 1", n)
	}
	if n := p.Count(reconcile.Held); n != 1 {
		t.Errorf("%d actions are held, want 1", n)
	}
	if len(s.agent.failures) != 0 {
		t.Error("to wait for a window is no failure")
	}
	for len(s.ran()) == 0 {
		if s.wake(); s.clock().After(stops[0].at.Add(8 * 24 * time.Hour)) {
			t.Fatal("the other stop is not carried out a week later")
		}
		s.mustPass()
	}
	// Its stop took five hours of the window as well.
	if at := s.clock().Add(-5 * time.Hour); !at.Equal(stops[0].at.Add(7 * 24 * time.Hour)) {
		t.Errorf("the other began at %s, want a week after %s", at, stops[0].at)
	}
}

// Twenty commits of two deletions each: within any 24 hours no more than the
// budget goes, whoever commits how often, also over restarts of the agent; and
// in the end all of it goes, at the right times.
func TestTwentyCommits(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Limits = policy.DefaultLimits })
	const all = 44
	tree := func(from int) map[string]string {
		var texts []string
		for i := from; i < all; i++ {
			texts = append(texts, simVM(fmt.Sprintf("v%02d", i), ", memory: {size: 512Mi}"), simDisk(fmt.Sprintf("d%02d", i)))
		}
		return machines(texts...)
	}
	s.commit(tree(0))
	s.mustPass()
	s.ran()
	s.sleep(policy.Window) // what is new does not count
	began := s.clock()
	var gone []begun
	for n := 1; n <= 20; n++ {
		s.commit(tree(2 * n))
		s.mustPass()
		gone = append(gone, removals(s.ran())...)
		s.sleep(30 * time.Minute)
		if n%5 == 0 {
			s.restart()
		}
	}
	// 10 % of 44 is 4, of machines and of disks each.
	if len(gone) != 8 {
		t.Fatalf("%d objects were removed by twenty commits within ten hours, want 8", len(gone))
	}
	if at := actionOf(t, s.mustPass(), "VirtualMachine/v30"); at.State != reconcile.Held || !strings.Contains(at.Reason, "held until Fri 2026-11-27 12:00 UTC") {
		t.Errorf("%s (%s)", at.State, at.Reason)
	}
	for len(gone) < 80 {
		if s.wake(); s.clock().Sub(began) > 30*24*time.Hour {
			t.Fatalf("after a month %d of 80 are removed", len(gone))
		}
		s.mustPass()
		gone = append(gone, removals(s.ran())...)
	}
	for i, b := range gone {
		within := 0
		for _, o := range gone[i:] {
			if o.at.Sub(b.at) < policy.Window && strings.HasPrefix(o.object, "VirtualMachine/") == strings.HasPrefix(b.object, "VirtualMachine/") {
				within++
			}
		}
		if within > 4 {
			t.Errorf("%d within 24 hours of %s", within, b.at)
		}
	}
	// Never later than it may: 4 a day while there are 40, then 3, and 2 from 29 on.
	if last := gone[len(gone)-1].at.Sub(began); last > 17*24*time.Hour {
		t.Errorf("the last was removed after %s", last)
	}
}

func removals(list []begun) []begun {
	return slices.DeleteFunc(list, func(b begun) bool { return b.op != reconcile.OpDelete && b.op != reconcile.OpQuarantine })
}

// Whatever a commit says, it cannot lift what holds it: not by any field, nor
// by a file that looks like the host's configuration.
func TestCommitLiftsNothing(t *testing.T) {
	const small = ", memory: {size: 512Mi}"
	vms := func(more string, n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(simVM(fmt.Sprintf("v%d", i), small+more))
		}
		return b.String()
	}
	annotated := strings.ReplaceAll(vms(", powerState: Stopped", 8), "metadata: {", `metadata: {labels: {allow: "true"}, annotations: {reconciler/allow: all, reconciler/window: always}, drift: Correct, `)
	clusters := strings.Replace(simCluster, "metadata: {name: host1}", `metadata: {name: host1, annotations: {reconciler/limits: "100"}}`, 1)
	clusters = strings.Replace(clusters, "addresses: {management: 127.0.0.1}", "addresses: {management: 127.0.0.1}, state: Cordoned, drift: Off", 1)
	const config = "limits: {budget: {count: 100, percent: 100}}\nwindows: []\n"
	for name, files := range map[string]map[string]string{
		"removal":                machines(),
		"stop":                   machines(vms(", powerState: Stopped", 8)),
		"stop without a timeout": machines(vms(", powerState: Stopped, shutdown: {timeout: 1s}, restartPolicy: Never, updatePolicy: {restart: Automatic}", 8)),
		"annotated":              {"vms.yaml": annotated, "cluster.yaml": clusters},
		"restart at a time":      machines(vms(`, restartedAt: "2026-11-25T00:00:00Z"`, 8)),
		"automatic restart":      machines(strings.ReplaceAll(vms(", updatePolicy: {restart: Automatic}", 8), "512Mi", "1Gi")),
		"beside a configuration": {".reconciler/config.yaml": config, ".config.yaml": config, "etc/reconciler/config.txt": config},
		"another incarnation":    machines(strings.ReplaceAll(vms("", 8), "metadata: {", "metadata: {incarnation: 1, ")),
	} {
		// Once held by the window, once by the budget only.
		for bound, change := range map[string]func(*Config){
			"window": func(c *Config) { c.Windows = weekly(t) },
			"budget": func(c *Config) { c.Limits = policy.DefaultLimits },
		} {
			if bound == "budget" && strings.Contains(name, "restart") {
				continue // which the budget does not count
			}
			s := newSim(t, change)
			s.commit(machines(vms("", 8)))
			s.mustPass()
			s.ran()
			s.commit(files)
			p := s.mustPass()
			interrupted := 0
			for _, b := range s.ran() {
				if b.impact >= reconcile.ImpactRestart {
					interrupted++
				}
			}
			if want := map[string]int{"window": 0, "budget": 2}[bound]; interrupted != want || p.Count(reconcile.Held) != 8-want {
				t.Errorf("%s: %d interruptions pass the %s, and %d are held\n%s", name, interrupted, bound, p.Count(reconcile.Held), p.Headline())
			}
			s.agent.mu.Lock()
			in := s.agent.restraints(reconcile.NewState(), true)
			s.agent.mu.Unlock()
			if in.Limits != s.cfg.Limits || !slices.Equal(in.Windows, s.cfg.Windows) || in.Suspensions != nil || in.Allowances != nil {
				t.Errorf("%s: the agent goes by %+v", name, in)
			}
		}
	}
}

// The wall clock is set wrong and right again, the agent is restarted: what
// interrupts stays within the budget, a suspension lasts as long as was asked, and
// nothing waits for years.
func TestWallClockIsSetWrong(t *testing.T) {
	var wall time.Duration // how far it is off
	s := newSim(t, nil)
	right := s.cfg.Now
	s.cfg.Now, s.cfg.Limits = func() time.Time { return right().Add(wall) }, policy.Limits{Count: 1}
	s.restart()
	const small = ", memory: {size: 512Mi}"
	s.commit(machines(simVM("a", small), simVM("b", small), simVM("c", small), simVM("d", small)))
	s.mustPass()
	gone := func(names ...string) {
		t.Helper()
		for _, name := range []string{"a", "b", "c"} {
			if there := s.live(spec.KindVirtualMachine, name) != nil; there == slices.Contains(names, name) {
				t.Fatalf("at %s, off by %s: machine %s is there: %t", right(), wall, name, there)
			}
		}
	}
	again := func() {
		t.Helper()
		s.restart()
		s.mustPass()
	}
	const years = 10 * 365 * 24 * time.Hour
	wall = years // one removal is charged in the future
	s.commit(machines(simVM("b", small), simVM("c", small), simVM("d", small)))
	again()
	gone("a")
	s.commit(machines(simVM("d", small)))
	for _, wall = range []time.Duration{years, 0, -years, 2 * years} {
		again()
		gone("a")
	}
	wall = 0
	s.sleep(24*time.Hour + time.Minute)
	again()
	if len(s.agent.mem.Ledger) == 0 || s.live(spec.KindVirtualMachine, "b") != nil && s.live(spec.KindVirtualMachine, "c") != nil {
		t.Fatalf("a day later nothing went: %+v", s.agent.mem.Ledger)
	}
	// A suspension, and the clock jumps ahead.
	err := s.agent.Suspend(t.Context(), api.SuspendRequest{Object: "VirtualMachine/d", Reason: "backup", Until: right().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	suspended := func() int {
		t.Helper()
		again()
		st, err := s.agent.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(st.Suspended)
	}
	for _, wall = range []time.Duration{years, -years} {
		if suspended() != 1 {
			t.Errorf("off by %s: the suspension is over", wall)
		}
	}
	s.sleep(time.Hour)
	if suspended() != 0 {
		t.Error("an hour later the suspension is not over")
	}
}

func TestSuspendedUntil(t *testing.T) {
	s := newSim(t, nil)
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	s.mustPass()
	if err := s.agent.Suspend(context.Background(), api.SuspendRequest{
		Object: "VirtualMachine/a", Reason: "debugging", Until: s.clock().Add(2 * time.Hour), Caller: api.Caller{Name: "ada"},
	}); err != nil {
		t.Fatal(err)
	}
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}, powerState: Stopped"), simVM("b", ", memory: {size: 512Mi}")))
	s.mustPass()
	s.ran()
	a := actionOf(t, s.mustPass(), "VirtualMachine/a")
	if want := "suspended by ada until Wed 2026-11-25 14:00 UTC: debugging (reconciler resume VirtualMachine/a)"; a.State != reconcile.Held || a.Reason != want {
		t.Errorf("%s: %s", a.State, a.Reason)
	}
	if d := s.wake(); d != 2*time.Hour {
		t.Errorf("the agent sleeps %s, and the suspension ends in 2h", d)
	}
	s.mustPass()
	if b := s.ran(); len(b) != 1 || b[0].op != reconcile.OpStop {
		t.Errorf("after the suspension: %v", b)
	}
}
