package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reconciler/deadline"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/review"
	"reconciler/spec"
	"reconciler/status"
)

var honestNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// site is a host on paper: the agent's own bookkeeping and reviews over a world
// that drifts, fails and crashes as a test draws it.
type site struct {
	t    *rapid.T
	a    *Agent
	have reconcile.State
	// promised is the most that reviewers were shown for an object.
	promised map[reconcile.Key]reconcile.Impact
	// offer are the approvals that are kept on the ref.
	offer    []approvedPlan
	inForce  string
	launches int
	// reviewed, where set, is all that reviewers saw: nothing else may be done.
	reviewed []*reconcile.Desired
	// partial are the objects of which a part of an action was done, or waited.
	partial   map[reconcile.Key]bool
	leftovers int
	story     []string
	// before is what the host was asked for before the change that is looked at.
	before *reconcile.Desired
}

func (s *site) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf(format, args...))
}

func (s *site) fatalf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\n\t%s", fmt.Sprintf(format, args...), strings.Join(s.story, "\n\t"))
}

func desiredOf(set *spec.Set, revision string) *reconcile.Desired {
	return reconcile.NewDesired(set, "host1", revision)
}

// report is what the host's status ref says, as CI reads it.
func (s *site) report() (reconcile.State, reconcile.Base) {
	s.t.Helper()
	data, err := json.Marshal(status.Record("host1", "demo", "rev", s.have, s.a.base, honestNow))
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := status.ReadState(data)
	if err != nil {
		s.t.Fatal(err)
	}
	base, ok := r.Base()
	if !ok {
		s.t.Fatal("the report says nothing of what was applied")
	}
	return r.State(), base
}

// review does what CI does with a pull request, and has it approved. shown are
// the ids of the plan.
func (s *site) review(from, to *spec.Set, name string) *review.Report {
	s.t.Helper()
	have, base := s.report()
	r := review.Compare(review.Input{
		BaseRevision: "base", HeadRevision: name, Tree: name, Base: from, Merge: to, Now: honestNow,
		Hosts: []review.HostInput{{Host: "host1", Have: have, Base: base, ObservedAt: honestNow}},
	})
	for i := range r.Actions {
		a := &r.Actions[i]
		if a.Op != reconcile.OpUnchanged {
			s.tell("%s shows %s %s %s/%s %s %s %s %.8s", name, a.Origin, a.Op, a.Kind, a.Name, a.Impact, a.State, a.Cause, a.ID)
		}
		s.promised[a.Key()] = max(s.promised[a.Key()], a.Impact)
	}
	for _, a := range r.Cancelled {
		s.tell("%s cancels %s %s/%s: %s", name, a.Op, a.Kind, a.Name, a.Note)
		s.promised[a.Key()] = max(s.promised[a.Key()], a.Most)
	}
	h := r.Hosts[0]
	s.tell("%s approves %.8s, and later %.8s", name, h.IDs, h.Also)
	s.offer = append(s.offer, approvedPlan{
		Record: name, Tree: name, By: "ada", Deadline: deadline.Deadline{Until: honestNow.Add(time.Hour)},
		IDs: slices.Sorted(slices.Values(slices.Concat(h.IDs, h.Also))),
	})
	return r
}

// observed is a copy of the world that a plan may be made from.
func (s *site) observed() reconcile.State {
	have := reconcile.NewState()
	have.Merge(s.have)
	return have
}

