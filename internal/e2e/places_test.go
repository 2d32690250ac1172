package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"reconciler/internal/testbed"
	"reconciler/reconcile"
)

// pair is two hosts of one repository, both on this machine: what is of one has
// a directory of its own, below that of the other.
type pair struct {
	*world
	other *world // host2
	keys  [2]string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	w := newWorld(t)
	o := &world{t: t, host: "host2", dir: w.file("other"), bare: w.bare, work: w.work, images: w.images, portal: freePort(t)}
	w.must(os.MkdirAll(o.dir, 0o755))
	log, err := os.Create(filepath.Join(o.dir, "agent.log"))
	w.must(err)
	o.log = log
	t.Cleanup(func() {
		if o.agent != nil {
			_ = o.agent.Process.Kill()
			_ = o.agent.Wait()
		}
		if t.Failed() {
			t.Log(o.tail())
		}
		_ = o.log.Close()
	})
	o.under = apart(t)
	p := &pair{world: w, other: o}
	for i, h := range []*world{w, o} {
		h.hostConfig("interval: 1h\nlimits: {budget: {count: 100}}\n")
		out, err := exec.CommandContext(t.Context(), binary, append([]string{"key"}, append(h.flags(), h.args...)...)...).Output()
		w.must(err)
		p.keys[i] = strings.TrimSpace(string(out))
	}
	p.declare("host1")
	return p
}

// apart is what runs a process where it sees no other process of this machine, as
// if it were on another. What it starts outlives it there, until the test ends.
func apart(t *testing.T) []string {
	t.Helper()
	holder := exec.Command("unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "sleep", "infinity")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait() // "signal: killed"
	})
	first := ""
	testbed.Await(t, 10*time.Second, "a process table of its own", func() bool {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", holder.Process.Pid, holder.Process.Pid))
		first = strings.TrimSpace(string(children))
		cmdline, _ := os.ReadFile("/proc/" + first + "/cmdline")
		return first != "" && strings.HasPrefix(string(cmdline), "sleep")
	}, func() string { return "unshare" })
	// The agent dies with nsenter, which is what a test can kill.
	return []string{"nsenter", "--pid", "--mount", "--target", first, "setpriv", "--pdeathsig", "KILL"}
}

// declare writes the hosts, of which the first may have another name by now.
func (p *pair) declare(first string) {
	former := ""
	if first != "host1" {
		former = ", movedFrom: [host1]"
	}
	base := strings.Replace(p.base(), "{name: host1}", "{name: "+first+former+"}", 1)
	base = strings.ReplaceAll(base, "host: host1", "host: "+first)
	base = strings.Replace(base, "management: 127.0.0.1}}", "management: 127.0.0.1}, signingKey: \""+p.keys[0]+"\"}", 1)
	p.write("base.yaml", base+fmt.Sprintf(`---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host2}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}, signingKey: "%s"}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast2}
spec:
  host: host2
  capacity: 4Gi
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: ["%s"]}}
`, p.keys[1], p.other.portal)+disk("keeper", "1Mi")+strings.Replace(off("keeper", "keeper"), "host: host1", "host: "+first, 1))
}

// running are the QEMU processes of a machine, whoever started them.
func (p *pair) running(uid string) (list []testbed.Process) {
	p.t.Helper()
	for _, q := range p.qemus() { // the other host's directory lies below
		if strings.Contains(q.Cmdline, "-uuid "+uid) {
			list = append(list, q)
		}
	}
	return list
}

// crash kills the agent of a host and starts it again.
func (p *pair) crash(h *world) {
	p.t.Helper()
	h.kill()
	h.await(10*time.Second, "the killed agent to be gone", func() bool {
		all, err := testbed.Processes(h.dir)
		p.must(err)
		return !slices.ContainsFunc(all, func(q testbed.Process) bool { return strings.Contains(q.Cmdline, "run --state-dir "+h.state()) })
	})
	h.start()
}

// everybody brings the newest commit into force, as far as each host takes it.
func (p *pair) everybody() {
	p.t.Helper()
	for range 2 {
		for _, h := range []*world{p.other, p.world} {
			h.try("reconcile", "--wait")
		}
	}
}

