package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/drivers/kvm/qmp"
	"reconciler/internal/testbed"
	"reconciler/internal/testbed/gitea"
)

// webFile is written as people write: what an edit must leave alone is there to
// be lost.
const webFile = `# The front end. Ask ada before you restart it.
apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: root}
spec: {pool: fast, size: 16Mi}
---
apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: data}
spec: {pool: fast, size: 16Mi}
---
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata:
  name: web
  drift: Report   # we want to see who was here
spec:
  host: host1
  cpu: {cores: 1}
  memory: {size: 128Mi}
  boot:
    kernel: {image: k}
    initrd: {image: i}
    cmdline: "console=ttyS0 quiet panic=-1 rt.mode=writer rt.disk=/dev/vda"
  disks:
    - {disk: root}
    # sales figures
    - {disk: data}
  nics:
    - {name: front, network: user}
    - {name: back, network: user}   # backups only
  shutdown: {timeout: 30s}
`

// From a branch to a guest, and from a guest back to a branch: what a reviewer
// sees, what the forge refuses, what the host runs and tells, and both ends of
// a change that somebody makes behind the repository's back.
func TestChangeControl(t *testing.T) {
	w := newForgeWorld(t)
	first := w.begin()
	w.start()
	w.allow("the first commit")
	w.awaitStatus(passTime, first, hostContext, "success")

	t.Log("a pull request that nobody looked at is not merged")
	w.write("web.yaml", webFile)
	w.write("other.yaml", disk("other", "16Mi")+vm("other", writer, "disks: [{disk: other}], nics: [{name: front, network: user}]"))
	p := w.propose("add-web", "Add web")
	w.refusesMerge(p)
	w.repo.Review(t, w.bob, p.Number, "APPROVED")
	w.refusesMerge(p)

	t.Log("CI says what it would do")
	w.startCI()
	plan := w.planOf(p, "success")
	for _, want := range []string{"VirtualMachine/web", "VirtualMachine/other", "Disk/data", "create"} {
		if !strings.Contains(plan, want) {
			t.Errorf("the comment does not say %q:\n%s", want, plan)
		}
	}
	merged := w.repo.Merge(t, w.ada, p.Number)

	t.Log("the host does it and says so")
	said := w.awaitStatus(passTime, merged, hostContext, "success")
	if said.Creator.Login != w.robot.Name || !strings.Contains(said.Description, "in sync") {
		t.Errorf("%+v", said)
	}
	told := 0
	for _, s := range w.repo.Statuses(t, merged) {
		if s.Context == hostContext {
			told++
		}
	}
	if told > 3 {
		t.Errorf("the forge was told %d times", told)
	}
	w.follow()
	w.settled()
	w.serial("web").Wait(t, `REC 5 vda`, bootTime)
	pids := w.pids()

	t.Log("somebody takes a disk and a card from web by hand")
	leave := w.unplug("web", "disk-data", "nic-back")
	want := strings.Replace(webFile, "    - {disk: data}\n", "", 1)
	want = strings.Replace(want, "    - {name: back, network: user}   # backups only\n", "", 1)
	drift := w.awaitDrift(want)
	leave()
	if changed := w.git("diff", "--name-only", merged, drift.Head.SHA); changed != "web.yaml" {
		t.Errorf("the drift branch changes %s", changed)
	}
	message := w.git("log", "-1", "--format=%B", drift.Head.SHA)
	for _, said := range []string{"VirtualMachine/web", "spec.disks[data]", "disk-data was unplugged from QEMU", fmt.Sprintf("(pid %d, uid 0)", os.Getpid())} {
		if !strings.Contains(message, said) || !strings.Contains(drift.Body, said) {
			t.Errorf("the proposal does not say %q:\n%s\n%s", said, message, drift.Body)
		}
	}

	t.Log("accepted")
	w.planOf(drift, "success")
	w.refusesMerge(drift)
	accepted := w.merge(drift)
	w.awaitStatus(passTime, accepted, hostContext, "success")
	w.settled()
	w.noDriftPull()
	if now := w.pids(); fmt.Sprint(now) != fmt.Sprint(pids) {
		t.Errorf("the machines are %v, were %v", now, pids)
	}

	t.Log("reverted: by itself where that is the mode, by an operator where it is not")
	w.unplug("other", "nic-front")()
	w.await(passTime, "the card of other", func() bool { return w.plugged("other", "nic-front") })
	w.unplug("web", "nic-front")()
	w.awaitDrift(strings.Replace(want, "  nics:\n    - {name: front, network: user}\n", "", 1))
	w.cli("revert", "VirtualMachine/web", "--reason", "nobody said why")
	w.await(passTime, "the card of web", func() bool { return w.plugged("web", "nic-front") })
	w.noDriftPull()
	w.settled()
	if now := w.pids(); fmt.Sprint(now) != fmt.Sprint(pids) {
		t.Errorf("the machines are %v, were %v", now, pids)
	}
}

