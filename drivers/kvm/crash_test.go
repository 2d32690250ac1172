package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

// crash is what the process that is to die is told.
type crash struct {
	Step    string
	Cluster string
	Config  struct{ StateDir, RunDir string }
	Bridges []string
	YAML    []string
	Base    []reconcile.Applied
	Portal  string
	Targets map[string]crashTarget
}

type crashTarget struct {
	ID  int
	IQN string
}

const crashFile = "KVM_TEST_CRASH"

// TestCrashChild is the agent that dies: it carries out the first ready action
// and is killed at the step it is told.
func TestCrashChild(t *testing.T) {
	path := os.Getenv(crashFile)
	if path == "" {
		return // it is not its turn: this is not the process that is to die
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c crash
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	guest := testbed.Guest(t)
	r := &rig{
		t: t, cluster: c.Cluster, prober: &prober{}, base: reconcile.Base{}, portal: c.Portal, tgtd: &tgtd{disks: map[string]*target{}},
		files: map[string]string{"kernel": guest.Kernel, "initrd": guest.Initrd},
		cfg:   Config{StateDir: c.Config.StateDir, RunDir: c.Config.RunDir, Accel: AccelTCG, AllowedBridges: c.Bridges},
	}
	r.cfg.Storage = r.prober
	for uid, d := range c.Targets {
		r.tgtd.disks[uid] = &target{id: d.ID, iqn: d.IQN, file: os.DevNull}
	}
	for _, a := range c.Base {
		r.base[a.Key()] = &a
	}
	r.restart()
	r.read(c.YAML...)
	r.d.step = func(name string) {
		if name == c.Step {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // it dies here
		}
	}
	list := slices.DeleteFunc(r.plan(), func(a reconcile.Action) bool { return a.State != reconcile.Ready })
	if len(list) == 0 {
		t.Fatal("nothing to do")
	}
	t.Fatalf("step %q was not reached: %v", c.Step, r.apply(list[0]))
}

// crashAt lets an agent that wants this tree die at a step, and takes its place.
func (r *rig) crashAt(step string, yaml ...string) {
	r.t.Helper()
	r.declare(yaml...) // for the target to serve the disks
	for k, o := range r.want.Objects {
		if r.base[k] == nil { // an agent notes what it is about to try
			r.base[k] = &reconcile.Applied{Object: *o, Attempted: o.Generation()}
		}
	}
	c := crash{Step: step, Cluster: r.cluster, Bridges: r.cfg.AllowedBridges, YAML: yaml, Portal: r.portal, Targets: map[string]crashTarget{}}
	c.Config.StateDir, c.Config.RunDir = r.cfg.StateDir, r.cfg.RunDir
	for _, a := range r.base {
		c.Base = append(c.Base, *a)
	}
	for uid, d := range r.tgtd.disks {
		c.Targets[uid] = crashTarget{d.id, d.iqn}
	}
	b, err := json.Marshal(c)
	if err != nil {
		r.t.Fatal(err)
	}
	path := filepath.Join(r.cfg.StateDir, "crash.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.d.Close() // two agents never run at a time
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestCrashChild$", "-test.v")
	cmd.Env = append(os.Environ(), crashFile+"="+path)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		r.t.Fatalf("the agent did not die at %q: %v\n%s", step, err, out)
	}
	r.restart()
}

// whole fails unless everything is as it is wanted, with one process.
func (r *rig) whole(name string) {
	r.t.Helper()
	r.converge()
	if list := r.plan(); len(list) > 0 {
		r.t.Fatalf("the plan is not empty:\n%s", describe(list))
	}
	procs, err := processes()
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	for _, p := range procs {
		if p.owner == r.d.owner {
			n++
		}
	}
	running := 0
	if o := r.want.Objects[r.key(name)]; o != nil && o.Get("spec.powerState") == spec.PowerRunning {
		running = 1
	}
	if n != running {
		r.t.Fatalf("%d processes, want %d", n, running)
	}
	if left, _ := filepath.Glob(filepath.Join(r.d.run, "*", "chap-*")); len(left) > 0 {
		r.t.Fatalf("secrets are left: %v", left)
	}
}

func TestCrashInStartStopDelete(t *testing.T) {
	t.Parallel()
	if !ownNetns(t) {
		return
	}
	r := newRig(t, func(c *Config) { c.AllowedBridges = []string{"br-a"} })
	addBridge(t, "br-a")
	trees := func(more ...string) []string {
		return []string{diskYAML("root", "64Mi"), bridgeYAML("a", "br-a"),
			vmYAML("web", "rt.mode=idle", append(more, "shutdown: {timeout: 1s}", "disks: [{disk: root}]", "nics: [{name: n, network: a}]")...)}
	}
	on, off, none := trees(), trees("powerState: Stopped"), []string{diskYAML("root", "64Mi"), bridgeYAML("a", "br-a")}
	for _, step := range []string{"recorded", "prepared", "executed", "verified", "committed", "running"} {
		r.crashAt(step, on...)
		if s := r.observe(); s.Objects[r.key("web")] != nil && s.Objects[r.key("web")].VM.Exit != "" {
			t.Fatalf("after a crash at %q: %+v", step, s.Objects[r.key("web")].VM)
		}
		r.whole("web")
		r.declare(none...)
		r.whole("web")
		r.nothingOnDisk()
		if got := taps(t); len(got) > 0 {
			t.Fatalf("taps are left after a crash at %q: %v", step, got)
		}
	}
	for _, step := range []string{"intended", "asked"} {
		r.declare(on...)
		r.whole("web")
		r.crashAt(step, off...)
		r.whole("web")
		if live := r.vm("web"); live.VM.Exit != "" {
			t.Fatalf("after a crash at %q: %+v", step, live.VM)
		}
	}
	for _, step := range []string{"intended", "asked", "stopped"} {
		r.declare(on...)
		r.whole("web")
		r.crashAt(step, none...)
		r.whole("web")
		r.nothingOnDisk()
	}
	r.noProcess()
}

func TestCrashInLiveChanges(t *testing.T) {
	t.Parallel()
	if !ownNetns(t) {
		return
	}
	r := newRig(t, func(c *Config) { c.AllowedBridges = []string{"br-a"} })
	addBridge(t, "br-a")
	// A read while tgtd grows a disk would fail: only the other one is used.
	root := spec.Serial(r.uid(spec.KindDisk, "root"))
	tree := func(size string, more ...string) []string {
		return []string{diskYAML("root", "64Mi"), diskYAML("data", size), bridgeYAML("a", "br-a"), vmYAML("web", "rt.mode=writer rt.disk=serial:"+root, more...)}
	}
	size := 16
	small := tree("16Mi", "disks: [{disk: root}]")
	r.up("web", small...)
	data := r.uid(spec.KindDisk, "data")
	pid := r.vm("web").VM.PID
	for _, c := range []struct {
		there []string // steps on the way to the larger tree
		back  []string
		more  []string
	}{
		{[]string{"attach recorded", "opened", "plugged"}, []string{"unplugged", "closed", "closed"}, []string{"disks: [{disk: root}, {disk: data}]"}},
		{[]string{"nic recorded", "netdev added", "nic plugged"}, []string{"nic unplugged", "nic unplugged", "nic unplugged"},
			[]string{"disks: [{disk: root}]", "nics: [{name: n, network: a}]"}},
	} {
		for i := range c.there {
			now := fmt.Sprintf("%dMi", size)
			large, small := tree(now, c.more...), tree(now, "disks: [{disk: root}]")
			r.crashAt(c.there[i], large...)
			if i == 1 { // it is no longer wanted when the next agent comes
				r.declare(small...)
				r.whole("web")
			}
			r.declare(large...)
			r.whole("web")
			if len(c.more) == 1 {
				r.serial.Wait(t, `^DISK add vdb`, 60*time.Second)
			}
			if c.there[i] == "plugged" {
				size += 16
				large = tree(fmt.Sprintf("%dMi", size), c.more...)
				small = tree(fmt.Sprintf("%dMi", size), "disks: [{disk: root}]")
				r.crashAt("grown", large...)
				r.whole("web")
			}
			r.crashAt(c.back[i], small...)
			if i == 2 { // it is wanted again when the next agent comes
				r.declare(large...)
				r.whole("web")
				r.declare(small...)
			}
			r.whole("web")
			r.nothingLeftOf(data)
			if got := taps(t); len(got) > 0 {
				t.Fatalf("taps are left: %v", got)
			}
		}
	}
	if live := r.vm("web"); live.VM.PID != pid {
		t.Error("the guest was restarted")
	}
	r.serial.Skip()
	r.serial.Wait(t, `^REC \d+ vda `+root, 20*time.Second)
}
