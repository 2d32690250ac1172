package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reconciler/reconcile"
	"reconciler/spec"
)

// flaky is a driver whose actions may fail, before they did anything or after.
type flaky struct {
	Driver
	n *node
}

func (d flaky) Apply(ctx context.Context, a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	o := done
	if d.n.fate != nil {
		o = d.n.fate()
	}
	if o == undone {
		return reconcile.Outputs{}, errors.New("it fails")
	}
	out, err := d.Driver.Apply(ctx, a, in)
	if o == untold {
		err = errors.New("it is done, and nobody hears of it")
	}
	return out, err
}

type flakyHypervisor struct {
	simHypervisor
	flaky
}

func (d flakyHypervisor) Apply(ctx context.Context, a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	return d.flaky.Apply(ctx, a, in)
}

func (d flakyHypervisor) Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	return d.simHypervisor.Observe(ctx, want)
}

type flakyStorage struct {
	simStorage
	flaky
}

func (d flakyStorage) Apply(ctx context.Context, a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	return d.flaky.Apply(ctx, a, in)
}

func (d flakyStorage) Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	return d.simStorage.Observe(ctx, want)
}

// layout is a tree of a few machines and disks on a few hosts.
type layout struct {
	pools       map[string]string // host a pool is on where it is not the one it is called after
	vms         map[string]string // host
	disks       map[string]string // pool
	incarnation map[string]int
	attached    map[string]bool // vm-1 has disk-1
}

func (l *layout) docs() string {
	var b strings.Builder
	meta := func(doc, name string) string {
		if n := l.incarnation[name]; n > 0 {
			return strings.Replace(doc, "{name: "+name+"}", fmt.Sprintf("{name: %s, incarnation: %d}", name, n), 1)
		}
		return doc
	}
	for _, name := range slices.Sorted(maps.Keys(l.disks)) {
		b.WriteString(meta(diskIn(name, l.disks[name]), name))
	}
	for _, name := range slices.Sorted(maps.Keys(l.vms)) {
		disk := strings.Replace(name, "vm", "disk", 1)
		more := ""
		if l.attached[name] && l.disks[disk] != "" {
			more = ", disks: [{disk: " + disk + "}]"
		}
		b.WriteString(meta(vmOn(name, l.vms[name], more), name))
	}
	return b.String()
}

// edit is what one commit does.
func (l *layout) edit(t *rapid.T, hosts []string) {
	for range rapid.IntRange(1, 2).Draw(t, "edits") {
		i := rapid.IntRange(1, 2).Draw(t, "object")
		vm, disk := fmt.Sprint("vm-", i), fmt.Sprint("disk-", i)
		host := rapid.SampledFrom(append([]string{""}, hosts...)).Draw(t, "host")
		switch rapid.SampledFrom([]string{"vm", "vm", "disk", "disk", "both", "off", "off", "pool", "trade", "home", "fresh", "attach"}).Draw(t, "what") {
		case "vm":
			put(l.vms, vm, host)
		case "disk":
			put(l.disks, disk, strings.Replace(host, "host", "p-host", 1))
		case "both":
			put(l.vms, vm, host)
			put(l.disks, disk, strings.Replace(host, "host", "p-host", 1))
		case "off":
			delete(l.vms, vm)
			delete(l.disks, disk)
		case "home":
			clear(l.pools)
		case "pool":
			put(l.pools, hosts[i-1], host)
		case "trade":
			l.pools = map[string]string{hosts[0]: hosts[1], hosts[1]: hosts[0]}
		case "fresh":
			l.incarnation[rapid.SampledFrom([]string{vm, disk}).Draw(t, "fresh")]++
		case "attach":
			l.attached[vm] = !l.attached[vm]
		}
	}
}

func put(m map[string]string, key, value string) {
	delete(m, key)
	if value != "" {
		m[key] = value
	}
}

