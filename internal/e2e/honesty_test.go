package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/review"
	"reconciler/spec"
	"reconciler/status"
)

// honestEdits is how many pull requests `make test` goes through; `make soak`
// does more.
const (
	honestEdits = 6
	honestSeed  = 2
)

// Pull requests are planned, approved and merged while machines are changed
// behind the repository's back and the agent is killed. What then runs of the
// commit is what was approved, and interrupts whom it was said to interrupt.
// RECONCILER_SEED repeats a run.
func TestPlansAreHonest(t *testing.T) { plansAreHonest(t, honestEdits, honestSeed) }

func plansAreHonest(t *testing.T, edits int, seed uint64) {
	if s := os.Getenv("RECONCILER_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("RECONCILER_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("RECONCILER_SEED=%d", seed)
	h := newHonest(t, rand.New(rand.NewPCG(seed, 0)))
	for i := range edits {
		h.pullRequest(fmt.Sprintf("pr-%d", i))
	}
	h.byHand()
	h.smuggled()
	t.Logf("%d pull requests; %d actions ran of %d approved, %d restarts, %d kills, %d drifts", edits, h.ran, h.approved, h.restarts, h.kills, h.drifts)
}

// honest is a world whose host runs only what was approved.
type honest struct {
	*edits
	rnd *rand.Rand
	// all are the ids that were approved so far.
	all                                           map[string]bool
	values                                        int // given to fields so far
	seq                                           uint64
	log                                           int64                  // bytes of the agent's log that were read
	uptimes                                       map[string]guestUptime // by machine
	boots                                         map[string]int         // expected, by machine
	grew                                          map[string]int         // MiB of each disk
	machines                                      []string
	ran, approved, restarts, kills, drifts, quits int
}

// guestUptime is what a guest says of itself.
type guestUptime struct {
	boot    string
	seconds float64
}

const (
	willing  = "VirtualMachine/willing"  // restarts by itself
	careful  = "VirtualMachine/careful"  // waits for a person
	drifting = "VirtualMachine/drifting" // is changed behind the repository's back
	guest1   = "VirtualMachine/guest"    // comes and goes
)

func newHonest(t *testing.T, rnd *rand.Rand) *honest {
	h := &honest{
		edits: &edits{world: newWorld(t), tree: map[string]map[string]any{}}, rnd: rnd, all: map[string]bool{},
		uptimes: map[string]guestUptime{}, boots: map[string]int{}, grew: map[string]int{},
		machines: []string{willing, careful, drifting},
	}
	host, signer := h.key("host"), h.key("signer")
	h.config(fmt.Sprintf("interval: 1m\nlimits: {budget: {count: 100000}}\nhostKeyFile: %s\nrequireReviewedPlan: true\nplanSigners: [%q]\n", h.file("host"), signer))
	h.args = []string{"--log-level", "debug"}
	h.parse(strings.Replace(h.base(), "addresses: {management: 127.0.0.1}}", fmt.Sprintf("addresses: {management: 127.0.0.1}, signingKey: %q}", host), 1))
	for i, m := range h.machines {
		policy := spec.UpdateManual
		if m == willing {
			policy = spec.UpdateAutomatic
		}
		name := nameOf(m)
		h.parse(disk(name, "16Mi") + vm(name, "", fmt.Sprintf("updatePolicy: {restart: %s}, disks: [{name: root, disk: %s}], nics: [{name: front, network: user, mac: \"52:54:00:00:01:%02d\"}]", policy, name, i)))
		h.grew[name] = 16
	}
	h.save()
	// Nothing is in force yet, so the first tree has no base that a plan could be
	// made against: an operator lets it in.
	h.commit("begin")
	h.start()
	h.reconcile()
	h.cli("allow", h.plan().Hosts[0].Digest, "--for", "1h", "--reason", "the first tree")
	h.converge(h.git("rev-parse", "HEAD"))
	for _, m := range h.machines {
		h.boots[m] = 1
		h.booted(m)
	}
	h.readLog()
	h.events()
	return h
}

// booted waits until a guest has booted as often as it should have, and notes
// what it says of itself.
func (h *honest) booted(machine string) {
	h.t.Helper()
	name := nameOf(machine)
	h.await(bootTime, fmt.Sprintf("boot %d of %s", h.boots[machine], name), func() bool { return h.countBoots(name) >= h.boots[machine] })
	h.uptimes[machine] = h.uptime(name)
}

var guestUp = regexp.MustCompile(`(?m)^GUEST up boot=`)

func (h *honest) countBoots(name string) int {
	h.t.Helper()
	data, err := os.ReadFile(h.serialPath(name))
	if os.IsNotExist(err) {
		return 0
	}
	h.must(err)
	return len(guestUp.FindAll(data, -1))
}

// uptime asks the guest, until it answers: what it prints meanwhile may come in
// between.
func (h *honest) uptime(name string) guestUptime {
	h.t.Helper()
	serial := h.serial(name)
	serial.Skip()
	uid := h.uid("VirtualMachine/" + name)
	var found []string
	h.await(bootTime, "the uptime of "+name, func() bool {
		h.typeOn(uid, "echo UPTIME $(cat /proc/sys/kernel/random/boot_id /proc/uptime)")
		ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Second)
		defer cancel()
		found, _ = serial.Next(ctx, `^UPTIME ([0-9a-f-]{36}) ([0-9.]+) `)
		return found != nil
	})
	seconds, err := strconv.ParseFloat(found[2], 64)
	h.must(err)
	return guestUptime{found[1], seconds}
}

