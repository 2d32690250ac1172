package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"reconciler/drivers/iscsi/target"
	"reconciler/internal/testbed"
	"reconciler/reconcile"
)

// What must never happen on a host, each with the guard it fails without.
// The machines have no system to boot: they are quick to start, and nothing
// answers their power button.
func TestNever(t *testing.T) {
	w := newQuickWorld(t)
	w.write("awake.yaml", bios("awake", "")) // so that no other is the last that runs
	w.apply0()
	for _, c := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"quarantine a disk that is lent", neverQuarantineLent},
		{"purge before clock and uptime agree", neverPurgeEarly},
		{"purge while suspended, out of contact or refused", neverPurgeBlind},
		{"take an unreadable record for absence", neverByUnreadableRecord},
		{"take an unmounted pool for an empty one", neverByUnmountedPool},
		{"take a silent target for lost disks", neverBySilentTarget},
		{"take a silent QEMU for a machine that is off", neverBySilentQEMU},
		{"touch what is not ours", neverTouchUnmanaged},
		{"run a machine twice", neverTwice},
		{"have two writers", neverTwoWriters},
		{"restart unannounced", neverRestartUnannounced},
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

// bios is a machine without a system.
func bios(name, spec string) string {
	return fmt.Sprintf(`---
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: %s}
spec: {host: host1, cpu: {cores: 1}, memory: {size: 32Mi}, shutdown: {timeout: 1s}, %s}
`, name, spec)
}

// qemu is the process of a machine; PID 0 if there is none.
func (w *world) qemu(uid string) testbed.Process {
	w.t.Helper()
	var found []testbed.Process
	for _, p := range w.qemus() {
		if strings.Contains(p.Cmdline, "-uuid "+uid) {
			found = append(found, p)
		}
	}
	if len(found) > 1 {
		w.t.Fatalf("%d QEMU of machine %s: %v", len(found), uid, found)
	}
	if len(found) == 0 {
		return testbed.Process{}
	}
	return found[0]
}

// reason is what the last pass said of an object.
func (w *world) reason(uid string) string {
	w.t.Helper()
	o := w.byUID("all", uid)
	if o == nil {
		o = w.byUID("quarantine", uid)
	}
	if o == nil {
		return "gone"
	}
	return fmt.Sprint(o.Status["op"], " ", o.Status["state"], " ", o.Status["reason"])
}

// says waits until the last pass said this of an object.
func (w *world) says(uid, text string) {
	w.t.Helper()
	w.await(passTime, uid+" to be told as "+text, func() bool { return strings.Contains(w.reason(uid), text) })
}

// Never 1: quarantine needs that nobody has the disk. Guards: removeDisk in
// reconcile, withdraw in drivers/iscsi.
func neverQuarantineLent(t *testing.T, w *world) {
	w.write("lent.yaml", disk("lent", "1Mi"))
	w.apply("a disk")
	uid := w.uid("Disk/lent")
	_, end := w.lend("lent")
	w.remove("lent.yaml")
	w.apply("remove it")
	w.expect("Disk/lent", reconcile.Waiting, "an access to the disk is open")
	if w.byUID("quarantine", uid) != nil {
		t.Error("it is in quarantine")
	}
	end()
	w.reconcile()
	if w.byUID("quarantine", uid) == nil {
		t.Error("it is not in quarantine")
	}
}

// Never 1: a wrong clock, or a year in storage, ends no quarantine. Guard:
// volume.Quarantine.Elapsed, twice.
func neverPurgeEarly(t *testing.T, w *world) {
	w.write("early.yaml", diskOf("early", "1Mi", "retention: 1h"))
	w.apply("a disk")
	uid := w.uid("Disk/early")
	w.remove("early.yaml")
	w.apply("remove it")
	w.says(uid, "in quarantine until")
	tamper := func(until time.Time, needed time.Duration) {
		t.Helper()
		w.stop()
		w.edit(w.state("pools", "fast", uid+".json"), func(m map[string]any) {
			q := m["quarantine"].(map[string]any)
			q["until"], q["needed"] = until.UTC(), needed
		})
		w.start()
		w.reconcile()
	}
	tamper(time.Now().Add(-time.Hour), time.Hour) // the clock jumped
	w.says(uid, "in quarantine until")
	tamper(time.Now().Add(time.Hour), 0) // the clock was set back
	w.says(uid, "in quarantine until")
	tamper(time.Now().Add(-time.Hour), 0)
	w.vanished(uid)
}

