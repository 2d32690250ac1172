package e2e

import (
	"os"
	"strings"
	"testing"

	"reconciler/reconcile"
)

// A disk is its identity, not its name: whatever is done to names, the same
// object keeps its data, and no other ever gets it.
func TestIdentity(t *testing.T) {
	w := newQuickWorld(t)
	w.apply0()
	for _, c := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"created again after retention", afterRetention},
		{"the name reused by another spec", nameReused},
		{"a raised incarnation", raisedIncarnation},
		{"a machine's raised incarnation", raisedMachine},
		{"renamed, renamed back, tidied", renamed},
		{"a tidied name that was another's", tidiedOntoAnother},
		{"undeleted", undeleted},
		{"only the recorded policy counts", recordedPolicy},
		{"a renamed cluster", renamedCluster},
		{"removed and reverted, twice", removedAndReverted},
	} {
		t.Run(c.name, func(t *testing.T) {
			outer := w.t
			w.t = t
			defer func() { w.t = outer }()
			c.run(t, w)
			if !t.Failed() {
				w.settled()
			}
		})
	}
}

// apply0 starts the agent on the first commit.
func (w *world) apply0() {
	w.t.Helper()
	w.commit("a host")
	w.start()
	w.reconcile()
	w.settled()
}

func removedAndReverted(t *testing.T, w *world) {
	w.write("back.yaml", disk("back", "16Mi")+
		vm("back", "rt.mode=writer rt.disk=/dev/vda rt.blocks=64", "disks: [{disk: back}], nics: [{name: front, network: user}]"))
	w.apply("a machine")
	sees := func() (disk, mac, from string) {
		s := w.serial("back")
		disk = s.Wait(t, `^DISK add vda serial=(\S+)`, bootTime)[1]
		from = s.Wait(t, `^WRITER start vda .* from=(\d+)$`, bootTime)[1]
		s.Wait(t, `^REC \d+[05] vda`, bootTime)
		mac = w.serial("back").Wait(t, `^NIC add \S+ mac=(\S+)$`, bootTime)[1]
		return disk, mac, from
	}
	vmUID, diskUID := w.uid("VirtualMachine/back"), w.uid("Disk/back")
	serial, mac, from := sees()
	if from != "0" {
		t.Fatalf("a new disk holds records up to %s", from)
	}
	for range 2 {
		w.remove("back.yaml")
		w.apply("remove it")
		if w.byUID("quarantine", diskUID) == nil {
			t.Fatal("the removed disk is not in quarantine")
		}
		w.revert()
		w.settled()
		if v, d := w.uid("VirtualMachine/back"), w.uid("Disk/back"); v != vmUID || d != diskUID {
			t.Errorf("came back as machine %s with disk %s; was %s with %s", v, d, vmUID, diskUID)
		}
	}
	s, m, f := sees()
	if s != serial || m != mac {
		t.Errorf("the guest sees disk %s and MAC %s; it had %s and %s", s, m, serial, mac)
	}
	if f == "0" {
		t.Error("the guest finds no records on its disk")
	}
}

func afterRetention(t *testing.T, w *world) {
	w.write("short.yaml", diskOf("short", "1Mi", "retention: 2s"))
	w.apply("a disk with a short retention")
	uid := w.uid("Disk/short")
	w.mark("short", 0x11)
	w.remove("short.yaml")
	w.apply("remove it")
	if w.byUID("quarantine", uid) == nil {
		if _, err := os.Stat(w.volume(uid)); err != nil {
			t.Fatal("the disk was purged and never in quarantine")
		}
	}
	w.vanished(uid)
	w.reconcile()
	w.revert()
	if again := w.uid("Disk/short"); again != uid {
		t.Errorf("created again as %s, was %s", again, uid)
	}
	w.marked("short", 0)
}