// decide plans, and holds what nobody approved.
func (s *site) decide(want *reconcile.Desired) reconcile.Plan {
	s.t.Helper()
	have := s.observed()
	p := reconcile.Diff(want, s.a.base, have, honestNow)
	s.a.review.awaits, s.a.review.inUse = s.a.holdUnreviewed(want, &p)
	if len(s.a.review.awaits) > 0 && s.seek() {
		p = reconcile.Diff(want, s.a.base, have, honestNow)
		s.a.review.awaits, s.a.review.inUse = s.a.holdUnreviewed(want, &p)
	}
	if err := s.a.settleReview(&p, have); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// seek takes the approvals that are not known yet.
func (s *site) seek() bool {
	found := false
	for _, p := range s.offer {
		if (p.Tree == s.inForce || p.Tree == "former") && !slices.ContainsFunc(s.a.review.Plans, func(q approvedPlan) bool { return q.Record == p.Record }) {
			s.a.review.Plans = append(s.a.review.Plans, p)
			s.a.review.dirty, found = true, true
		}
	}
	return found
}

// absorb is what the agent's own does to base.
func (s *site) absorb(p *reconcile.Plan) {
	listed := map[reconcile.Key]bool{}
	for i := range p.Actions {
		a := &p.Actions[i]
		listed[a.Key()] = true
		if a.Op == reconcile.OpUnchanged && a.Want != nil {
			s.a.base.Finish(a)
			if s.reviewed != nil { // it is so already, and nobody did it
				s.reviewed = append(s.reviewed, &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{a.Key(): a.Want}})
			}
		}
	}
	maps.DeleteFunc(s.a.base, func(k reconcile.Key, _ *reconcile.Applied) bool {
		return !listed[k] && (s.have.Complete[k.Kind] || !observed(k.Kind))
	})
}

// outcome is what becomes of an action.
type outcome string

const (
	done   outcome = "done"
	undone outcome = "undone" // it fails, or the agent dies first
	partly outcome = "partly"
	untold outcome = "untold" // done, and the agent dies before it writes that down
)

// pass is one round of the agent's; how says what becomes of each action.
func (s *site) pass(want *reconcile.Desired, how func(*reconcile.Action) outcome) reconcile.Plan {
	s.t.Helper()
	s.inForce = want.Revision
	p := s.decide(want)
	s.absorb(&p)
	var run []*reconcile.Action
	for i := range p.Actions {
		if a := &p.Actions[i]; a.State == reconcile.Ready && a.Op != reconcile.OpUnchanged {
			run = append(run, a)
			s.a.base.Begin(a)
		}
	}
	failed := map[reconcile.Key]bool{}
	ended := map[reconcile.Key]bool{}
	for len(ended) < len(run) {
		before := len(ended)
		for _, a := range run {
			if ended[a.Key()] || slices.ContainsFunc(a.Dependencies(), func(k reconcile.Key) bool { return runs(run, k) && !ended[k] }) {
				continue
			}
			ended[a.Key()] = true
			if slices.ContainsFunc(a.Dependencies(), func(k reconcile.Key) bool { return failed[k] }) {
				failed[a.Key()] = true
				continue
			}
			o := how(a)
			s.carryOut(a, o)
			if o == done {
				s.a.base.Finish(a)
			}
			failed[a.Key()] = o == undone || o == partly
		}
		if len(ended) == before {
			s.fatalf("actions wait for each other")
		}
	}
	return p
}

func runs(run []*reconcile.Action, k reconcile.Key) bool {
	return slices.ContainsFunc(run, func(a *reconcile.Action) bool { return a.Key() == k })
}

