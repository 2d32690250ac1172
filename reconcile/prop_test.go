package reconcile

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"reconciler/spec"
)

// settleWorld applies plans until one is empty, as the agent does.
func settleWorld(t *rapid.T, want *Desired, base Base, have State) (State, Base, Plan) {
	for range 6 {
		p := Diff(want, base, have, testNow)
		for i := range p.Actions {
			a := &p.Actions[i]
			if a.State == Ready && (a.Want != nil || a.Op != OpUnchanged) {
				base.Finish(a)
			}
		}
		if p.Empty() {
			return have, base, p
		}
		have = Simulate(have, p)
	}
	t.Fatalf("no empty plan after six rounds")
	return have, base, Plan{}
}

// pair draws a tree that was applied and the one that is to come.
func pair(t *rapid.T) (from, to *Desired) { return draw(t, "from"), draw(t, "to") }

func TestSimulatedPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		have, base := world(from)
		have, _, p := settleWorld(t, to, base, have)
		// What remains waits for a person: a restart, or is impossible.
		for i := range p.Actions {
			a := &p.Actions[i]
			if a.Op == OpUnchanged {
				continue
			}
			manual := a.Kind == spec.KindVirtualMachine && a.Want != nil && a.Want.Get("spec.updatePolicy.restart") == spec.UpdateManual
			shrink := a.Kind == spec.KindDisk || a.Kind == spec.KindVirtualMachine
			if !manual && !shrink {
				t.Fatalf("left over: %s %s/%s: %s", a.Op, a.Kind, a.Name, a.Reason)
			}
		}
		// No disk in two machines.
		seen := map[string]string{}
		for _, h := range have.Objects {
			if h.VM == nil {
				continue
			}
			for _, d := range h.VM.Disks {
				if other, ok := seen[d]; ok {
					t.Fatalf("disk %s in %s and %s", d, other, h.Name)
				}
				seen[d] = h.Name
			}
		}
	})
}

func TestFromNothingConvergesFully(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		to := draw(t, "to")
		have := NewState()
		for _, k := range spec.Kinds {
			have.Complete[k] = true
		}
		_, _, p := settleWorld(t, to, Base{}, have)
		for i := range p.Actions {
			if p.Actions[i].Op != OpUnchanged {
				t.Fatalf("left over: %s", text(&p))
			}
		}
	})
}

func TestUnknownIsLeftAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		have, base := world(from)
		hidden := map[Key]bool{}
		for _, k := range SortedKeys(have.Objects) {
			if rapid.Bool().Draw(t, "hidden") {
				delete(have.Objects, k)
				have.Unknown[k] = "does not answer"
				hidden[k] = true
			}
		}
		p := Diff(to, base, have, testNow)
		for i := range p.Actions {
			a := &p.Actions[i]
			if hidden[a.Key()] && a.State != Blocked {
				t.Fatalf("%s/%s is unknown, and %s is %s", a.Kind, a.Name, a.Op, a.State)
			}
			if a.State != Ready || a.Kind != spec.KindVirtualMachine || a.Want == nil {
				continue
			}
			for _, r := range a.Want.Refs {
				if !hidden[r.To.Key()] {
					continue
				}
				if a.Op == OpCreate || a.Op == OpStart || a.Op == OpRestart {
					t.Fatalf("%s of %s although %s/%s is unknown", a.Op, a.Name, r.To.Kind, r.To.Name)
				}
			}
		}
	})
}

func TestNoDeleteWithoutBase(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		have, _ := world(from)
		p := Diff(to, Base{}, have, testNow)
		for i := range p.Actions {
			a := &p.Actions[i]
			if a.Want == nil && a.State == Ready && a.Op != OpUnchanged {
				t.Fatalf("%s of %s/%s without base", a.Op, a.Kind, a.Name)
			}
		}
	})
}

func TestOrderDoesNotShow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		have, base := world(from)
		// Map order differs from run to run: the same plan must come out.
		first, err := json.Marshal(Diff(to, base, have, testNow))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			again, _ := json.Marshal(Diff(to, base, have, testNow))
			if !bytes.Equal(first, again) {
				t.Fatalf("two plans of the same world differ:\n%s\n%s", first, again)
			}
		}
	})
}

