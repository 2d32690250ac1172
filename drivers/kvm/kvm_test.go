package kvm

import (
	"testing"

	"reconciler/reconcile"
)

func TestCreateRunStopDelete(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	web := vmYAML("web", "rt.mode=writer rt.disk=all", "disks: [{disk: root}]", "nics: [{name: front, network: out}]")
	r.up("web", diskYAML("root", "64Mi"), web)
	r.serial.Wait(t, `^REC 3 vda`, 20e9)
	live := r.vm("web")
	if live.VM.Power != reconcile.PowerRunning || live.VM.PID == 0 || live.VM.Disks["root"] == "" {
		t.Fatalf("running machine: %+v", live.VM)
	}
	if list := r.plan(); len(list) > 0 {
		t.Fatalf("the plan is not empty:\n%s", describe(list))
	}
	r.declare(diskYAML("root", "64Mi"), vmYAML("web", "rt.mode=writer rt.disk=all", "powerState: Stopped", "disks: [{disk: root}]", "nics: [{name: front, network: out}]"))
	r.converge()
	live = r.vm("web")
	if live.VM.Power != reconcile.PowerStopped || live.VM.Exit != "" {
		t.Fatalf("stopped machine: %+v", live.VM)
	}
	r.serial.Wait(t, `^GUEST poweroff`, 1e9)
	r.noProcess()
	r.declare()
	r.converge()
	if s := r.observe(); s.Objects[r.key("web")] != nil {
		t.Fatal("the machine is still there")
	}
}
