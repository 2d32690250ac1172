package kvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

// A QEMU that runs no vCPU, for whatever reason, proves nothing.
func TestProveKVM(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ script, why string }{
		"works":   {`echo "SeaBIOS (version 1)"; exec sleep 60`, ""},
		"aborts":  {`echo "qemu: error: failed to set MSR 0x10a" >&2; exit 134`, "failed to set MSR 0x10a"},
		"is mute": {`exec sleep 60`, "did not run within"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := filepath.Join(t.TempDir(), "qemu")
			if err := os.WriteFile(fake, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			err := proveKVM(t.Context(), fake, 2*time.Second)
			var no *NoKVMError
			if tt.why == "" && err != nil || tt.why != "" && (!errors.As(err, &no) || !strings.Contains(no.Reason, tt.why)) {
				t.Errorf("error %v, want %q", err, tt.why)
			}
		})
	}
}

// Where KVM does not prove itself a machine is not started with less, unless
// the host says so.
func TestAccel(t *testing.T) {
	t.Parallel()
	d, _ := bare(t)
	d.accel.at, d.accel.err = time.Now(), &NoKVMError{"for the test"}
	d.cfg.Accel = AccelKVM
	var no *NoKVMError
	a := bareVM(1)
	_, err := d.Apply(t.Context(), a, reconcile.Inputs{Launch: "l", Networks: map[string]*spec.Network{"n": {User: &spec.UserNetwork{}}}})
	if !errors.As(err, &no) || exists(d.runDir(a.UID)) {
		t.Fatalf("error %v, want a NoKVMError and nothing begun", err)
	}
	d.cfg.Accel = AccelAuto
	want := startBare(t, d, 1)
	if got := d.machine(want.UID).snapshot().Launch.Accel; got != AccelTCG {
		t.Errorf("accelerator %s", got)
	}
}

