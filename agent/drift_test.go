package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/drift"
	"reconciler/forge"
	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/spec"
)

// host1Branch is where host1 proposes.
const host1Branch = "refs/heads/reconciler-drift/host1"

// hosted is a repository on a forge: one branch of ours and its pull request.
type hosted struct {
	s *sim

	tip     string // of the branch; empty where there is none
	base    string
	files   map[string][]byte
	message string
	foreign bool // somebody else committed to the branch
	pull    *forge.Pull
	number  int
	closed  []string // why
	broken  error
	kept    error // why the branch is not deleted
	calls   int
}

func (h *hosted) File(_ context.Context, revision, name string) ([]byte, error) {
	var n int
	if _, err := fmt.Sscanf(revision, "%d", &n); err != nil {
		return nil, err
	}
	return []byte(h.s.commits[n-1][name]), h.broken
}

func (h *hosted) Propose(_ context.Context, ref, base string, files map[string][]byte, message string) (string, error) {
	h.calls++
	switch {
	case h.broken != nil:
		return "", h.broken
	case ref != host1Branch:
		return "", fmt.Errorf("%s is not the branch of host1", ref)
	case h.foreign:
		return "", gitrepo.ErrForeignTip
	}
	h.base, h.files, h.message = base, files, message
	h.tip = fmt.Sprintf("tip %d", h.calls)
	if h.pull != nil {
		h.pull.HeadCommit = h.tip
	}
	return h.tip, nil
}

func (h *hosted) Withdraw(context.Context, string) error {
	h.calls++
	if h.foreign {
		return gitrepo.ErrForeignTip
	}
	if h.broken == nil && h.kept == nil {
		h.tip, h.files = "", nil
	}
	return errors.Join(h.broken, h.kept)
}

func (h *hosted) FindPull(context.Context, string, string) (*forge.Pull, error) {
	return h.pull, h.broken
}

func (h *hosted) EnsurePull(_ context.Context, p forge.Pull) (forge.Pull, error) {
	h.calls++
	if h.broken != nil {
		return p, h.broken
	}
	if h.pull == nil {
		h.number++
	}
	p.Number, p.HeadCommit, p.URL = h.number, h.tip, fmt.Sprint("https://forge.example/", h.number)
	h.pull = &p
	return p, nil
}

func (h *hosted) ClosePull(_ context.Context, _ int, why string) error {
	h.calls++
	if h.broken == nil {
		h.pull, h.closed = nil, append(h.closed, why)
	}
	return h.broken
}

// simWithDrift is a host in mode Report with one machine, in its own file.
func simWithDrift(t *testing.T) (*sim, *hosted) {
	h := &hosted{}
	s := newSim(t, func(c *Config) {
		c.Branch = "main"
		c.Drift = Drift{Branches: h, Pulls: h, Traces: func(reconcile.Key) []drift.Trace {
			return []drift.Trace{{At: time.Date(2026, 11, 25, 11, 0, 0, 0, time.UTC), Text: "device disk-data was unplugged by <b>@mallory</b>\n"}}
		}}
	})
	h.s = s
	s.commit(tree(""))
	s.mustPass()
	s.mustPass()
	h.deliver(t)
	if h.calls > 0 {
		t.Fatal("something is proposed although nothing drifted")
	}
	return s, h
}

const webFile = `# the web server
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: web}
spec:
  host: host1
  cpu: {cores: 1}
  memory: {size: 128Mi} # small
  disks:
    - disk: root
    - disk: data # the records
`

func tree(more string) map[string]string {
	return map[string]string{
		"cluster.yaml": strings.Replace(simCluster, "127.0.0.1}}\n---", "127.0.0.1}, drift: Report}\n---", 1),
		"disks.yaml":   simDisk("root") + simDisk("data"),
		"web.yaml":     webFile, "more.yaml": more,
	}
}

// deliver does what the proposer would do in its own time.
func (h *hosted) deliver(t *testing.T) {
	t.Helper()
	p := h.s.agent.proposer
	for range 5 {
		if _, due := p.due(time.Now()); !due {
			return
		}
		p.carryOut(t.Context())
		if p.failed > 0 {
			return
		}
	}
	t.Fatal("there is always more to propose")
}

