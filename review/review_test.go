package review

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reconciler/reconcile"
	"reconciler/spec"
)

var testNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const frame = `
apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
spec: {id: demo}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec:
  host: host1
  capacity: 10Ti
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: ["127.0.0.1:3260"]}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: front}
spec: {user: {}}
`

const host2 = `apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host2}
spec: {roles: [Hypervisor], addresses: {management: 127.0.0.2}}
`

func tree(t interface{ Fatalf(string, ...any) }, docs ...string) *spec.Set {
	var objects []*spec.Object
	for i, d := range append([]string{frame}, docs...) {
		list, err := spec.Parse(fmt.Sprintf("test-%d.yaml", i), []byte(d))
		if err != nil {
			t.Fatalf("parse: %v", err)
		}
		objects = append(objects, list...)
	}
	set, err := spec.Build(objects)
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	return set
}

func disk(name, rest string) string {
	return fmt.Sprintf("apiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: %s}\nspec: {pool: fast, %s}\n", name, rest)
}

func vmOn(host, name, rest string) string {
	return fmt.Sprintf("apiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: %s}\nspec: {host: %s, %s}\n", name, host, rest)
}

func vm(name, memory string) string {
	return vmOn("host1", name, "cpu: {cores: 1}, memory: {size: "+memory+"}")
}

// applied is a host that has done all that a tree asks of it.
func applied(set *spec.Set, host string) HostInput {
	base := reconcile.BaseOf(reconcile.NewDesired(set, host, "base"))
	return HostInput{Host: host, Base: base, Have: reconcile.StateFromBase(base), ObservedAt: testNow, State: strings.Repeat("5", 40)}
}

func input(base, merge *spec.Set, hosts ...HostInput) Input {
	return Input{
		BaseRevision: strings.Repeat("a", 40), HeadRevision: strings.Repeat("b", 40), Tree: strings.Repeat("c", 40),
		Base: base, Merge: merge, Hosts: hosts, Now: testNow,
	}
}

func origins(r *Report) map[string]Origin {
	m := map[string]Origin{}
	for i := range r.Actions {
		if a := &r.Actions[i]; a.Origin != "" {
			m[string(a.Kind)+"/"+a.Name] = a.Origin
		}
	}
	for i := range r.Cancelled {
		m[string(r.Cancelled[i].Kind)+"/"+r.Cancelled[i].Name] = Cancelled
	}
	return m
}

// Every action is told by whose doing it is: the pull request's, what the base
// still has to do, what the world did, or several at once.
func TestCompare(t *testing.T) {
	old := tree(t, vm("drifts", "128Mi"), vm("both", "128Mi"), vm("pends", "128Mi"), vm("reverted", "128Mi"), vm("edited", "128Mi"), vm("goes", "128Mi"))
	base := tree(t, vm("drifts", "128Mi"), vm("both", "256Mi"), vm("pends", "256Mi"), vm("reverted", "256Mi"), vm("edited", "128Mi"), vm("goes", "128Mi"), vm("half", "128Mi"))
	merge := tree(t, vm("drifts", "128Mi"), vm("both", "512Mi"), vm("pends", "256Mi"), vm("reverted", "128Mi"), vm("edited", "512Mi"), vm("comes", "128Mi"), vm("half", "128Mi"))

	h := applied(old, "host1")
	for k, o := range h.Have.Objects {
		if k.Kind == spec.KindVirtualMachine && o.Name == "drifts" {
			o.VM.Power = reconcile.PowerPaused
		}
	}
	r := Compare(input(base, merge, h))
	want := map[string]Origin{
		"VirtualMachine/drifts": Pending, "VirtualMachine/pends": Pending, "VirtualMachine/half": Pending,
		"VirtualMachine/both": Mixed, "VirtualMachine/reverted": Cancelled,
		"VirtualMachine/edited": PullRequest, "VirtualMachine/comes": PullRequest, "VirtualMachine/goes": PullRequest,
	}
	if got := origins(r); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("origins %v\nwant    %v", got, want)
	}
	if r.Impact != reconcile.ImpactRemove || r.Incomplete || r.Summary[reconcile.OpDelete] != 1 || r.Pending[reconcile.OpCreate] != 1 {
		t.Errorf("impact %s, summary %v, pending %v", r.Impact, r.Summary, r.Pending)
	}
	// What the host computes after the merge, it must find approved, but for
	// what the pull request is not about.
	plan := reconcile.Diff(reconcile.NewDesired(merge, "host1", "m"), h.Base, h.Have, testNow)
	for i := range plan.Actions {
		a := &plan.Actions[i]
		if a.ID == "" {
			continue
		}
		about := origins(r)["VirtualMachine/"+a.Name] != Pending
		if slices.Contains(r.Hosts[0].IDs, a.ID) != about {
			t.Errorf("%s: approved %v, want %v", a.Name, !about, about)
		}
	}
	if r.Hosts[0].Digest != plan.Hosts[0].Digest {
		t.Error("the digest is not the host's")
	}
}