// A machine and its disk that one commit moves to another host stay where they
// are, and the other host makes neither. With its disk left out, the machine goes
// when a commit has removed it and its host has said so. A crash of every agent at
// every step changes none of that.
func TestMoveToAnotherHost(t *testing.T) {
	p := newPair(t)
	here := disk("d1", "16Mi") + bios("web", "disks: [{disk: d1}]") + bios("plain", "restartPolicy: Always")
	there := strings.NewReplacer("host: host1", "host: host2", "pool: fast,", "pool: fast2,").Replace(here)
	p.write("web.yaml", here)
	p.commit("two machines on host1")
	p.start()
	p.other.start()
	p.everybody()
	web, plain, d1 := p.uid("VirtualMachine/web"), p.uid("VirtualMachine/plain"), p.uid("Disk/d1")
	first := map[string]int{web: p.qemu(web).PID, plain: p.qemu(plain).PID}
	once := func(when string) {
		t.Helper()
		for uid, pid := range first {
			if list := p.running(uid); len(list) != 1 || list[0].PID != pid {
				t.Fatalf("%s: machine %s runs as %v, not as process %d", when, uid, list, pid)
			}
		}
		if files, _ := filepath.Glob(p.other.state("pools", "fast", d1+"*")); len(files) > 0 {
			t.Fatalf("%s: host2 has %v", when, files)
		}
	}
	once("at first")

	p.write("web.yaml", there)
	p.commit("move them")
	for _, h := range []*world{p.world, p.other} {
		p.crash(h)
	}
	p.everybody()
	once("moved in one commit")
	if out, code := p.try("reconcile", "--wait"); code != 1 || !strings.Contains(out, `Disk "d1" is on host "host1" in StoragePool "fast"`) || !strings.Contains(out, "metadata.incarnation") {
		t.Errorf("host1 takes a commit that has its disk elsewhere: exit %d\n%s", code, out)
	}
	p.other.expect("Disk/d1", reconcile.Waiting, "on host host1 in StoragePool fast")
	p.other.expect("VirtualMachine/web", reconcile.Waiting, "host1")
	p.other.expect("VirtualMachine/plain", reconcile.Waiting, "host1")

	p.write("web.yaml", disk("d1", "16Mi")+bios("web", "disks: [{disk: d1}]")+strings.Replace(bios("plain", "restartPolicy: Always"), "host: host1", "host: host2", 1))
	p.commit("move only the machine without a disk")
	p.everybody()
	once("moved without a disk")
	p.other.expect("VirtualMachine/plain", reconcile.Waiting, "on host host1 (Running)")

	p.write("web.yaml", disk("d1", "16Mi")+bios("web", "disks: [{disk: d1}]"))
	p.commit("remove it")
	p.reconcile()
	delete(first, plain)
	if list := p.running(plain); len(list) > 0 {
		t.Fatalf("the removed machine runs as %v", list)
	}
	p.write("web.yaml", disk("d1", "16Mi")+bios("web", "disks: [{disk: d1}]")+strings.Replace(bios("plain", "restartPolicy: Always"), "host: host1", "host: host2", 1))
	p.commit("declare it on host2")
	p.crash(p.other)
	p.everybody()
	if list := p.running(plain); len(list) != 1 || !strings.Contains(list[0].Cmdline, p.other.dir) {
		t.Errorf("the machine that is gone from host1 runs as %v\n%s", list, p.other.tail())
	}
	once("and it went")
}

