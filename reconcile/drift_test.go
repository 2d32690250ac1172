package reconcile

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"reconciler/claim"
	"reconciler/spec"
)

// set changes a field of an observed object, or takes it away.
func (h *Live) set(path, value, id string) {
	h.Fields = slices.DeleteFunc(slices.Clone(h.Fields), func(f Field) bool { return f.Path == path })
	if value != "" {
		h.Fields = append(h.Fields, Field{Path: path, Value: value, ID: id})
	}
	slices.SortFunc(h.Fields, func(a, b Field) int { return strings.Compare(a.Path, b.Path) })
}

// unplug does to an observed machine what device_del by hand does.
func (h *Live) unplug(entry string) {
	h.set("spec.disks["+entry+"].disk", entry+" (incomplete)", "")
	h.set("spec.disks["+entry+"].size", "", "")
}

const driftVM = "cpu: {cores: 1}, memory: {size: 128Mi}, disks: [{disk: a}], nics: [{name: n, network: front}]"

// reporting is a machine with a disk, in a mode, after everything was applied.
func reporting(t *testing.T, mode, vm string) (want *Desired, have State, base Base, live *Live) {
	t.Helper()
	docs := []string{diskDoc("a", "size: 64Mi"), strings.Replace(vmDoc("v", vm), "{name: v}", "{name: v, drift: "+mode+"}", 1)}
	want = desired(t, docs...)
	have, base = world(want)
	for _, h := range have.Objects {
		if h.VM != nil {
			live = h
		}
	}
	return want, have, base, live
}

func TestDriftModes(t *testing.T) {
	for _, c := range []struct {
		name  string
		spec  string // further spec of the machine
		moved func(*Live)
		op    Op // where drift is left alone
		state ActionState
		// correct is what happens where it is not.
		correct Op
		reason  string
	}{
		{"unplugged", "", func(h *Live) { h.unplug("a") }, OpUpdate, Held, OpUpdate, "drift is"},
		{"memory", "", func(h *Live) { h.set("spec.memory.size", "256Mi", "") }, OpUpdate, Held, OpUpdate, "drift is"},
		{"plugged in", "", func(h *Live) { h.set("spec.disks[x].disk", "dfoo", "") }, OpUpdate, Held, OpUpdate, "drift is"},
		{"smaller", "", func(h *Live) { h.set("spec.disks[a].size", "128Mi", "") }, OpUpdate, Held, OpBlocked, "drift is"},
		{"paused", "", func(h *Live) { h.VM.Power = PowerPaused }, OpUpdate, Held, OpStart, "drift is"},
		{"restarts by itself", "updatePolicy: {restart: Automatic}", func(h *Live) { h.set("spec.memory.size", "256Mi", "") }, OpUpdate, Held, OpRestart, "drift is"},
		{"told to quit", "", func(h *Live) {
			h.VM = &LiveVM{Power: PowerStopped, Exit: "somebody asked", Failed: true, Asked: true}
			h.set("spec.powerState", "Stopped", "")
		}, OpUpdate, Held, OpStart, "drift is"},
		{"told to shut down", "", func(h *Live) {
			h.VM = &LiveVM{Power: PowerEnded, Exit: "somebody asked", Asked: true, Disks: h.VM.Disks}
			h.set("spec.powerState", "Stopped", "")
		}, OpStop, Ready, OpStart, "somebody asked"},
		{"started by hand", "powerState: Stopped", func(h *Live) {
			h.VM = &LiveVM{Power: PowerRunning, Launch: "l", Disks: map[string]string{}}
			h.set("spec.powerState", "Running", "")
		}, OpUpdate, Held, OpStop, "drift is"},
		// What is no drift is put right whatever the mode.
		{"crashed", "", func(h *Live) {
			h.VM = &LiveVM{Power: PowerStopped, Exit: "QEMU ended", Failed: true}
			h.set("spec.powerState", "Stopped", "")
		}, OpStart, Ready, OpStart, "QEMU ended"},
		{"the host rebooted", "", func(h *Live) {
			h.VM = &LiveVM{Power: PowerStopped}
			h.set("spec.powerState", "Stopped", "")
		}, OpStart, Ready, OpStart, ""},
		{"the pool was full", "", func(h *Live) { h.VM.Power = PowerIOError }, OpStart, Ready, OpStart, "a disk returned"},
		{"a start was cut off", "", func(h *Live) { h.VM.Power = PowerStarting }, OpStart, Ready, OpStart, "earlier start"},
		{"our record is behind", "", func(h *Live) { h.set("spec.restartPolicy", "Never", "") }, OpUpdate, Ready, OpUpdate, ""},
	} {
		for _, mode := range []string{spec.DriftCorrect, spec.DriftReport, spec.DriftOff} {
			t.Run(c.name+"/"+mode, func(t *testing.T) {
				vm := driftVM
				if c.spec != "" {
					vm += ", " + c.spec
				}
				want, have, base, live := reporting(t, mode, vm)
				c.moved(live)
				p := Diff(want, base, have, testNow)
				a := find(t, p, spec.KindVirtualMachine, "v")
				if mode == spec.DriftCorrect {
					if a.Op != c.correct || a.State == Held {
						t.Errorf("%s, %s; want %s\n%s", a.Op, a.State, c.correct, text(&p))
					}
					return
				}
				if a.Op != c.op || a.State != c.state || !strings.Contains(a.Reason, c.reason) {
					t.Errorf("%s, %s (%s); want %s, %s\n%s", a.Op, a.State, a.Reason, c.op, c.state, text(&p))
				}
				if c.state != Held {
					return
				}
				if a.Drift != mode || a.ID != "" || a.Cause != CauseDrift || !a.Settled() {
					t.Errorf("mode %q, id %q, cause %s, settled %t", a.Drift, a.ID, a.Cause, a.Settled())
				}
				want.Revert = map[Key]bool{a.Key(): true}
				p = Diff(want, base, have, testNow)
				if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != c.correct || a.State == Held {
					t.Errorf("reverted: %s, %s; want %s", a.Op, a.State, c.correct)
				}
			})
		}
	}
}

