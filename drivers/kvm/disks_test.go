package kvm

import (
	"errors"
	"strings"
	"testing"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

const writer = "rt.mode=writer rt.disk=all"

func TestDisksLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	// A write while tgtd grows a disk would fail: only the other one is used.
	cmdline := "rt.mode=writer rt.disk=serial:" + spec.Serial(r.uid(spec.KindDisk, "root"))
	one := vmYAML("web", cmdline, "disks: [{disk: root}]")
	two := vmYAML("web", cmdline, "disks: [{disk: root}, {name: extra, disk: data}]")
	r.up("web", diskYAML("root", "64Mi"), one)
	pid := r.vm("web").VM.PID

	// Attach.
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "32Mi"), two)
	if list := r.plan(); len(list) != 1 || list[0].Op != reconcile.OpUpdate || list[0].Impact != reconcile.ImpactLive {
		t.Fatalf("plan:\n%s", describe(list))
	}
	r.converge()
	data := r.uid(spec.KindDisk, "data")
	r.serial.Wait(t, `^DISK add vd. serial=`+spec.Serial(data)+` size=33554432`, 60*time.Second)
	if left := r.d.secretPath(r.key("web").UID, data); exists(left) {
		t.Errorf("the secret %s is left", left)
	}

	// Grow, once the target serves more.
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "48Mi"), two)
	r.converge()
	r.serial.Wait(t, `^DISK change vd. serial=`+spec.Serial(data)+` size=50331648`, 60*time.Second)
	if got := r.vm("web").Get("spec.disks[extra].size"); got != "48Mi" {
		t.Errorf("size %s", got)
	}

	// Detach.
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "48Mi"), one)
	r.converge()
	r.serial.Wait(t, `^DISK remove vd`, 60*time.Second)
	live := r.vm("web")
	if _, ok := live.VM.Disks["extra"]; ok || live.VM.PID != pid {
		t.Errorf("after the detach: %+v", live.VM)
	}
	r.nothingLeftOf(data)

	// Another disk under the same entry, in one step; the port stays.
	slot := r.d.machine(r.key("web").UID).snapshot().Slots["disk-extra"]
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "48Mi"), diskYAML("other", "16Mi"), two)
	r.converge()
	r.serial.Wait(t, `^DISK add vd. serial=`+spec.Serial(data), 60*time.Second)
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "48Mi"), diskYAML("other", "16Mi"), strings.Replace(two, "disk: data", "disk: other", 1))
	r.converge()
	other := r.uid(spec.KindDisk, "other")
	r.serial.Wait(t, `^DISK add vd. serial=`+spec.Serial(other), 60*time.Second)
	if got := r.d.machine(r.key("web").UID).snapshot().Slots["disk-extra"]; got != slot {
		t.Errorf("the entry moved from port %d to %d", slot, got)
	}
	r.nothingLeftOf(data)

	// The same disk under another entry's name.
	r.declare(diskYAML("root", "64Mi"), diskYAML("other", "16Mi"), strings.NewReplacer("extra", "renamed", "disk: data", "disk: other").Replace(two))
	r.converge()
	if live := r.vm("web"); live.VM.Disks["renamed"] != other || len(live.VM.Disks) != 2 || live.VM.PID != pid {
		t.Errorf("disks %v", live.VM.Disks)
	}
	r.serial.Wait(t, `^REC \d+ `, 60*time.Second)
}

// nothingLeftOf fails if QEMU still has a node or secret of a disk.
func (r *rig) nothingLeftOf(disk string) {
	r.t.Helper()
	for _, m := range r.d.machines {
		if m.link == nil {
			continue
		}
		conn, err := m.link.connection(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		now, err := readMachine(r.t.Context(), conn)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, ok := now.nodes[nodeName(disk)]; ok {
			r.t.Errorf("node %s is left", nodeName(disk))
		}
		var objects []struct{ Name string }
		if err := conn.Do(r.t.Context(), "qom-list", map[string]any{"path": "/objects"}, &objects); err != nil {
			r.t.Fatal(err)
		}
		for _, o := range objects {
			if o.Name == secretID(disk) {
				r.t.Errorf("secret %s is left", o.Name)
			}
		}
	}
}

// A guest that has not booted, or whose vCPUs stand still, releases nothing.
func TestDetachFromADeafGuest(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.UnplugTimeout = 300 * time.Millisecond })
	r.declare(diskYAML("root", "64Mi"), vmYAML("web", "rt.mode=idle", "disks: [{disk: root}]"))
	r.converge()
	r.declare(diskYAML("root", "64Mi"), vmYAML("web", "rt.mode=idle"))
	list := r.plan()
	if len(list) != 1 {
		t.Fatalf("plan:\n%s", describe(list))
	}
	err := r.apply(list[0])
	var holds *GuestHoldsError
	if !errors.As(err, &holds) || holds.Device != "disk-root" {
		t.Fatalf("error %v, want a GuestHoldsError", err)
	}
	if got := r.vm("web").VM.Disks["root"]; got == "" {
		t.Fatal("the disk is no longer shown as attached")
	}
	r.waitUp("web")
	r.converge()
	if live := r.vm("web"); len(live.VM.Disks) > 0 {
		t.Fatalf("disks %v", live.VM.Disks)
	}
}

// No command that could hang QEMU is given while the storage is silent, and
// the machine can still be stopped.
func TestStorageSilent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one := vmYAML("web", "rt.mode=idle rt.onpower=ignore", "shutdown: {timeout: 1s}", "disks: [{disk: root}]")
	two := vmYAML("web", "rt.mode=idle rt.onpower=ignore", "shutdown: {timeout: 1s}", "disks: [{disk: root}, {disk: data}]")
	r.up("web", diskYAML("root", "64Mi"), diskYAML("data", "64Mi"), one)
	for name, set := range map[string]func(){
		"says no":      func() { r.prober.set(errors.New("target down"), false) },
		"says nothing": func() { r.prober.set(nil, true) },
	} {
		set()
		for what, yaml := range map[string]string{"attach": two, "detach": vmYAML("web", "rt.mode=idle rt.onpower=ignore", "shutdown: {timeout: 1s}")} {
			r.declare(diskYAML("root", "64Mi"), diskYAML("data", "64Mi"), yaml)
			begun := time.Now()
			var unavailable *StorageError
			if err := r.apply(r.plan()[0]); !errors.As(err, &unavailable) {
				t.Fatalf("%s while the storage %s: %v, want a StorageError", what, name, err)
			}
			if d := time.Since(begun); d > 3*time.Second {
				t.Errorf("%s took %v", what, d)
			}
		}
	}
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "64Mi"), strings.Replace(one, "host: host1", "host: host1\n  powerState: Stopped", 1))
	begun := time.Now()
	r.converge()
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("the stop took %v", d)
	}
	r.noProcess()
	if live := r.vm("web"); live.VM.Power != reconcile.PowerStopped || live.VM.Exit != "" {
		t.Errorf("after the stop: %+v", live.VM)
	}
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "64Mi"), one)
	var unavailable *StorageError
	if err := r.apply(r.plan()[0]); !errors.As(err, &unavailable) {
		t.Fatalf("start while the storage is silent: %v, want a StorageError", err)
	}
	r.noProcess()
	r.prober.set(nil, false)
	r.converge()
}
