package reconcile

import (
	"fmt"
	"strings"
	"testing"

	"reconciler/spec"
)

// What a host cannot do is known in the plan: a machine that runs is not stopped
// for it, and one that does not is not tried.
func TestWhatAHostCannotDo(t *testing.T) {
	facts := Facts{Machines: []string{"pc-q35-7.1", "pc-q35-7.2", "q35"}, CPUs: []string{"Skylake-Server-v4", "qemu64"}, Memory: 16 << 30}
	const vm = "cpu: {cores: %s}, memory: {size: %s}, machine: %s, updatePolicy: {restart: Automatic}"
	good := vmDoc("v", fmt.Sprintf(vm, "1, model: qemu64", "128Mi", "q35"))
	for _, c := range []struct{ name, doc, field, why string }{
		{"machine type", vmDoc("v", fmt.Sprintf(vm, "1, model: qemu64", "128Mi", "pc-q35-99.1")), "spec.machine", "has no machine type pc-q35-99.1; it has pc-q35-7.1"},
		{"CPU model", vmDoc("v", fmt.Sprintf(vm, "1, model: Skylake-Servr-v4", "128Mi", "q35")), "spec.cpu.model", "has no CPU model Skylake-Servr-v4; did you mean Skylake-Server-v4?"},
		{"memory", vmDoc("v", fmt.Sprintf(vm, "1, model: qemu64", "1Ti", "q35")), "spec.memory.size", "can give a machine 16Gi of memory at most"},
		{"beside another change", vmDoc("v", fmt.Sprintf(vm, "2, model: qemu64", "1Ti", "q35")), "spec.memory.size", "can give a machine 16Gi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			have, base := world(desired(t, good))
			have.Facts = facts
			want := desired(t, c.doc)
			a := find(t, Diff(want, base, have, testNow), spec.KindVirtualMachine, "v")
			if a.State == Ready || a.Op == OpRestart {
				t.Errorf("a machine that runs: %s %s", a.Op, a.State)
			}
			found := false
			for _, ch := range a.Changes {
				found = found || ch.Field == c.field && strings.Contains(ch.Waits, c.why) && ch.Impact == ImpactNone
			}
			if !found {
				t.Errorf("its changes: %+v", a.Changes)
			}
			// The id is what a reviewer sees, who does not know the host.
			have.Facts = Facts{}
			if b := find(t, Diff(want, base, have, testNow), spec.KindVirtualMachine, "v"); b.ID != a.ID || b.Op != OpRestart {
				t.Errorf("without facts: %s %s, id %s and %s", b.Op, b.State, b.ID, a.ID)
			}
			have.Facts = facts
			key := a.Key()
			want.Restart[key] = Restart{Why: "asked for by ada", Launch: have.Objects[key].VM.Launch}
			a = find(t, Diff(want, base, have, testNow), spec.KindVirtualMachine, "v")
			if a.Op == OpRestart || a.State == Ready || !strings.Contains(a.Reason, c.why) {
				t.Errorf("asked to restart: %s %s %s", a.Op, a.State, a.Reason)
			}
			delete(want.Restart, key)
			have.Objects[key].VM = &LiveVM{Power: PowerStopped, Exit: "QEMU ended", Failed: true}
			a = find(t, Diff(want, base, have, testNow), spec.KindVirtualMachine, "v")
			if a.State != Blocked || !strings.Contains(a.Reason, c.why) {
				t.Errorf("one that ended: %s %s %s", a.Op, a.State, a.Reason)
			}
			delete(have.Objects, key)
			a = find(t, Diff(want, Base{}, have, testNow), spec.KindVirtualMachine, "v")
			if a.State != Blocked || !strings.Contains(a.Reason, c.why) {
				t.Errorf("a new one: %s %s %s", a.Op, a.State, a.Reason)
			}
		})
	}
	// What every host has is not asked for.
	have, base := world(desired(t, good))
	have.Facts = facts
	for _, model := range []string{"host", "max"} {
		doc := vmDoc("v", fmt.Sprintf(vm, "1, model: "+model, "128Mi", "q35"))
		if a := find(t, Diff(desired(t, doc), base, have, testNow), spec.KindVirtualMachine, "v"); a.Op != OpRestart || a.State != Ready {
			t.Errorf("model %s: %s %s", model, a.Op, a.State)
		}
	}
}

