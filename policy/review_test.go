package policy

import (
	"strings"
	"testing"
	"time"

	"reconciler/deadline"
	"reconciler/reconcile"
	"reconciler/spec"
)

func TestReviewHolds(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 64) }
	machine := func(name string) reconcile.Action {
		return reconcile.Action{Kind: spec.KindVirtualMachine, Name: name, UID: name, Op: reconcile.OpUpdate,
			Cause: reconcile.CauseRevision, Impact: reconcile.ImpactLive, State: reconcile.Ready}
	}
	review := Review{
		Approved: map[string]bool{id("1"): true, id("2"): true}, Beyond: map[string]string{id("2"): "it would destroy data, and to remove it was approved"},
		Found: "approved: 2 actions by ada", Asked: map[reconcile.Key]bool{{Kind: spec.KindVirtualMachine, UID: "x"}: true}, Clock: deadline.Clock{Now: now},
	}
	for _, c := range []struct {
		name   string
		change func(*reconcile.Action, *Review)
		state  reconcile.ActionState
		awaits bool
		why    string
	}{
		{"approved", func(a *reconcile.Action, _ *Review) { a.ID = id("1") }, reconcile.Ready, false, ""},
		{"approved retry", func(a *reconcile.Action, _ *Review) { a.ID, a.Cause = id("1"), reconcile.CauseRetry }, reconcile.Ready, false, ""},
		{"extra", func(a *reconcile.Action, _ *Review) { a.ID = id("3") }, reconcile.Held, true,
			"not in the approved plan (approved: 2 actions by ada; reconciler allow 333333333333 --for 1h --reason …)"},
		{"extra retry", func(a *reconcile.Action, _ *Review) { a.ID, a.Cause = id("3"), reconcile.CauseRetry }, reconcile.Held, true, "not in the approved plan"},
		{"extra that waits", func(a *reconcile.Action, _ *Review) {
			a.ID, a.State, a.Reason = id("3"), reconcile.Waiting, "for a restart"
		}, reconcile.Waiting, true, "reconciler allow 333333333333 --for 1h --reason …); for a restart"},
		{"more than was approved", func(a *reconcile.Action, _ *Review) { a.ID = id("2") }, reconcile.Held, true, "it would destroy data"},
		{"drift", func(a *reconcile.Action, _ *Review) { a.Cause = reconcile.CauseDrift }, reconcile.Ready, false, ""},
		{"retry of drift", func(a *reconcile.Action, _ *Review) { a.Cause = reconcile.CauseRetry }, reconcile.Ready, false, ""},
		{"expiry", func(a *reconcile.Action, _ *Review) { a.Cause = reconcile.CauseExpiry }, reconcile.Ready, false, ""},
		{"restart that was asked for", func(a *reconcile.Action, _ *Review) { a.UID, a.Op = "x", reconcile.OpRestart }, reconcile.Ready, false, ""},
		{"restart that nobody asked for", func(a *reconcile.Action, _ *Review) { a.Op = reconcile.OpRestart }, reconcile.Held, true, "no plan that was approved"},
		{"removal without an id", func(a *reconcile.Action, _ *Review) { a.Op = reconcile.OpDelete }, reconcile.Held, true,
			"it removes what was never finished (approved: 2 actions by ada; reconciler allow VirtualMachine/a --for"},
		{"nothing", func(a *reconcile.Action, _ *Review) { a.Op = reconcile.OpUnchanged }, reconcile.Ready, false, ""},
		{"allowed", func(a *reconcile.Action, r *Review) {
			a.ID, r.Allowances = id("3"), []Allowance{{ID: id("3"), Deadline: deadline.Deadline{Until: now.Add(time.Hour)}}}
		}, reconcile.Ready, false, ""},
		{"allowed once", func(a *reconcile.Action, r *Review) {
			a.ID, r.Allowances = id("3"), []Allowance{{ID: id("3"), Deadline: deadline.Deadline{Until: now}}}
		}, reconcile.Held, true, "not in the approved plan"},
	} {
		a, r := machine("a"), review
		c.change(&a, &r)
		p := &reconcile.Plan{Actions: []reconcile.Action{a}}
		list := r.Hold(p)
		if got := &p.Actions[0]; got.State != c.state || len(list) == 1 != c.awaits || !strings.Contains(got.Reason, c.why) {
			t.Errorf("%s: %s, %q, awaits %v", c.name, got.State, got.Reason, list)
		}
	}
}

// What depends on what is held does not run, and costs nothing.
func TestReviewHoldsDependants(t *testing.T) {
	disk := reconcile.Action{ID: strings.Repeat("3", 64), Kind: spec.KindDisk, Name: "d", UID: "d", Op: reconcile.OpCreate, Cause: reconcile.CauseRevision, State: reconcile.Ready}
	vm := reconcile.Action{ID: strings.Repeat("1", 64), Kind: spec.KindVirtualMachine, Name: "v", UID: "v", Op: reconcile.OpCreate, Cause: reconcile.CauseRevision,
		State: reconcile.Ready, After: []reconcile.Key{disk.Key()}}
	p := &reconcile.Plan{Actions: []reconcile.Action{disk, vm}}
	Review{Approved: map[string]bool{vm.ID: true}, Clock: deadline.Clock{Now: now}}.Hold(p)
	if a := &p.Actions[1]; a.State != reconcile.Waiting || !strings.Contains(a.Reason, "waits for Disk/d, which is held") {
		t.Errorf("%s: %s", a.State, a.Reason)
	}
}

func TestApprovedBy(t *testing.T) {
	for want, got := range map[string]string{
		"no approval was found":               ApprovedBy(0, nil),
		"approved: 1 action by ada":           ApprovedBy(1, []string{"ada"}),
		"approved: 3 actions by ada, charles": ApprovedBy(3, []string{"charles", "ada", "ada"}),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