// The commit's own work on a drifted object goes on, under the same id.
func TestDriftBesideACommit(t *testing.T) {
	_, have, base, live := reporting(t, "Report", driftVM)
	live.unplug("a")
	vm := driftVM + ", shutdown: {timeout: 5s}"
	want, _, _, _ := reporting(t, "Report", strings.Replace(vm, "network: front", `network: front, mac: "52:54:00:00:00:09"`, 1))
	p := Diff(want, base, have, testNow)
	a := find(t, p, spec.KindVirtualMachine, "v")
	if a.Op != OpUpdate || a.State != Ready || a.Cause != CauseRevision || a.ID == "" {
		t.Fatalf("%s, %s, cause %s\n%s", a.Op, a.State, a.Cause, text(&p))
	}
	for _, c := range a.Changes {
		drift := strings.HasPrefix(c.Field, "spec.disks")
		if c.Drift != drift || (c.Waits != "") != drift {
			t.Errorf("%s: drift %t, waits %q", c.Field, c.Drift, c.Waits)
		}
	}
	calm := Diff(want, base, StateFromBase(base), testNow)
	if id := find(t, calm, spec.KindVirtualMachine, "v").ID; id != a.ID {
		t.Errorf("id %s, without drift %s", a.ID, id)
	}
	base.Finish(a)
	p = Diff(want, base, Simulate(have, p), testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.State != Held {
		t.Errorf("afterwards: %s, %s\n%s", a.Op, a.State, text(&p))
	}
}

// A commit that changes the entry that drifted waits: it cannot be carried out
// without undoing the drift.
func TestDriftInTheSameEntry(t *testing.T) {
	_, have, base, live := reporting(t, "Report", driftVM)
	live.set("spec.nics[n].backend", "bridge br-other", "")
	want, _, _, _ := reporting(t, "Report", strings.Replace(driftVM, "network: front", `network: front, mac: "52:54:00:00:00:09"`, 1))
	p := Diff(want, base, have, testNow)
	a := find(t, p, spec.KindVirtualMachine, "v")
	if a.State != Waiting || a.Cause != CauseRevision || a.Settled() {
		t.Errorf("%s, cause %s\n%s", a.State, a.Cause, text(&p))
	}
}

// A restart that nobody asked for by name would undo drift.
func TestNoAutomaticRestartOverDrift(t *testing.T) {
	_, have, base, live := reporting(t, "Report", driftVM)
	live.unplug("a")
	vm := strings.Replace(driftVM, "128Mi", "256Mi", 1) + ", updatePolicy: {restart: Automatic}"
	want, _, _, _ := reporting(t, "Report", vm)
	p := Diff(want, base, have, testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != OpUpdate {
		t.Errorf("%s\n%s", a.Op, text(&p))
	}
	want.Restart[live.Key()] = Restart{Why: "asked", Launch: live.VM.Launch}
	p = Diff(want, base, have, testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != OpRestart || a.State != Ready {
		t.Errorf("asked for by name: %s, %s", a.Op, a.State)
	}
}

// Drift stays drift after an attempt at something else that did not finish.
func TestDriftAfterAnUnfinishedAttempt(t *testing.T) {
	want, have, base, live := reporting(t, "Report", driftVM)
	base.Begin(&Action{Kind: live.Kind, Name: live.Name, UID: live.UID, Want: want.Objects[live.Key()]})
	live.unplug("a")
	p := Diff(want, base, have, testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.State != Held {
		t.Errorf("%s\n%s", a.State, text(&p))
	}
}

func TestHostSaysTheMode(t *testing.T) {
	for _, c := range []struct {
		host, object string
		want         ActionState
	}{
		{"Report", "", Held}, {"Off", "", Held}, {"Correct", "", Ready},
		{"Report", "Correct", Ready}, {"Correct", "Report", Held},
	} {
		want, have, _, live := reporting(t, "Correct", driftVM)
		for _, o := range want.Objects {
			for i := range o.Fields {
				f := &o.Fields[i]
				if o.Kind == spec.KindHost && f.Path == "spec.drift" {
					f.Value = c.host
				}
			}
			if o.Kind == spec.KindVirtualMachine {
				o.Fields = slices.DeleteFunc(slices.Clone(o.Fields), func(f Field) bool { return f.Path == "metadata.drift" && c.object == "" })
				if f := o.at("metadata.drift"); f != nil {
					f.Value = c.object
				}
			}
		}
		base := BaseOf(want)
		live.Fields = slices.Clone(base[live.Key()].Fields)
		live.unplug("a")
		p := Diff(want, base, have, testNow)
		if a := find(t, p, spec.KindVirtualMachine, "v"); a.State != c.want {
			t.Errorf("host %q, object %q: %s, want %s\n%s", c.host, c.object, a.State, c.want, text(&p))
		}
	}
}

// A claim that belongs to nobody is released whatever the mode.
func TestLeakedClaimIsNoDrift(t *testing.T) {
	want, have, _, live := reporting(t, "Report", driftVM)
	for k, o := range want.Objects {
		if k.Kind == spec.KindDisk {
			o.Fields = append([]Field{{Path: "metadata.drift", Value: "Report"}}, o.Fields...)
			h := have.Objects[k]
			h.set("metadata.drift", "Report", "")
			h.set("spec.size", "128Mi", "")
			h.Disk.Volume, h.Disk.LUN = 128<<20, 128<<20
			h.Disk.Claims = append(h.Disk.Claims, leakedClaim(live.UID))
		}
	}
	base := BaseOf(want)
	p := Diff(want, base, have, testNow)
	a := find(t, p, spec.KindDisk, "a")
	if a.State != Ready || a.Op != OpUpdate {
		t.Fatalf("%s, %s\n%s", a.Op, a.State, text(&p))
	}
	for _, c := range a.Changes {
		if (c.Field == "claim") == (c.Waits != "") {
			t.Errorf("%s waits: %q", c.Field, c.Waits)
		}
	}
}

// Under Report and Off nothing that drifted is touched, the rest converges, and
// the ids of the commit's actions are those of a calm world.
func TestDriftIsLeftAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		mode := rapid.SampledFrom([]string{spec.DriftReport, spec.DriftOff}).Draw(t, "mode")
		for _, d := range []*Desired{from, to} {
			for k, o := range d.Objects {
				if k.Kind == spec.KindHost {
					o.at("spec.drift").Value = mode
				}
			}
		}
		have, base := world(from)
		approved := map[string]bool{}
		calm := Diff(to, base, have, testNow)
		for i := range calm.Actions {
			approved[calm.Actions[i].ID] = true
		}
		type spot struct {
			key  Key
			path string
		}
		moved := map[spot]string{}
		for _, k := range SortedKeys(have.Objects) {
			h, w := have.Objects[k], to.Objects[k]
			if h.VM == nil || h.VM.Power != PowerRunning || w == nil || w.Get("spec.powerState") != spec.PowerRunning {
				continue
			}
			for _, f := range slices.Clone(h.Fields) {
				if !readBack(k.Kind, f.Path) || f.Path == "spec.powerState" || !rapid.Bool().Draw(t, "moved") {
					continue
				}
				h.set(f.Path, f.Value+"0", "")
				if wf := w.at(f.Path); wf != nil && wf.same(*base[k].at(f.Path)) {
					moved[spot{k, f.Path}] = f.Value + "0"
				}
			}
		}
		for round := range 6 {
			p := Diff(to, base, have, testNow)
			for i := range p.Actions {
				a := &p.Actions[i]
				if round == 0 && a.ID != "" && !approved[a.ID] {
					t.Fatalf("%s %s/%s has an id nobody approved", a.Op, a.Kind, a.Name)
				}
				if a.State == Ready && a.Want != nil {
					base.Finish(a)
				}
			}
			if p.Empty() {
				return
			}
			have = Simulate(have, p)
			for at, value := range moved {
				if h := have.Objects[at.key]; h == nil || h.Get(at.path) != value {
					t.Fatalf("%s of %s drifted and was touched:\n%s", at.path, at.key, text(&p))
				}
			}
		}
		t.Fatal("no empty plan after six rounds")
	})
}

// Every field that the language says is read back counts, and no other.
func TestReadBackFollowsTheLanguage(t *testing.T) {
	for kind, v := range map[spec.Kind]any{spec.KindDisk: spec.Disk{}, spec.KindVirtualMachine: spec.VirtualMachine{}} {
		paths := map[string]bool{}
		leaves(reflect.TypeOf(v), "spec", paths)
		observed := worlds(reflect.TypeOf(v), "spec", map[string]string{})
		for path := range paths {
			if (observed[path] == "observed") != readBack(kind, path) {
				t.Errorf("%s %s is %s, and drift of it counts: %t", kind, path, observed[path], readBack(kind, path))
			}
		}
	}
}

func worlds(t reflect.Type, path string, out map[string]string) map[string]string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch world := f.Tag.Get("world"); {
		case world != "":
			out[path+"."+name] = world
		case f.Type.Kind() == reflect.Slice:
			worlds(f.Type.Elem(), path+"."+name+"[]", out)
		default:
			worlds(f.Type, path+"."+name, out)
		}
	}
	return out
}

