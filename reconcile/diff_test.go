package reconcile

import (
	"strings"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/spec"
)

func text(p *Plan) string {
	var b strings.Builder
	_ = p.WriteText(&b)
	return b.String()
}

// edits of one field each: what the plan says about it.
func TestSingleEdits(t *testing.T) {
	const vm, disk = spec.KindVirtualMachine, spec.KindDisk
	full := plainVM + ", disks: [{disk: d0}], nics: [{name: n, network: front}]"
	for _, c := range []struct {
		name     string
		from, to []string // documents
		kind     spec.Kind
		object   string
		op       Op
		impact   Impact
		state    ActionState
		field    string
		reason   string
	}{
		{"memory", []string{vmDoc("v", plainVM)}, []string{vmDoc("v", "cpu: {cores: 1}, memory: {size: 256Mi}")},
			vm, "v", OpUpdate, ImpactRestart, Waiting, "spec.memory.size", "needs a restart: reconciler restart vm/v"},
		{"memory, automatic", []string{vmDoc("v", plainVM+", updatePolicy: {restart: Automatic}")},
			[]string{vmDoc("v", "cpu: {cores: 1}, memory: {size: 256Mi}, updatePolicy: {restart: Automatic}")},
			vm, "v", OpRestart, ImpactRestart, Ready, "spec.memory.size", "updatePolicy asks for it"},
		{"restartedAt", []string{vmDoc("v", plainVM)}, []string{vmDoc("v", plainVM+`, restartedAt: "2026-11-22T10:00:00Z"`)},
			vm, "v", OpRestart, ImpactRestart, Ready, "spec.restartedAt", "restartedAt asks for it"},
		{"stop", []string{vmDoc("v", plainVM)}, []string{vmDoc("v", plainVM+", powerState: Stopped")},
			vm, "v", OpStop, ImpactStop, Ready, "spec.powerState", ""},
		{"start", []string{vmDoc("v", plainVM+", powerState: Stopped")}, []string{vmDoc("v", plainVM)},
			vm, "v", OpStart, ImpactNone, Ready, "spec.powerState", ""},
		{"a stopped machine's memory", []string{vmDoc("v", plainVM+", powerState: Stopped")},
			[]string{vmDoc("v", "cpu: {cores: 1}, memory: {size: 256Mi}, powerState: Stopped")},
			vm, "v", OpUpdate, ImpactNone, Ready, "spec.memory.size", ""},
		{"remove a machine", []string{vmDoc("v", plainVM)}, nil, vm, "v", OpDelete, ImpactRemove, Ready, "", "removed from the tree"},
		{"attach", []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", plainVM)}, []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{disk: d0}]")},
			vm, "v", OpUpdate, ImpactLive, Ready, "spec.disks[d0].disk", ""},
		{"detach", []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", full)}, []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", plainVM+", nics: [{name: n, network: front}]")},
			vm, "v", OpUpdate, ImpactLive, Ready, "spec.disks[d0].disk", ""},
		{"move a card", []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", full)},
			[]string{diskDoc("d0", "size: 64Mi"), vmDoc("v", strings.Replace(full, "network: front", "network: back", 1))},
			vm, "v", OpUpdate, ImpactLive, Ready, "spec.nics[n].backend", ""},
		{"grow", []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", full)}, []string{diskDoc("d0", "size: 128Mi"), vmDoc("v", full)},
			disk, "d0", OpUpdate, ImpactLive, Ready, "spec.size", ""},
		{"grow, in the guest", []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", full)}, []string{diskDoc("d0", "size: 128Mi"), vmDoc("v", full)},
			vm, "v", OpUpdate, ImpactLive, Ready, "spec.disks[d0].size", ""},
		{"shrink", []string{diskDoc("d0", "size: 128Mi")}, []string{diskDoc("d0", "size: 64Mi")},
			disk, "d0", OpBlocked, ImpactNone, Blocked, "spec.size", "a disk cannot shrink"},
		{"shrink, in the guest", []string{diskDoc("d0", "size: 128Mi"), vmDoc("v", full)}, []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", full)},
			vm, "v", OpBlocked, ImpactNone, Blocked, "spec.disks[d0].size", "a disk cannot shrink"},
		{"a smaller disk in its place", []string{diskDoc("d0", "size: 128Mi"), diskDoc("d1", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{name: d, disk: d0}]")},
			[]string{diskDoc("d0", "size: 128Mi"), diskDoc("d1", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{name: d, disk: d1}]")},
			vm, "v", OpUpdate, ImpactLive, Ready, "spec.disks[d].size", ""},
		{"grow over capacity, in the guest", []string{diskDoc("d0", "size: 64Mi"), vmDoc("v", full)}, []string{diskDoc("d0", "size: 101Gi"), vmDoc("v", full)},
			vm, "v", OpBlocked, ImpactLive, Blocked, "spec.disks[d0].size", "waits for Disk/d0: StoragePool/fast would hold"},
		{"another source", []string{diskDoc("d0", "size: 64Mi")}, []string{diskDoc("d0", "size: 64Mi, source: {image: debian}"), debian},
			disk, "d0", OpBlocked, ImpactNone, Blocked, "spec.source.blank", "raise metadata.incarnation"},
		{"over capacity", nil, []string{diskDoc("d0", "size: 101Gi")}, disk, "d0", OpBlocked, ImpactNone, Blocked, "spec.size", "of 100Gi, quarantine counted"},
		{"remove a disk", []string{diskDoc("d0", "size: 64Mi")}, nil, disk, "d0", OpQuarantine, ImpactRemove, Ready, "", "kept in quarantine for 168h"},
		{"remove a disk for good", []string{diskDoc("d0", "size: 64Mi, deletionPolicy: Delete")}, nil, disk, "d0", OpQuarantine, ImpactDestroy, Ready, "", "purges"},
		{"weaken deletionPolicy", []string{diskDoc("d0", "size: 64Mi")}, []string{diskDoc("d0", "size: 64Mi, deletionPolicy: Delete")},
			disk, "d0", OpUpdate, ImpactDestroy, Ready, "spec.deletionPolicy", ""},
		{"shorten retention", []string{diskDoc("d0", "size: 64Mi")}, []string{diskDoc("d0", "size: 64Mi, retention: 1h")},
			disk, "d0", OpUpdate, ImpactDestroy, Ready, "spec.retention", ""},
		{"lengthen retention", []string{diskDoc("d0", "size: 64Mi")}, []string{diskDoc("d0", "size: 64Mi, retention: 200h")},
			disk, "d0", OpUpdate, ImpactNone, Ready, "spec.retention", ""},
		{"another boot disk", []string{diskDoc("d0", "size: 64Mi"), diskDoc("d1", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{disk: d0}, {disk: d1}]")},
			[]string{diskDoc("d0", "size: 64Mi"), diskDoc("d1", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{disk: d1}, {disk: d0}]")},
			vm, "v", OpUpdate, ImpactRestart, Waiting, "spec.boot.disk", "needs a restart"},
		{"label", []string{vmDoc("v", plainVM)}, []string{strings.Replace(vmDoc("v", plainVM), "{name: v}", "{name: v, labels: {a: b}}", 1)},
			vm, "v", OpUpdate, ImpactNone, Ready, "metadata.labels[a]", ""},
		{"a machine on another host", []string{vmDoc("v", plainVM)}, []string{strings.Replace(vmDoc("v", plainVM), "host: host1", "host: host2", 1)},
			vm, "v", OpBlocked, ImpactNone, Blocked, "", "declared on host host2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			have, base := world(desired(t, c.from...))
			p := Diff(desired(t, c.to...), base, have, testNow)
			a := find(t, p, c.kind, c.object)
			if a.Op != c.op || a.Impact != c.impact || a.State != c.state || a.Cause != CauseRevision && a.Op != OpBlocked {
				t.Errorf("got %s, impact %s, %s, cause %s; want %s, %s, %s\n%s", a.Op, a.Impact, a.State, a.Cause, c.op, c.impact, c.state, text(&p))
			}
			if !strings.Contains(a.Reason, c.reason) {
				t.Errorf("reason %q does not say %q", a.Reason, c.reason)
			}
			if c.field == "" {
				return
			}
			for _, ch := range a.Changes {
				if ch.Field == c.field {
					return
				}
			}
			t.Errorf("no change of %s in\n%s", c.field, text(&p))
		})
	}
}

func key(t *testing.T, d *Desired, kind spec.Kind, name string) Key {
	t.Helper()
	for k, o := range d.Objects {
		if k.Kind == kind && o.Name == name {
			return k
		}
	}
	t.Fatalf("no %s/%s", kind, name)
	return Key{}
}

const debian = `
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: debian}
spec: {source: {file: {path: d}}, virtualSize: 1Mi, sha256: "2222222222222222222222222222222222222222222222222222222222222222"}
`

// A growth that policy holds is held in the guest, too: QEMU cannot grow a disk
// beyond its LUN.
func TestHeldGrowthHoldsTheGuests(t *testing.T) {
	grown := func(size, label string) []string {
		return []string{diskDoc("d0", "size: "+size), strings.Replace(vmDoc("v", plainVM+", disks: [{disk: d0}]"), "{name: v}", "{name: v, labels: {a: "+label+"}}", 1)}
	}
	have, base := world(desired(t, grown("64Mi", "b")...))
	p := Diff(desired(t, grown("128Mi", "c")...), base, have, testNow)
	find(t, p, spec.KindDisk, "d0").State = Held
	p.Settle()
	a := find(t, p, spec.KindVirtualMachine, "v")
	for _, c := range a.Changes {
		if waits := c.Waits != ""; waits != (c.Field == "spec.disks[d0].size") {
			t.Errorf("%s waits: %q", c.Field, c.Waits)
		}
	}
	if a.State != Ready || len(a.Changes) != 2 {
		t.Errorf("%s, %d changes", a.State, len(a.Changes))
	}
}

// A name that stands for other content is a change, is shown as one, and is not
// what was approved with the name before.
func TestContentUnderTheSameName(t *testing.T) {
	kernel := func(sha string) []string {
		image := strings.Replace(strings.Replace(debian, "virtualSize: 1Mi, ", "", 1), strings.Repeat("2", 64), strings.Repeat(sha, 64), 1)
		return []string{image, vmDoc("v", plainVM+", boot: {kernel: {image: debian}}")}
	}
	have, base := world(desired(t, kernel("2")...))
	ids := map[string]bool{}
	for _, sha := range []string{"3", "4"} {
		p := Diff(desired(t, kernel(sha)...), base, have, testNow)
		a := find(t, p, spec.KindVirtualMachine, "v")
		if a.State != Waiting || len(a.Changes) != 1 || a.Changes[0].From != "debian (22222222)" || a.Changes[0].To != "debian ("+strings.Repeat(sha, 8)+")" {
			t.Errorf("%s", text(&p))
		}
		ids[a.ID] = true
	}
	if len(ids) != 2 {
		t.Error("two kernels have one id")
	}
}

// A cordoned host goes on with what it has and takes nothing new.
func TestCordoned(t *testing.T) {
	off := vmDoc("off", plainVM+", powerState: Stopped")
	have, base := world(desired(t, off))
	d := desired(t, vmDoc("off", plainVM), vmDoc("new", plainVM), vmDoc("newer", plainVM+", powerState: Stopped"))
	for _, o := range d.Objects {
		if o.Kind == spec.KindHost && o.Name == d.Host {
			*o.field("spec.state") = Field{Path: "spec.state", Value: spec.HostStateCordoned}
		}
	}
	p := Diff(d, base, have, testNow)
	for name, state := range map[string]ActionState{"off": Ready, "new": Waiting, "newer": Waiting} {
		if a := find(t, p, spec.KindVirtualMachine, name); a.State != state {
			t.Errorf("%s is %s: %s", name, a.State, a.Reason)
		}
	}
}

func TestRestartPolicy(t *testing.T) {
	for _, c := range []struct {
		policy string
		failed bool
		start  bool
	}{
		{"Always", false, true}, {"Always", true, true}, {"OnFailure", false, false}, {"OnFailure", true, true},
		{"Never", false, false}, {"Never", true, false},
	} {
		d := desired(t, vmDoc("v", plainVM+", restartPolicy: "+c.policy))
		have, base := world(d)
		have.Objects[key(t, d, spec.KindVirtualMachine, "v")].VM = &LiveVM{Power: PowerStopped, Exit: "it ended", Failed: c.failed}
		p := Diff(d, base, have, testNow)
		if a := find(t, p, spec.KindVirtualMachine, "v"); (a.Op == OpStart) != c.start || a.Op != OpStart && a.Op != OpUnchanged {
			t.Errorf("%s, failed %v: %s", c.policy, c.failed, a.Op)
		} else if c.start && a.Cause != CauseDrift {
			t.Errorf("%s: cause %s", c.policy, a.Cause)
		}
		// With a back-off it waits, and an operator's restart starts it in any case.
		have.Objects[key(t, d, spec.KindVirtualMachine, "v")].VM.RetryAt = testNow.Add(time.Minute)
		p = Diff(d, base, have, testNow)
		if a := find(t, p, spec.KindVirtualMachine, "v"); c.start && a.State != Waiting {
			t.Errorf("%s: not waiting for its back-off", c.policy)
		}
	}
}

func TestMovedDiskWaitsForItsOwner(t *testing.T) {
	disk := diskDoc("d0", "size: 64Mi")
	a, b := vmDoc("a", plainVM+", disks: [{disk: d0}]"), vmDoc("b", plainVM)
	have, base := world(desired(t, disk, a, b))
	a2, b2 := vmDoc("a", plainVM), vmDoc("b", plainVM+", disks: [{disk: d0}]")
	to := desired(t, disk, a2, b2)
	p := Diff(to, base, have, testNow)
	attach := find(t, p, spec.KindVirtualMachine, "b")
	if attach.State != Ready || len(attach.Dependencies()) == 0 {
		t.Fatalf("the attach does not come after the detach:\n%s", text(&p))
	}
	// If the detach is held, the attach waits.
	find(t, p, spec.KindVirtualMachine, "a").State = Held
	p.Settle()
	if attach := find(t, p, spec.KindVirtualMachine, "b"); attach.State != Waiting {
		t.Fatalf("the attach is %s while the detach is held", attach.State)
	}
}

const kernelVM = plainVM + ", boot: {kernel: {image: k}}"

func TestSwapTakesTwoRounds(t *testing.T) {
	d0, d1 := diskDoc("d0", "size: 64Mi"), diskDoc("d1", "size: 64Mi")
	have, base := world(desired(t, d0, d1, vmDoc("a", kernelVM+", disks: [{disk: d0}]"), vmDoc("b", kernelVM+", disks: [{disk: d1}]")))
	to := desired(t, d0, d1, vmDoc("a", kernelVM+", disks: [{disk: d1}]"), vmDoc("b", kernelVM+", disks: [{disk: d0}]"))
	for round := range 3 {
		p := Diff(to, base, have, testNow)
		if p.Empty() {
			if round == 0 {
				t.Fatal("a swap did nothing")
			}
			for i := range p.Actions {
				if p.Actions[i].Op != OpUnchanged {
					t.Fatalf("left over:\n%s", text(&p))
				}
			}
			return
		}
		have = Simulate(have, p)
	}
	t.Fatal("the swap does not end")
}

func TestLeakedClaimIsReleased(t *testing.T) {
	d := desired(t, diskDoc("d0", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{disk: d0}]"))
	have, base := world(d)
	vm, disk := key(t, d, spec.KindVirtualMachine, "v"), key(t, d, spec.KindDisk, "d0")
	have.Objects[vm].VM = &LiveVM{Power: PowerStopped}
	have.Objects[disk].Disk.Claims = []claim.Claim{{Disk: disk.UID, Epoch: 3, Owner: claim.Owner{Host: "host1", VM: vm.UID, Launch: "gone"}}}
	p := Diff(d, base, have, testNow)
	a := find(t, p, spec.KindDisk, "d0")
	if a.Op != OpUpdate || a.State != Ready || a.Changes[0].Field != "claim" {
		t.Fatalf("the leaked claim is not released:\n%s", text(&p))
	}
	start := find(t, p, spec.KindVirtualMachine, "v")
	if deps := start.Dependencies(); len(deps) == 0 || deps[0] != disk {
		t.Fatalf("the start does not come after the release: %v", deps)
	}
	// Not while it is unknown whether the launch is alive.
	delete(have.Objects, vm)
	have.Unknown[vm] = "QEMU does not answer"
	p = Diff(d, base, have, testNow)
	if a := find(t, p, spec.KindDisk, "d0"); a.Op != OpUnchanged {
		t.Fatalf("the claim of an unknown machine is touched:\n%s", text(&p))
	}
}

func TestQuarantine(t *testing.T) {
	d := desired(t, diskDoc("d0", "size: 64Mi"))
	have, base := world(d)
	k := key(t, d, spec.KindDisk, "d0")
	have.Objects[k].Disk.Quarantined = true
	have.Objects[k].Disk.Until = testNow.Add(time.Hour)
	have.Objects[k].Disk.Written = testNow.Add(-2 * time.Hour)
	delete(base, k)

	p := Diff(d, base, have, testNow)
	if a := find(t, p, spec.KindDisk, "d0"); a.Op != OpRestore || a.State != Ready || !strings.Contains(a.Reason, "2h0m0s old") {
		t.Errorf("same spec: %s %s %q", a.Op, a.State, a.Reason)
	}
	smaller := Diff(desired(t, diskDoc("d0", "size: 32Mi")), base, have, testNow)
	if a := find(t, smaller, spec.KindDisk, "d0"); a.State != Held {
		t.Errorf("smaller: %s", a.State)
	}
	fresh := Diff(desired(t, strings.Replace(diskDoc("d0", "size: 32Mi"), "{name: d0}", "{name: d0, incarnation: 1}", 1)), base, have, testNow)
	ops := map[Op]int{}
	for i := range fresh.Actions {
		if fresh.Actions[i].Kind == spec.KindDisk {
			ops[fresh.Actions[i].Op]++
		}
	}
	if ops[OpCreate] != 1 || ops[OpUnchanged] != 1 {
		t.Errorf("incarnation raised: %v\n%s", ops, text(&fresh))
	}
	have.Objects[k].Disk.Elapsed = true
	gone := Diff(desired(t), base, have, testNow)
	if a := find(t, gone, spec.KindDisk, "d0"); a.Op != OpPurge || a.Cause != CauseExpiry || a.Impact != ImpactDestroy {
		t.Errorf("elapsed: %s %s %s", a.Op, a.Cause, a.Impact)
	}
}

func TestLostMovedFromIsBlocked(t *testing.T) {
	renamed := strings.Replace(diskDoc("new", "size: 64Mi"), "{name: new}", "{name: new, movedFrom: [old]}", 1)
	have, base := world(desired(t, renamed))
	// Somebody tidies movedFrom away: the identity would change.
	p := Diff(desired(t, diskDoc("new", "size: 64Mi")), base, have, testNow)
	for i := range p.Actions {
		if a := &p.Actions[i]; a.Kind == spec.KindDisk && a.State != Blocked {
			t.Errorf("%s of %s is %s", a.Op, a.UID, a.State)
		}
	}
	// The same where the name's own identity is in quarantine, with another's
	// data, and where the object in use cannot be observed.
	stray := desired(t, diskDoc("new", "size: 64Mi"))
	k, mine := key(t, stray, spec.KindDisk, "new"), key(t, desired(t, renamed), spec.KindDisk, "new")
	old, _ := world(stray)
	have.Objects[k] = old.Objects[k]
	have.Objects[k].Disk.Quarantined = true
	for range 2 {
		p = Diff(stray, base, have, testNow)
		for i := range p.Actions {
			if a := &p.Actions[i]; a.Kind == spec.KindDisk && a.State != Blocked {
				t.Errorf("beside a disk in quarantine, %s of %s is %s\n%s", a.Op, a.UID, a.State, text(&p))
			}
		}
		delete(have.Objects, mine)
		have.Unknown[mine] = "its pool is not mounted"
	}
	// A rename by movedFrom is no more than that.
	have, base = world(desired(t, diskDoc("old", "size: 64Mi")))
	p = Diff(desired(t, renamed), base, have, testNow)
	if a := find(t, p, spec.KindDisk, "new"); a.Op != OpUpdate || a.Impact != ImpactNone {
		t.Errorf("rename: %s, impact %s", a.Op, a.Impact)
	}
}

// To lower the incarnation again brings the disk back that the raise replaced.
func TestRaiseIsUndone(t *testing.T) {
	raised := strings.Replace(diskDoc("d0", "size: 64Mi"), "{name: d0}", "{name: d0, incarnation: 1}", 1)
	d := desired(t, diskDoc("d0", "size: 64Mi"))
	k, fresh := key(t, d, spec.KindDisk, "d0"), key(t, desired(t, raised), spec.KindDisk, "d0")
	have, base := world(desired(t, raised))
	p := Diff(d, base, have, testNow)
	for i := range p.Actions {
		if a := &p.Actions[i]; a.Kind == spec.KindDisk && a.State != Blocked {
			t.Errorf("with no such disk in quarantine: %s of %s is %s", a.Op, a.UID, a.State)
		}
	}
	first, _ := world(d)
	have.Objects[k] = first.Objects[k]
	have.Objects[k].Disk.Quarantined = true
	p = Diff(d, base, have, testNow)
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Key() == k && a.Op != OpRestore || a.Key() == fresh && a.Op != OpQuarantine {
			t.Errorf("%s of %s\n%s", a.Op, a.UID, text(&p))
		}
	}
}

func TestVanishedVolumeIsNotMadeAnew(t *testing.T) {
	d := desired(t, diskDoc("d0", "size: 64Mi"))
	have, base := world(d)
	delete(have.Objects, key(t, d, spec.KindDisk, "d0"))
	p := Diff(d, base, have, testNow)
	if a := find(t, p, spec.KindDisk, "d0"); a.State != Blocked || !strings.Contains(a.Reason, "volume is gone") {
		t.Errorf("%s %s: %s", a.Op, a.State, a.Reason)
	}
	delete(have.Complete, spec.KindDisk)
	delete(base, key(t, d, spec.KindDisk, "d0"))
	p = Diff(d, base, have, testNow)
	if a := find(t, p, spec.KindDisk, "d0"); a.State != Blocked {
		t.Errorf("created although its absence was not observed: %s", a.State)
	}
}

// A read-only access stands beside a machine; one that writes keeps it off.
func TestAccessAndStart(t *testing.T) {
	d := desired(t, diskDoc("d0", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{disk: d0}]"))
	for _, readOnly := range []bool{true, false} {
		have, base := world(d)
		disk := key(t, d, spec.KindDisk, "d0")
		have.Objects[key(t, d, spec.KindVirtualMachine, "v")].VM = &LiveVM{Power: PowerStopped}
		have.Objects[disk].Disk.Claims = []claim.Claim{{Disk: disk.UID, Owner: claim.Owner{Host: "host1", Access: "a1"}, ReadOnly: readOnly}}
		p := Diff(d, base, have, testNow)
		want := Waiting
		if readOnly {
			want = Ready
		}
		if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != OpStart || a.State != want {
			t.Errorf("read-only %v: %s is %s, want %s", readOnly, a.Op, a.State, want)
		}
	}
}

// A request for a restart is for one launch: an agent that is killed after the
// restart must not do it again.
func TestRestartRequestIsForOneLaunch(t *testing.T) {
	d := desired(t, vmDoc("v", plainVM))
	have, base := world(d)
	k := key(t, d, spec.KindVirtualMachine, "v")
	d.Restart[k] = Restart{Why: "asked for by ada", Launch: have.Objects[k].VM.Launch}
	p := Diff(d, base, have, testNow)
	if a := find(t, p, k.Kind, "v"); a.Op != OpRestart || a.State != Ready || a.Reason != "asked for by ada" {
		t.Errorf("%s %s: %s", a.Op, a.State, a.Reason)
	}
	have.Objects[k].VM.Launch = "the next"
	p = Diff(d, base, have, testNow)
	if a := find(t, p, k.Kind, "v"); a.Op != OpUnchanged {
		t.Errorf("restarted again: %s", a.Op)
	}
}