func nameReused(t *testing.T, w *world) {
	spare := strings.ReplaceAll(strings.Split(strings.Split(w.base(), "kind: StoragePool")[1], "---")[0], "fast", "spare")
	w.write("spare.yaml", "apiVersion: reconciler/v1alpha1\nkind: StoragePool"+spare)
	w.write("reused.yaml", disk("reused", "2Mi"))
	w.apply("a disk")
	uid := w.uid("Disk/reused")
	w.mark("reused", 0x22)
	w.remove("reused.yaml")
	w.apply("remove it")
	for _, doc := range []string{
		disk("reused", "1Mi"),
		diskOf("reused", "64Mi", "source: {image: seed}") + w.seed(),
	} {
		w.write("reused.yaml", doc+off("user", "reused"))
		w.apply("the name for another disk")
		w.expect("Disk/reused", reconcile.Held, "raise metadata.incarnation for a fresh disk")
		w.expect("VirtualMachine/user", reconcile.Waiting, "waits for Disk/reused")
		w.fails("in quarantine", "access", "disk/reused", "--initiator", qemuInitiator, "--for", "1m")
		if w.byUID("all", uid) == nil {
			t.Fatal("the disk in quarantine is gone")
		}
	}
	w.write("reused.yaml", strings.Replace(disk("reused", "2Mi"), "pool: fast", "pool: spare", 1))
	w.commit("the name for a disk of another pool")
	if out, code := w.try("reconcile", "--wait"); code != 1 || !strings.Contains(out, "a disk cannot change its pool") || !strings.Contains(out, "metadata.incarnation") {
		t.Errorf("a disk in quarantine is declared in another pool: exit %d\n%s", code, out)
	}
	w.write("reused.yaml", disk("reused", "3Mi")) // larger is no other disk
	w.apply("as it was, and larger")
	if again := w.uid("Disk/reused"); again != uid {
		t.Errorf("restored as %s, was %s", again, uid)
	}
	w.io("reused", "read -P 34 0 64k", "read -P 34 960k 64k", "read -P 0 2M 1M")
}

// seed is an image that a disk can be made from.
func (w *world) seed() string {
	w.must(os.WriteFile(w.images+"/seed", []byte(strings.Repeat("seed", 1024)), 0o644))
	return "---\napiVersion: reconciler/v1alpha1\nkind: Image\nmetadata: {name: seed}\nspec: {source: {file: {path: seed}}, sha256: \"" +
		w.sum("seed") + "\", virtualSize: 4Ki}\n"
}

func raisedIncarnation(t *testing.T, w *world) {
	w.write("fresh.yaml", disk("fresh", "1Mi")+off("fresh", "fresh"))
	w.apply("a disk")
	old, machine := w.uid("Disk/fresh"), w.uid("VirtualMachine/fresh")
	w.mark("fresh", 0x33)
	w.write("fresh.yaml", with(disk("fresh", "1Mi"), "incarnation: 1")+off("fresh", "fresh"))
	w.apply("a fresh disk under the name")
	w.settled()
	if q := w.byUID("quarantine", old); q == nil {
		t.Fatal("the old disk is not in quarantine")
	}
	var fresh string
	for _, o := range w.list("disks") {
		if o.Name == "fresh" && o.UID != old {
			fresh = o.UID
		}
	}
	w.marked(fresh, 0)
	w.mark(fresh, 0x34)
	if w.uid("VirtualMachine/fresh") != machine {
		t.Error("the machine is another one")
	}
	w.revert()
	if q := w.byUID("quarantine", fresh); q == nil {
		t.Error("the fresh disk is not in quarantine after the revert")
	}
	w.marked(old, 0x33)
	w.git("revert", "--no-edit", "HEAD")
	w.git("push", "-q", "origin", "HEAD:main")
	w.reconcile()
	w.marked(fresh, 0x34)
}

// A machine has no data: a raised incarnation is another machine with the same
// disk, which the first gives away before.
func raisedMachine(t *testing.T, w *world) {
	w.write("raised.yaml", disk("raised", "1Mi")+bios("raised", "disks: [{disk: raised}]"))
	w.apply("a machine")
	vm, dk := w.uid("VirtualMachine/raised"), w.uid("Disk/raised")
	w.write("raised.yaml", disk("raised", "1Mi")+with(bios("raised", "disks: [{disk: raised}]"), "incarnation: 1"))
	w.apply("another machine under the name")
	w.settled()
	fresh := w.uid("VirtualMachine/raised")
	if d := w.uid("Disk/raised"); fresh == vm || d != dk {
		t.Errorf("machine %s with disk %s, was %s with %s", fresh, d, vm, dk)
	}
	if w.qemu(vm).PID != 0 || w.qemu(fresh).PID == 0 {
		t.Errorf("the old machine runs as %v, the new one as %v", w.qemu(vm), w.qemu(fresh))
	}
	w.remove("raised.yaml")
	w.apply("remove it")
}

