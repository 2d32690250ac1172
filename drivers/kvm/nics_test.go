package kvm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

const inNetns = "KVM_TEST_IN_NETNS"

// ownNetns runs the test again inside a network namespace of its own, and says
// whether this is the run inside.
func ownNetns(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNetns) != "" {
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	args := testbed.NewNetns(t).Args(os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), inNetns+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	return false
}

func addBridge(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = 1400
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// taps lists the taps of ours with their bridge.
func taps(t *testing.T) map[string]string {
	t.Helper()
	l, err := readLinks()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for name, link := range l.byName {
		if strings.HasPrefix(name, tapPrefix) {
			found[name] = ""
			if bridge := l.byIndex[link.Attrs().MasterIndex]; bridge != nil {
				found[name] = bridge.Attrs().Name
			}
		}
	}
	return found
}

func TestNICsLive(t *testing.T) {
	t.Parallel()
	if !ownNetns(t) {
		return
	}
	r := newRig(t, func(c *Config) { c.AllowedBridges = []string{"br-a", "br-b"} })
	addBridge(t, "br-a")
	addBridge(t, "br-b")
	addBridge(t, "br-other")
	nets := bridgeYAML("a", "br-a") + bridgeYAML("b", "br-b")
	web := func(nics string) string { return vmYAML("web", "rt.mode=idle", "nics: ["+nics+"]") }
	uid := r.key("web").UID
	front := tapName(uid, "front")

	// From the start.
	r.up("web", nets, web(`{name: front, network: a, mac: "52:54:00:00:00:01"}`))
	if got := taps(t); got[front] != "br-a" || len(got) != 1 {
		t.Fatalf("taps %v", got)
	}
	link, err := netlink.LinkByName(front)
	if err != nil {
		t.Fatal(err)
	}
	if a := link.Attrs(); a.MTU != 1400 || !strings.Contains(a.Alias, uid) {
		t.Errorf("tap: MTU %d, alias %q", a.MTU, a.Alias)
	}
	r.sees("web", `^NIC add eth0 mac=52:54:00:00:00:01`)
	pid := r.vm("web").VM.PID

	// Another bridge: the tap moves, the guest sees nothing.
	r.declare(nets, web(`{name: front, network: b, mac: "52:54:00:00:00:01"}`))
	r.converge()
	if got := taps(t); got[front] != "br-b" {
		t.Fatalf("taps %v", got)
	}
	if index := link.Attrs().Index; index != linkIndex(t, front) {
		t.Error("the tap was made anew")
	}

	// Somebody takes it off the bridge: drift.
	if err := netlink.LinkSetNoMaster(link); err != nil {
		t.Fatal(err)
	}
	if got := r.vm("web").Get("spec.nics[front].backend"); got != "bridge (none)" {
		t.Errorf("backend %q", got)
	}
	r.converge()
	if got := taps(t); got[front] != "br-b" {
		t.Fatalf("taps %v", got)
	}

	// A second card, live; it brings the guest's address to the bridge.
	r.declare(nets, web(`{name: front, network: b, mac: "52:54:00:00:00:01"}, {name: back, network: a}, {name: out, network: out}`))
	r.converge()
	r.sees("web", `^NIC add eth1`)
	r.sees("web", `^NIC add eth2`)
	if got := taps(t); got[tapName(uid, "back")] != "br-a" || len(got) != 2 {
		t.Fatalf("taps %v", got)
	}

	// Another MAC: another card, on the same port.
	slot := r.d.machine(uid).snapshot().Slots["nic-back"]
	r.declare(nets, web(`{name: front, network: b, mac: "52:54:00:00:00:01"}, {name: back, network: a, mac: "52:54:00:00:00:02"}, {name: out, network: out}`))
	r.converge()
	r.sees("web", `^NIC add eth\d mac=52:54:00:00:00:02`)
	if got := r.d.machine(uid).snapshot().Slots["nic-back"]; got != slot {
		t.Errorf("the card moved from port %d to %d", slot, got)
	}

	// User mode to bridge and back.
	r.declare(nets, web(`{name: front, network: out, mac: "52:54:00:00:00:01"}, {name: out, network: a}`))
	r.converge()
	if got := taps(t); got[tapName(uid, "out")] != "br-a" || len(got) != 1 {
		t.Fatalf("taps %v", got)
	}
	if live := r.vm("web"); live.VM.PID != pid || live.Get("spec.nics[front].backend") != "user" || live.Get("spec.nics[back].mac") != "" {
		t.Fatalf("live: %+v %v", live.VM, live.Fields)
	}

	// With QEMU, however it ends, the taps go.
	r.killQEMU("web")
	eventually(t, 5*time.Second, "the taps to be gone", func() error {
		if got := taps(t); len(got) > 0 {
			return errors.New("there are taps")
		}
		return nil
	})
}

func linkIndex(t *testing.T, name string) int {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

// killQEMU ends a machine's process behind the driver's back.
func (r *rig) killQEMU(name string) {
	r.t.Helper()
	h, err := process{pid: r.pidOf(name), start: startOf(r.t, r.pidOf(name)), uuid: r.key(name).UID}.open()
	if err != nil || h == nil {
		r.t.Fatalf("open the process: %v", err)
	}
	defer h.close()
	if err := h.signal(9); err != nil {
		r.t.Fatal(err)
	}
	if err := h.wait(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	start, _, err := lifeOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return start
}

func TestBridgesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	if !ownNetns(t) {
		return
	}
	r := newRig(t, func(c *Config) { c.AllowedBridges = []string{"br-a", "missing", "lo"} })
	addBridge(t, "br-a")
	addBridge(t, "br-other")
	for bridge, why := range map[string]string{
		"br-other": "does not allow bridge br-other",
		"missing":  "bridge missing does not exist",
		"lo":       "is not a bridge",
	} {
		r.declare(bridgeYAML("n", bridge), vmYAML("web", "rt.mode=idle", "nics: [{name: n, network: n}]"))
		net := reconcile.Key{Kind: spec.KindNetwork, UID: r.uid(spec.KindNetwork, "n")}
		if got := r.observe().Unknown[net]; !strings.Contains(got, why) {
			t.Errorf("network on %s is unknown because %q", bridge, got)
		}
		a := reconcile.Action{Kind: spec.KindVirtualMachine, Name: "web", UID: r.key("web").UID, Op: reconcile.OpCreate, Want: r.want.Objects[r.key("web")]}
		if err := r.apply(a); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("start on bridge %s: %v", bridge, err)
		}
		if exists(r.d.runDir(r.key("web").UID)) {
			t.Error("something was begun")
		}
	}
	r.noProcess()
}
