package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/claim"
	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/review"
	"reconciler/spec"
	"reconciler/trust"
)

// paperRepo is a repository of revisions in memory.
type paperRepo struct {
	Source // what a review needs not

	chain   []Revision // oldest first; the last is the newest
	sets    map[string]*spec.Set
	records map[string][]byte
	host    string // more of the host's spec
	fail    error  // of Records
	reads   int
}

// hash makes a full hash that shows where it is from.
func hash(of string, n int) string { return fmt.Sprintf("%s%039x", of, n) }

// push adds a revision; one with the same specs has the same tree.
func (r *paperRepo) push(t testing.TB, docs ...string) Revision {
	t.Helper()
	text := "apiVersion: reconciler/v1alpha1\nkind: Cluster\nmetadata: {name: demo}\nspec: {id: demo}\n---\n" +
		"apiVersion: reconciler/v1alpha1\nkind: Host\nmetadata: {name: host1}\nspec: {roles: [Hypervisor], addresses: {management: 127.0.0.1}" + r.host + "}\n"
	for _, d := range docs {
		text += "---\n" + d
	}
	objects, err := spec.Parse("t.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	set, err := spec.Build(objects)
	if err != nil {
		t.Fatal(err)
	}
	c := Revision{Hash: hash("a", len(r.chain)), Tree: hash("c", len(text)), Subject: "a commit"}
	r.chain = append(r.chain, c)
	if r.sets == nil {
		r.sets, r.records = map[string]*spec.Set{}, map[string][]byte{}
	}
	r.sets[c.Hash] = set
	return c
}

func (r *paperRepo) Fetch(context.Context) (Revision, error) { return r.chain[len(r.chain)-1], nil }

func (r *paperRepo) Resolve(_ context.Context, rev string) (Revision, error) {
	for _, c := range r.chain {
		if c.Hash == rev {
			return c, nil
		}
	}
	return Revision{}, errors.New("no such revision")
}

func (r *paperRepo) Load(_ context.Context, hash string) (*spec.Set, error) { return r.sets[hash], nil }

func (r *paperRepo) Descends(context.Context, string, string) (bool, error) { return true, nil }
func (r *paperRepo) Keep(context.Context, string) error                     { return nil }
func (r *paperRepo) Publish(context.Context, string, string, map[string][]byte, gitrepo.PushOptions) error {
	return nil
}
func (r *paperRepo) Published(context.Context, string, string) ([]byte, error) {
	return nil, errors.New("nothing is published")
}
func (r *paperRepo) Report(context.Context, string, string) (data, payload, signature []byte, err error) {
	return nil, nil, nil, gitrepo.ErrRevisionMissing
}
func (r *paperRepo) Watch() []string { return nil }

func (r *paperRepo) Records(context.Context, string) (map[string][]byte, error) {
	r.reads++
	return maps.Clone(r.records), r.fail
}

func (r *paperRepo) Between(_ context.Context, from, to string, _ bool) ([]Revision, error) {
	var list []Revision
	for _, c := range r.chain {
		if c.Hash == from {
			list = nil
			continue
		}
		list = append([]Revision{c}, list...)
		if c.Hash == to {
			break
		}
	}
	return list, nil
}

// paperHost is machines that exist on paper, and storage that has nothing.
type paperHost struct {
	mu      sync.Mutex
	objects map[reconcile.Key]*reconcile.Live
	fails   map[string]error // by name
	ran     []string
}

func (h *paperHost) Prove(context.Context, reconcile.Action, reconcile.Inputs) error { return nil }

func (h *paperHost) Observe(context.Context, *reconcile.Desired) (reconcile.State, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := reconcile.NewState()
	maps.Copy(s.Objects, h.objects)
	s.Complete[spec.KindVirtualMachine] = true
	return s, nil
}

func (h *paperHost) Apply(_ context.Context, a reconcile.Action, _ reconcile.Inputs) (reconcile.Outputs, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.fails[a.Name]; err != nil {
		return reconcile.Outputs{}, err
	}
	h.ran = append(h.ran, fmt.Sprintf("%s %s", a.Op, a.Name))
	if a.Op == reconcile.OpDelete {
		delete(h.objects, a.Key())
		return reconcile.Outputs{}, nil
	}
	b := &reconcile.Applied{Object: *a.Want}
	b.Fields = a.Reached()
	h.objects[a.Key()] = reconcile.LiveFromApplied(b)
	return reconcile.Outputs{}, nil
}

func (h *paperHost) Console(string) api.Console { return api.Console{} }

func (h *paperHost) did() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := strings.Join(h.ran, ", ")
	h.ran = nil
	return s
}