// An object that nobody could look at is still changed by the pull request.
func TestBlockedObjectIsStillChanged(t *testing.T) {
	base, merge := tree(t, vm("a", "128Mi"), vm("b", "128Mi")), tree(t, vm("a", "256Mi"), vm("b", "128Mi"))
	h := applied(base, "host1")
	for k, o := range h.Have.Objects {
		if k.Kind == spec.KindVirtualMachine {
			h.Have.Unknown[k] = "QEMU does not answer"
			delete(h.Have.Objects, o.Key())
		}
	}
	if got := origins(Compare(input(base, merge, h))); got["VirtualMachine/a"] != Mixed || got["VirtualMachine/b"] != Pending {
		t.Errorf("origins %v", got)
	}
}

func TestHosts(t *testing.T) {
	base := tree(t, vm("a", "128Mi"))
	merge := tree(t, host2, vm("a", "256Mi"), vmOn("host2", "b", "cpu: {cores: 1}, memory: {size: 128Mi}"))
	bad := HostInput{Host: "host1", Problem: "no report"}
	fresh := HostInput{Host: "host2", New: true}
	r := Compare(input(base, merge, fresh, bad))
	if !r.Incomplete || r.Hosts[0].Host != "host1" || len(r.Hosts[0].IDs) != 0 || r.Hosts[0].Digest != "" {
		t.Errorf("an unknown host has something to approve: %+v", r.Hosts[0])
	}
	if h := r.Hosts[1]; len(h.IDs) == 0 || h.Problem != "" {
		t.Errorf("the new host has nothing to approve: %+v", h)
	}
	got := origins(r)
	if got["VirtualMachine/a"] != PullRequest || got["VirtualMachine/b"] != PullRequest {
		t.Errorf("origins %v", got)
	}
	// The host that goes away refuses the merge, and nothing is planned on it.
	r = Compare(input(merge, tree(t, vm("a", "128Mi")), applied(merge, "host1"), HostInput{Host: "host2", Gone: true}))
	if h := r.Hosts[1]; len(h.Notes) != 1 || !strings.Contains(h.Notes[0], "no longer declared") {
		t.Errorf("notes %v", h.Notes)
	}
	for _, a := range r.Actions {
		if a.Host == "host2" {
			t.Errorf("an action is planned on a host that refuses: %+v", a)
		}
	}
}