func leakedClaim(vm string) claim.Claim {
	return claim.Claim{Epoch: 1, Owner: claim.Owner{Host: "host1", VM: vm, Launch: "gone"}}
}

// A volume that somebody made larger is what it is: with Correct, blocked with the
// way out; with Report, drift that can be accepted. Its stale claims go all the same.
func TestVolumeGrownByHand(t *testing.T) {
	for _, mode := range []string{spec.DriftCorrect, spec.DriftReport} {
		want, have, _, live := reporting(t, "Correct", driftVM)
		for k, o := range want.Objects {
			if k.Kind != spec.KindDisk {
				continue
			}
			o.Fields = append([]Field{{Path: "metadata.drift", Value: mode}}, o.Fields...)
			h := have.Objects[k]
			h.set("metadata.drift", mode, "")
			h.set("spec.size", "80Mi", "") // as the driver sees it
			h.Disk.Volume = 80<<20 - 100
			h.Disk.Claims = append(h.Disk.Claims, leakedClaim(live.UID))
		}
		p := Diff(want, BaseOf(want), have, testNow)
		a := find(t, p, spec.KindDisk, "a")
		if a.Op != OpUpdate || a.State != Ready {
			t.Fatalf("%s: %s %s\n%s", mode, a.Op, a.State, text(&p))
		}
		for _, c := range a.Changes {
			switch c.Field {
			case "claim":
				if c.Waits != "" {
					t.Errorf("%s: the claim waits: %s", mode, c.Waits)
				}
			case "spec.size":
				out := "say so in spec.size"
				if mode == spec.DriftReport {
					out = "accept it in the repository"
				}
				if c.From != "80Mi" || c.Drift != (mode == spec.DriftReport) || !strings.Contains(c.Waits, out) {
					t.Errorf("%s: %+v", mode, c)
				}
			default:
				t.Errorf("%s: %+v", mode, c)
			}
		}
	}
}
