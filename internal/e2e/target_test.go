package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"reconciler/internal/testbed"
)

const shortTargetKills = 4

// targets are the processes that serve the disks, without their supervisor.
func (w *world) targets() []testbed.Process {
	w.t.Helper()
	all, err := testbed.Processes(filepath.Join(w.dir, "state", "target"))
	w.must(err)
	var list []testbed.Process
	for _, p := range all {
		if strings.Contains(p.Cmdline, " target ") && !strings.Contains(p.Cmdline, "--supervise") {
			list = append(list, p)
		}
	}
	return list
}

// target is the one that serves now; while it is being started again, none is.
func (w *world) target() testbed.Process {
	w.t.Helper()
	var found []testbed.Process
	w.await(20*time.Second, "one target process", func() bool { found = w.targets(); return len(found) == 1 })
	return found[0]
}

// signal sends a signal to a process that the test may not have started.
func (w *world) signal(p testbed.Process, sig syscall.Signal) {
	w.t.Helper()
	proc, err := os.FindProcess(p.PID)
	w.must(err)
	w.must(proc.Signal(sig))
}

// The target is killed under a guest that waits for every write: the guest goes
// on each time, and nothing it was told is written is missing.
func TestKillTarget(t *testing.T) { killTarget(t, shortTargetKills) }

func killTarget(t *testing.T, kills int) {
	w := newWorld(t)
	w.write("vms.yaml", disk("root", "64Mi")+vm("web", "rt.interval=5ms "+writer, "disks: [{disk: root}]"))
	w.commit("a writer")
	w.start()
	w.reconcile()
	serial := w.serial("web")
	serial.Wait(t, `REC 5 vda`, bootTime)
	for range kills {
		w.signal(w.target(), syscall.SIGKILL)
		serial.Skip()
		serial.Wait(t, `REC \d+ vda`, time.Minute)
		serial.Wait(t, `REC \d+ vda`, time.Minute)
	}
	(&cluster{}).checkWriter(w)
	w.reconcile()
	w.settled()
}

// A target that says nothing holds up neither the agent nor, for longer than
// the outage, the guest; nothing is done to a machine whose disk is away.
func TestSilentTarget(t *testing.T) {
	w := newWorld(t)
	web := func(disks string) string {
		return disk("root", "64Mi") + disk("data", "16Mi") + vm("web", writer, "disks: ["+disks+"]")
	}
	w.write("vms.yaml", web("{disk: root}"))
	w.commit("a writer")
	w.start()
	w.reconcile()
	w.settled()
	serial := w.serial("web")
	serial.Wait(t, `REC 5 vda`, bootTime)
	silent := w.target()
	w.signal(silent, syscall.SIGSTOP)
	t.Cleanup(func() { _ = syscall.Kill(silent.PID, syscall.SIGCONT) })

	w.write("vms.yaml", web("{disk: root}, {disk: data}"))
	w.commit("attach while the target is silent")
	// The agent answers, and says what is wrong.
	w.await(time.Minute, "the outage to be told", func() bool {
		out, _ := w.try("describe", "vm/web")
		events := w.cli("events")
		return regexp.MustCompile(`(?i)target|storage|portal|answer`).MatchString(out + events)
	})
	began := time.Now()
	w.cli("get", "all")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the agent needs %s to answer while the target is silent", took)
	}
	if n := len(w.qemus()); n != 1 {
		t.Errorf("%d QEMU run, want 1", n)
	}
	w.signal(silent, syscall.SIGCONT)
	serial.Skip()
	serial.Wait(t, `REC \d+ vda`, time.Minute)
	w.reconcile()
	w.settled()
	serial.Wait(t, `DISK add vdb`, bootTime)
	(&cluster{}).checkWriter(w)
}