// A commit that renames the host, with the pool, the disk and the machine on it,
// under a running machine: the same process with the same claim, nothing to do
// afterwards, and after a crash of the guest, of the agent, and with the new name
// in the configuration as well.
func TestRenamedHost(t *testing.T) {
	p := newPair(t)
	docs := disk("d1", "16Mi") + bios("web", "disks: [{disk: d1}]")
	p.write("web.yaml", docs)
	p.commit("a machine")
	p.start()
	p.reconcile()
	p.settled()
	uid, d1 := p.uid("VirtualMachine/web"), p.uid("Disk/d1")
	pid := p.qemu(uid).PID
	epoch := p.objects("all")["Disk/d1"].Status["epoch"]

	p.declare("hosta")
	base, err := os.ReadFile(filepath.Join(p.work, "base.yaml"))
	p.must(err)
	p.write("base.yaml", strings.NewReplacer("{name: fast}", "{name: slow, movedFrom: [fast]}", "pool: fast,", "pool: slow,").Replace(string(base)))
	p.write("web.yaml", strings.NewReplacer("host: host1", "host: hosta", "pool: fast", "pool: slow", "{name: d1}", "{name: data, movedFrom: [d1]}",
		"disk: d1", "disk: data", "{name: web}", "{name: shop, movedFrom: [web]}").Replace(docs))
	p.commit("other names")
	p.reconcile()
	p.settled()
	if now := p.qemu(uid).PID; now != pid {
		t.Errorf("the machine runs as process %d, was %d", now, pid)
	}
	if now := p.objects("all")["Disk/data"].Status["epoch"]; now != epoch {
		t.Errorf("the disk is claimed with epoch %v, was %v", now, epoch)
	}
	if refs := p.git("ls-remote", p.bare, "refs/reconciler/status/*"); !strings.Contains(refs, "refs/reconciler/status/hosta") {
		t.Errorf("it does not report under its new name:\n%s", refs)
	}

	again := func(when string) {
		t.Helper()
		p.await(passTime, when+", the machine to run again", func() bool {
			q := p.qemu(uid)
			o := p.byUID("all", uid)
			return q.PID != 0 && q.PID != pid && o != nil && o.Status["power"] == "Running"
		})
		pid = p.qemu(uid).PID
		p.reconcile()
		p.settled()
		if o := p.byUID("all", d1); o.Status["claimedBy"] != uid {
			t.Errorf("%s, the disk is claimed by %v", when, o.Status["claimedBy"])
		}
	}
	p.must(syscall.Kill(pid, syscall.SIGKILL))
	again("after a crash of the guest")
	p.kill()
	p.must(syscall.Kill(pid, syscall.SIGKILL))
	p.start()
	again("after a crash of both")
	p.stop()
	p.host = "hosta"
	p.start()
	p.reconcile()
	p.settled()
	p.must(syscall.Kill(pid, syscall.SIGKILL))
	again("configured by its new name")
	p.write("web.yaml", "")
	p.commit("remove them")
	p.reconcile()
	if o := p.byUID("quarantine", d1); o == nil {
		t.Error("the removed disk is not in quarantine: its claim is left")
	}
}

// A state directory on a machine with another id does nothing but tell, until an
// operator says that this machine is the host.
func TestAnotherMachine(t *testing.T) {
	w := newWorld(t)
	id := func(text string) { w.must(os.WriteFile(w.file("machine-id"), []byte(text+"\n"), 0o644)) }
	id("11111111111111111111111111111111")
	w.hostConfig("interval: 1h\nmachineIDFile: " + w.file("machine-id") + "\n")
	w.write("web.yaml", disk("d1", "1Mi")+bios("web", "disks: [{disk: d1}]"))
	w.commit("a machine")
	w.start()
	w.reconcile()
	uid := w.uid("VirtualMachine/web")
	w.stop()
	w.must(syscall.Kill(w.qemu(uid).PID, syscall.SIGKILL))
	id("22222222222222222222222222222222")
	tip := w.git("ls-remote", w.bare, "refs/reconciler/status/host1")
	w.start()
	w.reconcile()
	w.expect("VirtualMachine/web", reconcile.Held, "the state directory is that of machine")
	if out := w.cli("status"); !strings.Contains(out, "OtherMachine") {
		t.Errorf("status says nothing of it:\n%s", out)
	}
	if q := w.qemu(uid); q.PID != 0 {
		t.Errorf("the machine runs as %v", q)
	}
	if now := w.git("ls-remote", w.bare, "refs/reconciler/status/host1"); now != tip {
		t.Errorf("it reports: %s, was %s", now, tip)
	}
	if out, code := w.try("accept", "--machine"); code == 0 {
		t.Errorf("accepted without a reason:\n%s", out)
	}
	w.cli("accept", "--machine", "--reason", "the disk moved here")
	w.await(passTime, "the accepted machine to start what is declared", func() bool { return w.qemu(uid).PID != 0 })
	w.reconcile()
	w.settled()
	if out := w.cli("events"); !strings.Contains(out, "MachineAccepted") || !strings.Contains(out, "the disk moved here") {
		t.Errorf("the events do not tell who accepted it and why:\n%s", out)
	}
}