func renamed(t *testing.T, w *world) {
	w.write("chain.yaml", disk("one", "1Mi")+off("vm-one", "one"))
	w.apply("a machine and its disk")
	diskUID, vmUID := w.uid("Disk/one"), w.uid("VirtualMachine/vm-one")
	w.mark("one", 0x44)
	same := func(diskName, vmName string) {
		t.Helper()
		w.settled()
		if d, v := w.uid("Disk/"+diskName), w.uid("VirtualMachine/"+vmName); d != diskUID || v != vmUID {
			t.Errorf("%s and %s have the identities %s and %s, were %s and %s", diskName, vmName, d, v, diskUID, vmUID)
		}
		w.marked(diskName, 0x44)
	}
	w.write("chain.yaml", with(disk("two", "1Mi"), "movedFrom: [one]")+with(off("vm-two", "two"), "movedFrom: [vm-one]"))
	w.apply("rename both")
	same("two", "vm-two")
	w.write("chain.yaml", with(disk("three", "1Mi"), "movedFrom: [one, two]")+with(off("vm-three", "three"), "movedFrom: [vm-one, vm-two]"))
	w.apply("rename both again")
	same("three", "vm-three")
	w.write("chain.yaml", disk("one", "1Mi")+off("vm-one", "one"))
	w.apply("rename them back")
	same("one", "vm-one")
	w.revert()
	same("three", "vm-three")

	w.write("chain.yaml", disk("three", "1Mi")+off("vm-three", "three"))
	w.apply("tidy movedFrom away")
	p := w.plan()
	blocked := 0
	for i := range p.Actions {
		if a := &p.Actions[i]; strings.HasSuffix(a.Name, "three") {
			blocked++
			if a.State != reconcile.Blocked || !strings.Contains(a.Reason, "movedFrom") {
				t.Errorf("%s/%s (%s): %s %s %q; want it blocked", a.Kind, a.Name, a.UID, a.Op, a.State, a.Reason)
			}
		}
	}
	if blocked != 4 { // both identities of both
		t.Errorf("%d actions are about the two objects, want 4", blocked)
	}
	w.marked(diskUID, 0x44)
	w.revert()
	same("three", "vm-three")
}

// The name that a disk was renamed to once belonged to another, which is in
// quarantine: without movedFrom the identity would be that one's.
func tidiedOntoAnother(t *testing.T, w *world) {
	w.write("x.yaml", disk("goal", "1Mi"))
	w.apply("a disk")
	other := w.uid("Disk/goal")
	w.mark("goal", 0x55)
	w.remove("x.yaml")
	w.apply("remove it")
	w.write("y.yaml", disk("start", "1Mi")+off("y", "start"))
	w.apply("another one")
	mine := w.uid("Disk/start")
	w.mark("start", 0x56)
	w.write("y.yaml", with(disk("goal", "1Mi"), "movedFrom: [start]")+off("y", "goal"))
	w.apply("rename it")
	w.settled()
	w.write("y.yaml", disk("goal", "1Mi")+off("y", "goal"))
	w.apply("tidy movedFrom away")
	if o := w.byUID("all", mine); o == nil || o.Quarantined {
		t.Error("the disk in use was taken away")
	}
	p := w.plan()
	for i := range p.Actions {
		if a := &p.Actions[i]; a.Name == "goal" && a.State != reconcile.Blocked {
			t.Errorf("%s (%s): %s %s; want it blocked", a.Name, a.UID, a.Op, a.State)
		}
	}
	w.marked(mine, 0x56)
	w.revert()
	w.settled()
	w.marked(mine, 0x56)
	if w.byUID("quarantine", other) == nil {
		t.Error("the other disk is not in quarantine any more")
	}
}