// carryOut does to the world what an action does, checked against what was
// promised for it.
func (s *site) carryOut(a *reconcile.Action, o outcome) {
	s.t.Helper()
	s.tell("runs %s %s/%s %s %s %.8s: %s", a.Op, a.Kind, a.Name, a.Impact, a.Cause, a.ID, o)
	k := a.Key()
	if a.Cause == reconcile.CauseRevision && a.ID == "" {
		s.fatalf("%s %s/%s runs without an id", a.Op, a.Kind, a.Name)
	}
	resumed := a.Op == reconcile.OpStart && a.Impact == reconcile.ImpactLive // of a guest that drift paused
	if a.ID != "" && !resumed && a.Impact > s.promised[k] && a.Impact > s.without(k) {
		s.fatalf("%s %s/%s has impact %s, %s was shown", a.Op, a.Kind, a.Name, a.Impact, s.promised[k])
	}
	s.seen(a)
	was := s.have.Objects[k]
	waits := slices.ContainsFunc(a.Changes, func(c reconcile.Change) bool { return c.Waits != "" })
	s.partial[k] = s.partial[k] || o == partly || waits
	switch o {
	case undone:
		return
	case partly:
		s.begin(a)
	default:
		s.have = reconcile.Simulate(s.have, reconcile.Plan{Actions: []reconcile.Action{*a}})
		if now := s.have.Objects[k]; now != nil && now.VM != nil {
			keep := was != nil && was.VM.Launch != "" && (a.Op == reconcile.OpUpdate || a.Op == reconcile.OpStart && was.VM.Power != reconcile.PowerStopped && was.VM.Power != reconcile.PowerEnded)
			switch {
			case now.VM.Power == reconcile.PowerStopped:
			case keep:
				now.VM.Launch = was.VM.Launch
				if a.Op == reconcile.OpUpdate {
					now.VM.Power = was.VM.Power
				}
			default:
				s.launches++
				now.VM.Launch = fmt.Sprint("launch ", s.launches)
			}
		}
	}
	if a.ID == "" || was == nil || was.VM == nil || was.VM.Power == reconcile.PowerStopped || was.VM.Power == reconcile.PowerEnded {
		return
	}
	if now := s.have.Objects[k]; (now == nil || now.VM.Launch != was.VM.Launch) && s.promised[k] < reconcile.ImpactRestart && s.without(k) < reconcile.ImpactRestart {
		s.fatalf("%s VirtualMachine/%s ends a guest, %s was shown", a.Op, a.Name, s.promised[k])
	}
}

// formerPath is where a field of a disk's entry was before the disk, and the
// entry with it, was renamed.
func formerPath(path string, was, now *reconcile.Object) string {
	name, sub, ok := strings.Cut(strings.TrimPrefix(path, "spec.disks["), "].")
	if !ok || !strings.HasPrefix(path, "spec.disks[") {
		return path
	}
	disk := fieldOf(now, "spec.disks["+name+"].disk")
	for _, f := range was.Fields {
		if f.Path == "spec.disks["+f.Value+"].disk" && f.ID == disk.ID && name == disk.Value {
			return "spec.disks[" + f.Value + "]." + sub
		}
	}
	return path
}

// seen fails if an action makes anything as it stands in no tree that was
// reviewed.
func (s *site) seen(a *reconcile.Action) {
	s.t.Helper()
	if s.reviewed == nil {
		return
	}
	var shown []*reconcile.Object
	for _, d := range s.reviewed {
		if o, ok := d.Objects[a.Key()]; ok || d.Host != "" {
			shown = append(shown, o)
		}
	}
	if a.Want == nil {
		if !slices.Contains(shown, nil) {
			s.fatalf("nobody reviewed that %s/%s is to go", a.Kind, a.Name)
		}
		return
	}
	for _, c := range a.Changes {
		same := func(o *reconcile.Object) bool {
			if o == nil {
				return false
			}
			// A disk that is called otherwise is the same disk, and so is an entry
			// that is called as its disk.
			was, now := fieldOf(o, formerPath(c.Field, o, a.Want)), fieldOf(a.Want, c.Field)
			return was.ID == now.ID && (was.Value == now.Value || now.ID != "" && strings.HasSuffix(c.Field, "disk"))
		}
		if c.Waits == "" && !slices.ContainsFunc(shown, same) {
			s.fatalf("nobody reviewed %s of %s/%s (%s)", c.Field, a.Kind, a.Name, a.Cause)
		}
	}
}

func fieldOf(o *reconcile.Object, path string) reconcile.Field {
	i := slices.IndexFunc(o.Fields, func(f reconcile.Field) bool { return f.Path == path })
	if i < 0 {
		return reconcile.Field{}
	}
	return o.Fields[i]
}

