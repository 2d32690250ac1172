package kvm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/drivers/kvm/qmp"
	"reconciler/reconcile"
)

// TestHand is no test: it is somebody else's process, which gives QEMU a
// command over the rescue socket and stays connected until it is let go.
func TestHand(t *testing.T) {
	path := os.Getenv("RECONCILER_TEST_HAND")
	if path == "" {
		return
	}
	var command struct {
		Execute   string
		Arguments any
	}
	if err := json.Unmarshal([]byte(os.Getenv("RECONCILER_TEST_COMMAND")), &command); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := qmp.Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Do(ctx, command.Execute, command.Arguments, nil); err != nil {
		t.Fatal(err)
	}
	fmt.Println("HAND done")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// hand runs a QMP command as another process, and returns its pid; the process
// is let go by the returned function.
func (r *rig) hand(name, command string) (pid int, letGo func()) {
	r.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHand$")
	cmd.Env = append(os.Environ(), "RECONCILER_TEST_HAND="+r.d.rescuePath(r.key(name).UID), "RECONCILER_TEST_COMMAND="+command)
	in, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	letGo = func() { in.Close(); _ = cmd.Wait() }
	r.t.Cleanup(letGo)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "HAND done") {
			return cmd.Process.Pid, letGo
		}
		r.t.Log(lines.Text())
	}
	r.t.Fatalf("nobody ran %s", command)
	return 0, nil
}

func (r *rig) trace(name, text string) Trace {
	r.t.Helper()
	var found Trace
	eventually(r.t, 20*time.Second, "a trace of "+text, func() error {
		list := r.d.Traces(r.key(name).UID)
		for _, found = range list {
			if strings.Contains(found.Text, text) {
				return nil
			}
		}
		return fmt.Errorf("there is %v", list)
	})
	return found
}

// What somebody does to a machine over QMP is told, as far as it can be seen,
// and how a guest was made to end decides whose doing that was.
func TestTraces(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	disks := []string{diskYAML("root", "64Mi"), diskYAML("data", "32Mi")}
	r.up("web", append(disks, vmYAML("web", "", "disks: [{disk: root}, {disk: data}]"))...)
	r.vm("web") // the driver is connected
	if list := r.d.Traces(r.key("web").UID); len(list) > 0 {
		t.Fatalf("what the driver did itself is told: %v", list)
	}

	pid, letGo := r.hand("web", `{"execute":"device_del","arguments":{"id":"disk-data"}}`)
	// Who it was is found out a moment after what it was.
	got := r.trace("web", "device disk-data was unplugged from QEMU; connected to its monitor then")
	if who := fmt.Sprintf("(pid %d, uid 0", pid); !strings.Contains(got.Text, who) {
		t.Errorf("%q does not say %q", got.Text, who)
	}
	if at := time.Since(got.At); at < 0 || at > time.Minute {
		t.Errorf("it was %s ago", at)
	}
	letGo()
	if f := r.vm("web").Get("spec.disks[data].disk"); f != "data (incomplete)" {
		t.Errorf("spec.disks[data].disk is %q", f)
	}

	_, letGo = r.hand("web", `{"execute":"stop"}`)
	r.waitPower("web", reconcile.PowerPaused)
	r.trace("web", "was paused over QMP")
	letGo()
	_, letGo = r.hand("web", `{"execute":"cont"}`)
	r.trace("web", "was resumed over QMP")
	letGo()

	_, letGo = r.hand("web", `{"execute":"system_powerdown"}`)
	live := r.waitPower("web", reconcile.PowerEnded)
	letGo()
	if !live.VM.Asked || !strings.Contains(live.VM.Exit, "power button over QMP") {
		t.Errorf("asked %t: %s", live.VM.Asked, live.VM.Exit)
	}
	r.again("web")

	_, letGo = r.hand("web", `{"execute":"quit"}`)
	live = r.ended("web")
	letGo()
	if !live.VM.Asked || !strings.Contains(live.VM.Exit, "told QEMU to quit") {
		t.Errorf("asked %t: %s", live.VM.Asked, live.VM.Exit)
	}
	r.restart()
	if live := r.vm("web"); !live.VM.Asked {
		t.Error("it is forgotten with the driver")
	}
	r.again("web")

	if err := unix.Kill(r.vm("web").VM.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if live := r.ended("web"); live.VM.Asked {
		t.Errorf("a killed QEMU counts as asked to end: %s", live.VM.Exit)
	}
}

// ended waits until a machine is seen to be off; while its QEMU goes, it may be unknown.
func (r *rig) ended(name string) (live *reconcile.Live) {
	r.t.Helper()
	eventually(r.t, 30*time.Second, name+" to be off", func() error {
		if live = r.observe().Objects[r.key(name)]; live == nil || live.VM.Power != reconcile.PowerStopped {
			return fmt.Errorf("it is %+v", live)
		}
		return nil
	})
	return live
}

// again starts a machine that ended.
func (r *rig) again(name string) {
	r.t.Helper()
	eventually(r.t, 30*time.Second, name+" to start again", func() error {
		r.converge()
		if power := r.vm(name).VM.Power; power != reconcile.PowerRunning {
			return fmt.Errorf("it is %s", power)
		}
		return nil
	})
	r.waitUp(name)
}
