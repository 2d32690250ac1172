package kvm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Whatever is attached and detached, no two devices share a port, and a device
// that comes back has its old port unless it had to be given away.
func TestSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := map[string]int{}
		limit := rapid.IntRange(1, 10).Draw(t, "ports")
		var inUse []string
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			id := fmt.Sprint("disk-", rapid.IntRange(0, 14).Draw(t, "device"))
			if i := slices.Index(inUse, id); i >= 0 {
				inUse = slices.Delete(inUse, i, i+1)
				continue
			}
			before, had := slots[id]
			full := len(inUse) == limit
			err := assign(slots, inUse, id, limit)
			if full != (err != nil) {
				t.Fatalf("%d of %d ports in use: %v", len(inUse), limit, err)
			}
			if err != nil {
				continue
			}
			if had && slots[id] != before {
				t.Fatalf("%s moved from %d to %d", id, before, slots[id])
			}
			inUse = append(inUse, id)
			seen := map[int]string{}
			for device, port := range slots {
				if port < 0 || port >= limit || seen[port] != "" {
					t.Fatalf("%s has port %d of %d, which is also %q's", device, port, limit, seen[port])
				}
				seen[port] = device
			}
		}
	})
}

func TestPlanKeepsPorts(t *testing.T) {
	slots := map[string]int{"disk-b": 0, "nic-old": 1}
	n, err := plan(slots, []string{"disk-b", "disk-a"}, 12)
	if err != nil || n != 12 || slots["disk-b"] != 0 || slots["disk-a"] != 2 {
		t.Errorf("%d ports, %v, %v", n, slots, err)
	}
	if n, err := plan(map[string]int{}, nil, 0); err != nil || n != sparePorts {
		t.Errorf("%d ports, %v", n, err)
	}
}

func TestParseCmdline(t *testing.T) {
	ours := []string{"-name", "guest=web,debug-threads=on", "-uuid", "U-1", "-mon", "chardev=reconciler.0a0b.launch-1,mode=control"}
	for name, tt := range map[string]struct {
		argv []string
		want process
		ok   bool
	}{
		"ours":                {append([]string{"/usr/bin/qemu-system-x86_64"}, ours...), process{uuid: "u-1", name: "web", owner: "0a0b", launch: "launch-1"}, true},
		"ours as a shell yet": {append([]string{"/bin/sh", "-c", shell, "1", "qemu-system-x86_64"}, ours...), process{uuid: "u-1", name: "web", owner: "0a0b", launch: "launch-1", becoming: true}, true},
		"libvirt's":           {[]string{"/usr/bin/qemu-system-x86_64", "-name", "guest=db,debug-threads=on", "-uuid", "u-2", "-mon", "chardev=charmonitor,id=monitor,mode=control"}, process{uuid: "u-2", name: "db"}, true},
		"by hand":             {[]string{"kvm", "--name", "x", "--uuid", "u-3"}, process{uuid: "u-3", name: "x"}, true},
		"a tool of QEMU's":    {[]string{"qemu-img", "-uuid", "u"}, process{uuid: "u"}, false},
		"someone looking":     {[]string{"grep", "qemu-system-x86_64"}, process{}, false},
	} {
		if got, ok := parseCmdline(tt.argv); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
}

// No password is on the command line or in the record.
func TestArgvHoldsNoSecret(t *testing.T) {
	b := birth{
		uid: "u", name: "web", launch: "l", owner: "o", machine: "pc-q35-7.2", accel: AccelTCG, ports: 1,
		vm:     &spec.VirtualMachine{CPU: spec.CPU{Sockets: 1, Cores: 1, Threads: 1, Model: "host"}, Memory: spec.Memory{Size: spec.GiB}},
		slots:  map[string]int{"disk-root": 0},
		disks:  []disk{{entry: "root", name: "r", grant: claim.Grant{Disk: "d-1", Portal: "p:1", Password: claim.NewSecret("geheim")}}},
		secret: func(string) string { return "/run/s" }, console: "/run/c", consoleLog: "/with,comma", diskTimeout: 15,
	}
	argv, err := b.argv()
	all := strings.Join(argv, " ")
	if err != nil || strings.Contains(all, "geheim") || strings.Contains(all, "sensitive") {
		t.Errorf("%v: %s", err, all)
	}
	for _, want := range []string{"-S", "-cpu max", `"timeout":15`, "/with,,comma", "shutdown=pause,panic=pause", "spawn=deny", `"werror":"stop"`} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is not in %s", want, all)
		}
	}
	b.user = &User{1000, 1000}
	b.vm.CPU.Max = 4
	b.vm.Memory.Max = 2 * spec.GiB
	argv, err = b.argv()
	all = strings.Join(argv, " ")
	for _, want := range []string{"-runas 1000:1000", "elevateprivileges=allow", "cpus=1,maxcpus=4,sockets=4,cores=1,threads=1", "size=1024M,slots=16,maxmem=2048M"} {
		if err != nil || !strings.Contains(all, want) {
			t.Errorf("%v: %s is not in %s", err, want, all)
		}
	}
	b.vm.CPU = spec.CPU{Sockets: 1, Cores: 2, Threads: 1, Max: 3}
	if _, err := b.argv(); err == nil {
		t.Error("an odd maximum of CPUs is accepted")
	}
}