// without is the impact that an action on the object would have had without the
// change.
func (s *site) without(k reconcile.Key) reconcile.Impact {
	if s.before == nil {
		return reconcile.ImpactNone
	}
	p := reconcile.Diff(s.before, s.a.base, s.observed(), honestNow)
	for i := range p.Actions {
		if p.Actions[i].Key() == k {
			return p.Actions[i].Impact
		}
	}
	return reconcile.ImpactNone
}

// begin does a part of what an action does.
func (s *site) begin(a *reconcile.Action) {
	k := a.Key()
	switch a.Op {
	case reconcile.OpUpdate:
		h := s.copyOf(k)
		for i, c := range a.Changes {
			if c.Waits == "" && i%2 == 0 {
				change(h, a.Want, c.Field)
			}
		}
	case reconcile.OpRestart, reconcile.OpDelete, reconcile.OpStop:
		if h := s.copyOf(k); h != nil && h.VM != nil {
			h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped}
			setField(h, "spec.powerState", spec.PowerStopped, "")
		}
	case reconcile.OpCreate:
		if a.Kind != spec.KindVirtualMachine {
			return
		}
		s.have = reconcile.Simulate(s.have, reconcile.Plan{Actions: []reconcile.Action{*a}})
		h := s.copyOf(k)
		h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped}
		setField(h, "spec.powerState", spec.PowerStopped, "")
	}
}

// copyOf lets an object of the world be changed without changing any plan's.
func (s *site) copyOf(k reconcile.Key) *reconcile.Live {
	h := s.have.Objects[k]
	if h == nil {
		return nil
	}
	c := *h
	c.Fields = slices.Clone(h.Fields)
	if h.VM != nil {
		vm := *h.VM
		vm.Disks = maps.Clone(h.VM.Disks)
		c.VM = &vm
	}
	if h.Disk != nil {
		disk := *h.Disk
		c.Disk = &disk
	}
	s.have.Objects[k] = &c
	return &c
}

// change makes one field as it is wanted.
func change(h *reconcile.Live, want *reconcile.Object, path string) {
	i := slices.IndexFunc(want.Fields, func(f reconcile.Field) bool { return f.Path == path })
	value, id := "", ""
	if i >= 0 {
		value, id = want.Fields[i].Value, want.Fields[i].ID
	}
	setField(h, path, value, id)
	if h.Disk != nil && path == "spec.size" {
		if size, err := spec.ParseSize(value); err == nil {
			h.Disk.Volume, h.Disk.LUN = int64(size), int64(size)
		}
	}
	if entry, ok := strings.CutPrefix(path, "spec.disks["); ok && h.VM != nil && h.VM.Disks != nil && strings.HasSuffix(entry, "].disk") {
		entry = strings.TrimSuffix(entry, "].disk")
		delete(h.VM.Disks, entry)
		if id != "" {
			h.VM.Disks[entry] = id
		}
	}
}

func setField(h *reconcile.Live, path, value, id string) {
	h.Fields = slices.DeleteFunc(h.Fields, func(f reconcile.Field) bool { return f.Path == path })
	if value != "" {
		h.Fields = append(h.Fields, reconcile.Field{Path: path, Value: value, ID: id})
	}
	slices.SortFunc(h.Fields, func(a, b reconcile.Field) int { return strings.Compare(a.Path, b.Path) })
}

