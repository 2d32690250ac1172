package reconcile

import (
	"strings"
	"testing"

	"reconciler/spec"
)

// A machine whose record was lost is made anew, and if the commit wants it to be
// another one, that is the commit's doing and has its id.
func TestLostObjectThatTheCommitChanges(t *testing.T) {
	from, to := desired(t, vmDoc("v", plainVM)), desired(t, vmDoc("v", strings.Replace(plainVM, "128Mi", "256Mi", 1)))
	less := desired(t, vmDoc("v", plainVM+", nics: [{name: n, network: front}]"))
	for _, c := range []struct {
		name     string
		from, to *Desired
		cause    Cause
	}{{"as it was", from, from, CauseDrift}, {"another", from, to, CauseRevision}, {"with less", less, from, CauseRevision}} {
		have, base := world(c.from)
		calm := find(t, Diff(c.to, base, have, testNow), spec.KindVirtualMachine, "v").ID
		for k := range have.Objects {
			if k.Kind == spec.KindVirtualMachine {
				delete(have.Objects, k)
			}
		}
		a := find(t, Diff(c.to, base, have, testNow), spec.KindVirtualMachine, "v")
		if a.Op != OpCreate || a.Cause != c.cause || a.ID != calm || (a.ID == "") != (c.cause == CauseDrift) {
			t.Errorf("%s: %s, cause %s, id %q; want cause %s, id %q", c.name, a.Op, a.Cause, a.ID, c.cause, calm)
		}
	}
}

// What was begun and never finished can be removed with a review as anything.
func TestRemovalOfTheUnfinishedHasAnID(t *testing.T) {
	with, without := desired(t, vmDoc("v", plainVM)), desired(t)
	have, base := world(without)
	p := Diff(with, base, have, testNow)
	a := find(t, p, spec.KindVirtualMachine, "v")
	base.Begin(a)
	have = Simulate(have, p)
	p = Diff(without, base, have, testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != OpDelete || a.Cause != CauseRevision || a.ID == "" {
		t.Errorf("%s, cause %s, id %q", a.Op, a.Cause, a.ID)
	}
}

// Memory that was changed by hand needs a restart, which a commit may allow
// without asking for it: the two come one after the other.
func TestRestartForDriftIsNotTheCommits(t *testing.T) {
	from := desired(t, vmDoc("v", plainVM))
	to := desired(t, vmDoc("v", plainVM+", updatePolicy: {restart: Automatic}"))
	have, base := world(from)
	for _, h := range have.Objects {
		if h.VM != nil {
			h.set("spec.memory.size", "64Mi", "")
		}
	}
	p := Diff(to, base, have, testNow)
	a := find(t, p, spec.KindVirtualMachine, "v")
	if a.Op != OpUpdate || a.State != Ready || a.Cause != CauseRevision || a.ID == "" {
		t.Fatalf("first: %s, %s, cause %s, id %q\n%s", a.Op, a.State, a.Cause, a.ID, text(&p))
	}
	base.Finish(a)
	p = Diff(to, base, Simulate(have, p), testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != OpRestart || a.State != Ready || a.Cause != CauseDrift || a.ID != "" {
		t.Errorf("then: %s, %s, cause %s, id %q\n%s", a.Op, a.State, a.Cause, a.ID, text(&p))
	}
}

// What the commit asks for in vain is not why drift is put right.
func TestDriftBesideTheImpossible(t *testing.T) {
	vm := plainVM + ", disks: [{disk: a}], updatePolicy: {restart: Automatic}"
	from := desired(t, diskDoc("a", "size: 128Mi"), vmDoc("v", vm))
	to := desired(t, diskDoc("a", "size: 64Mi"), vmDoc("v", vm))
	have, base := world(from)
	for _, h := range have.Objects {
		if h.VM != nil {
			h.set("spec.memory.size", "64Mi", "")
		}
	}
	p := Diff(to, base, have, testNow)
	a := find(t, p, spec.KindVirtualMachine, "v")
	if a.Op != OpRestart || a.State != Ready || a.Cause != CauseDrift || a.ID != "" {
		t.Fatalf("%s, %s, cause %s, id %q\n%s", a.Op, a.State, a.Cause, a.ID, text(&p))
	}
	base.Finish(a)
	p = Diff(to, base, Simulate(have, p), testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != OpBlocked || a.Cause != CauseRevision || a.ID == "" {
		t.Errorf("then: %s, cause %s, id %q\n%s", a.Op, a.Cause, a.ID, text(&p))
	}
}