type paperStorage struct{ Storage }

func (paperStorage) Ensure(context.Context) error { return nil }
func (paperStorage) Observe(context.Context, *reconcile.Desired) (reconcile.State, error) {
	s := reconcile.NewState()
	s.Complete[spec.KindDisk], s.Complete[spec.KindStoragePool] = true, true
	return s, nil
}
func (paperStorage) Release(context.Context, string, claim.Owner) error { return nil }

// reviewed is a host that waits for approvals, and who gives them.
type reviewed struct {
	t        *testing.T
	repo     *paperRepo
	host     *paperHost
	dir      string
	now      time.Time
	ada, bob *trust.Key // ada approves plans, bob overrides
	a        *Agent
}

func newReviewed(t *testing.T) *reviewed {
	t.Helper()
	w := &reviewed{
		t: t, repo: &paperRepo{}, dir: t.TempDir(), now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC),
		host: &paperHost{objects: map[reconcile.Key]*reconcile.Live{}, fails: map[string]error{}},
	}
	w.ada, w.bob = newKey(t), newKey(t)
	// What runs before reviews are required needs none.
	w.repo.push(t, paperVM("old", "128Mi"))
	w.start(false)
	w.pass()
	w.start(true)
	w.pass()
	if did := w.host.did(); did != "create old" {
		t.Fatalf("at first it did %q", did)
	}
	return w
}