// What does not fit into a process waits for a restart, which the plan knows.
func TestOutOfSlots(t *testing.T) {
	tree := func(n int, more string) []string {
		var docs, disks []string
		for i := range n {
			docs = append(docs, diskDoc(fmt.Sprintf("d%02d", i), "size: 64Mi"))
			disks = append(disks, fmt.Sprintf("{disk: d%02d}", i))
		}
		return append(docs, vmDoc("v", plainVM+", disks: ["+strings.Join(disks, ", ")+"]"+more))
	}
	see := func(from, to []string, ports int) (*Action, State, Base, *Desired) {
		t.Helper()
		have, base := world(desired(t, from...))
		for k, h := range have.Objects {
			if k.Kind == spec.KindVirtualMachine {
				h.VM.Ports = ports
			}
		}
		want := desired(t, to...)
		return find(t, Diff(want, base, have, testNow), spec.KindVirtualMachine, "v"), have, base, want
	}
	count := func(a *Action) (live, restart int) {
		for _, c := range a.Changes {
			if strings.HasSuffix(c.Field, "].disk") || strings.HasSuffix(c.Field, "].network") {
				switch {
				case c.Impact == ImpactLive && c.Waits == "":
					live++
				case c.Impact == ImpactRestart && strings.HasPrefix(c.Waits, "all 9 PCI slots of the process are in use or spoken for; needs a restart: reconciler restart vm/v"):
					restart++
				default:
					t.Errorf("%s: %s %q", c.Field, c.Impact, c.Waits)
				}
			}
		}
		return live, restart
	}
	a, have, base, want := see(tree(1, ""), tree(11, ""), 9)
	if live, restart := count(a); a.Op != OpUpdate || a.State != Ready || live != 8 || restart != 2 {
		t.Errorf("ten more disks: %s %s, %d live and %d after a restart", a.Op, a.State, live, restart)
	}
	// The first ones of the spec come first.
	for _, c := range a.Changes {
		if name, _, _ := entry(c.Field, "spec.disks"); (name >= "d09") != (c.Waits != "") {
			t.Errorf("%s waits: %q", c.Field, c.Waits)
		}
	}
	p := Diff(want, base, have, testNow)
	s := Simulate(have, p)
	for k, h := range s.Objects {
		if k.Kind == spec.KindVirtualMachine {
			h.VM.Ports = 9
		}
	}
	a = find(t, Diff(want, base, s, testNow), spec.KindVirtualMachine, "v")
	if live, restart := count(a); a.State != Waiting || live != 0 || restart != 2 {
		t.Errorf("afterwards: %s %s, %d live and %d after a restart", a.Op, a.State, live, restart)
	}
	if a, _, _, _ = see(tree(1, ""), tree(11, ", updatePolicy: {restart: Automatic}"), 9); a.Op != OpRestart || a.State != Ready {
		t.Errorf("with updatePolicy Automatic: %s %s", a.Op, a.State)
	}
	restart := find(t, Diff(desired(t, tree(11, ", updatePolicy: {restart: Automatic}")...), base, have, testNow), spec.KindVirtualMachine, "v")
	for k, h := range have.Objects {
		if k.Kind == spec.KindVirtualMachine {
			h.VM.Ports = 0
		}
	}
	live := find(t, Diff(desired(t, tree(11, ", updatePolicy: {restart: Automatic}")...), base, have, testNow), spec.KindVirtualMachine, "v")
	if restart.Op != OpRestart || live.Op != OpUpdate || restart.ID == live.ID || restart.ID == "" {
		t.Errorf("who approves the update %s approves the restart %s", live.ID, restart.ID)
	}
	// What goes makes room, as does what is not known.
	if a, _, _, _ = see(tree(9, ""), tree(8, ", nics: [{name: n, network: front}]"), 9); a.Op != OpUpdate || a.Impact != ImpactLive {
		t.Errorf("one for another: %s %s", a.Op, a.Impact)
	}
	if a, _, _, _ = see(tree(9, ""), tree(9, ", nics: [{name: n, network: front}]"), 9); a.State != Waiting {
		t.Errorf("a card: %s %s", a.Op, a.State)
	}
	if a, _, _, _ = see(tree(1, ""), tree(30, ""), 0); a.Impact != ImpactLive {
		t.Errorf("in a process that is not known: %s %s", a.Op, a.Impact)
	}
}

// A restart that an operator asks for is carried out, also of a machine that
// stands still because of a disk.
func TestRestartOfAPausedMachine(t *testing.T) {
	want := desired(t, diskDoc("d0", "size: 64Mi"), vmDoc("v", plainVM+", disks: [{disk: d0}]"))
	for _, power := range []Power{PowerIOError, PowerPaused} {
		have, base := world(want)
		var key Key
		for k, h := range have.Objects {
			if k.Kind == spec.KindVirtualMachine {
				h.VM.Power, key = power, k
			}
		}
		if a := find(t, Diff(want, base, have, testNow), spec.KindVirtualMachine, "v"); a.Op != OpStart {
			t.Errorf("%s: %s", power, a.Op)
		}
		want.Restart[key] = Restart{Why: "asked for by ada", Launch: "simulated"}
		if a := find(t, Diff(want, base, have, testNow), spec.KindVirtualMachine, "v"); a.Op != OpRestart || a.State != Ready {
			t.Errorf("%s and a restart: %s %s %s", power, a.Op, a.State, a.Reason)
		}
		delete(want.Restart, key)
	}
}
