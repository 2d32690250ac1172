package e2e

import (
	"testing"

	"reconciler/reconcile"
)

const writer = "rt.mode=writer rt.disk=/dev/vda"

// A commit becomes a machine that writes to its iSCSI disk; further commits
// change it live, remove it and bring it back with its data.
func TestFromCommitToGuestAndBack(t *testing.T) {
	w := newWorld(t)
	w.write("web.yaml", disk("root", "64Mi")+vm("web", writer, "disks: [{disk: root}], nics: [{name: front, network: user}]"))
	w.write("other.yaml", disk("other", "16Mi")+vm("other", "rt.mode=idle", "powerState: Stopped, disks: [{disk: other}]"))
	w.commit("two machines")
	w.start()
	w.reconcile()
	w.settled()
	serial := w.serial("web")
	serial.Wait(t, `REC 20 vda`, bootTime)
	before := w.objects("all")

	t.Log("attach a second disk")
	w.write("web.yaml", disk("root", "64Mi")+disk("data", "32Mi")+
		vm("web", writer, "disks: [{disk: root}, {disk: data}], nics: [{name: front, network: user}]"))
	w.commit("attach data")
	p := w.plan()
	if a := action(t, &p, "VirtualMachine/web"); a.Op != reconcile.OpUpdate || a.Impact != reconcile.ImpactLive || a.Cause != reconcile.CauseRevision || a.ID == "" {
		t.Errorf("attach: %+v", a)
	}
	w.reconcile()
	w.settled()
	serial.Wait(t, `DISK add vdb`, bootTime)

	t.Log("grow it")
	w.write("web.yaml", disk("root", "64Mi")+disk("data", "48Mi")+
		vm("web", writer, "disks: [{disk: root}, {disk: data}], nics: [{name: front, network: user}]"))
	w.commit("grow data")
	w.reconcile()
	w.settled()
	serial.Wait(t, `DISK change vdb.*50331648`, bootTime)

	t.Log("remove the machine and its disks")
	w.remove("web.yaml")
	w.commit("remove web")
	w.reconcile()
	w.settled()
	if n := len(w.qemus()); n != 0 {
		t.Errorf("%d QEMU run after the machine was removed", n)
	}
	if q := w.objects("quarantine"); len(q) != 2 {
		t.Errorf("quarantine holds %d disks, want 2: %v", len(q), q)
	}

	t.Log("revert")
	w.git("revert", "--no-edit", "HEAD")
	w.git("push", "-q", "origin", "HEAD:main")
	w.reconcile()
	w.settled()
	after := w.objects("all")
	for _, name := range []string{"VirtualMachine/web", "Disk/root", "Disk/data"} {
		if after[name].UID == "" || after[name].UID != before[name].UID && name != "Disk/data" {
			t.Errorf("%s came back as %q, was %q", name, after[name].UID, before[name].UID)
		}
	}
	// The first start found an empty disk, the second one the records.
	w.serial("web").Wait(t, `WRITER start .*from=[1-9]`, bootTime)
	w.stop()
	if n := len(w.qemus()); n != 1 {
		t.Errorf("%d QEMU run after the agent was stopped, want 1", n)
	}
}

func action(t *testing.T, p *reconcile.Plan, object string) *reconcile.Action {
	t.Helper()
	for i := range p.Actions {
		if a := &p.Actions[i]; string(a.Kind)+"/"+a.Name == object {
			return a
		}
	}
	t.Fatalf("the plan has no action for %s", object)
	return nil
}