// foreign starts a QEMU that is not ours.
func foreign(t *testing.T, args ...string) int {
	t.Helper()
	dir := shortDir(t)
	sock := filepath.Join(dir, "s")
	cmd := exec.Command("qemu-system-x86_64", append([]string{"-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:" + sock + ",server=on,wait=off"}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, 10*time.Second, "QEMU to listen", func() error { _, err := os.Stat(sock); return err })
	return cmd.Process.Pid
}

// What is not ours is reported and left alone, and its UUID is never started.
func TestUnmanaged(t *testing.T) {
	t.Parallel()
	d, _ := bare(t)
	a := bareVM(7)
	other := marker("ffffffff", "l1")
	pids := map[string]int{
		"by-hand": foreign(t, "-name", "by-hand"),
		"theirs":  foreign(t, "-name", "theirs", "-uuid", a.UID, "-chardev", "null,id="+other, "-mon", "chardev="+other+",mode=control"),
		"lost":    foreign(t, "-name", "lost", "-uuid", spec.UID("x", "y", spec.Meta{}), "-chardev", "null,id="+marker(d.owner, "l2"), "-mon", "chardev="+marker(d.owner, "l2")+",mode=control"),
	}
	want := &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{a.Key(): a.Want}}
	s, err := d.Observe(t.Context(), want)
	if err != nil || len(s.Objects) != 0 || !s.Complete[spec.KindVirtualMachine] {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, pid := range pids {
		found := false
		for _, u := range s.Unmanaged {
			found = found || u.Name == name && u.Kind == "Process" && strings.Contains(u.Reason, fmt.Sprintf("pid %d", pid))
		}
		if !found {
			t.Errorf("%s is not among %v", name, s.Unmanaged)
		}
	}
	_, err = d.Apply(t.Context(), a, reconcile.Inputs{Launch: "l", Networks: map[string]*spec.Network{"n": {User: &spec.UserNetwork{}}}})
	if err == nil || !strings.Contains(err.Error(), "was not started by this agent") {
		t.Errorf("start beside another's process: %v", err)
	}
	del := reconcile.Action{Kind: a.Kind, Name: a.Name, UID: a.UID, Op: reconcile.OpDelete}
	if _, err := d.Apply(t.Context(), del, reconcile.Inputs{Force: true}); err != nil {
		t.Error(err)
	}
	for name, pid := range pids {
		if _, ok, err := inspect(pid); !ok || err != nil {
			t.Errorf("%s was ended", name)
		}
	}
}

// Two processes of ours with one UUID are a case for people.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	d, _ := bare(t)
	a := bareVM(8)
	for _, l := range []string{"l1", "l2"} {
		foreign(t, "-name", "twin", "-uuid", a.UID, "-chardev", "null,id="+marker(d.owner, l), "-mon", "chardev="+marker(d.owner, l)+",mode=control")
	}
	want := &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{a.Key(): a.Want}}
	s, err := d.Observe(t.Context(), want)
	if err != nil || !strings.Contains(s.Unknown[a.Key()], "two QEMU processes have this machine's UUID") {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, op := range []reconcile.Op{reconcile.OpStart, reconcile.OpStop} {
		a.Op = op
		if _, err := d.Apply(t.Context(), a, reconcile.Inputs{Launch: "l"}); err == nil || !strings.Contains(err.Error(), "two QEMU processes") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// A machine whose record was lost is still ours while it is declared.
func TestLostRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.up("web", diskYAML("root", "64Mi"), vmYAML("web", "rt.mode=idle", "disks: [{disk: root}]", "nics: [{name: n, network: out}]"))
	before := r.vm("web")
	r.d.Close()
	if err := os.Remove(filepath.Join(r.d.dir, before.UID+recordSuffix)); err != nil {
		t.Fatal(err)
	}
	r.restart()
	live := r.vm("web")
	if live.VM.PID != before.VM.PID || live.VM.Launch != before.VM.Launch || live.VM.Disks["root"] != before.VM.Disks["root"] {
		t.Fatalf("%+v, before %+v", live.VM, before.VM)
	}
	if got := live.Get("spec.memory.size"); got != "128Mi" {
		t.Errorf("memory %s", got)
	}
	a := reconcile.Action{Kind: live.Kind, Name: "web", UID: live.UID, Op: reconcile.OpUpdate, Want: r.want.Objects[live.Key()], Have: live}
	if err := r.apply(a); err != nil {
		t.Fatal(err)
	}
	r.converge()
	if list := r.plan(); len(list) > 0 {
		t.Errorf("the plan is not empty:\n%s", describe(list))
	}
	r.declare()
	r.converge()
	r.noProcess()
}

// Firmware starts a disk's boot loader, with directories whose sockets have no
// short names, and as another user.
func TestBIOSBootAsUser(t *testing.T) {
	t.Parallel()
	deep := filepath.Join(shortDir(t), strings.Repeat("deep/", 20))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(deep), 0o755); err != nil {
		t.Fatal(err)
	}
	testbed.Reap(t, deep)
	r := newRig(t, func(c *Config) {
		c.StateDir, c.RunDir, c.User = filepath.Join(deep, "state"), filepath.Join(deep, "run"), &User{65534, 65534}
	})
	for dir := deep; len(dir) > len(os.TempDir())+1; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bios := "---\napiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: web}\nspec: {host: host1, cpu: {cores: 1}, memory: {size: 32Mi}, disks: [{disk: root}%s]}\n"
	r.read(diskYAML("root", "1Mi"))
	uid := r.uid(spec.KindDisk, "root")
	r.tgtd.serve(t, uid, spec.MiB)
	if err := os.WriteFile(r.tgtd.disks[uid].file, bootSector("OK from the disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.declare(diskYAML("root", "1Mi"), diskYAML("data", "1Mi"), fmt.Sprintf(bios, ""))
	r.converge()
	r.follow("web")
	// The boot sector ends without a newline.
	eventually(t, 30*time.Second, "the boot sector to run", func() error {
		if !strings.Contains(testbed.Tail(r.d.consoleLog(r.key("web").UID), 3), "OK from the disk") {
			return errors.New("it has not")
		}
		return nil
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.vm("web").VM.PID))
	if err != nil || !strings.Contains(string(status), "Uid:\t65534\t65534") || !strings.Contains(string(status), "Seccomp:\t2") {
		t.Errorf("QEMU runs as:\n%s%v", status, err)
	}
	r.declare(diskYAML("root", "1Mi"), diskYAML("data", "1Mi"), fmt.Sprintf(bios, ", {disk: data}"))
	r.converge()
	if live := r.vm("web"); len(live.VM.Disks) != 2 {
		t.Errorf("disks %v", live.VM.Disks)
	}
	r.restart()
	if live := r.vm("web"); live.VM.Power != reconcile.PowerRunning {
		t.Errorf("after a restart: %+v", live.VM)
	}
}

// bootSector is a disk of 1 MiB whose boot sector writes text to the first
// serial port and halts.
func bootSector(text string) []byte {
	code := []byte{
		0xfc,       // cld
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x17, 0x7c, // mov si, text
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xac,       // lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz halt
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp lodsb
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
		0x90,
	}
	disk := make([]byte, 1<<20)
	copy(disk, code)
	copy(disk[len(code):], text)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}
