package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

const driftBranch = "refs/heads/reconciler-drift/host1"

// byHand runs a QMP command on the machine's monitor, past the agent.
func (w *world) byHand(vm, command string) {
	w.t.Helper()
	var c struct {
		Execute   string
		Arguments any
	}
	w.must(json.Unmarshal([]byte(command), &c))
	conn, ctx := w.monitor(vm)
	defer conn.Close()
	w.must(conn.Do(ctx, c.Execute, c.Arguments, nil))
}

// bareGit runs git on the shared repository.
func (w *world) bareGit(args ...string) (string, bool) {
	cmd := exec.Command("git", append([]string{"-C", w.bare}, args...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err == nil
}

// proposed waits for the drift branch to be one commit on top of main that
// changes lines as given.
func (w *world) proposed(diff ...string) {
	w.t.Helper()
	var last string
	w.await(passTime, "the drift branch", func() bool {
		parent, ok := w.bareGit("rev-parse", driftBranch+"^")
		main, _ := w.bareGit("rev-parse", "main")
		if !ok || parent != main {
			return false
		}
		last, _ = w.bareGit("diff", "-U0", "main", driftBranch)
		var lines []string
		for line := range strings.Lines(last) {
			if (line[0] == '+' || line[0] == '-') && !strings.HasPrefix(line, "+++") && !strings.HasPrefix(line, "---") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return strings.Join(lines, "\n") == strings.Join(diff, "\n")
	})
}

func (w *world) noDriftBranch() {
	w.t.Helper()
	w.await(passTime, "the drift branch to be gone", func() bool {
		_, there := w.bareGit("rev-parse", "--verify", "-q", driftBranch)
		return !there
	})
}

func (w *world) actionOn(name string) *reconcile.Action {
	w.t.Helper()
	p := w.plan()
	for i := range p.Actions {
		if a := &p.Actions[i]; string(a.Kind)+"/"+a.Name == name {
			return a
		}
	}
	w.t.Fatalf("no action for %s", name)
	return nil
}

func (w *world) onlyQEMU() int {
	w.t.Helper()
	list := w.qemus()
	if len(list) != 1 {
		w.t.Fatalf("%d machines run, want 1", len(list))
	}
	return list[0].PID
}

// guestDisks is how many disks the guest has, by what it wrote to its console.
func (w *world) guestDisks(name string) int {
	w.t.Helper()
	log, err := os.ReadFile(w.serialPath(name))
	w.must(err)
	return strings.Count("\n"+string(log), "\nDISK add ") - strings.Count("\n"+string(log), "\nDISK remove ")
}

// What somebody changes on a machine by QMP comes back as a branch with the
// right edit: accepted by a merge, or reverted by the agent.
func TestDrift(t *testing.T) {
	w := newWorld(t)
	report := strings.Replace(w.base(), "addresses: {management: 127.0.0.1}}", "addresses: {management: 127.0.0.1}, drift: Report}", 1)
	w.write("base.yaml", report)
	const machine = `apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: web} # ours
spec:
  host: host1
  cpu: {cores: 1}
  memory: {size: 128Mi}
  boot: {kernel: {image: k}, initrd: {image: i}, cmdline: "console=ttyS0 quiet panic=-1"}
  shutdown: {timeout: 30s}
  disks: [{disk: root}, {disk: data}] # two
`
	w.write("web.yaml", machine)
	w.write("disks.yaml", disk("root", "16Mi")+disk("data", "16Mi"))
	w.commit("a machine")
	w.start()
	w.reconcile()
	w.serial("web").Wait(t, `^DISK add vdb`, bootTime)
	w.settled()
	pid := w.onlyQEMU()
	unplug := []string{"-  disks: [{disk: root}, {disk: data}] # two", "+  disks: [{disk: root}] # two"}

	// Unplugged by hand, and accepted.
	w.byHand("web", `{"execute":"device_del","arguments":{"id":"disk-data"}}`)
	w.proposed(unplug...)
	if message, _ := w.bareGit("log", "-1", "--format=%B", driftBranch); !strings.Contains(message, "device disk-data was unplugged from QEMU") || !strings.Contains(message, "spec.disks[data]: data is declared, and gone") {
		t.Errorf("the commit does not say what happened:\n%s", message)
	}
	if a := w.actionOn("VirtualMachine/web"); a.State != reconcile.Held || a.Drift != spec.DriftReport || a.ID != "" {
		t.Errorf("%s, %s, drift %q: %s", a.Op, a.State, a.Drift, a.Reason)
	}
	if o := w.objects("vms")["VirtualMachine/web"]; o.Sync != "OutOfSync" || o.Health != "Healthy" {
		t.Errorf("%s, %s", o.Sync, o.Health)
	}
	// The branch follows the watched one.
	w.write("note.yaml", "# nothing\n")
	w.commit("something else")
	w.reconcile()
	w.proposed(unplug...)
	w.git("fetch", "-q", "origin", driftBranch)
	w.git("merge", "-q", "--no-ff", "-m", "accept", "FETCH_HEAD")
	w.git("push", "-q", "origin", "HEAD:main")
	w.reconcile()
	w.settled()
	w.noDriftBranch()

	// Unplugged by hand, and reverted.
	w.write("web.yaml", machine)
	w.commit("two disks again")
	w.reconcile()
	w.settled()
	w.await(passTime, "the guest to have two disks", func() bool { return w.guestDisks("web") == 2 })
	w.byHand("web", `{"execute":"device_del","arguments":{"id":"disk-data"}}`)
	w.proposed(unplug...)
	w.await(passTime, "the guest to have one disk", func() bool { return w.guestDisks("web") == 1 })
	w.cli("revert", "vm/web", "--reason", "a mistake")
	w.await(passTime, "the disk to be back", func() bool { return w.guestDisks("web") == 2 })
	w.noDriftBranch()
	w.settled()

	// Paused by hand: there is no word for it, so nothing is proposed.
	w.byHand("web", `{"execute":"stop"}`)
	w.await(passTime, "the pause to be seen", func() bool { return w.actionOn("VirtualMachine/web").State == reconcile.Held })
	w.cli("revert", "vm/web", "--reason", "go on")
	w.await(passTime, "the guest to go on", func() bool { return w.actionOn("VirtualMachine/web").Op == reconcile.OpUnchanged })
	if now := w.onlyQEMU(); now != pid {
		t.Errorf("the machine was restarted: pid %d, was %d", now, pid)
	}

	// A crash is no drift: restartPolicy is followed.
	w.must(syscall.Kill(pid, syscall.SIGKILL))
	w.await(passTime, "the machine to be started again", func() bool {
		list := w.qemus()
		return len(list) == 1 && list[0].PID != pid
	})
	w.serial("web").Wait(t, `^GUEST up`, bootTime)
	w.await(passTime, "the crash to be over", func() bool { return w.actionOn("VirtualMachine/web").Op == reconcile.OpUnchanged })

	// Switched off by hand, and corrected by a commit.
	w.byHand("web", `{"execute":"quit"}`)
	w.proposed("+  powerState: Stopped")
	w.kill()
	w.start()
	if a := w.actionOn("VirtualMachine/web"); a.State != reconcile.Held {
		t.Errorf("after the agent's restart: %s, %s: %s", a.Op, a.State, a.Reason)
	}
	if list := w.qemus(); len(list) > 0 {
		t.Errorf("%d machines run", len(list))
	}
	w.write("base.yaml", w.base())
	w.commit("correct drift")
	w.reconcile()
	w.await(passTime, "the machine to run", func() bool { return w.actionOn("VirtualMachine/web").Op == reconcile.OpUnchanged })
	w.onlyQEMU()
	w.noDriftBranch()
	w.settled()
}