// edit changes a JSON file.
func (w *world) edit(path string, change func(map[string]any)) {
	w.t.Helper()
	data, err := os.ReadFile(path)
	w.must(err)
	var m map[string]any
	w.must(json.Unmarshal(data, &m))
	change(m)
	data, err = json.Marshal(m)
	w.must(err)
	w.must(os.WriteFile(path, data, 0o600))
}

// Never 1: nothing is purged while anything is suspended, without contact to
// the repository, or while a revision is refused. Guard: agent.restraints.
func neverPurgeBlind(t *testing.T, w *world) {
	w.write("blind.yaml", diskOf("blind", "1Mi", "retention: 1s"))
	w.apply("a disk")
	uid := w.uid("Disk/blind")
	w.cli("suspend", "vm/keeper", "--reason", "test")
	w.remove("blind.yaml")
	w.apply("remove it")
	w.says(uid, "while anything is suspended")

	away := w.bare + ".away"
	w.must(os.Rename(w.bare, away))
	w.await(passTime, "the fetch to fail", func() bool { return w.stalled() == "FetchFailed" })
	w.cli("resume")
	w.says(uid, "without contact")
	w.kill()
	w.start()
	w.says(uid, "without contact")

	w.write("broken.yaml", "{")
	w.git("add", "-A")
	w.git("commit", "-qm", "broken")
	w.git("push", "-q", away, "HEAD:main")
	w.must(os.Rename(away, w.bare))
	w.refused("Invalid")
	w.says(uid, "while a revision is refused")
	if _, err := os.Stat(w.volume(uid)); err != nil {
		t.Error(err)
	}
	w.remove("broken.yaml")
	w.apply("fix it")
	w.vanished(uid)
}

// Never 2: a record that cannot be read blocks its object and no other. Guards:
// kvm.load, volume.List, the index of disks.
func neverByUnreadableRecord(t *testing.T, w *world) {
	w.write("record.yaml", disk("record", "1Mi")+bios("record", "disks: [{disk: record}]"))
	w.apply("a machine")
	vm, dk := w.uid("VirtualMachine/record"), w.uid("Disk/record")
	was := w.qemu(vm)
	for _, c := range []struct{ path, uid string }{
		{w.state("vms", vm+".json"), vm},
		{w.state("pools", "fast", dk+".json"), dk},
		{w.state("storage", "claims", dk+".json"), dk},
	} {
		good, err := os.ReadFile(c.path)
		w.must(err)
		w.stop()
		w.must(os.WriteFile(c.path, []byte("{"), 0o600))
		w.start()
		w.says(c.uid, c.path)
		w.remove("record.yaml")
		w.write("beside.yaml", disk("beside", "1Mi"))
		w.apply("remove it, and make another")
		w.says(c.uid, c.path)
		if now := w.qemu(vm); c.uid == vm && now.PID != was.PID {
			t.Errorf("QEMU was %d, is %d", was.PID, now.PID)
		}
		if _, err := os.Stat(w.volume(dk)); err != nil {
			t.Error(err)
		}
		if w.byUID("all", w.uid("Disk/beside")) == nil {
			t.Error("another disk is not made")
		}
		w.revert()
		w.stop()
		w.must(os.WriteFile(c.path, good, 0o600))
		w.start()
		w.reconcile()
		w.settled()
		was = w.qemu(vm)
	}
	w.remove("record.yaml")
	w.apply("remove it")
}

// Never 2: a pool's directory without its marker is not mounted, not empty.
// Guard: volume.Pool.Check.
func neverByUnmountedPool(t *testing.T, w *world) {
	w.write("pool.yaml", disk("stays", "1Mi")+disk("goes", "1Mi"))
	w.apply("two disks")
	goes := w.uid("Disk/goes")
	stays := w.uid("Disk/stays")
	dir := w.state("pools", "fast")
	w.must(os.Rename(dir, dir+".away"))
	w.must(os.Mkdir(dir, 0o700))
	w.write("pool.yaml", disk("stays", "1Mi")+disk("comes", "1Mi"))
	w.apply("one goes, one comes")
	w.kill()
	w.start()
	w.reconcile()
	for _, uid := range []string{goes, stays, w.uid("Disk/comes"), w.uid("StoragePool/fast")} {
		w.says(uid, "not mounted")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("in the directory below the mount: %v, %v", entries, err)
	}
	w.must(os.Remove(dir))
	w.must(os.Rename(dir+".away", dir))
	w.reconcile()
	w.settled()
	if w.byUID("quarantine", goes) == nil || w.uid("Disk/comes") == "" || w.uid("Disk/stays") != stays {
		t.Error("the commit is not carried out once the pool is back")
	}
}