func TestPin(t *testing.T) {
	q := qemuBinary{path: "qemu-system-x86_64"}
	newest, err := q.pin(t.Context(), "q35", "")
	if err != nil || !strings.HasPrefix(newest, "pc-q35-") {
		t.Fatalf("%s, %v", newest, err)
	}
	for _, tt := range [][3]string{
		{"q35", "pc-q35-6.0", "pc-q35-6.0"}, {"", "pc-q35-6.0", "pc-q35-6.0"}, {"", "", newest},
		{"pc-q35-6.1", "pc-q35-6.0", "pc-q35-6.1"}, {"pc-q35-1.0", "", ""}, {"q35", "pc-q35-99.0", ""}, {"microvm", "", ""},
	} {
		got, err := q.pin(t.Context(), tt[0], tt[1])
		if got != tt[2] || (err != nil) != (tt[2] == "") {
			t.Errorf("%s pinned to %s becomes %s, %v", tt[0], tt[1], got, err)
		}
	}
}

func TestOverlay(t *testing.T) {
	recorded := []reconcile.Field{
		{Path: "spec.boot.cmdline", Value: "x"}, {Path: "spec.cpu.cores", Value: "1"},
		{Path: "spec.disks[data].disk", Value: "d"}, {Path: "spec.disks[data].size", Value: "1Gi"},
		{Path: "spec.disks[half].disk", Value: "h"}, {Path: "spec.disks[half].size", Value: "1Gi"},
		{Path: "spec.disks[root].disk", Value: "r"}, {Path: "spec.disks[root].io", Value: "fast"}, {Path: "spec.disks[root].size", Value: "1Gi"},
		{Path: "metadata.labels[tier]", Value: "web"},
	}
	observed := []reconcile.Field{
		{Path: "spec.cpu.cores", Value: "2"}, {Path: "spec.disks[root].disk", Value: "r"}, {Path: "spec.disks[root].size", Value: "2Gi"},
		{Path: "spec.disks[half].disk", Value: "h (incomplete)"},
	}
	here := map[string]bool{"spec.disks[root]": true, "spec.disks[half]": true}
	var got []string
	for _, f := range overlay(recorded, func(e string) bool { return here[e] }, observed) {
		got = append(got, f.Path+"="+f.Value)
	}
	want := "metadata.labels[tier]=web spec.boot.cmdline=x spec.cpu.cores=2 spec.disks[half].disk=h (incomplete) spec.disks[root].disk=r spec.disks[root].io=fast spec.disks[root].size=2Gi"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func TestBackoff(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := &record{Launch: &launch{At: now}}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		r.Exit = nil
		r.Launch.At = now
		now = now.Add(time.Minute)
		if !r.end(exit{At: now}) || r.RetryAt.Sub(now) != want*time.Second {
			t.Fatalf("end %d is retried after %v", i+1, r.RetryAt.Sub(now))
		}
		if r.end(exit{At: now.Add(time.Hour)}) {
			t.Fatal("one end was counted twice")
		}
	}
	r.Exit, r.Launch.At = nil, now
	now = now.Add(backoffCalm)
	if r.end(exit{At: now}); r.RetryAt.Sub(now) != time.Second {
		t.Errorf("after a calm run the end is retried after %v", r.RetryAt.Sub(now))
	}
	r.Exit, r.Intent, r.IntentAt = nil, intentStop, now
	if r.end(exit{At: now.Add(time.Second)}) {
		t.Error("an end that was asked for is held against the guest")
	}
	if !r.end(exit{At: now.Add(time.Hour)}) {
		t.Error("an old stop that was never finished excuses an end")
	}
}