// converge waits until a revision is in force, nothing of it can be done now,
// and the host has reported so.
func (h *honest) converge(rev string) reconcile.Plan {
	h.t.Helper()
	h.reconcile()
	var p reconcile.Plan
	h.await(passTime, "the end of what "+rev+" asks for", func() bool {
		p = h.plan()
		return p.Revision == rev && !slices.ContainsFunc(p.Actions, func(a reconcile.Action) bool {
			return a.Op != reconcile.OpUnchanged && (a.State == reconcile.Ready || strings.Contains(a.Reason, "in progress"))
		})
	})
	h.await(passTime, "the report of it", func() bool {
		text := h.git("--git-dir", h.bare, "show", "refs/reconciler/status/host1:"+status.StateFile)
		r, err := status.ReadState([]byte(text))
		h.must(err)
		base, _ := r.Base()
		return r.Revision == rev && !slices.ContainsFunc(reconcile.SortedKeys(base), func(k reconcile.Key) bool { return base[k].Attempted != "" })
	})
	return p
}

// events are those since the last call.
func (h *honest) events() []api.Event {
	h.t.Helper()
	var all []api.Event
	h.json(&all, "events")
	list := slices.DeleteFunc(all, func(e api.Event) bool { return e.Seq <= h.seq })
	if n := len(list); n > 0 {
		h.seq = list[n-1].Seq
	}
	return list
}

var (
	begunLine = regexp.MustCompile(`(?m)^.* msg=action object=(\S+) op=(\S+) id=(\S+).*$`)
	noID      = `""`
)

// readLog are the ids of the actions that were begun since the last call, as the
// agent's log has them: it is written before anything is done.
func (h *honest) readLog() map[string]string {
	h.t.Helper()
	data, err := os.ReadFile(h.world.log.Name())
	h.must(err)
	begun := map[string]string{}
	for _, m := range begunLine.FindAllSubmatch(data[h.log:], -1) {
		if id := string(m[3]); id != noID {
			begun[id] = string(m[2]) + " " + string(m[1])
		}
	}
	h.log = int64(len(data))
	return begun
}

// ci runs a command as the job of a pull request does.
func (h *honest) ci(command, branch string, more ...string) string {
	h.t.Helper()
	return h.output(append([]string{"ci", command, "--repo", "file://" + h.bare, "--base", "main", "--head", "refs/heads/" + branch}, more...)...)
}

// review plans a branch and has that plan approved.
func (h *honest) review(branch string) *review.Report {
	h.t.Helper()
	text := h.ci("plan", branch, "-o", "json")
	r := &review.Report{}
	h.must(json.Unmarshal([]byte(text), r))
	if r.Incomplete || len(r.Hosts) != 1 {
		h.t.Fatalf("the plan of %s is incomplete, or not of one host:\n%s", branch, text)
	}
	shown := h.file("shown.json")
	h.must(os.WriteFile(shown, []byte(text), 0o600))
	h.ci("approve", branch, "--key", h.file("signer"), "--shown", shown)
	if len(r.Hosts[0].IDs)+len(r.Hosts[0].Also) > 0 {
		rec, err := review.ParseApproval([]byte(h.git("--git-dir", h.bare, "show", "refs/reconciler/approvals:"+review.ApprovalPath(r.Tree, "host1")) + "\n"))
		h.must(err)
		if !slices.Equal(rec.IDs, r.Hosts[0].IDs) || !slices.Equal(rec.Also, r.Hosts[0].Also) {
			h.t.Errorf("%s: approved are %v and %v, shown were %v and %v", branch, rec.IDs, rec.Also, r.Hosts[0].IDs, r.Hosts[0].Also)
		}
	}
	for _, id := range slices.Concat(r.Hosts[0].IDs, r.Hosts[0].Also) {
		h.all[id] = true
	}
	h.approved += len(r.Hosts[0].IDs)
	return r
}

// branch pushes the tree as a branch of its own.
func (h *honest) branch(name, message string) {
	h.t.Helper()
	h.git("checkout", "-q", "-B", name, "main")
	h.save()
	h.git("commit", "-q", "-a", "-m", message)
	h.git("push", "-q", "origin", "HEAD:refs/heads/"+name)
}

