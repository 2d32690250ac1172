package kvm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

func movedYAML(name, former, size string) string {
	return strings.Replace(diskYAML(name, size), "{name: "+name+"}", "{name: "+name+", movedFrom: ["+former+"]}", 1)
}

// A disk is renamed while its guest writes to it: the guest notices nothing, the
// record follows, and what is done to the entry afterwards is done to its device.
func TestRenamedDiskStays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root, data := r.uid(spec.KindDisk, "root"), r.uid(spec.KindDisk, "data")
	machine := func(disks string) string {
		return vmYAML("web", "rt.mode=writer rt.disk=serial:"+spec.Serial(root), "disks: ["+disks+"]")
	}
	r.up("web", diskYAML("root", "64Mi"), diskYAML("data", "32Mi"), machine("{disk: root}, {disk: data}"))
	before := r.vm("web").VM
	slots := r.d.machine(r.key("web").UID).snapshot().Slots
	devices := r.devices("web")

	// The agent dies when the record has followed: the rest is found done.
	tree := []string{movedYAML("sys", "root", "64Mi"), movedYAML("store", "data", "32Mi"), machine("{disk: sys}, {disk: store}")}
	r.declare(tree...)
	list := r.plan()
	if len(list) != 1 || list[0].Impact != reconcile.ImpactNone || len(list[0].Changes) != 2 {
		t.Fatalf("plan:\n%s", describe(list))
	}
	r.crashAt("renamed", tree...)
	if list = r.plan(); len(list) != 0 {
		t.Fatalf("plan after the agent died:\n%s", describe(list))
	}
	live := r.vm("web")
	if live.VM.PID != before.PID || live.VM.Disks["sys"] != root || live.VM.Disks["store"] != data || len(live.VM.Disks) != 2 {
		t.Errorf("after the rename: %+v, before: %+v", live.VM, before)
	}
	if now := r.devices("web"); now != devices {
		t.Errorf("the devices are %s and were %s", now, devices)
	}
	r.serial.Skip()
	r.serial.Wait(t, `^REC \d+ vd. `+spec.Serial(root), 60*time.Second)

	// Its former name goes to another disk, whose device gets another id, and the
	// renamed one grows.
	r.declare(movedYAML("sys", "root", "64Mi"), movedYAML("store", "data", "48Mi"), diskYAML("more", "16Mi"),
		machine("{disk: sys}, {disk: store}, {name: data, disk: more}"))
	r.converge()
	more := r.uid(spec.KindDisk, "more")
	r.serial.Wait(t, `^DISK (add|change) vd. serial=(`+spec.Serial(more)+` size=16777216|`+spec.Serial(data)+` size=50331648)`, 60*time.Second)
	r.serial.Wait(t, `^DISK (add|change) vd. serial=(`+spec.Serial(more)+` size=16777216|`+spec.Serial(data)+` size=50331648)`, 60*time.Second)
	if got := r.devices("web"); got != "disk-data disk-data.2 disk-root" {
		t.Errorf("the devices are %s", got)
	}
	now := r.d.machine(r.key("web").UID).snapshot().Slots
	if now["disk-sys"] != slots["disk-root"] || now["disk-store"] != slots["disk-data"] || now["disk-data"] == now["disk-store"] {
		t.Errorf("slots %v, were %v", now, slots)
	}

	// It goes; the other one stays.
	r.declare(movedYAML("sys", "root", "64Mi"), movedYAML("store", "data", "48Mi"), diskYAML("more", "16Mi"), machine("{disk: sys}, {name: data, disk: more}"))
	r.converge()
	r.serial.Wait(t, `^DISK remove vd`, 60*time.Second)
	r.nothingLeftOf(data)
	if live := r.vm("web"); live.VM.Disks["data"] != more || live.VM.Disks["sys"] != root || len(live.VM.Disks) != 2 || live.VM.PID != before.PID {
		t.Errorf("disks %v", live.VM.Disks)
	}

	// A new launch calls its devices as the entries are called, at the ports they had.
	off := strings.Replace(machine("{disk: sys}, {name: data, disk: more}"), "host: host1", "host: host1\n  powerState: Stopped", 1)
	r.declare(movedYAML("sys", "root", "64Mi"), diskYAML("more", "16Mi"), off)
	r.converge()
	again := strings.Replace(diskYAML("base", "64Mi"), "{name: base}", "{name: base, movedFrom: [root, sys]}", 1)
	r.declare(again, diskYAML("more", "16Mi"), machine("{disk: base}, {name: data, disk: more}"))
	r.converge()
	if got := r.devices("web"); got != "disk-base disk-data" {
		t.Errorf("the devices are %s", got)
	}
	if s := r.d.machine(r.key("web").UID).snapshot().Slots; s["disk-base"] != slots["disk-root"] || s["disk-data"] != now["disk-data"] {
		t.Errorf("slots %v, were %v", s, now)
	}
}

// devices lists the disks that QEMU has plugged in, by id.
func (r *rig) devices(name string) string {
	r.t.Helper()
	now, err := r.d.machine(r.key(name).UID).link.readBack(r.t.Context(), true)
	if err != nil {
		r.t.Fatal(err)
	}
	var ids []string
	for id := range now.devices {
		if strings.HasPrefix(id, "disk-") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// What follows a rename in a record, without a guest.
func TestRecordFollows(t *testing.T) {
	want := func(entries ...string) *reconcile.Object {
		o := &reconcile.Object{}
		for i := 0; i < len(entries); i += 2 {
			o.Fields = append(o.Fields, reconcile.Field{Path: "spec.disks[" + entries[i] + "].disk", Value: entries[i], ID: entries[i+1]})
		}
		return o
	}
	r := &record{Slots: map[string]int{"disk-a": 3, "disk-b": 5, "nic-a": 7}, Launch: &launch{Disks: map[string]diskEntry{
		"a": {UID: "U", Name: "a"}, "b": {UID: "V", Name: "b"},
	}}}
	// a becomes b, and b is to go.
	if r.version() != 1 || !r.follow(want("b", "U")) || r.version() != 2 {
		t.Fatalf("nothing changed, or its version is %d", r.version())
	}
	got := fmt.Sprint(r.Slots, r.Launch.Disks)
	if got != "map[disk-V:5 disk-b:3 nic-a:7] map[V:{V b disk-b} b:{U a disk-a}]" {
		t.Error(got)
	}
	// Once more, and back: the device is as it ever was.
	if r.follow(want("b", "U")) || !r.follow(want("c", "U")) || !r.follow(want("a", "U")) {
		t.Error("it does not follow once")
	}
	if got := fmt.Sprintln(r.Launch.Disks["a"], r.Launch.device("a"), r.Slots["disk-a"]); got != "{U a disk-a} disk-a 3\n" {
		t.Error(got)
	}
	if e, known := r.Launch.entryOfDevice("disk-b"); e != "V" || !known {
		t.Errorf("disk-b is of %s, %v", e, known)
	}
	// Attached by somebody else.
	if e, known := r.Launch.entryOfDevice("disk-x"); e != "x" || known {
		t.Errorf("disk-x is of %s, %v", e, known)
	}
	if e, known := r.Launch.entryOfDevice("disk-V"); e != "disk-V" || known {
		t.Errorf("disk-V is of %s, %v", e, known)
	}
}