// A tree that no host would bring into force is no plan.
func TestRefusedByEveryHost(t *testing.T) {
	const disk = "---\napiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: d}\nspec: {pool: fast, size: 1Gi}\n"
	set := func(text string) *spec.Set {
		objects, err := spec.Parse("t.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		set, err := spec.Build(objects)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	iqn := strings.Replace(frame, "{id: demo}", "{id: demo, iqnBase: iqn.2026-01.org.example}", 1)
	for _, c := range []struct{ base, merge, refused string }{
		{frame, strings.Replace(frame, "{id: demo}", "{id: other}", 1), "cluster id other"},
		{frame + disk, iqn + disk, "changes iqnBase from "},
		{frame + disk, iqn, "changes iqnBase from "},
		{frame, iqn, ""},
	} {
		base := set(c.base)
		r := Compare(input(base, set(c.merge), applied(base, "host1")))
		if !strings.Contains(r.Refused, c.refused) || (c.refused == "") != (r.Refused == "") {
			t.Errorf("refused: %q, want %q", r.Refused, c.refused)
		}
	}
}

func TestNotes(t *testing.T) {
	base, merge := tree(t, vm("a", "128Mi"), vm("b", "128Mi")), tree(t, vm("b", "128Mi"))
	in := input(base, merge, applied(base, "host1"))
	in.Restrain = func(p *reconcile.Plan, _ reconcile.State) {
		for i := range p.Actions {
			if p.Actions[i].Op == reconcile.OpDelete {
				p.Actions[i].State, p.Actions[i].Reason = reconcile.Held, "held until Sunday"
			}
		}
	}
	r := Compare(in)
	for _, a := range r.Actions {
		if a.Op == reconcile.OpDelete && (a.State != reconcile.Ready || a.Note != "on the host held: until Sunday") {
			t.Errorf("state %s, note %q", a.State, a.Note)
		}
	}
}

// drawDocs makes a random tree of machines and disks.
func drawDocs(t *rapid.T, label string) *spec.Set {
	var docs []string
	disks := rapid.IntRange(0, 4).Draw(t, label+" disks")
	owner := make([]int, disks)
	for i := range disks {
		docs = append(docs, disk(fmt.Sprintf("d%d", i), fmt.Sprintf("size: %dMi", 64*rapid.IntRange(1, 3).Draw(t, label+" size"))))
		owner[i] = rapid.IntRange(-1, 2).Draw(t, label+" owner")
	}
	for i := range rapid.IntRange(0, 3).Draw(t, label+" machines") {
		s := fmt.Sprintf("cpu: {cores: %d}, memory: {size: %dMi}, powerState: %s, updatePolicy: {restart: %s}, disks: [",
			rapid.IntRange(1, 2).Draw(t, label+" cores"), 128*rapid.IntRange(1, 2).Draw(t, label+" memory"),
			rapid.SampledFrom([]string{"Running", "Stopped"}).Draw(t, label+" power"),
			rapid.SampledFrom([]string{"Manual", "Automatic"}).Draw(t, label+" update"))
		for d, o := range owner {
			if o == i {
				s += fmt.Sprintf("{disk: d%d},", d)
			}
		}
		docs = append(docs, vmOn("host1", fmt.Sprintf("v%d", i), s+"]"))
	}
	return tree(t, docs...)
}

// carryOut is a host that does the ready actions of a plan that may run.
func carryOut(p reconcile.Plan, base reconcile.Base, have reconcile.State, may func(*reconcile.Action) bool) reconcile.State {
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.State == reconcile.Ready && a.Op != reconcile.OpUnchanged && !may(a) {
			a.State = reconcile.Held
		}
	}
	p.Settle()
	next := reconcile.Simulate(have, p)
	for i := range p.Actions {
		if a := &p.Actions[i]; a.State == reconcile.Ready && (a.Op != reconcile.OpUnchanged || a.Want != nil) {
			base.Finish(a)
		}
	}
	return next
}

// A host that is somewhere on its way to the base gets, with the approval of
// the pull request and with those of what was asked for before, where it is to
// go: nothing of the commits is ever held, whether the base was finished first
// or not.
func TestApprovalsSuffice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, base, merge := drawDocs(t, "old"), drawDocs(t, "base"), drawDocs(t, "merge")
		h := applied(old, "host1")
		// The host has done a part of what the base asks.
		was, want := reconcile.NewDesired(base, "host1", "b"), reconcile.NewDesired(merge, "host1", "m")
		for range rapid.IntRange(0, 2).Draw(t, "steps before") {
			h.Have = carryOut(reconcile.Diff(was, h.Base, h.Have, testNow), h.Base, h.Have, func(*reconcile.Action) bool { return true })
		}
		r := Compare(input(base, merge, h))
		ok := map[string]bool{}
		for _, id := range slices.Concat(r.Hosts[0].IDs, r.Hosts[0].Also) {
			ok[id] = true
		}
		// The approvals of the base.
		ahead(was, h.Base, h.Have, testNow, ok)
		if rapid.Bool().Draw(t, "base first") {
			for range 8 {
				h.Have = carryOut(reconcile.Diff(was, h.Base, h.Have, testNow), h.Base, h.Have, func(*reconcile.Action) bool { return true })
			}
		}
		for range 8 {
			p := reconcile.Diff(want, h.Base, h.Have, testNow)
			h.Have = carryOut(p, h.Base, h.Have, func(a *reconcile.Action) bool {
				if a.ID != "" && !ok[a.ID] {
					t.Fatalf("%s %s/%s is not approved; changes %+v", a.Op, a.Kind, a.Name, a.Changes)
				}
				return true
			})
		}
	})
}

func TestJSON(t *testing.T) {
	base, merge := tree(t, vm("a", "128Mi")), tree(t, vm("a", "256Mi"))
	data, err := json.Marshal(Compare(input(base, merge, applied(base, "host1"))))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"kind":"PullRequestPlan"`, `"origin":"pullRequest"`, `"field":"spec.memory.size"`, `"incomplete":false`, `"also":[`} {
		if !strings.Contains(string(data), part) {
			t.Errorf("no %s in\n%s", part, data)
		}
	}
}
