package reconcile

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"reconciler/spec"
)

// movedDisk is a disk that was called something else.
func movedDisk(name, former, rest string) string {
	return strings.Replace(diskDoc(name, rest), "{name: "+name+"}", "{name: "+name+", movedFrom: ["+former+"]}", 1)
}

func withDisks(disks string) string { return plainVM + ", disks: [" + disks + "]" }

// The entry of a disk without a name of its own follows when the disk is
// renamed: nothing happens to the guest.
func TestEntryFollowsItsDisk(t *testing.T) {
	const size = "size: 64Mi"
	for _, c := range []struct {
		name     string
		from, to []string
		changes  []string // FIELD FROM → TO IMPACT
		op       Op
	}{
		{"renamed", []string{diskDoc("a", size), vmDoc("v", withDisks("{disk: a}"))},
			[]string{movedDisk("b", "a", size), vmDoc("v", withDisks("{disk: b}"))},
			[]string{"spec.disks[b].name a → b none"}, OpUpdate},
		{"renamed and grown", []string{diskDoc("a", size), vmDoc("v", withDisks("{disk: a}"))},
			[]string{movedDisk("b", "a", "size: 128Mi"), vmDoc("v", withDisks("{disk: b}"))},
			[]string{"spec.disks[b].name a → b none", "spec.disks[b].size 64Mi → 128Mi live"}, OpUpdate},
		{"its name taken away", []string{diskDoc("a", size), vmDoc("v", withDisks("{name: root, disk: a}"))},
			[]string{diskDoc("a", size), vmDoc("v", withDisks("{disk: a}"))},
			[]string{"spec.disks[a].name root → a none"}, OpUpdate},
		{"a name of its own stays", []string{diskDoc("a", size), vmDoc("v", withDisks("{name: root, disk: a}"))},
			[]string{movedDisk("b", "a", size), vmDoc("v", withDisks("{name: root, disk: b}"))}, nil, OpUnchanged},
		{"another name of its own", []string{diskDoc("a", size), vmDoc("v", withDisks("{name: root, disk: a}"))},
			[]string{diskDoc("a", size), vmDoc("v", withDisks("{name: data, disk: a}"))},
			[]string{"spec.disks[data].disk  → a live", "spec.disks[data].size  → 64Mi live", "spec.disks[root].disk a →  live", "spec.disks[root].size 64Mi →  live"}, OpUpdate},
		{"its former name is another's", []string{diskDoc("a", size), diskDoc("c", "size: 128Mi"), vmDoc("v", withDisks("{disk: a}"))},
			[]string{movedDisk("b", "a", size), diskDoc("c", "size: 128Mi"), vmDoc("v", withDisks("{disk: b}, {name: a, disk: c}"))},
			[]string{"spec.disks[a].disk  → c live", "spec.disks[a].size  → 128Mi live", "spec.disks[b].name a → b none"}, OpUpdate},
		{"its new name was another's", []string{diskDoc("a", size), diskDoc("c", "size: 128Mi"), vmDoc("v", withDisks("{disk: a}, {name: b, disk: c}"))},
			[]string{movedDisk("b", "a", size), diskDoc("c", "size: 128Mi"), vmDoc("v", withDisks("{disk: b}"))},
			[]string{"spec.disks[UID].disk c →  live", "spec.disks[UID].size 128Mi →  live", "spec.disks[b].name a → b none"}, OpUpdate},
		{"off", []string{diskDoc("a", size), vmDoc("v", withDisks("{disk: a}")+", powerState: Stopped")},
			[]string{movedDisk("b", "a", size), vmDoc("v", withDisks("{disk: b}")+", powerState: Stopped")},
			[]string{"spec.disks[b].name a → b none"}, OpUpdate},
	} {
		t.Run(c.name, func(t *testing.T) {
			from, to := desired(t, c.from...), desired(t, c.to...)
			have, base := world(from)
			before, applied := maps.Clone(have.Objects), maps.Clone(base)
			p := Diff(to, base, have, testNow)
			a := find(t, p, spec.KindVirtualMachine, "v")
			var got []string
			for _, ch := range a.Changes {
				field := strings.Replace(ch.Field, spec.UID("demo", spec.KindDisk, spec.Meta{Name: "c"}), "UID", 1)
				got = append(got, field+" "+ch.From+" → "+ch.To+" "+ch.Impact.String())
			}
			slices.Sort(got)
			if a.Op != c.op || !slices.Equal(got, c.changes) {
				t.Fatalf("%s:\n%s\nwant %s:\n%s", a.Op, strings.Join(got, "\n"), c.op, strings.Join(c.changes, "\n"))
			}
			if a.Op != OpUnchanged && (a.Cause != CauseRevision || a.ID == "") {
				t.Errorf("cause %s, id %q", a.Cause, a.ID)
			}
			if !maps.Equal(before, have.Objects) || !maps.Equal(applied, base) {
				t.Error("Diff changed what it was given")
			}
			// Attempted and killed before anything was written down: the same action.
			base.Begin(a)
			if again := find(t, Diff(to, base, have, testNow), spec.KindVirtualMachine, "v"); a.Op != OpUnchanged && again.ID != a.ID {
				t.Errorf("the id was %s and is %s", a.ID, again.ID)
			}
			// The record followed, and base did not.
			s := Simulate(have, p)
			if again := find(t, Diff(to, base, s, testNow), spec.KindVirtualMachine, "v"); again.Op != OpUnchanged {
				t.Errorf("when base lags behind: %s %v", again.Op, again.Changes)
			}
			base.Finish(a)
			if again := find(t, Diff(to, base, s, testNow), spec.KindVirtualMachine, "v"); again.Op != OpUnchanged {
				t.Errorf("afterwards: %s %v", again.Op, again.Changes)
			}
			// The record lost it again, which is no drift.
			if again := find(t, Diff(to, base, have, testNow), spec.KindVirtualMachine, "v"); len(c.changes) == 1 && again.Cause != CauseRetry {
				t.Errorf("a record that lags behind: %s, cause %s", again.Op, again.Cause)
			}
		})
	}
}

// However disks are renamed, no disk leaves a machine that keeps it.
func TestRenamesTouchNoDisk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "disks")
		var from, to []string
		var had, has []string
		kept := map[string]bool{}
		for i := range n {
			old := string(rune('a' + i))
			name := old
			if rapid.Bool().Draw(t, "renamed") {
				name = "x" + old
				to = append(to, movedDisk(name, old, "size: 64Mi"))
			} else {
				to = append(to, diskDoc(name, "size: 64Mi"))
			}
			from = append(from, diskDoc(old, "size: 64Mi"))
			if rapid.Bool().Draw(t, "had") {
				had = append(had, "{disk: "+old+"}")
				if rapid.Bool().Draw(t, "has") {
					has = append(has, "{disk: "+name+"}")
					kept[spec.UID("demo", spec.KindDisk, spec.Meta{Name: old})] = true
				}
			}
		}
		have, base := world(desired(t, append(from, vmDoc("v", withDisks(strings.Join(had, ", "))))...))
		p := Diff(desired(t, append(to, vmDoc("v", withDisks(strings.Join(has, ", "))))...), base, have, testNow)
		for i := range p.Actions {
			a := &p.Actions[i]
			if a.Kind != spec.KindVirtualMachine {
				continue
			}
			for _, c := range a.Changes {
				name, leaf, ok := entry(c.Field, "spec.disks")
				if ok && leaf == "disk" && kept[a.Have.VM.Disks[name]] {
					t.Fatalf("%s: %q → %q, though the machine keeps the disk", c.Field, c.From, c.To)
				}
			}
		}
	})
}