// unplugged takes a disk from the machine, and gives it memory, by hand.
func unplugged(h *reconcile.Live) {
	h.Fields = slices.DeleteFunc(slices.Clone(h.Fields), func(f reconcile.Field) bool { return f.Path == "spec.disks[data].size" })
	for i := range h.Fields {
		switch f := &h.Fields[i]; f.Path {
		case "spec.disks[data].disk":
			f.Value, f.ID = "data (incomplete)", ""
		case "spec.memory.size":
			f.Value = "256Mi"
		}
	}
}

func (h *hosted) drifts(t *testing.T) {
	t.Helper()
	h.s.set(spec.KindVirtualMachine, "web", unplugged)
	h.s.mustPass()
	h.deliver(t)
}

// accepted is the tree with the proposal merged.
func (h *hosted) merged(more string) map[string]string {
	files := tree(more)
	for name, data := range h.files {
		files[name] = string(data)
	}
	return files
}

const acceptedWeb = `# the web server
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: web}
spec:
  host: host1
  cpu: {cores: 1}
  memory: {size: 256Mi} # small
  disks:
    - disk: root
`

func TestDriftIsProposed(t *testing.T) {
	s, h := simWithDrift(t)
	s.ran()
	h.drifts(t)
	if ran := s.ran(); len(ran) > 0 {
		t.Errorf("drift was touched: %v", ran)
	}
	if got := string(h.files["web.yaml"]); len(h.files) != 1 || got != acceptedWeb {
		t.Errorf("proposed: %v\n%s", slices.Collect(maps.Keys(h.files)), got)
	}
	for _, want := range []string{"spec.disks[data]: data is declared, and gone", "spec.memory.size: 128Mi is declared, 256Mi is there", "2026-11-25T11:00:00Z: device disk-data"} {
		if !strings.Contains(h.message, want) {
			t.Errorf("the message does not say %q:\n%s", want, h.message)
		}
	}
	if h.pull == nil || h.pull.Head != "reconciler-drift/host1" || h.pull.Base != "main" || !strings.Contains(h.pull.Body, "| VirtualMachine/web | `spec.memory.size` | `128Mi` | `256Mi` |") {
		t.Errorf("pull request %+v", h.pull)
	}
	// Within backquotes no forge makes anything of it.
	for line := range strings.Lines(h.pull.Body) {
		if before, _, found := strings.Cut(line, "<b>@mallory</b>"); found && strings.Count(before, "`")%2 == 0 {
			t.Errorf("the body lets text of the world mean something:\n%s", h.pull.Body)
		}
	}
	events, err := s.agent.Events(t.Context(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range events {
		if e.Reason == "Drifted" && e.Object == "VirtualMachine/web" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d events tell of 2 fields", n)
	}
	if last := events[len(events)-1]; last.Reason != "DriftPullRequest" || last.Message != h.pull.URL {
		t.Errorf("the last event does not tell where the pull request is: %+v", last)
	}

	// What the pull request says of a guest that is paused, too, is brought up to
	// date, and not told as another one.
	s.set(spec.KindVirtualMachine, "web", paused)
	s.mustPass()
	h.deliver(t)
	if !strings.Contains(h.pull.Body, "the guest is paused") || s.tells(t, "DriftPullRequest") != 1 {
		t.Errorf("told %d times of:\n%s", s.tells(t, "DriftPullRequest"), h.pull.Body)
	}

	// Nothing is repeated, nor after a restart.
	calls := h.calls
	s.mustPass()
	h.deliver(t)
	s.restart()
	s.mustPass()
	h.deliver(t)
	if h.calls != calls {
		t.Errorf("%d calls for nothing", h.calls-calls)
	}
}

func paused(l *reconcile.Live) {
	l.VM.Power = reconcile.PowerPaused
	for i := range l.Fields {
		if l.Fields[i].Path == "spec.powerState" {
			l.Fields[i].Value = "Paused"
		}
	}
}

// tells counts the events of a reason.
func (s *sim) tells(t *testing.T, reason string) (n int) {
	t.Helper()
	events, err := s.agent.Events(t.Context(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Reason == reason {
			n++
		}
	}
	return n
}

// What no edit can say makes no branch, but it is told, and once.
func TestDriftThatNoSpecCanSay(t *testing.T) {
	s, h := simWithDrift(t)
	s.set(spec.KindVirtualMachine, "web", paused)
	for range 2 {
		s.mustPass()
		h.deliver(t)
	}
	s.restart()
	s.mustPass()
	h.deliver(t)
	if h.calls > 0 {
		t.Errorf("%d calls, though there is nothing to edit", h.calls)
	}
	all, err := s.agent.Events(t.Context(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	events := slices.DeleteFunc(all, func(e api.Event) bool { return e.Reason != "Drifted" })
	if len(events) != 1 || !strings.Contains(events[0].Message, "the guest is paused") || events[0].Object != "VirtualMachine/web" {
		t.Errorf("told: %+v", events)
	}
}

func TestDriftAccepted(t *testing.T) {
	s, h := simWithDrift(t)
	h.drifts(t)
	s.commit(h.merged(""))
	h.pull = nil // a forge closes it with the merge
	s.mustPass()
	p := s.mustPass()
	if a := actionOf(t, p, "VirtualMachine/web"); a.Op != reconcile.OpUnchanged {
		t.Errorf("%s: %s", a.Op, a.Reason)
	}
	h.deliver(t)
	if h.tip != "" || h.pull != nil {
		t.Errorf("the branch is %q, the pull request %+v", h.tip, h.pull)
	}
}

// Where branches are protected from deletion, that is no failure that would put
// off what drifts next.
func TestDriftBranchThatStays(t *testing.T) {
	s, h := simWithDrift(t)
	h.kept = fmt.Errorf("%w: pre-receive hook declined", gitrepo.ErrRejected)
	h.drifts(t)
	first := h.tip
	s.commit(h.merged(""))
	h.pull = nil
	s.mustPass()
	s.mustPass()
	h.deliver(t)
	if p := s.agent.proposer; p.failed > 0 || h.tip != first {
		t.Errorf("%d failures, the branch is %q", p.failed, h.tip)
	}
	s.set(spec.KindVirtualMachine, "web", func(l *reconcile.Live) {
		l.Fields = slices.Clone(l.Fields)
		for i := range l.Fields {
			if l.Fields[i].Path == "spec.memory.size" {
				l.Fields[i].Value = "512Mi"
			}
		}
	})
	s.mustPass()
	h.deliver(t)
	if h.tip == first || h.pull == nil {
		t.Errorf("nothing new is proposed: branch %q, pull request %+v", h.tip, h.pull)
	}
}

func TestDriftReverted(t *testing.T) {
	s, h := simWithDrift(t)
	h.drifts(t)
	s.ran()
	request := api.RevertRequest{Object: "VirtualMachine/web", Reason: "not wanted", Caller: api.Caller{Name: "ann"}}
	if err := s.agent.Revert(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	s.restart() // the request outlives the agent
	p := s.mustPass()
	if ran := s.ran(); len(ran) != 1 || ran[0].op != reconcile.OpUpdate {
		t.Errorf("ran %v", ran)
	}
	// Memory waits for a restart, as it does for a commit.
	if a := actionOf(t, p, "VirtualMachine/web"); a.State != reconcile.Waiting || !strings.Contains(a.Reason, "restart") {
		t.Errorf("%s, %s: %s", a.Op, a.State, a.Reason)
	}
	h.deliver(t)
	if h.tip != "" || h.pull != nil || len(h.closed) != 1 {
		t.Errorf("branch %q, pull request %+v, closed %v", h.tip, h.pull, h.closed)
	}
	// It is not for ever.
	s.sleep(revertTime)
	s.mustPass()
	if a := actionOf(t, s.mustPass(), "VirtualMachine/web"); a.Drift != spec.DriftReport {
		t.Errorf("an hour later: %s, %s: %s", a.Op, a.State, a.Reason)
	}
	if err := s.agent.Revert(t.Context(), api.RevertRequest{Object: "Disk/root", Reason: "x"}); err == nil {
		t.Error("what has no drift is reverted")
	}
}

func TestDriftFollowsTheBranch(t *testing.T) {
	s, h := simWithDrift(t)
	h.drifts(t)
	s.commit(tree("# moved\n"))
	s.mustPass()
	h.deliver(t)
	if h.base != fmt.Sprintf("%040d", 2) || string(h.files["web.yaml"]) != acceptedWeb {
		t.Errorf("on top of %s:\n%s", h.base, h.files["web.yaml"])
	}
	// A pull request that somebody closed is not opened again for the same.
	h.pull = nil
	s.commit(tree("# moved on\n"))
	s.mustPass()
	h.deliver(t)
	if h.pull != nil {
		t.Error("it is opened again")
	}
	s.set(spec.KindVirtualMachine, "web", func(l *reconcile.Live) {
		l.Fields = slices.Clone(l.Fields)
		for i := range l.Fields {
			if l.Fields[i].Path == "spec.memory.size" {
				l.Fields[i].Value = "384Mi"
			}
		}
	})
	s.mustPass()
	h.deliver(t)
	if h.pull == nil {
		t.Error("other drift is not proposed")
	}
}

func TestDriftBranchOfSomebodyElse(t *testing.T) {
	s, h := simWithDrift(t)
	h.drifts(t)
	h.foreign, h.tip, h.pull.HeadCommit = true, "theirs", "theirs"
	for i := range 3 {
		s.commit(tree(fmt.Sprintf("# %d\n", i)))
		s.mustPass()
		h.deliver(t)
	}
	s.set(spec.KindVirtualMachine, "web", func(l *reconcile.Live) { l.Fields = s.agent.base[l.Key()].Fields })
	s.mustPass()
	h.deliver(t)
	if h.tip != "theirs" || h.pull == nil {
		t.Errorf("branch %q, pull request %+v", h.tip, h.pull)
	}
	events, _ := s.agent.Events(t.Context(), 0, false)
	n := 0
	for _, e := range events {
		if e.Reason == "DriftBranchForeign" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

func TestDriftWhileTheForgeIsDown(t *testing.T) {
	s, h := simWithDrift(t)
	h.broken = errors.New("no route to host")
	h.drifts(t)
	s.commit(tree(smallVM("other")))
	s.mustPass()
	if a := actionOf(t, s.mustPass(), "VirtualMachine/other"); a.Op != reconcile.OpUnchanged {
		t.Errorf("the host does not go on: %s", a.Op)
	}
	h.deliver(t)
	h.broken = nil
	s.agent.proposer.carryOut(t.Context())
	if h.pull == nil || h.tip == "" {
		t.Error("it does not catch up")
	}
	events, _ := s.agent.Events(t.Context(), 0, false)
	told := map[string]int{}
	for _, e := range events {
		told[e.Reason]++
	}
	if told["DriftNotProposed"] != 1 || told["DriftProposed"] != 1 {
		t.Errorf("told %v", told)
	}
}

// What cannot be observed has not stopped to differ.
func TestDriftOfTheUnknown(t *testing.T) {
	s, h := simWithDrift(t)
	h.drifts(t)
	s.mu.Lock()
	kept := s.state.Objects
	s.state.Objects = maps.Clone(kept)
	s.mu.Unlock()
	live := s.live(spec.KindVirtualMachine, "web")
	s.agent.cfg.Hypervisor = silent{simHypervisor{s: s}, live.Key()}
	calls := h.calls
	p := s.mustPass()
	if a := actionOf(t, p, "VirtualMachine/web"); a.State != reconcile.Blocked {
		t.Fatalf("%s", a.State)
	}
	h.deliver(t)
	if h.calls != calls || h.pull == nil {
		t.Errorf("%d calls; pull request %+v", h.calls-calls, h.pull)
	}
}

// silent is a hypervisor of which one machine does not answer.
type silent struct {
	simHypervisor
	key reconcile.Key
}

func (d silent) Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	s, err := d.simHypervisor.Observe(ctx, want)
	delete(s.Objects, d.key)
	s.Unknown[d.key] = "does not answer"
	return s, err
}

func TestDriftIgnored(t *testing.T) {
	s, h := simWithDrift(t)
	files := tree("")
	files["web.yaml"] = strings.Replace(webFile, "{name: web}", "{name: web, drift: Off}", 1)
	s.commit(files)
	s.mustPass()
	s.ran()
	h.drifts(t)
	if h.calls > 0 || len(s.ran()) > 0 {
		t.Error("drift is not ignored")
	}
	if a := actionOf(t, s.mustPass(), "VirtualMachine/web"); a.State != reconcile.Held || a.Drift != spec.DriftOff {
		t.Errorf("%s, %q", a.State, a.Drift)
	}
}