// refusesMerge fails the test if the forge lets the pull request through.
func (w *forgeWorld) refusesMerge(p gitea.Pull) {
	w.t.Helper()
	if ok, _ := w.repo.TryMerge(w.t, w.ada, p.Number); ok {
		w.t.Fatalf("pull request %d was merged", p.Number)
	}
}

// pids are the machines' processes, by their names.
func (w *world) pids() map[string]string {
	w.t.Helper()
	m := map[string]string{}
	for name, o := range w.objects("vms") {
		m[name] = fmt.Sprint(o.Status["pid"])
	}
	return m
}

// awaitDrift waits for the host's pull request with this content of web.yaml.
// What a person does by hand is not one step, so the host may propose a part of
// it first.
func (w *forgeWorld) awaitDrift(content string) (p gitea.Pull) {
	w.t.Helper()
	tip, got := "", ""
	testbed.Await(w.t, passTime, "the drift branch", func() bool {
		now := w.tip(driftBranch)
		if now != "" && now != tip {
			tip, got = now, w.git("show", now+":web.yaml")
		}
		return got == strings.TrimSpace(content)
	}, func() string { return "it has:\n" + got }, w.tail)
	w.await(passTime, "the pull request with the drift", func() bool {
		for _, p = range w.repo.Pulls(w.t, "open") {
			if "refs/heads/"+p.Head.Ref == driftBranch && p.Head.SHA == tip {
				return true
			}
		}
		return false
	})
	if p.User.Login != w.robot.Name {
		w.t.Errorf("%s opened the pull request", p.User.Login)
	}
	return p
}

// noDriftPull waits until nothing is proposed any more.
func (w *forgeWorld) noDriftPull() {
	w.t.Helper()
	w.await(passTime, "the end of the pull request with the drift", func() bool {
		for _, p := range w.repo.Pulls(w.t, "open") {
			if "refs/heads/"+p.Head.Ref == driftBranch {
				return false
			}
		}
		return true
	})
}

// monitor connects to a machine's QEMU, past the agent: to the socket for
// emergencies, or to the other one where the agent uses that.
func (w *world) monitor(name string) (*qmp.Conn, context.Context) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), bootTime)
	w.t.Cleanup(cancel)
	uid := w.uid("VirtualMachine/" + name)
	for {
		var errs []error
		for _, path := range []string{w.state("vms", uid+".qmp"), filepath.Join(w.dir, "run", "vms", uid, "qmp")} {
			// A QEMU that serves somebody else does not greet.
			greeting, done := context.WithTimeout(ctx, 3*time.Second)
			c, err := qmp.Dial(greeting, path)
			done()
			if err == nil {
				w.t.Cleanup(func() { _ = c.Close() })
				return c, ctx
			}
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			w.t.Fatalf("no monitor of %s is free after %s: %v", name, bootTime, errors.Join(errs...))
		}
	}
}

// unplug takes devices away from a machine as a person at its monitor would,
// who stays connected until leave is called. It waits until the guest let them
// go.
func (w *world) unplug(name string, devices ...string) (leave func()) {
	w.t.Helper()
	c, ctx := w.monitor(name)
	events := c.Subscribe(64)
	for _, id := range devices {
		w.must(c.Do(ctx, "device_del", map[string]any{"id": id}, nil))
		for gone := false; !gone; {
			select {
			case e := <-events.C():
				var data struct{ Device string }
				gone = e.Name == "DEVICE_DELETED" && json.Unmarshal(e.Data, &data) == nil && data.Device == id
			case <-ctx.Done():
				w.t.Fatalf("the guest does not let %s go", id)
			}
		}
	}
	return func() { _ = c.Close() }
}

// plugged says whether a machine has a device.
func (w *world) plugged(name, id string) bool {
	w.t.Helper()
	c, ctx := w.monitor(name)
	defer c.Close()
	var list []struct{ Name string }
	w.must(c.Do(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, &list))
	for _, d := range list {
		if d.Name == id {
			return true
		}
	}
	return false
}