// mergeBranch merges it as a forge does, which the agent sees by itself.
func (h *honest) mergeBranch(name string) string {
	h.t.Helper()
	h.git("checkout", "-q", "main")
	h.git("merge", "-q", "--no-ff", "-m", "Merge "+name, name)
	h.git("push", "-q", "origin", "HEAD:main")
	return h.git("rev-parse", "HEAD")
}

// pullRequest is one change from its branch to its end.
func (h *honest) pullRequest(branch string) {
	h.t.Helper()
	what := h.change()
	h.branch(branch, what)
	r := h.review(branch)
	was := h.launches()
	h.t.Logf("%s: %s; %s", branch, what, r.Headline())

	drift := h.drift()
	var lines *lineFollower
	if h.rnd.IntN(2) == 0 {
		lines = h.follow()
	}
	rev := h.mergeBranch(branch)
	killed := lines != nil
	if killed {
		where := lines.after(h.rnd.IntN(20), time.Duration(h.rnd.Int64N(int64(200*time.Millisecond))))
		h.kill()
		h.kills++
		h.t.Logf("%s: killed after %q", branch, where)
		h.start()
	}
	h.converge(rev)
	h.ids(branch, r, killed)
	h.impact(branch, r, was, drift)
}

// ids compares what ran of the commit with what was approved.
func (h *honest) ids(branch string, r *review.Report, killed bool) {
	h.t.Helper()
	host := r.Hosts[0]
	impact := map[string]reconcile.Impact{}
	begun := h.readLog()
	h.ran += len(begun)
	for i := range r.Actions {
		a := &r.Actions[i]
		if a.ID == "" || a.Origin != review.PullRequest && a.Origin != review.Mixed {
			continue
		}
		impact[a.ID] = a.Impact
		switch name := string(a.Kind) + "/" + a.Name; {
		case a.State == reconcile.Ready && begun[a.ID] == "":
			h.t.Errorf("%s: %s %s %.12s was approved and never began", branch, a.Op, name, a.ID)
		case a.State != reconcile.Ready && begun[a.ID] != "":
			h.t.Errorf("%s: %s %s %.12s began, and was shown as %s", branch, a.Op, name, a.ID, a.State)
		}
	}
	for id, name := range begun {
		if !slices.Contains(host.IDs, id) && !slices.Contains(host.Also, id) {
			h.t.Errorf("%s: %s %.12s began, and nobody approved it", branch, name, id)
		}
	}
	done := 0
	for _, e := range h.events() {
		if e.Action == nil || e.Action.ID == "" {
			if e.Action != nil && e.Action.Cause == reconcile.CauseRevision {
				h.t.Errorf("%s: %s %s was done for the commit without an id", branch, e.Action.Op, e.Object)
			}
			continue
		}
		done++
		if begun[e.Action.ID] == "" {
			h.t.Errorf("%s: the events have %s of %.12s, which never began", branch, e.Action.Op, e.Action.ID)
		}
		if e.Action.Op == reconcile.OpUpdate && e.Action.Impact > reconcile.ImpactLive {
			h.t.Errorf("%s: an update of %s had impact %s", branch, e.Object, e.Action.Impact)
		}
		if most, shown := impact[e.Action.ID]; shown && e.Action.Impact > most {
			h.t.Errorf("%s: %s %s had impact %s, %s was shown", branch, e.Action.Op, e.Object, e.Action.Impact, most)
		}
	}
	if !killed && done < len(begun) {
		h.t.Errorf("%s: %d actions began, %d events tell of them", branch, len(begun), done)
	}
}

// impact compares what happened to the guests with what was shown.
func (h *honest) impact(branch string, r *review.Report, was map[string]int, drifted string) {
	h.t.Helper()
	now := h.launches()
	restarts := map[string]bool{}
	for i := range r.Actions {
		a := &r.Actions[i]
		name := string(a.Kind) + "/" + a.Name
		if a.Origin != review.PullRequest && a.Origin != review.Mixed || a.Kind != spec.KindVirtualMachine {
			continue
		}
		switch {
		case a.Op == reconcile.OpRestart && a.State == reconcile.Ready:
			restarts[name] = true
			if a.Impact != reconcile.ImpactRestart {
				h.t.Errorf("%s: the restart of %s has impact %s", branch, name, a.Impact)
			}
		case a.Op == reconcile.OpCreate && now[a.UID] == 0:
			h.t.Errorf("%s: %s does not run", branch, name)
		case a.Op == reconcile.OpDelete && now[a.UID] != 0:
			h.t.Errorf("%s: %s runs", branch, name)
		}
	}
	for _, m := range h.machines {
		uid := h.uid(m)
		if restarts[m] || m == drifting && drifted == "quit" {
			h.boots[m]++
			h.restarts++
			if now[uid] == was[uid] {
				h.t.Errorf("%s: %s was not restarted", branch, m)
			}
			h.booted(m)
		} else if now[uid] != was[uid] {
			h.t.Errorf("%s: %s has process %d, had %d", branch, m, now[uid], was[uid])
		}
		if n := h.countBoots(nameOf(m)); n != h.boots[m] {
			h.t.Fatalf("%s: %s booted %d times, want %d", branch, m, n, h.boots[m])
		}
		if restarts[m] || m == drifting && drifted == "quit" {
			continue
		}
		before, after := h.uptimes[m], h.uptime(nameOf(m))
		if after.boot != before.boot || after.seconds <= before.seconds {
			h.t.Errorf("%s: %s is up for %.1f s since %s, was for %.1f s since %s", branch, m, after.seconds, after.boot, before.seconds, before.boot)
		}
		h.uptimes[m] = after
	}
}

