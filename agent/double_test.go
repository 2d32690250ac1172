package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/trust"
)

// twins is a host with a machine that runs, and what a second machine is made of.
type twins struct {
	*cluster
	first *node
}

func newTwins(t *testing.T, machine string) *twins {
	c := newCluster(t, t.TempDir(), "host1")
	n := c.hosts["host1"]
	n.cfg.Machine = machine
	n.restart()
	c.commit(vmOn("web", "host1", ""))
	c.pass("host1")
	c.expect(vmKind, "web", "host1")
	return &twins{c, n}
}

// second is another machine with a state directory; nothing runs on it.
func (w *twins) second(t *testing.T, machine, stateDir string, key *trust.Key) *node {
	n := &node{key: key, sees: len(w.repo.commits)}
	n.sim = newSim(t, func(cfg *Config) {
		cfg.Host, cfg.HostKey, cfg.Machine, cfg.StateDir, cfg.RunDir = "host1", key, machine, stateDir, t.TempDir()
		cfg.Source = clusterSource{simSource: simSource{s: w.repo}, c: w.cluster, n: n}
		cfg.Limits = w.first.cfg.Limits
	})
	return n
}

// copyState is a copy of the first machine's state directory as it is now.
func (w *twins) copyState(t *testing.T) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, "agent"), os.DirFS(filepath.Join(w.first.cfg.StateDir, "agent"))); err != nil {
		t.Fatal(err)
	}
	return to
}

// idle fails if a host does anything in its next passes, or reports, and if it
// does not say why.
func (w *twins) idle(t *testing.T, n *node, why string) {
	t.Helper()
	before := w.pushes
	n.ran()
	for range 2 {
		n.sleep(time.Hour)
		p, err := n.pass()
		if err != nil {
			t.Fatal(err)
		}
		if p.Count(reconcile.Ready) > 0 {
			t.Errorf("its plan: %s", p.Headline())
		}
	}
	if list := n.ran(); len(list) > 0 {
		t.Errorf("it does %v", list)
	}
	if w.pushes != before {
		t.Error("it reports")
	}
	st, err := n.agent.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Conditions {
		if c.Type == "Stalled" && (c.Reason != "OtherMachine" || !strings.Contains(c.Message, why)) {
			t.Errorf("stalled: %s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
}

func (w *twins) crash(n *node) {
	n.set(vmKind, "web", func(h *reconcile.Live) {
		h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU was killed", Failed: true}
	})
}

func (w *twins) accept(t *testing.T, n *node) {
	t.Helper()
	if err := n.agent.Accept(t.Context(), api.AcceptRequest{Machine: true, Reason: "the other one is off"}); err != nil {
		t.Fatal(err)
	}
}

// A state directory that was copied to another machine does nothing there, nor
// after a restart, nor without the repository, until an operator says that it is
// the host. Then the first one, which still runs, finds that out before it does
// anything else, and what crashes there stays down.
func TestCopiedStateDirectory(t *testing.T) {
	w := newTwins(t, "machine-one")
	two := w.second(t, "machine-two", w.copyState(t), w.first.key)
	const why = "the state directory is that of machine machine"
	w.idle(t, two, why)
	two.deaf = true
	two.restart()
	if p, _ := two.pass(); p == nil || p.Count(reconcile.Ready) > 0 || len(two.ran()) > 0 {
		t.Errorf("without the repository its plan is %v", p)
	}
	two.deaf = false
	w.crash(w.first)
	w.pass("host1")
	if p := w.first.live(vmKind, "web").VM.Power; p != reconcile.PowerRunning {
		t.Fatalf("on the host itself, a machine that crashed is %s", p)
	}

	w.accept(t, two)
	if _, err := two.pass(); err != nil {
		t.Fatal(err)
	}
	if two.live(vmKind, "web") == nil {
		t.Fatal("the accepted machine does not start what is declared")
	}
	two.restart()
	if p, err := two.pass(); err != nil || two.agent.mem.Takeover {
		t.Errorf("after a restart: %v, %v", p, err)
	}

	// The first one notices with its next report.
	w.first.sleep(time.Hour)
	w.pass("host1")
	w.crash(w.first)
	w.idle(t, w.first, "machine machine- reports as this host")
	w.first.restart()
	w.idle(t, w.first, "reports as this host")

	// It was the wrong one.
	w.accept(t, w.first)
	w.pass("host1")
	if p := w.first.live(vmKind, "web").VM.Power; p != reconcile.PowerRunning {
		t.Errorf("accepted again, its machine is %s", p)
	}
	two.sleep(time.Hour)
	_, _ = two.pass()
	w.idle(t, two, "reports as this host")
	if err := w.first.agent.Accept(t.Context(), api.AcceptRequest{Machine: true, Reason: "twice"}); err == nil {
		t.Error("there was nothing to accept")
	}
}

// A fresh machine that is called as one that reports does nothing: whoever signs
// its reports, and also where it has a key of its own.
func TestSecondMachineOfAName(t *testing.T) {
	w := newTwins(t, "machine-one")
	_, private, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	own, err := trust.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	w.idle(t, w.second(t, "machine-two", t.TempDir(), w.first.key), "reports as this host")
	fresh := w.second(t, "machine-two", t.TempDir(), nil)
	w.idle(t, fresh, "reports as this host")
	fresh.cfg.HostKey = own
}

// The same machine goes on: with its memory lost, with a memory from a backup,
// and after pushes of which it never heard that they arrived.
func TestSameMachineGoesOn(t *testing.T) {
	w := newTwins(t, "machine-one")
	backup := w.copyState(t)
	n := w.first
	goesOn := func(when string) {
		t.Helper()
		w.crash(n)
		n.sleep(time.Hour)
		p, err := n.pass()
		if err != nil || n.live(vmKind, "web").VM.Power != reconcile.PowerRunning {
			t.Errorf("%s: %v, %v", when, p, err)
		}
		n.sleep(time.Hour)
		if p, err := n.pass(); err != nil || !p.Empty() || n.agent.isDouble() {
			t.Errorf("%s, later: %v, %v", when, p, err)
		}
	}
	n.lost = true
	goesOn("pushes that nobody hears of")
	n.restart()
	goesOn("the same, restarted")
	n.lost = false
	goesOn("pushes that are heard of")
	n.cfg.StateDir = t.TempDir()
	n.restart()
	goesOn("its memory is lost")
	n.cfg.StateDir = backup
	n.restart()
	goesOn("its memory is that of a backup")
}

// Two copies of one disk have one machine id. That there are two shows when both
// report.
func TestCopiesWithOneMachineID(t *testing.T) {
	for _, machine := range []string{"machine-one", ""} {
		w := newTwins(t, machine)
		two := w.second(t, machine, w.copyState(t), w.first.key)
		if _, err := two.pass(); err != nil {
			t.Fatal(err)
		}
		w.first.sleep(time.Hour)
		w.pass("host1")
		w.crash(w.first)
		w.idle(t, w.first, "another agent reports as this host")
	}
}

func TestMachineID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "machine-id")
	if id, err := MachineID(file); id != "" || err == nil {
		t.Errorf("without a file: %q, %v", id, err)
	}
	for text, ok := range map[string]bool{"": false, "uninitialized\n": false, "a3f1c5\n": true} {
		if err := os.WriteFile(file, []byte(text), 0o444); err != nil {
			t.Fatal(err)
		}
		id, err := MachineID(file)
		if err != nil || (id != "") != ok || ok && strings.Contains(id, "a3f1c5") {
			t.Errorf("%q: %q, %v", text, id, err)
		}
	}
}