// Over all hosts, at most one has a machine or a disk of one identity, whatever
// is committed: with hosts at different revisions, reports that do not arrive,
// agents that are killed, memories that are lost, and guests that end.
func TestOneHostHasAnObject(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm") // where nothing is waited for until it is on a disk
	}
	moves, fresh := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		hosts := []string{"host1", "host2", "host3"}[:rapid.IntRange(2, 3).Draw(rt, "hosts")]
		c := newCluster(t, t.TempDir(), hosts...)
		var story []string
		tell := func(format string, args ...any) { story = append(story, fmt.Sprintf(format, args...)) }
		for _, n := range c.hosts {
			n.cfg.Hypervisor = flakyHypervisor{simHypervisor{s: n.sim}, flaky{simHypervisor{s: n.sim}, n}}
			n.cfg.Storage = flakyStorage{simStorage{s: n.sim}, flaky{simStorage{s: n.sim}, n}}
			n.restart()
		}
		l := &layout{pools: map[string]string{}, vms: map[string]string{}, disks: map[string]string{}, incarnation: map[string]int{}, attached: map[string]bool{}}
		commit := func() {
			l.edit(rt, hosts)
			before := map[string]int{}
			for name, n := range c.hosts {
				before[name] = n.sees
			}
			c.commitFrame(l.pools, l.docs())
			for name, n := range c.hosts {
				n.sees = max(before[name], 1)
			}
			tell("commit %d: machines %v, disks %v, pools %v, fresh %v", len(c.repo.commits), l.vms, l.disks, l.pools, l.incarnation)
		}
		last := map[reconcile.Key]string{}
		once := func() {
			at := map[reconcile.Key]string{}
			for _, name := range hosts {
				for k, h := range c.hosts[name].state.Objects {
					if !placed(k.Kind) || k.Kind == spec.KindStoragePool {
						continue
					}
					if at[k] != "" {
						rt.Fatalf("%s %s is on %s and on %s\n\t%s", k.Kind, h.Name, at[k], name, strings.Join(story, "\n\t"))
					}
					at[k] = name
					if last[k] != "" && last[k] != name {
						moves++
					}
					last[k] = name
				}
			}
		}
		calm := func() {
			for range 2 {
				for _, name := range hosts {
					n := c.hosts[name]
					n.sees, n.mute, n.deaf, n.fate = len(c.repo.commits), false, false, nil
					_, err := n.pass()
					tell("%s at %d: %v", name, n.sees, err)
					once()
				}
			}
		}
		commit()
		calm()
		for range rapid.IntRange(8, 16).Draw(rt, "steps") {
			name := rapid.SampledFrom(hosts).Draw(rt, "host")
			n := c.hosts[name]
			switch rapid.SampledFrom([]string{"commit", "commit", "commit", "calm", "calm", "calm", "pass", "pass", "pass", "kill", "lose", "crash", "time"}).Draw(rt, "step") {
			case "commit":
				commit()
			case "calm":
				calm()
			case "pass":
				n.sees = rapid.IntRange(n.sees, len(c.repo.commits)).Draw(rt, "sees")
				n.mute = rapid.IntRange(0, 4).Draw(rt, "mute") == 0
				n.deaf = rapid.IntRange(0, 5).Draw(rt, "deaf") == 0
				n.fate = nil
				if rapid.IntRange(0, 2).Draw(rt, "trouble") == 0 {
					// Drawn before: actions run several at a time.
					fates := rapid.SliceOfN(rapid.SampledFrom([]outcome{done, undone, untold}), 16, 16).Draw(rt, "fates")
					var next atomic.Uint32
					n.fate = func() outcome { return fates[next.Add(1)%16] }
				}
				p, err := n.pass()
				tell("%s at %d, mute %v, deaf %v: %v", name, n.sees, n.mute, n.deaf, err)
				if p != nil {
					tell("  %s", p.Headline())
				}
			case "kill":
				tell("the agent of %s is killed", name)
				n.restart()
			case "lose":
				// Its processes and volumes are there, and so is its key.
				tell("the memory of %s is lost", name)
				n.cfg.StateDir = t.TempDir()
				n.restart()
				fresh++
			case "crash":
				for _, h := range n.state.Objects {
					if h.VM != nil {
						n.set(h.Kind, h.Name, func(h *reconcile.Live) {
							h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU was killed", Failed: true}
						})
					}
				}
			case "time":
				for _, n := range c.hosts {
					n.sleep(8 * 24 * time.Hour)
				}
			}
			once()
		}
	})
	t.Logf("%d objects came to another host, %d memories were lost", moves, fresh)
}
