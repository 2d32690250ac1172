package agent

import (
	"fmt"
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

const (
	vmKind   = spec.KindVirtualMachine
	diskKind = spec.KindDisk
)

// One merge that moves a machine and its disk to another host makes no second
// machine and no second disk: not in one commit, not in two, and not for a host
// that saw only the last of them.
func TestMoveMakesNoSecondMachine(t *testing.T) {
	here := diskIn("d1", "p-host1") + vmOn("web", "host1", ", disks: [{disk: d1}]")
	there := diskIn("d1", "p-host2") + vmOn("web", "host2", ", disks: [{disk: d1}]")
	begin := func(t *testing.T) *cluster {
		c := newCluster(t, t.TempDir(), "host1", "host2")
		c.commit(here)
		c.pass("host1", "host2")
		c.expect(vmKind, "web", "host1")
		return c
	}
	check := func(c *cluster) {
		c.pass("host2", "host1", "host2", "host1")
		c.expect(vmKind, "web", "host1")
		c.expect(diskKind, "d1", "host1")
		c.refuses("host1", `Disk "d1" is on host "host1" in StoragePool "p-host1"`, "metadata.incarnation", "put it back")
		c.waits("host2", "Disk/d1", "on host host1 in StoragePool p-host1", "metadata.incarnation")
		c.waits("host2", "VirtualMachine/web", "host1")
	}
	t.Run("in one commit", func(t *testing.T) {
		c := begin(t)
		c.commit(there)
		check(c)
	})
	t.Run("in two commits", func(t *testing.T) {
		c := begin(t)
		c.commit(diskIn("d1", "p-host1") + vmOn("web", "host2", ", disks: [{disk: d1}]"))
		c.pass("host2", "host1")
		c.commit(there)
		check(c)
	})
	t.Run("over a skipped revision", func(t *testing.T) {
		c := begin(t)
		c.commit("")
		c.commit(there)
		check(c)
	})
	t.Run("from quarantine", func(t *testing.T) {
		c := begin(t)
		c.commit("")
		c.pass("host1", "host2", "host1")
		c.commit(diskIn("d1", "p-host2"))
		c.pass("host2", "host1", "host2")
		c.expect(diskKind, "d1", "host1")
		c.refuses("host1", "d1")
		c.waits("host2", "Disk/d1", "in quarantine")
	})
	t.Run("on a host that never saw it before", func(t *testing.T) {
		c := begin(t)
		c.commit(there)
		c.hosts["host2"].cfg.StateDir = t.TempDir()
		c.hosts["host2"].restart()
		check(c)
	})
	t.Run("on a host whose memory is lost", func(t *testing.T) {
		c := begin(t)
		c.commit(there)
		c.hosts["host1"].cfg.StateDir = t.TempDir()
		c.hosts["host1"].restart()
		c.refuses("host1", `Disk "d1" is on host "host1" in StoragePool "p-host1"`)
		c.pass("host2", "host1", "host2")
		c.expect(diskKind, "d1", "host1")
	})
	t.Run("on a host that has lost all but its report", func(t *testing.T) {
		c := begin(t)
		c.commitFrame(nil, diskIn("d1", "s-host1"))
		n := c.hosts["host1"]
		n.cfg.StateDir, n.state.Objects = t.TempDir(), map[reconcile.Key]*reconcile.Live{}
		n.restart()
		c.refuses("host1", `Disk "d1" is on host "host1" in StoragePool "p-host1"`)
		c.expect(diskKind, "d1")
	})
	moved := func(c *cluster, pools map[string]string) {
		c.commitFrame(pools, diskIn("d1", "p-host1")+vmOn("web", "host2", ", disks: [{disk: d1}]"))
		c.pass("host2", "host1", "host2", "host1")
		c.expect(vmKind, "web", "host1")
		c.expect(diskKind, "d1", "host1")
		c.refuses("host1", `Disk "d1" is on host "host1", and its StoragePool "p-host1" is now declared on host "host2"`)
	}
	t.Run("a pool changes its host", func(t *testing.T) {
		c := begin(t)
		moved(c, map[string]string{"host1": "host2"})
		c.waits("host2", "Disk/d1", "host1")
		c.waits("host2", "StoragePool/p-host1", "host1")
	})
	t.Run("two pools trade their hosts", func(t *testing.T) {
		c := begin(t)
		moved(c, map[string]string{"host1": "host2", "host2": "host1"})
		c.waits("host2", "Disk/d1", "host1")
	})
}

// A machine without disks waits on its new host for the old one to say that it
// is gone, which takes a commit that removes it.
func TestMachineArrivesWhenItIsGone(t *testing.T) {
	c := newCluster(t, t.TempDir(), "host1", "host2")
	c.commit(vmOn("web", "host1", ""))
	c.pass("host1", "host2")
	c.commit(vmOn("web", "host2", ""))
	c.pass("host2", "host1")
	c.waits("host2", "VirtualMachine/web", "on host host1 (Running)", "put spec.host back", "in one commit")
	c.expect(vmKind, "web", "host1")
	if a := actionOf(t, c.hosts["host1"].agent.plan, "VirtualMachine/web"); a.State != reconcile.Blocked {
		t.Errorf("on host1 it is %s %s: %s", a.Op, a.State, a.Reason)
	}

	c.commit("")
	c.hosts["host1"].mute = true
	c.pass("host1", "host2")
	c.expect(vmKind, "web")
	c.commit(vmOn("web", "host2", ""))
	// It is gone, and nobody said so.
	c.waits("host2", "VirtualMachine/web", "host1")
	c.hosts["host1"].mute = false
	c.hosts["host1"].sees-- // its report is of the commit that removed it
	c.pass("host1", "host2")
	c.expect(vmKind, "web", "host2")

	// And back, the same way.
	c.commit("")
	c.pass("host2", "host1")
	c.commit(vmOn("web", "host1", ""))
	c.pass("host1", "host2")
	c.expect(vmKind, "web", "host1")
}

// Who does not answer is named, and how it could.
func TestArrivalNamesTheSilentHost(t *testing.T) {
	c := newCluster(t, t.TempDir(), "host1", "host2")
	c.hosts["host1"].mute = true
	c.commit(vmOn("web", "host1", ""))
	c.pass("host1", "host2")
	c.commit(vmOn("web", "host2", ""))
	c.waits("host2", "VirtualMachine/web", "waits for host host1", "has reported nothing")
	c.hosts["host1"].mute = false
	c.pass("host1")
	for ref, r := range c.reports {
		if ref == "refs/reconciler/status/host1" {
			r.signature = nil
			c.reports[ref] = r
		}
	}
	c.waits("host2", "VirtualMachine/web", "the signature of its report does not count")
}

// What nobody else ever had waits for nobody, and so does what was here: a crash,
// a restart of the agent, a boot without the repository, with every other host silent.
func TestOwnMachinesWaitForNobody(t *testing.T) {
	c := newCluster(t, t.TempDir(), "host1", "host2")
	n := c.hosts["host1"]
	c.hosts["host2"].deaf = true
	c.commit(vmOn("web", "host2", ""))
	c.commit(diskIn("d1", "p-host1") + vmOn("own", "host1", ", disks: [{disk: d1}]"))
	c.pass("host1")
	c.expect(vmKind, "own", "host1")
	crash := func() {
		n.set(vmKind, "own", func(h *reconcile.Live) {
			h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU was killed", Failed: true}
		})
	}
	crash()
	c.pass("host1")
	if p := n.live(vmKind, "own").VM.Power; p != reconcile.PowerRunning {
		t.Errorf("after a crash it is %s", p)
	}
	// It was declared elsewhere for a while, and never went there.
	c.commit(diskIn("d1", "p-host1") + vmOn("own", "host2", ""))
	c.pass("host1")
	c.commit(diskIn("d1", "p-host1") + vmOn("own", "host1", ", disks: [{disk: d1}]"))
	crash()
	n.restart()
	c.pass("host1")
	if p := n.live(vmKind, "own").VM.Power; p != reconcile.PowerRunning {
		t.Errorf("after it was declared here again it is %s", p)
	}
	crash()
	n.deaf = true
	n.restart()
	c.pass("host1")
	if p := n.live(vmKind, "own").VM.Power; p != reconcile.PowerRunning {
		t.Errorf("after a boot without the repository it is %s", p)
	}
}

// A report of a revision that still had the machine there proves nothing, also
// where a later one was shown before.
func TestOldReportProvesNothing(t *testing.T) {
	c := newCluster(t, t.TempDir(), "host1", "host2")
	c.commit("")
	c.pass("host1", "host2")
	old := c.reports["refs/reconciler/status/host1"] // nothing is there, and rightly so
	c.commit(vmOn("web", "host1", ""))
	c.pass("host1", "host2")
	c.commit("")
	c.commit(vmOn("web", "host2", ""))
	c.hosts["host1"].deaf = true
	c.reports["refs/reconciler/status/host1"] = old
	c.waits("host2", "VirtualMachine/web", "has not reported since")
	c.expect(vmKind, "web", "host1")
}

// renameEverything gives every kind another name, and the former one with it.
var renameEverything = strings.NewReplacer(
	"{name: host1}", "{name: hosta, movedFrom: [host1]}", "host: host1", "host: hosta",
	"{name: p-host1}", "{name: p-hosta, movedFrom: [p-host1]}", "pool: p-host1", "pool: p-hosta",
	"{name: web}", "{name: shop, movedFrom: [web]}",
	"{name: d1}", "{name: data, movedFrom: [d1]}", "disk: d1", "disk: data",
	"{name: front}", "{name: back, movedFrom: [front]}", "network: front", "network: back",
)

// A host that a commit renames is the same host, and so is all that names it: no
// machine is touched, claims stay, what crashes starts again, and its reports go
// on, whatever its configuration calls it. What comes from it is not new elsewhere.
func TestHostIsRenamed(t *testing.T) {
	c := newCluster(t, t.TempDir(), "host1", "host2")
	n := c.hosts["host1"]
	tree := c.frame(nil) + diskIn("d1", "p-host1") + vmOn("web", "host1", ", disks: [{disk: d1}], nics: [{name: n, network: front}]") +
		"---\napiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: front}\nspec: {user: {}}\n"
	commit := func(tree string) {
		c.repo.commit(map[string]string{"cluster.yaml": tree})
		for _, n := range c.hosts {
			n.sees = len(c.repo.commits)
		}
	}
	commit(tree)
	c.pass("host1", "host2")
	n.ran()
	settled := func(when string) {
		t.Helper()
		p, err := n.pass()
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Actions {
			if a := &p.Actions[i]; a.Op != reconcile.OpUnchanged {
				t.Errorf("%s: %s is %s %s: %s %v", when, objectName(a), a.Op, a.State, a.Reason, a.Changes)
			}
		}
		if p.Hosts[0].Host != "hosta" {
			t.Errorf("%s: the plan is of host %s", when, p.Hosts[0].Host)
		}
	}
	tree = renameEverything.Replace(tree)
	commit(tree)
	c.pass("host1")
	for _, b := range n.ran() {
		if b.op != reconcile.OpUpdate || b.impact != reconcile.ImpactNone {
			t.Errorf("the rename does %s %s with impact %s", b.op, b.object, b.impact)
		}
	}
	settled("renamed")
	if _, ok := c.reports["refs/reconciler/status/hosta"]; !ok {
		t.Error("it does not report under its new name")
	}
	crash := func() {
		n.set(vmKind, "shop", func(h *reconcile.Live) {
			h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU was killed", Failed: true}
		})
		n.restart()
		c.pass("host1")
		if p := n.live(vmKind, "shop").VM.Power; p != reconcile.PowerRunning {
			t.Errorf("after a crash it is %s", p)
		}
	}
	crash()
	settled("after a crash")
	n.cfg.Host = "hosta"
	crash()
	settled("configured by its new name")
	// Without the repository, and with a tree from before the rename in the cache.
	n.agent.mem.Good = fmt.Sprintf("%040d", 1)
	if err := n.agent.store.save(stateFile, n.agent.mem); err != nil {
		t.Fatal(err)
	}
	n.deaf = true
	n.set(vmKind, "shop", func(h *reconcile.Live) { h.Name = "web" })
	n.restart()
	if p, _ := n.agent.runPass(t.Context(), false, func(string) {}); p == nil || p.Hosts[0].Host != "host1" {
		t.Errorf("from the cache it is no host: %v", p)
	}
	n.deaf = false
	c.pass("host1")
	settled("again")

	// A machine that leaves the renamed host is asked for under its new name.
	commit(strings.Replace(tree, "kind: VirtualMachine\nmetadata: {name: shop, movedFrom: [web]}\nspec: {host: hosta", "kind: VirtualMachine\nmetadata: {name: shop, movedFrom: [web]}\nspec: {host: host2", 1))
	c.pass("host1")
	c.waits("host2", "VirtualMachine/shop", "on host hosta (Running)")
}

// A host that never was another one is not taken for it because of its name.
func TestFormerNameOfAnotherHost(t *testing.T) {
	c := newCluster(t, t.TempDir(), "host1", "host2")
	c.repo.commit(map[string]string{"cluster.yaml": renameEverything.Replace(c.frame(nil))})
	c.hosts["host1"].sees = 1
	c.refuses("host1", "former name of Host/hosta", "host: hosta")
}