// Never 2: a target that says nothing has not lost its disks. Guard: targetErr
// in iscsi.observation.disk.
func neverBySilentTarget(t *testing.T, w *world) {
	w.write("silent.yaml", disk("silent", "1Mi"))
	w.apply("a disk")
	uid := w.uid("Disk/silent")
	p := w.target()
	w.signal(p, syscall.SIGSTOP)
	defer func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) }()
	w.remove("silent.yaml")
	w.apply("remove it")
	w.says(uid, "blocked blocked")
	if w.byUID("quarantine", uid) != nil {
		t.Error("it is in quarantine")
	}
	w.signal(p, syscall.SIGCONT)
	w.reconcile()
	if w.byUID("quarantine", uid) == nil {
		t.Error("it is not in quarantine once the target answers")
	}
	if now := w.target(); now.PID != p.PID {
		t.Errorf("the target was %d, is %d", p.PID, now.PID)
	}
}

// Never 2: a QEMU that does not answer is neither absent nor replaced, and it
// holds up nobody else. Guard: observeProcess in drivers/kvm.
func neverBySilentQEMU(t *testing.T, w *world) {
	w.write("mute.yaml", bios("mute", ""))
	w.apply("a machine")
	uid := w.uid("VirtualMachine/mute")
	p := w.qemu(uid)
	w.signal(p, syscall.SIGSTOP)
	defer func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) }()
	w.kill() // a new agent has no connection from before
	w.start()
	w.write("quick.yaml", disk("quick", "1Mi")+bios("quick", "disks: [{disk: quick}]"))
	w.commit("another machine")
	began := time.Now()
	w.reconcile()
	took := time.Since(began)
	if w.qemu(w.uid("VirtualMachine/quick")).PID == 0 || took > 20*time.Second {
		t.Errorf("beside a silent QEMU another machine takes %s", took)
	}
	t.Logf("beside a silent QEMU another machine takes %s", took)
	w.says(uid, "does not answer")
	if o := w.byUID("all", uid); o.Health != "Degraded" {
		t.Errorf("it is %s", o.Health)
	}
	w.remove("mute.yaml")
	w.remove("quick.yaml")
	w.apply("remove both")
	w.says(uid, "does not answer")
	if now := w.qemu(uid); now.PID != p.PID {
		t.Errorf("QEMU was %d, is %d", p.PID, now.PID)
	}
	w.signal(p, syscall.SIGCONT)
	w.reconcile()
	if w.qemu(uid).PID != 0 {
		t.Error("it is not deleted once it answers")
	}
}

// foreign starts a QEMU that is not ours.
func (w *world) foreign(uid string) *exec.Cmd {
	w.t.Helper()
	pidfile := filepath.Join(w.dir, "foreign-"+uid+".pid") // the mark of the world
	cmd := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine", "none", "-name", "foreign", "-uuid", uid, "-pidfile", pidfile)
	w.must(cmd.Start())
	w.await(20*time.Second, "the foreign QEMU", func() bool { _, err := os.Stat(pidfile); return err == nil })
	return cmd
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // "signal: killed"
}

// Never 5: what is not ours is reported and left alone, over a restart, too.
// Guards: the owner in kvm's command lines, volume.List's strays, exports of
// which no record speaks.
func neverTouchUnmanaged(t *testing.T, w *world) {
	qemu := w.foreign(uuid.NewString())
	defer end(qemu)
	stray := w.volume(uuid.NewString())
	w.must(os.WriteFile(stray, []byte("precious"), 0o600))
	other := filepath.Join(w.dir, "other.img")
	w.must(os.WriteFile(other, make([]byte, 1<<20), 0o600))
	client := target.NewClient(filepath.Join(w.dir, "run", "target"))
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const iqn = "iqn.2026-11.local.other:disk"
	w.must(client.Put(ctx, target.Export{IQN: iqn, Path: other, Portals: []string{w.portal}}))
	for range 2 {
		w.reconcile()
		found := map[string]string{}
		p := w.plan()
		for _, u := range p.Unmanaged {
			if strings.Contains(u.Reason, fmt.Sprintf("pid %d)", qemu.Process.Pid)) {
				found["Process"] = u.Name
			}
			if u.Name == stray || u.Name == iqn {
				found[u.Kind] = u.Name
			}
		}
		if len(found) != 3 || w.status().Summary.Unmanaged < 3 {
			t.Errorf("reported are %v, in all %d", found, w.status().Summary.Unmanaged)
		}
		w.kill()
		w.start()
	}
	if err := qemu.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the foreign QEMU: %v", err)
	}
	if data, err := os.ReadFile(stray); err != nil || string(data) != "precious" {
		t.Errorf("the stray volume: %q, %v", data, err)
	}
	list, err := client.List(ctx)
	w.must(err)
	there := false
	for i := range list {
		there = there || list[i].IQN == iqn
	}
	if !there {
		t.Error("the foreign export is gone")
	}
	w.must(client.Remove(ctx, iqn))
	w.must(os.Remove(stray))
	w.reconcile()
}