// mostQuits bounds how often a machine ends by itself: the back-off doubles.
const mostQuits = 3

// drift changes something that no pull request is about.
func (h *honest) drift() string {
	h.t.Helper()
	how := []string{"", "stop", "nic", "quit"}[h.rnd.IntN(4)]
	if how == "quit" {
		if h.quits++; h.quits > mostQuits {
			how = "stop"
		}
	}
	name := nameOf(drifting)
	switch how {
	case "":
		return how
	case "nic":
		h.qmp(name, "device_del", `{"id": "nic-front"}`)
	default:
		h.qmp(name, how, "{}")
	}
	h.drifts++
	h.t.Logf("drift: %s", how)
	return how
}

// byHand has an operator restart what waits for it: that was approved, too.
func (h *honest) byHand() {
	h.t.Helper()
	h.put(careful, "spec.memory.size", "128Mi")
	h.put(careful, "spec.boot.cmdline", "console=ttyS0 quiet panic=-1 byhand=1")
	h.branch("by-hand", "what waits for a person")
	r := h.review("by-hand")
	was := h.launches()
	rev := h.mergeBranch("by-hand")
	h.converge(rev)
	h.ids("by-hand", r, false)
	h.impact("by-hand", r, was, "")

	h.kill()
	h.start()
	h.reconcile()
	h.cli("restart", "vm/"+nameOf(careful))
	h.converge(rev)
	h.settled()
	h.boots[careful]++
	h.restarts++
	h.booted(careful)
	if n := h.countBoots(nameOf(careful)); n != h.boots[careful] {
		h.t.Errorf("%s booted %d times, want %d", careful, n, h.boots[careful])
	}
	found := false
	for id, name := range h.readLog() {
		found = found || strings.HasSuffix(name, " "+careful)
		if !h.all[id] {
			h.t.Errorf("the restart by hand ran %s %.12s, which nobody approved", name, id)
		}
	}
	if !found {
		h.t.Error("the restart by hand carried nothing out that was approved")
	}
	h.events()
}

// smuggled merges more than was reviewed: none of it runs, not even what was.
func (h *honest) smuggled() {
	h.t.Helper()
	h.timeout(willing)
	h.branch("shown", "harmless")
	h.review("shown")
	h.git("checkout", "-q", "shown")
	h.put(willing, "spec.memory.size", "200Mi")
	h.put("Disk/"+nameOf(careful), "spec.retention", "1s")
	h.save()
	h.git("commit", "-q", "-a", "-m", "after the review")
	was := h.launches()
	// Drift is put right all the same, as it was before.
	h.qmp(nameOf(drifting), "stop", "{}")
	rev := h.mergeBranch("shown")
	p := h.converge(rev)
	held := 0
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Op == reconcile.OpUnchanged {
			continue
		}
		held++
		if a.State != reconcile.Held || !strings.Contains(a.Reason, "not in the approved plan") || h.all[a.ID] {
			h.t.Errorf("%s %s/%s is %s: %s", a.Op, a.Kind, a.Name, a.State, a.Reason)
		}
	}
	if held != 2 {
		h.t.Errorf("%d actions are held, want that of the machine and that of the disk:\n%s", held, strings.Join(lines(&p), "\n"))
	}
	if begun := h.readLog(); len(begun) > 0 {
		h.t.Errorf("what nobody reviewed began: %v", begun)
	}
	if now := h.launches(); fmt.Sprint(now) != fmt.Sprint(was) {
		h.t.Errorf("the processes are %v, were %v", now, was)
	}
	told := false
	for _, e := range h.events() {
		told = told || e.Reason == "NotReviewed" && strings.Contains(e.Message, willing) && strings.Contains(e.Message, "Disk/"+nameOf(careful))
	}
	if !told {
		h.t.Error("no event says what awaits a review")
	}
	h.impact("shown", &review.Report{}, was, "stop")
}
