package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"reconciler/reconcile"
)

// stray is a world whose agent lost its memory, and whose tree does not know the
// machine web that runs.
func stray(t *testing.T) (w *world, pid int, uid string) {
	w = newWorld(t)
	const machine = "disks: [{name: root, disk: web-root}], nics: [{name: front, network: user}], restartPolicy: OnFailure"
	w.write("web.yaml", disk("web-root", "16Mi")+vm("web", "rt.mode=writer rt.disk=/dev/vda rt.blocks=4096", machine))
	w.commit("a machine")
	w.start()
	w.reconcile()
	w.serial("web").Wait(t, `^REC \d+[05] vda`, bootTime)
	w.settled()
	pid, uid = w.onlyQEMU(), w.uid("VirtualMachine/web")

	w.stop()
	w.must(os.RemoveAll(w.state("agent")))
	w.remove("web.yaml")
	w.commit("a tree that does not know the machine")
	w.start()
	w.reconcile()
	if a := w.actionOn("VirtualMachine/web"); a.State != reconcile.Blocked || !strings.Contains(a.Reason, "not deleted") {
		t.Fatalf("%s, %s: %s", a.Op, a.State, a.Reason)
	}
	return w, pid, uid
}

// What runs with our own records and nobody declares any more is proposed, and
// adopted without a restart when that is merged.
func TestUndeclaredIsProposed(t *testing.T) {
	w, pid, _ := stray(t)
	log := w.serialPath("web")
	const file = "imported/host1.yaml"
	w.await(passTime, file+" on the drift branch", func() bool {
		text, ok := w.bareGit("show", driftBranch+":"+file)
		return ok && strings.Contains(text, "name: web-root") && strings.Contains(text, "kind: VirtualMachine")
	})
	if changed, _ := w.bareGit("diff", "--name-only", "main", driftBranch); changed != file {
		t.Errorf("the branch changes %q", changed)
	}
	if message, _ := w.bareGit("log", "-1", "--format=%B", driftBranch); !strings.Contains(message, "is here, and no file declares it") {
		t.Errorf("the commit does not say what it is about:\n%s", message)
	}
	w.git("fetch", "-q", "origin", driftBranch)
	w.git("merge", "-q", "--no-ff", "-m", "accept", "FETCH_HEAD")
	w.git("push", "-q", "origin", "HEAD:main")
	w.reconcile()
	w.settled()
	w.noDriftBranch()
	if now := w.onlyQEMU(); now != pid {
		t.Errorf("the machine is process %d, was %d", now, pid)
	}
	if console, err := os.ReadFile(log); err != nil || strings.Count(string(console), "GUEST up") != 1 {
		t.Errorf("the guest was started again: %v", err)
	}
}

// What runs with our own records and nobody declares any more is written down
// by import, and adopted without a restart once it is committed.
func TestImport(t *testing.T) {
	w, pid, uid := stray(t)
	log := w.serialPath("web")
	dir := w.work + "/imported"
	out := w.cli("import", "-o", dir)
	for _, want := range []string{"Disk/web-root: commit the document", "VirtualMachine/web: commit the document"} {
		if !strings.Contains(out, want) {
			t.Errorf("import does not say %q:\n%s", want, out)
		}
	}
	if _, code := w.try("import", "-o", dir); code != 1 {
		t.Errorf("files that are there are written over: exit %d", code)
	}
	if text, code := w.try("import", "disk/nobody"); code != 1 || !strings.Contains(text, "is not here") {
		t.Errorf("exit %d: %s", code, text)
	}
	w.commit("adopt it")
	w.reconcile()
	w.settled()
	if now := w.onlyQEMU(); now != pid || w.uid("VirtualMachine/web") != uid {
		t.Errorf("the machine is process %d, was %d", now, pid)
	}
	if console, err := os.ReadFile(log); err != nil || strings.Count(string(console), "GUEST up") != 1 {
		t.Errorf("the guest was started again: %v", err)
	}
	// It is managed: a commit changes it, and its removal removes it.
	w.write("imported/disk-web-root.yaml", strings.Replace(w.read("imported/disk-web-root.yaml"), "16Mi", "32Mi", 1))
	w.commit("grow")
	w.reconcile()
	w.serial("web").Wait(t, `^DISK \S+ vda serial=\S+ size=33554432`, bootTime)
	w.settled()
	if now := w.onlyQEMU(); now != pid {
		t.Errorf("the machine is process %d, was %d", now, pid)
	}
}

// Of a QEMU that something else started, import tells what it is, and leaves
// it alone.
func TestImportForeign(t *testing.T) {
	w := newWorld(t)
	w.commit("a host")
	w.start()
	w.reconcile()
	w.foreignMachine()
	out := w.cli("import")
	for _, want := range []string{"kind: VirtualMachine", "size: 128Mi", "cannot be adopted as it is", "was started by something else"} {
		if !strings.Contains(out, want) {
			t.Errorf("import does not say %q:\n%s", want, out)
		}
	}
	w.settled()
}

func (w *world) read(path string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.work + "/" + path)
	w.must(err)
	return string(b)
}

// foreignMachine starts a QEMU as an operator may do by hand.
func (w *world) foreignMachine() {
	w.t.Helper()
	socket := w.dir + "/foreign.qmp"
	cmd := exec.Command("qemu-system-x86_64", "-name", "guest=by-hand", "-nodefaults", "-display", "none", "-m", "128",
		"-machine", "q35", "-accel", "tcg", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56",
		"-chardev", "socket,id=m,path="+socket+",server=on,wait=off", "-mon", "chardev=m,mode=control")
	w.must(cmd.Start())
	w.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	w.await(bootTime, "the monitor of a QEMU started by hand", func() bool { _, err := os.Stat(socket); return err == nil })
}