func newKey(t *testing.T) *trust.Key {
	t.Helper()
	k, _, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func only(t *testing.T, k *trust.Key, name string) *trust.Keys {
	t.Helper()
	keys, err := trust.ParseAllowedSigners([]byte(name + " " + k.Public()))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// start makes the agent anew, as after a crash.
func (w *reviewed) start(required bool) {
	w.t.Helper()
	a, err := New(Config{
		Host: "host1", StateDir: w.dir, RunDir: w.dir, Source: w.repo, Hypervisor: w.host, Storage: paperStorage{},
		Review: Review{Required: required, Signers: only(w.t, w.ada, "ada"), Overrides: only(w.t, w.bob, "bob")},
		Now:    func() time.Time { return w.now },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.a = a
}

// pass reconciles, and waits until nothing runs any more.
func (w *reviewed) pass() *reconcile.Plan {
	w.t.Helper()
	p, err := w.a.runPass(w.t.Context(), true, func(string) {})
	if err != nil {
		w.t.Fatal(err)
	}
	w.a.tasks.Wait()
	return p
}

func paperVM(name, memory string) string {
	return "apiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: " + name + "}\nspec: {host: host1, cpu: {cores: 1}, memory: {size: " + memory + "}, updatePolicy: {restart: Automatic}}\n"
}

// plan is what the host would do at the newest revision, reviews aside.
func (w *reviewed) plan() reconcile.Plan {
	w.t.Helper()
	newest := w.repo.chain[len(w.repo.chain)-1]
	have, err := w.host.Observe(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	other, err := paperStorage{}.Observe(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	have.Merge(other)
	return reconcile.Diff(reconcile.NewDesired(w.repo.sets[newest.Hash], "host1", newest.Hash), w.a.base, have, w.now)
}

// approval approves all of the newest revision as a change of the one before.
func (w *reviewed) approval() review.Approval {
	w.t.Helper()
	n := len(w.repo.chain)
	p := w.plan()
	return review.Approval{
		Cluster: "demo", Host: "host1", Base: w.repo.chain[n-2].Hash, Tree: w.repo.chain[n-1].Tree,
		IDs: planIDs(&p), Signed: w.now, Until: w.now.Add(24 * time.Hour),
	}
}

func (w *reviewed) offer(path string, data []byte, key *trust.Key, namespace string) {
	w.t.Helper()
	signature, err := key.Sign(data, namespace)
	if err != nil {
		w.t.Fatal(err)
	}
	w.repo.records[path], w.repo.records[path+review.SignatureSuffix] = data, signature
}

func (w *reviewed) approve(rec review.Approval) {
	w.t.Helper()
	data, err := rec.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	w.offer(rec.Path(), data, w.ada, trust.NamespaceApproval)
}

func (w *reviewed) events(reason string) []api.Event {
	var list []api.Event
	all, _ := w.a.events.after(w.t.Context(), 0, false)
	for _, e := range all {
		if e.Reason == reason {
			list = append(list, e)
		}
	}
	return list
}

func (w *reviewed) wantDid(want string) {
	w.t.Helper()
	if did := w.host.did(); did != want {
		w.t.Errorf("it did %q, want %q", did, want)
	}
}

func TestApprovedPlanRuns(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.pass()
	w.wantDid("")
	if e := w.events("NotReviewed"); len(e) != 1 || !strings.Contains(e[0].Message, "create VirtualMachine/new") || !strings.Contains(e[0].Message, "no approval was found") {
		t.Errorf("events %+v", e)
	}
	w.pass()
	if e := w.events("NotReviewed"); len(e) != 1 {
		t.Errorf("said %d times", len(e))
	}
	w.approve(w.approval())
	w.pass()
	w.wantDid("create new")
	if e := w.events("PlanApproved"); len(e) != 1 || e[0].By != "ada" || e[0].Type != "Audit" {
		t.Errorf("events %+v", e)
	}
	w.pass()
	newest := w.repo.chain[len(w.repo.chain)-1].Hash
	if m := w.a.review.reviewMemory; m.Base != newest || len(m.Plans) != 0 {
		t.Errorf("it remembers %+v, and all is done", m)
	}
	reads := w.repo.reads
	w.pass()
	if w.repo.reads != reads {
		t.Error("records are read although nothing waits for one")
	}
}

// What does not say, in the right hand and for this change, that the actions
// are approved approves nothing.
func TestForgedApprovals(t *testing.T) {
	for name, c := range map[string]struct {
		forge func(w *reviewed)
		why   string
	}{
		"wrong key": {func(w *reviewed) {
			data, _ := w.approval().Encode()
			w.offer(w.approval().Path(), data, w.bob, trust.NamespaceApproval)
		}, "not known"},
		"wrong namespace": {func(w *reviewed) {
			data, _ := w.approval().Encode()
			w.offer(w.approval().Path(), data, w.ada, trust.NamespaceGit)
		}, "another purpose"},
		"not signed": {func(w *reviewed) {
			w.approve(w.approval())
			delete(w.repo.records, w.approval().Path()+review.SignatureSuffix)
		}, "not signed"},
		"edited": {func(w *reviewed) {
			rec := w.approval()
			w.approve(rec)
			rec.Until = rec.Until.Add(time.Hour)
			data, _ := rec.Encode()
			w.repo.records[rec.Path()] = data
		}, "not good"},
		"other host": {func(w *reviewed) {
			rec := w.approval()
			path := rec.Path()
			rec.Host = "host2"
			data, _ := rec.Encode()
			w.offer(path, data, w.ada, trust.NamespaceApproval)
		}, "another host"},
		"other cluster": {func(w *reviewed) {
			rec := w.approval()
			rec.Cluster = "prod"
			w.approve(rec)
		}, "another host or cluster"},
		"other tree": {func(w *reviewed) {
			rec := w.approval()
			path := rec.Path()
			rec.Tree = hash("d", 1)
			data, _ := rec.Encode()
			w.offer(path, data, w.ada, trust.NamespaceApproval)
		}, "another tree"},
		"other base": {func(w *reviewed) {
			rec := w.approval()
			rec.Base = hash("b", 1)
			w.approve(rec)
		}, "not what this host comes from"},
		"itself as base": {func(w *reviewed) {
			rec := w.approval()
			rec.Base = w.repo.chain[len(w.repo.chain)-1].Hash
			w.approve(rec)
		}, "not what this host comes from"},
		"expired": {func(w *reviewed) {
			rec := w.approval()
			rec.Signed, rec.Until = w.now.Add(-2*time.Hour), w.now
			w.approve(rec)
		}, "expired"},
		"of the future": {func(w *reviewed) {
			rec := w.approval()
			rec.Signed = w.now.Add(time.Hour)
			w.approve(rec)
		}, "future"},
		"garbage, signed": {func(w *reviewed) {
			w.offer(w.approval().Path(), []byte("{}"), w.ada, trust.NamespaceApproval)
		}, "not an approval"},
		"garbage": {func(w *reviewed) {
			w.repo.records[w.approval().Path()] = []byte(strings.Repeat("[", 1<<20))
			w.repo.records[w.approval().Path()+review.SignatureSuffix] = []byte(strings.Repeat("x", 1<<20))
		}, "not good"},
		"override as approval": {func(w *reviewed) {
			data, _ := review.Override{Cluster: "demo", Host: "host1", IDs: w.approval().IDs, Reason: "r", Signed: w.now, Until: w.now.Add(time.Hour)}.Encode()
			w.offer(w.approval().Path(), data, w.ada, trust.NamespaceApproval)
		}, "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newReviewed(t)
			w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
			c.forge(w)
			w.pass()
			w.pass()
			w.wantDid("")
			if e := w.events("RecordRefused"); len(e) != 1 || !strings.Contains(e[0].Message, c.why) {
				t.Errorf("events %+v, want one that says %q", e, c.why)
			}
		})
	}
}

// A revert of a revert makes an earlier tree again. What was approved then is
// not approved for ever.
func TestApprovalIsNotReplayed(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.approve(w.approval())
	w.pass()
	w.repo.push(t, paperVM("old", "128Mi"))
	w.approve(w.approval())
	w.pass()
	w.wantDid("create new, delete new")
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.pass()
	w.wantDid("")
	if e := w.events("RecordRefused"); len(e) != 1 || !strings.Contains(e[0].Message, "not what this host comes from") {
		t.Errorf("events %+v", e)
	}
}

// A crash in the middle does not void an approval, even if the record is gone.
func TestApprovalSurvivesCrash(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("one", "128Mi"), paperVM("two", "128Mi"))
	w.approve(w.approval())
	w.host.fails["two"] = errors.New("no room")
	w.pass()
	w.wantDid("create one")
	clear(w.repo.records)
	clear(w.host.fails)
	w.start(true)
	w.now = w.now.Add(time.Hour)
	w.pass()
	w.wantDid("create two")
}

// A commit that asks for more than was approved gets only that.
func TestExtraActionIsHeld(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "256Mi"), paperVM("new", "128Mi"))
	rec := w.approval()
	p := w.plan()
	var kept []string
	for i := range p.Actions {
		if a := &p.Actions[i]; a.ID != "" && a.Name != "old" {
			kept = append(kept, a.ID)
		}
	}
	rec.IDs = kept
	w.approve(rec)
	plan := w.pass()
	w.wantDid("create new")
	held := 0
	for i := range plan.Actions {
		if a := &plan.Actions[i]; a.State == reconcile.Held {
			held++
			if a.Name != "old" || !strings.Contains(a.Reason, "not in the approved plan (approved: ") || !strings.Contains(a.Reason, "reconciler allow "+a.ID[:12]) {
				t.Errorf("%s is held: %s", a.Name, a.Reason)
			}
		}
	}
	if held != 1 {
		t.Errorf("%d actions are held", held)
	}
	if e := w.events("NotReviewed"); len(e) != 1 || !strings.Contains(e[0].Message, "restart VirtualMachine/old") {
		t.Errorf("events %+v", e)
	}
	if err := w.a.Allow(t.Context(), api.AllowRequest{ID: plan.Hosts[0].Digest, For: time.Hour, Reason: "seen", Caller: api.Caller{Name: "root"}}); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantDid("stop old, start old") // which is a restart
}

// What was accepted counts no longer than it says.
func TestAcceptedApprovalExpires(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.approve(w.approval())
	w.host.fails["new"] = errors.New("no room")
	w.pass()
	clear(w.host.fails)
	w.now = w.now.Add(25 * time.Hour)
	w.pass()
	w.wantDid("")
}

// Drift is corrected without anybody's approval: it restores what was approved.
func TestDriftNeedsNoApproval(t *testing.T) {
	w := newReviewed(t)
	for _, h := range w.host.objects {
		h.VM.Power, h.VM.Launch = reconcile.PowerStopped, ""
	}
	w.pass()
	w.wantDid("start old")
}

func TestOverride(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *reviewed, o *review.Override)
		key    func(w *reviewed) *trust.Key
		runs   bool
	}{
		"digest": {nil, nil, true},
		"ids": {func(w *reviewed, o *review.Override) {
			p := w.plan()
			o.Digest, o.IDs = "", planIDs(&p)
		}, nil, true},
		"other digest":  {func(_ *reviewed, o *review.Override) { o.Digest = "sha256:" + strings.Repeat("0", 64) }, nil, false},
		"other host":    {func(_ *reviewed, o *review.Override) { o.Host = "host2" }, nil, false},
		"other cluster": {func(_ *reviewed, o *review.Override) { o.Cluster = "prod" }, nil, false},
		"expired":       {func(w *reviewed, o *review.Override) { o.Signed, o.Until = w.now.Add(-time.Hour), w.now }, nil, false},
		"a signer's":    {nil, func(w *reviewed) *trust.Key { return w.ada }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newReviewed(t)
			w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
			p := w.plan()
			o := review.Override{Cluster: "demo", Host: "host1", Digest: p.Hosts[0].Digest, Reason: "the pool burns", Signed: w.now, Until: w.now.Add(time.Hour)}
			if c.change != nil {
				c.change(w, &o)
			}
			key := w.bob
			if c.key != nil {
				key = c.key(w)
			}
			data, err := o.Encode()
			if err != nil {
				t.Fatal(err)
			}
			path := o.Path()
			w.offer(strings.Replace(path, "host2", "host1", 1), data, key, trust.NamespaceOverride)
			w.pass()
			w.pass()
			did, events := w.host.did(), w.events("Overridden")
			if (did == "create new") != c.runs || (len(events) == 1) != c.runs {
				t.Errorf("it did %q; events %+v", did, events)
			}
			if c.runs && (events[0].By != "bob" || !strings.Contains(events[0].Message, "the pool burns")) {
				t.Errorf("audited as %+v", events[0])
			}
		})
	}
}