// drift lets somebody change something behind the repository's back.
func (s *site) drift() {
	var keys []reconcile.Key
	for _, k := range reconcile.SortedKeys(s.have.Objects) {
		if k.Kind == spec.KindVirtualMachine || k.Kind == spec.KindDisk {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return
	}
	k := rapid.SampledFrom(keys).Draw(s.t, "drifts")
	h := s.copyOf(k)
	if h.Disk != nil {
		if h.Disk.Quarantined {
			return
		}
		what := rapid.SampledFrom([]string{"grown", "policy"}).Draw(s.t, "how")
		s.tell("drift of Disk/%s: %s", h.Name, what)
		if what == "grown" {
			setField(h, "spec.size", "512Mi", "")
			h.Disk.Volume, h.Disk.LUN = 512<<20, 512<<20
		} else {
			setField(h, "spec.deletionPolicy", spec.DeletionDelete, "")
		}
		return
	}
	if h.VM.Power == reconcile.PowerStopped {
		if rapid.Bool().Draw(s.t, "lost") {
			s.tell("drift of VirtualMachine/%s: its record is lost", h.Name)
			delete(s.have.Objects, k)
		}
		return
	}
	moves := []string{"crashed", "quit", "rebooted", "policy"}
	if h.VM.Power != reconcile.PowerEnded { // of a guest that ended there is nothing left to pause or to unplug from
		moves = append(moves, "ended", "paused", "io-error", "unplugged", "memory", "nic")
	}
	what := rapid.SampledFrom(moves).Draw(s.t, "how")
	s.tell("drift of VirtualMachine/%s: %s", h.Name, what)
	stopped := func(vm reconcile.LiveVM) {
		h.VM = &vm
		setField(h, "spec.powerState", spec.PowerStopped, "")
	}
	switch what {
	case "crashed":
		stopped(reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU ended", Failed: true})
	case "quit":
		stopped(reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "somebody asked", Asked: true})
	case "ended":
		stopped(reconcile.LiveVM{Power: reconcile.PowerEnded, Exit: "the guest shut down", Launch: h.VM.Launch, Disks: h.VM.Disks})
	case "rebooted":
		stopped(reconcile.LiveVM{Power: reconcile.PowerStopped})
	case "paused":
		h.VM.Power = reconcile.PowerPaused
	case "io-error":
		h.VM.Power = reconcile.PowerIOError
	case "unplugged":
		for entry := range maps.Keys(h.VM.Disks) {
			setField(h, "spec.disks["+entry+"].disk", "", "")
			setField(h, "spec.disks["+entry+"].size", "", "")
		}
		h.VM.Disks = map[string]string{}
	case "memory":
		setField(h, "spec.memory.size", "64Mi", "")
	case "nic":
		setField(h, "spec.nics[n].backend", "bridge other", "")
	case "policy":
		setField(h, "spec.restartPolicy", spec.RestartNever, "")
	}
}

// trouble is some drift, and some passes in which not everything succeeds.
func (s *site) trouble(want *reconcile.Desired, most int) {
	s.t.Helper()
	for range rapid.IntRange(0, most).Draw(s.t, "trouble") {
		if rapid.Bool().Draw(s.t, "drift") {
			s.drift()
			continue
		}
		p := s.pass(want, func(*reconcile.Action) outcome {
			return rapid.SampledFrom([]outcome{done, undone, partly, untold}).Draw(s.t, "outcome")
		})
		s.nothingAwaits(&p)
		if rapid.Bool().Draw(s.t, "killed") {
			s.restart()
		}
	}
}

// restart is what the agent knows after it was killed.
func (s *site) restart() {
	s.t.Helper()
	s.tell("the agent is killed")
	s.a.review = reviewer{}
	if err := s.a.store.load(reviewFile, &s.a.review.reviewMemory); err != nil {
		s.t.Fatal(err)
	}
}

// nothingAwaits fails if what was approved is held. What is left of two changes
// of which drift kept a part from being done has an id that nobody could foresee:
// an operator releases it, and it is counted.
func (s *site) nothingAwaits(p *reconcile.Plan) {
	s.t.Helper()
	for _, u := range s.a.review.awaits {
		a := u.Action
		if s.reviewed != nil {
			continue
		}
		if strings.Contains(u.Why, "by now") { // it lost its protection since
			continue
		}
		if a.ID == "" || !s.partial[a.Key()] {
			s.fatalf("%s %s/%s %.8s (%s, %s) awaits a review: %s", a.Op, a.Kind, a.Name, a.ID, a.Cause, a.State, u.Why)
		}
		s.tell("an operator allows %s %s/%s %.8s", a.Op, a.Kind, a.Name, a.ID)
		s.leftovers++
		s.a.mem.Allowances = append(s.a.mem.Allowances, policy.Allowance{ID: a.ID, By: "ada", Deadline: deadline.Deadline{Until: honestNow.Add(time.Hour)}})
	}
}

// converge lets the agent work in peace until there is nothing to do.
func (s *site) converge(want *reconcile.Desired) {
	s.t.Helper()
	for range 12 {
		p := s.pass(want, func(*reconcile.Action) outcome { return done })
		s.nothingAwaits(&p)
		if p.Empty() {
			return
		}
	}
	s.fatalf("no end after twelve rounds")
}

// honestAgent is an agent without anything around it.
func honestAgent(t *testing.T) *Agent {
	t.Helper()
	a, err := New(Config{Host: "host1", StateDir: t.TempDir(), Review: Review{Required: true}, Now: func() time.Time { return honestNow }})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// newSite is a host on which all of a tree is done.
func newSite(t *rapid.T, a *Agent, begun *spec.Set) *site {
	t.Helper()
	a.review, a.mem.Allowances = reviewer{}, nil
	if err := a.store.save(reviewFile, a.review.reviewMemory); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, a: a, promised: map[reconcile.Key]reconcile.Impact{}, partial: map[reconcile.Key]bool{}}
	s.before = desiredOf(begun, "begun")
	a.base = reconcile.BaseOf(s.before)
	s.have = reconcile.StateFromBase(a.base)
	return s
}

// What CI shows of a pull request is what the host does for it: the ids agree,
// also after drift, failures and crashes, and nothing is interrupted that was
// not shown to be.
func TestPlansAreHonest(t *testing.T) {
	a := honestAgent(t)
	cases, edits, leftovers := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		first := drawDraft(t)
		begun := first.set(t)
		s := newSite(t, a, begun)

		// A change before: some of it may be pending, or half done.
		second, n := first.edited(t, 0, 2)
		former := second.set(t)
		s.review(begun, former, "former")
		s.trouble(desiredOf(former, "former"), 3)

		third, m := second.edited(t, 1, 5)
		next := third.set(t)
		s.tell("next")
		r := s.review(former, next, "next")
		want := desiredOf(next, "next")
		if p := reconcile.Diff(want, a.base, s.observed(), honestNow); p.Hosts[0].Digest != r.Hosts[0].Digest {
			s.fatalf("the host has digest %s, CI %s", p.Hosts[0].Digest, r.Hosts[0].Digest)
		}
		s.before = desiredOf(former, "former")
		s.trouble(s.before, 2)
		s.tell("merged")
		s.trouble(want, 4)
		s.converge(want)
		cases, edits, leftovers = cases+1, edits+n+m, leftovers+s.leftovers
	})
	t.Logf("%d pull requests of %d edits; %d actions were left over in part", 2*cases, edits, leftovers)
}

// An approval covers what was reviewed, whatever else is merged with it, and
// whatever happens on the host meanwhile.
func TestWhatNobodyReviewedIsNotDone(t *testing.T) {
	a := honestAgent(t)
	rapid.Check(t, func(t *rapid.T) {
		first := drawDraft(t)
		begun := first.set(t)
		s := newSite(t, a, begun)
		second, _ := first.edited(t, 0, 3)
		shown := second.set(t)
		s.review(begun, shown, "next")
		third, _ := second.edited(t, 1, 3)
		want := desiredOf(third.set(t), "next")
		s.reviewed = []*reconcile.Desired{s.before, desiredOf(shown, "shown")}
		s.trouble(s.before, 2)
		s.tell("merged")
		s.trouble(want, 5)
		s.converge(want)
	})
}
