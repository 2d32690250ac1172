package kvm

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/reconcile"
)

// The guest outlives the driver and the run directory, and can be changed and
// stopped after their loss.
func TestAdopt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one := vmYAML("web", writer, "disks: [{disk: root}]")
	r.up("web", diskYAML("root", "64Mi"), diskYAML("data", "32Mi"), one)
	before := r.vm("web")

	r.restart()
	if live := r.vm("web"); live.VM.PID != before.VM.PID || live.VM.Launch != before.VM.Launch {
		t.Fatalf("after a new driver: %+v, before: %+v", live.VM, before.VM)
	}
	if list := r.plan(); len(list) > 0 {
		t.Fatalf("the plan is not empty:\n%s", describe(list))
	}

	if err := os.RemoveAll(r.cfg.RunDir); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if live := r.vm("web"); live.VM.PID != before.VM.PID || live.VM.Power != reconcile.PowerRunning {
		t.Fatalf("without the run directory: %+v", live.VM)
	}
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "32Mi"), vmYAML("web", writer, "disks: [{disk: root}, {disk: data}]", "nics: [{name: n, network: out}]"))
	r.converge()
	r.sees("web", `^DISK add vdb`)
	r.sees("web", `^NIC add eth0`)
	if pipe, socket := r.d.ConsoleInput(r.key("web").UID); pipe != "" || socket != "" {
		t.Errorf("a console without its directory: %q, %q", pipe, socket)
	}
	r.declare()
	r.converge()
	r.noProcess()
	r.nothingOnDisk()
}

// nothingOnDisk fails if a deleted machine left a file.
func (r *rig) nothingOnDisk() {
	r.t.Helper()
	for _, dir := range []string{r.d.dir, r.d.run} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			r.t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				r.t.Errorf("%s/%s is left", dir, e.Name())
			}
		}
	}
}

// One QEMU that answers nothing holds up no other, and is not stopped twice.
func TestSilentQEMU(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.ObserveTimeout = 2 * time.Second })
	both := []string{vmYAML("mute", "rt.mode=idle", "shutdown: {timeout: 1s}"), vmYAML("web", "rt.mode=idle")}
	r.declare(both...)
	r.converge()
	mute := r.vm("mute")
	if err := unix.Kill(mute.VM.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		begun := time.Now()
		s := r.observe()
		if why := s.Unknown[r.key("mute")]; !strings.Contains(why, "does not answer QMP") {
			t.Fatalf("the silent machine is unknown because %q", why)
		}
		if live := s.Objects[r.key("web")]; live == nil || live.VM.Power != reconcile.PowerRunning {
			t.Fatalf("the other machine: %+v", live)
		}
		if d := time.Since(begun); d > 8*time.Second {
			t.Errorf("observing took %v", d)
		}
	}
	r.restart() // a driver that has never been connected
	if why := r.observe().Unknown[r.key("mute")]; !strings.Contains(why, "does not answer QMP") {
		t.Fatalf("the silent machine is unknown because %q", why)
	}
	a := reconcile.Action{Kind: mute.Kind, Name: "mute", UID: mute.UID, Op: reconcile.OpStart, Want: r.want.Objects[r.key("mute")], Have: mute}
	if err := r.apply(a); err == nil {
		t.Fatal("a second process was started beside a silent one")
	}
	if err := unix.Kill(mute.VM.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the machine to be known again", func() error {
		if why := r.observe().Unknown[r.key("mute")]; why != "" {
			return &SilentError{mute.VM.PID}
		}
		return nil
	})
	if err := unix.Kill(mute.VM.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	a.Op = reconcile.OpStop
	begun := time.Now()
	if err := r.apply(a); err != nil {
		t.Fatalf("stop of a silent QEMU: %v", err)
	}
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("the stop took %v", d)
	}
	if live := r.vm("mute"); live.VM.Power != reconcile.PowerStopped || live.VM.Exit != "" {
		t.Errorf("after the stop: %+v", live.VM)
	}
}

func TestHowAGuestEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	web := vmYAML("web", "rt.mode=idle", "restartPolicy: OnFailure")
	r.up("web", web)

	// It shuts down by itself: OnFailure leaves it off, and the process goes.
	r.types("web", "poweroff")
	live := r.waitPower("web", reconcile.PowerEnded)
	if live.VM.Exit != "the guest shut down" || live.VM.Failed || live.VM.PID == 0 {
		t.Fatalf("after poweroff: %+v", live.VM)
	}
	r.converge()
	r.noProcess()
	live = r.vm("web")
	if live.VM.Power != reconcile.PowerStopped || live.VM.Exit != "the guest shut down" {
		t.Fatalf("after the process was removed: %+v", live.VM)
	}
	if list := r.plan(); len(list) > 0 {
		t.Fatalf("OnFailure does not leave it off:\n%s", describe(list))
	}

	// Always starts it, after the back-off.
	r.declare(strings.Replace(web, "OnFailure", "Always", 1))
	eventually(t, 20*time.Second, "the start to be ready", func() error {
		r.converge()
		return stateIs(r, reconcile.PowerRunning)
	})
	r.serial.Wait(t, `^GUEST up`, 60*time.Second)

	// A panic is a failure.
	// What the pvpanic driver of a kernel that panics does.
	conn, err := r.d.machine(live.UID).link.connection(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Do(t.Context(), "human-monitor-command", map[string]any{"command-line": "o /b 0x505 1"}, nil); err != nil {
		t.Fatal(err)
	}
	live = r.waitPower("web", reconcile.PowerEnded)
	if live.VM.Exit != "the guest panicked" || !live.VM.Failed || live.VM.RetryAt.IsZero() {
		t.Fatalf("after a panic: %+v", live.VM)
	}
	if got := live.VM.RetryAt; got != r.vm("web").VM.RetryAt {
		t.Error("the retry moves with every observation")
	}
	rec := r.d.machine(live.UID).snapshot()
	if rec.Failures != 2 || rec.RetryAt.Sub(rec.Exit.At) != 2*time.Second {
		t.Errorf("the second end in a row is retried after %v", rec.RetryAt.Sub(rec.Exit.At))
	}
	eventually(t, 20*time.Second, "the machine to run again", func() error {
		r.converge()
		return stateIs(r, reconcile.PowerRunning)
	})

	r.serial.Wait(t, `^GUEST up`, 60*time.Second)

	// So is the death of QEMU, also while no agent is there.
	pid := r.vm("web").VM.PID
	r.d.Close()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "QEMU to be gone", func() error { return gonePID(pid) })
	r.restart()
	live = r.vm("web")
	if live.VM.Power != reconcile.PowerStopped || !live.VM.Failed || !strings.HasPrefix(live.VM.Exit, "QEMU ended") || live.VM.PID != 0 || live.VM.Launch != "" {
		t.Fatalf("after SIGKILL: %+v", live.VM)
	}
	if rec := r.d.machine(live.UID).snapshot(); rec.Failures != 3 {
		t.Errorf("%d ends in a row", rec.Failures)
	}
	eventually(t, 20*time.Second, "the machine to run again", func() error {
		r.converge()
		return stateIs(r, reconcile.PowerRunning)
	})

	// A stop that is asked for forgets them.
	r.declare(strings.Replace(web, "host: host1", "host: host1\n  powerState: Stopped", 1))
	r.serial.Wait(t, `^GUEST up`, 60*time.Second)
	r.converge()
	if rec := r.d.machine(live.UID).snapshot(); rec.Failures != 0 || rec.Exit != nil || rec.Intent != "" {
		t.Errorf("after a stop: %+v", rec)
	}
}

func stateIs(r *rig, power reconcile.Power) error {
	if live := r.vm("web"); live.VM.Power != power {
		return os.ErrDeadlineExceeded
	}
	return nil
}

func gonePID(pid int) error {
	if _, ok, err := inspect(pid); ok || err != nil {
		return os.ErrExist
	}
	return nil
}

// A paused guest goes on; somebody else's pause is drift.
func TestPausedGuest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.declare(vmYAML("web", "rt.mode=idle"))
	r.converge()
	before := r.vm("web")
	conn, err := r.d.machine(before.UID).link.connection(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Raw(t.Context()).Stop(); err != nil {
		t.Fatal(err)
	}
	r.waitPower("web", reconcile.PowerPaused)
	r.converge()
	if live := r.vm("web"); live.VM.Power != reconcile.PowerRunning || live.VM.PID != before.VM.PID {
		t.Fatalf("after the resume: %+v", live.VM)
	}
}

// A host that went down brings everything back as it was, without a back-off.
func TestHostReboot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	web := vmYAML("web", writer, "restartPolicy: Never", "disks: [{disk: root}]", "nics: [{name: a, network: out}, {name: b, network: out}]")
	r.up("web", diskYAML("root", "64Mi"), web)
	before := r.d.machine(r.key("web").UID).snapshot()
	mac := r.vm("web").Get("spec.nics[b].mac")

	r.d.Close()
	live := r.pidOf("web")
	if err := unix.Kill(live, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "QEMU to be gone", func() error { return gonePID(live) })
	if err := os.RemoveAll(r.cfg.RunDir); err != nil {
		t.Fatal(err)
	}
	r.restart()
	r.d.bootID = func() (string, error) { return "another-boot", nil }
	// Meanwhile QEMU's q35 has become a newer version.
	r.d.qemu.machines = map[string]string{"q35": "pc-q35-99.0", before.Machine: before.Machine}
	now := r.vm("web")
	if now.VM.Power != reconcile.PowerStopped || now.VM.Exit != "" || !now.VM.RetryAt.IsZero() {
		t.Fatalf("after the reboot: %+v", now.VM)
	}
	r.converge()
	r.serial.Wait(t, `^GUEST up`, 60*time.Second)
	after := r.d.machine(r.key("web").UID).snapshot()
	if after.Machine != before.Machine || after.Launch.ID == before.Launch.ID {
		t.Errorf("machine %s was %s", after.Machine, before.Machine)
	}
	for id, port := range before.Slots {
		if after.Slots[id] != port {
			t.Errorf("%s was on port %d and is on %d", id, port, after.Slots[id])
		}
	}
	if got := r.vm("web").Get("spec.nics[b].mac"); got != mac {
		t.Errorf("MAC %s was %s", got, mac)
	}
}

func (r *rig) pidOf(name string) int {
	r.t.Helper()
	procs, err := processes()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range procs {
		if p.uuid == r.key(name).UID && p.owner == r.d.owner {
			return p.pid
		}
	}
	r.t.Fatalf("%s has no process", name)
	return 0
}

func TestForcedStop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.up("web", vmYAML("web", "rt.mode=idle rt.onpower=ignore", "shutdown: {timeout: 5s}"))
	live := r.vm("web")
	a := reconcile.Action{Kind: live.Kind, Name: "web", UID: live.UID, Op: reconcile.OpStop, Want: r.want.Objects[live.Key()], Have: live}
	if err := r.apply(a); err != nil { // the guest ignores the button
		t.Fatal(err)
	}
	r.serial.Wait(t, `^POWER ignored`, time.Second)
	r.noProcess()
	r.converge()
	in := r.inputs(&a)
	in.Force = true
	begun := time.Now()
	if _, err := r.d.Apply(t.Context(), a, in); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > 900*time.Millisecond {
		t.Errorf("a forced stop took %v", d)
	}
	r.noProcess()
}