func undeleted(t *testing.T, w *world) {
	w.write("keep.yaml", with(diskOf("kept", "1Mi", "retention: 8s"), "movedFrom: [first]"))
	w.apply("a disk")
	uid := w.uid("Disk/kept")
	w.mark("kept", 0x66)
	w.remove("keep.yaml")
	w.apply("remove it")
	yaml := w.output("undelete", "disk/kept")
	w.await(passTime, "the end of the deadline", func() bool {
		o := w.byUID("quarantine", uid)
		return o != nil && o.Status["until"] == "no deadline"
	})
	w.write("keep.yaml", yaml)
	w.apply("what undelete printed")
	if again := w.uid("Disk/kept"); again != uid {
		t.Errorf("it came back as %s, was %s", again, uid)
	}
	w.marked("kept", 0x66)
}

// A commit that weakens a disk's protection and is never in force by itself
// weakens nothing: what is recorded with the volume decides.
func recordedPolicy(t *testing.T, w *world) {
	w.write("guarded.yaml", disk("guarded", "1Mi"))
	w.apply("a disk")
	uid := w.uid("Disk/guarded")
	w.write("guarded.yaml", diskOf("guarded", "1Mi", "retention: 1s, deletionPolicy: Delete"))
	w.git("add", "-A")
	w.git("commit", "-qm", "weaken it")
	w.remove("guarded.yaml")
	w.apply("remove it")
	o := w.byUID("quarantine", uid)
	if o == nil {
		t.Fatal("the disk is not in quarantine")
	}
	if a := w.expect("Disk/guarded", reconcile.Ready, "in quarantine until"); a.Op != reconcile.OpUnchanged {
		t.Errorf("%s %s", a.Op, a.Reason)
	}
	if out := w.cli("describe", "disk/guarded"); !strings.Contains(out, "in quarantine until") {
		t.Errorf("describe says\n%s", out)
	}
}

func renamedCluster(t *testing.T, w *world) {
	before := w.objects("all")
	base, err := os.ReadFile(w.work + "/base.yaml")
	w.must(err)
	declare := func(cluster string) {
		w.write("base.yaml", strings.Replace(string(base), "metadata: {name: test}\nspec: {id: "+w.clusterID()+"}", cluster, 1))
	}
	same := func() {
		t.Helper()
		w.settled()
		for name, o := range w.objects("all") {
			if was := before[name]; o.Kind != "Cluster" && was.UID != o.UID {
				t.Errorf("%s is %s after the cluster was renamed, was %s", name, o.UID, was.UID)
			}
		}
	}
	declare("metadata: {name: renamed}\nspec: {id: " + w.clusterID() + "}")
	w.apply("rename the cluster, which has an id")
	same()
	declare("metadata: {name: renamed}")
	w.commit("take the id away")
	w.refused("OtherCluster")
	declare("metadata: {name: renamed, movedFrom: [" + w.clusterID() + "]}")
	w.apply("the id by its oldest name")
	same()
	declare("metadata: {name: renamed, movedFrom: [" + w.clusterID() + "]}\nspec: {id: another}")
	w.commit("another id")
	w.refused("OtherCluster")
	w.write("base.yaml", string(base))
	w.apply("as it was")
	same()
}

// refused fails unless the newest revision is not brought into force for this
// reason, and nothing is done.
func (w *world) refused(reason string) {
	w.t.Helper()
	good := w.status().LastAppliedRevision
	if out, code := w.try("reconcile", "--wait"); code == 0 {
		w.t.Errorf("the revision comes into force; it should be refused: %s\n%s", reason, out)
	}
	if s := w.stalled(); s != reason {
		w.t.Errorf("stalled for %q, want %q", s, reason)
	}
	if h := w.status(); h.LastAppliedRevision != good || h.LastAttemptedRevision == good && reason != "FetchFailed" {
		w.t.Errorf("applied %s, attempted %s; in force is %s", h.LastAppliedRevision, h.LastAttemptedRevision, good)
	}
}