// Never 6: a machine whose UUID runs already is not started, whoever runs it;
// and there is one agent of a host. Guards: kvm.observeMachine and findAny, the
// machine-wide lock of agent.lock.
func neverTwice(t *testing.T, w *world) {
	w.write("twice.yaml", bios("twice", "powerState: Stopped"))
	w.apply("a machine")
	uid := w.uid("VirtualMachine/twice")
	qemu := w.foreign(uid)
	defer end(qemu)
	w.write("twice.yaml", bios("twice", "powerState: Running"))
	w.apply("start it")
	w.says(uid, "was not started by this agent")
	if p := w.qemu(uid); p.PID != qemu.Process.Pid {
		t.Errorf("QEMU %d runs the machine, too", p.PID)
	}
	if o := w.byUID("all", uid); o.Health != "Degraded" {
		t.Errorf("it is %s", o.Health)
	}
	end(qemu)
	w.reconcile()
	if w.qemu(uid).PID == 0 {
		t.Error("it is not started once nobody else runs it")
	}
	p := w.qemu(uid)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	second := exec.CommandContext(ctx, binary, "run", "--state-dir", filepath.Join(w.dir, "state2"), "--run-dir", filepath.Join(w.dir, "run2"),
		"--image-dir", w.images, "--repo", "file://"+w.bare, "--branch", "main", "--host", "host1", "--accel", "tcg")
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another agent is running") {
		t.Errorf("a second agent with other directories: %v\n%s", err, out)
	}
	if now := w.qemu(uid); now.PID != p.PID {
		t.Errorf("QEMU was %d, is %d", p.PID, now.PID)
	}
	w.remove("twice.yaml")
	w.apply("remove it")
}

// Never 6: a disk has one writer. Guards: claims.Store.Acquire, unavailable in
// reconcile.
func neverTwoWriters(t *testing.T, w *world) {
	running := disk("sole", "1Mi") + bios("sole", "disks: [{disk: sole}]")
	w.write("sole.yaml", running)
	w.apply("a machine")
	uid := w.uid("VirtualMachine/sole")
	w.fails("in use", "access", "disk/sole", "--initiator", qemuInitiator, "--for", "1m")
	_, end := w.lend("sole", "--read-only") // a reader is no writer
	end()
	w.write("sole.yaml", disk("sole", "1Mi")+bios("sole", "disks: [{disk: sole}], powerState: Stopped"))
	w.apply("stop it")
	_, end = w.lend("sole")
	w.write("sole.yaml", running)
	w.apply("start it")
	w.expect("VirtualMachine/sole", reconcile.Waiting, "lent to an access")
	if p := w.qemu(uid); p.PID != 0 {
		t.Errorf("QEMU %d has the disk, too", p.PID)
	}
	end()
	w.reconcile()
	if w.qemu(uid).PID == 0 {
		t.Error("it is not started once the access is over")
	}
	w.remove("sole.yaml")
	w.apply("remove it")
}

// Never 8: what needs a restart waits until somebody asks for one. Guard:
// differ.running in reconcile.
func neverRestartUnannounced(t *testing.T, w *world) {
	cores := func(n int) string {
		return strings.Replace(bios("calm", ""), "cores: 1", fmt.Sprintf("cores: %d", n), 1)
	}
	w.write("calm.yaml", cores(1))
	w.apply("a machine")
	uid := w.uid("VirtualMachine/calm")
	was := w.qemu(uid)
	w.write("calm.yaml", cores(2))
	w.apply("another CPU")
	w.expect("VirtualMachine/calm", reconcile.Waiting, "reconciler restart vm/calm")
	w.kill()
	w.start()
	w.reconcile()
	if now := w.qemu(uid); now.PID != was.PID {
		t.Errorf("QEMU was %d, is %d: it was restarted and nobody asked", was.PID, now.PID)
	}
	w.cli("restart", "vm/calm")
	w.reconcile()
	if now := w.qemu(uid); now.PID == was.PID || now.PID == 0 {
		t.Errorf("QEMU was %d, is %d: it was not restarted", was.PID, now.PID)
	}
	w.remove("calm.yaml")
	w.apply("remove it")
}