func TestImpactIsNotLowerThanItsFields(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		have, base := world(from)
		p := Diff(to, base, have, testNow)
		for i := range p.Actions {
			a := &p.Actions[i]
			for _, c := range a.Changes {
				if c.Impact > a.Impact && a.State != Blocked {
					t.Fatalf("%s/%s has impact %s, its %s has %s", a.Kind, a.Name, a.Impact, c.Field, c.Impact)
				}
			}
			if a.State != Blocked && a.Impact > p.Impact {
				t.Fatalf("the plan's impact %s is lower than that of %s/%s", p.Impact, a.Kind, a.Name)
			}
		}
	})
}

// Drift and crashes must not change what a reviewer approved.
func TestIDsDoNotDependOnTheWorld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		have, base := world(from)
		approved := map[string]bool{}
		calm := Diff(to, base, have, testNow)
		for i := range calm.Actions {
			approved[calm.Actions[i].ID] = true
		}
		for _, k := range SortedKeys(have.Objects) {
			h := have.Objects[k]
			switch {
			case h.VM != nil && rapid.Bool().Draw(t, "crashed"):
				h.VM = &LiveVM{Power: PowerStopped, Exit: "QEMU ended", Failed: true}
			case h.VM != nil && len(h.VM.Disks) > 0 && rapid.Bool().Draw(t, "unplugged"):
				h.VM = &LiveVM{Power: PowerRunning, Launch: "l", Disks: map[string]string{}}
				var fields []Field
				for _, f := range h.Fields {
					if _, _, ok := entry(f.Path, "spec.disks"); !ok {
						fields = append(fields, f)
					}
				}
				h.Fields = fields
			}
		}
		p := Diff(to, base, have, testNow)
		for i := range p.Actions {
			a := &p.Actions[i]
			if (a.Cause == CauseRevision) != (a.ID != "") && a.Op != OpBlocked {
				t.Fatalf("%s %s/%s of cause %s has id %q", a.Op, a.Kind, a.Name, a.Cause, a.ID)
			}
			if a.ID != "" && !approved[a.ID] {
				t.Fatalf("%s %s/%s has an id nobody approved", a.Op, a.Kind, a.Name)
			}
		}
	})
}

// A new field of the language breaks this test until rules name it.
func TestEveryFieldHasARule(t *testing.T) {
	kinds := map[spec.Kind]any{
		spec.KindCluster: spec.Cluster{}, spec.KindHost: spec.Host{}, spec.KindStoragePool: spec.StoragePool{},
		spec.KindImage: spec.Image{}, spec.KindDisk: spec.Disk{}, spec.KindNetwork: spec.Network{},
		spec.KindSecret:         spec.Secret{},
		spec.KindVirtualMachine: spec.VirtualMachine{},
	}
	if len(kinds) != len(spec.Kinds) {
		t.Fatalf("%d kinds are listed here and %d in the language", len(kinds), len(spec.Kinds))
	}
	for kind, v := range kinds {
		paths := map[string]bool{}
		leaves(reflect.TypeOf(v), "spec", paths)
		for path := range paths {
			if _, ok := rules[kind][path]; !ok {
				t.Errorf("%s %s has no rule", kind, path)
			}
		}
		for path := range rules[kind] {
			derived := path == "spec.disks[].size" || path == "spec.nics[].backend" || path == "spec.boot.disk" || path == "sops"
			if !paths[path] && !derived {
				t.Errorf("%s %s has a rule and does not exist", kind, path)
			}
		}
	}
}

func leaves(t reflect.Type, path string, out map[string]bool) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := bytes.Cut([]byte(f.Tag.Get("yaml")), []byte(","))
		p := path + "." + string(name)
		switch {
		case string(name) == "-":
		case f.Type.Kind() == reflect.Map:
			out[p+"[]"] = true
		case f.Tag.Get("world") != "":
			if f.Tag.Get("world") != "observed" && f.Tag.Get("world") != "recorded" && f.Tag.Get("world") != "policy" {
				panic(p + ": unknown world")
			}
			// The key of an entry stands in the path of all of its fields.
			if p != "spec.disks[].name" && p != "spec.nics[].name" {
				out[p] = true
			}
		case f.Type.Kind() == reflect.Slice:
			leaves(f.Type.Elem(), p+"[]", out)
		default:
			leaves(f.Type, p, out)
		}
	}
}
