package kvm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

// impostor starts a process that calls itself QEMU and is a shell.
func impostor(t *testing.T, uid int, args ...string) int {
	t.Helper()
	cmd := exec.Command("/bin/sh")
	cmd.Args = append([]string{"qemu-system-x86_64", "-c", "read line"}, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = io.WriteString(in, "\n")
		in.Close()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// Whoever calls a process of his own QEMU, with a machine's UUID and even the
// agent's marker, keeps no machine from anything.
func TestImpostors(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	d, _ := bare(t)
	a := bareVM(9)
	ours := marker(d.owner, "l9")
	pids := []int{
		impostor(t, 65534, "-uuid", a.UID, "-name", "fake"),
		impostor(t, 65534, "-uuid", a.UID, "-name", "twin", "-mon", "chardev="+ours),
		impostor(t, 0, "-uuid", a.UID, "-name", "shell"),
	}
	in := reconcile.Inputs{Launch: "l9", Networks: map[string]*spec.Network{"n": {User: &spec.UserNetwork{}}}}
	if _, err := d.Apply(t.Context(), a, in); err != nil {
		t.Fatal(err)
	}
	want := &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{a.Key(): a.Want}}
	s, err := d.ObserveFresh(t.Context(), want)
	if err != nil || s.Objects[a.Key()] == nil || s.Objects[a.Key()].VM.Power != reconcile.PowerRunning {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, pid := range pids {
		if !strings.Contains(fmt.Sprint(s.Unmanaged), strconv.Itoa(pid)) {
			t.Errorf("process %d is not among %v", pid, s.Unmanaged)
		}
	}
	// Stopping it by force says whether there was anything to stop.
	stop := a
	stop.Op = reconcile.OpStop
	for _, idle := range []bool{false, true} {
		out, err := d.Apply(t.Context(), stop, reconcile.Inputs{Force: true})
		if err != nil || out.Idle != idle {
			t.Errorf("%+v, %v, want idle %v", out, err, idle)
		}
	}
	for _, pid := range pids {
		if there, err := (process{pid: pid, start: startOf(t, pid)}).alive(); err != nil || !there {
			t.Errorf("process %d was ended: %v", pid, err)
		}
	}
}

// overwrite makes a process's arguments unreadable, as the process itself could.
func overwrite(t *testing.T, pid int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	from, err := strconv.ParseInt(f[45], 10, 64) // arg_start, field 48
	if err != nil {
		t.Fatal(err)
	}
	to, err := strconv.ParseInt(f[46], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if _, err := mem.WriteAt(bytes.Repeat([]byte("x"), int(to-from)), from); err != nil {
		t.Fatal(err)
	}
	if p, ok, err := inspect(pid); ok || err != nil {
		t.Fatalf("it is still recognised by its arguments: %+v, %v", p, err)
	}
}

// A QEMU that rewrites its arguments is found by the lock it holds.
func TestHiddenProcess(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can write to another process")
	}
	d, _ := bare(t)
	want := startBare(t, d, 10)
	desired := &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{want.Key(): want}}
	look := func() *reconcile.LiveVM {
		t.Helper()
		s, err := d.ObserveFresh(t.Context(), desired)
		if err != nil || s.Objects[want.Key()] == nil {
			t.Fatalf("%v %v", s.Unknown, err)
		}
		return s.Objects[want.Key()].VM
	}
	before := look()
	overwrite(t, before.PID)
	d.Close()
	d, err := New(d.cfg) // the next agent has nothing but the process table and the lock
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if now := look(); now.PID != before.PID || now.Launch != before.Launch || now.Power != reconcile.PowerRunning {
		t.Fatalf("%+v, before %+v", now, before)
	}
	// Nothing starts it a second time.
	start := reconcile.Action{Kind: want.Kind, Name: want.Name, UID: want.UID, Op: reconcile.OpStart, Want: want}
	if _, err := d.Apply(t.Context(), start, reconcile.Inputs{Launch: "other"}); err != nil {
		t.Fatal(err)
	}
	if now := look(); now.PID != before.PID {
		t.Fatalf("%+v, before %+v", now, before)
	}
	p := process{pid: before.PID, start: startOf(t, before.PID)}
	del := reconcile.Action{Kind: want.Kind, Name: want.Name, UID: want.UID, Op: reconcile.OpDelete}
	if _, err := d.Apply(t.Context(), del, reconcile.Inputs{Force: true}); err != nil {
		t.Fatal(err)
	}
	if there, err := p.alive(); err != nil || there {
		t.Errorf("it was forgotten and goes on: %v", err)
	}
	if exists(d.lockPath(want.UID)) {
		t.Error("its lock is left")
	}
}

// A lock that is held by nobody who can be found makes the machine unknown, not
// off.
func TestHeldLock(t *testing.T) {
	t.Parallel()
	d, _ := bare(t)
	want := startBare(t, d, 11)
	m := d.machine(want.UID)
	p, err := d.find(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.kill(t.Context(), m, *p); err != nil {
		t.Fatal(err)
	}
	f, err := d.lock(t.Context(), want.UID) // by this process, which never counts
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	desired := &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{want.Key(): want}}
	s, err := d.ObserveFresh(t.Context(), desired)
	if why := s.Unknown[want.Key()]; err != nil || !strings.Contains(why, "still holds the lock") {
		t.Fatalf("%q, %v", why, err)
	}
	begun := time.Now()
	f.Close()
	s, err = d.ObserveFresh(t.Context(), desired)
	if err != nil || s.Objects[want.Key()] == nil || s.Objects[want.Key()].VM.Power != reconcile.PowerStopped {
		t.Fatalf("%+v, %v", s, err)
	}
	if took := time.Since(begun); took > holderPatience {
		t.Errorf("it took %v", took)
	}
}

// A run directory that somebody else owns is refused, with words.
func TestForeignRunDirectory(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	d, _ := bare(t)
	a := bareVM(12)
	if err := makeRunDir(d.run, d.runDir(a.UID)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(d.runDir(a.UID), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := d.Apply(t.Context(), a, reconcile.Inputs{Launch: "l", Networks: map[string]*spec.Network{"n": {User: &spec.UserNetwork{}}}})
	if err == nil || !strings.Contains(err.Error(), "belongs to user") || !strings.Contains(err.Error(), d.runDir(a.UID)) {
		t.Errorf("%v", err)
	}
}