// A ref that cannot be read holds what waits for it, and nothing else.
func TestRecordsUnreadable(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "128Mi"), paperVM("new", "128Mi"))
	w.approve(w.approval())
	w.repo.fail = errors.New("the forge is down")
	w.pass()
	w.pass()
	w.wantDid("")
	if e := w.events("ApprovalsNotRead"); len(e) != 1 {
		t.Errorf("said %d times", len(e))
	}
	w.repo.fail = nil
	w.pass()
	w.wantDid("create new")
}

// An approval that is found beside a pass is not told as missing by what looks for
// it at the same time, with what the pass had found out before.
func TestApprovalFoundMeanwhileIsNotMissed(t *testing.T) {
	w := newReviewed(t)
	w.repo.push(t, paperVM("old", "256Mi"))
	w.approve(w.approval())
	a, ctx := w.a, t.Context()
	n := a.ask(ctx)
	a.heard(n)
	if err := a.advance(ctx, n); err != nil {
		t.Fatal(err)
	}
	want := a.desired(a.set)
	have, err := a.observe(ctx, want)
	if err != nil {
		t.Fatal(err)
	}
	plan := a.decide(want, have)
	look := func() bool {
		return a.readApprovals(ctx, plan, a.review.Base, a.mem.Good, maps.Clone(a.base), true, false)
	}
	if !look() || look() {
		t.Fatal("the approval is not found, or twice")
	}
	if err := a.settleReview(plan, have); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantDid("stop old, start old")
	if e := w.events("NotReviewed"); len(e) > 0 {
		t.Errorf("events %+v", e)
	}
}