// A clock that was years ahead when a machine ended, or is now, does not keep it
// off, in records of today and of the first builds.
func TestBackoffOfAClockThatWasWrong(t *testing.T) {
	now, future := time.Now(), time.Now().AddDate(10, 0, 0)
	r := &record{Launch: &launch{At: future}}
	r.end(exit{At: future})
	if at := r.retryAt(clockAt(now)); at.Sub(now) > 2*time.Second {
		t.Errorf("it is tried again at %s, and now it is %s", at, now)
	}
	later := clockAt(now)
	later.Up += 2 * time.Second
	if at := r.retryAt(later); !at.IsZero() {
		t.Errorf("two seconds later it still waits until %s", at)
	}
	later.BootID, later.Up = "another", time.Second
	if at := r.retryAt(later); !at.IsZero() {
		t.Errorf("after a reboot it still waits until %s", at)
	}
	if at := (&record{RetryAt: future}).retryAt(clockAt(now)); !at.IsZero() {
		t.Errorf("a record of the first builds waits until %s", at)
	}
	if at := (&record{RetryAt: now.Add(time.Minute)}).retryAt(clockAt(now)); !at.Equal(now.Add(time.Minute)) {
		t.Errorf("a record of the first builds does not wait: %s", at)
	}
}

// A record that cannot be read is no absence.
func TestBrokenRecord(t *testing.T) {
	dir := shortDir(t)
	uid := spec.UID("demo", spec.KindVirtualMachine, spec.Meta{Name: "web"})
	vms := filepath.Join(dir, "vms")
	if err := os.MkdirAll(vms, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{uid: "{", "other": `{"uid":"another"}`} {
		if err := os.WriteFile(filepath.Join(vms, name+".json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := New(Config{StateDir: dir, RunDir: dir, Storage: &prober{}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s, err := d.Observe(t.Context(), &reconcile.Desired{})
	if err != nil || len(s.Unknown) != 2 || len(s.Objects) != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	a := reconcile.Action{Kind: spec.KindVirtualMachine, UID: uid, Op: reconcile.OpDelete}
	if _, err := d.Apply(t.Context(), a, reconcile.Inputs{}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("delete: %v", err)
	}
}

// While somebody holds a machine's lock, as a QEMU does that was overlooked in
// the process table, none is started.
func TestLock(t *testing.T) {
	d, _ := bare(t)
	held, err := d.lock(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{held}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	held.Close()
	done := make(chan error, 1)
	go func() {
		f, err := d.lock(t.Context(), "u")
		if err == nil {
			f.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("the lock was free: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestTurnOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := turnOver(path); err != nil {
		t.Fatal(err)
	}
	qemu, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	if _, err := qemu.Write([]byte(strings.Repeat("x", turnAt) + "last")); err != nil {
		t.Fatal(err)
	}
	if err := turnOver(path); err != nil {
		t.Fatal(err)
	}
	if _, err := qemu.WriteString("new"); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil || string(now) != "new" {
		t.Errorf("%q, %v", now, err)
	}
	old, err := os.ReadFile(path + ".1")
	if err != nil || len(old) != turnAt || !strings.HasSuffix(string(old), "last") {
		t.Errorf("%d bytes, %v", len(old), err)
	}
}
