package kvm

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

// Observe returns every machine of ours, running or recorded. What QEMU says
// may be as old as Config.MaxAge if nothing happened since. A QEMU that is
// silent makes its own machine unknown and no other. The error is for a
// process table that cannot be read: then nothing is known.
func (d *Driver) Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	return d.observe(ctx, want, false)
}

// ObserveFresh is Observe that asks every QEMU again.
func (d *Driver) ObserveFresh(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	return d.observe(ctx, want, true)
}

func (d *Driver) observe(ctx context.Context, want *reconcile.Desired, fresh bool) (reconcile.State, error) {
	state := reconcile.NewState()
	procs, err := processes()
	if err != nil {
		return state, err
	}
	boot, err := d.bootID()
	if err != nil {
		return state, err
	}
	w := &world{boot: boot, fresh: fresh, byUUID: map[string][]process{}}
	for _, p := range procs {
		if p.owner == d.owner && p.uuid != "" {
			w.byUUID[p.uuid] = append(w.byUUID[p.uuid], p)
		}
	}
	known := d.known(want)
	for _, p := range procs {
		if p.owner != d.owner || !known[p.uuid] {
			state.Unmanaged = append(state.Unmanaged, unmanaged(d, p))
		}
	}
	w.links, err = readLinks()
	d.networks(want, w.links, err, &state)

	var mu sync.Mutex
	var wg sync.WaitGroup
	for uid := range known {
		wg.Go(func() {
			live, unknown := d.observeMachine(ctx, d.machine(uid), w, want)
			mu.Lock()
			defer mu.Unlock()
			key := reconcile.Key{Kind: spec.KindVirtualMachine, UID: uid}
			if unknown != "" {
				state.Unknown[key] = unknown
			} else if live != nil {
				state.Objects[key] = live
			}
		})
	}
	wg.Wait()
	state.Complete[spec.KindVirtualMachine] = true
	return state, nil
}

// world is what was seen of the host at one observation.
type world struct {
	boot   string
	fresh  bool
	byUUID map[string][]process // ours only
	links  links
}

// known lists the machines that are recorded or wanted.
func (d *Driver) known(want *reconcile.Desired) map[string]bool {
	known := map[string]bool{}
	if want != nil {
		for k := range want.Objects {
			if k.Kind == spec.KindVirtualMachine {
				known[k.UID] = true
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for uid, m := range d.machines {
		m.mu.Lock()
		if m.rec != nil || m.broken != nil {
			known[uid] = true
		}
		m.mu.Unlock()
	}
	return known
}

func unmanaged(d *Driver, p process) reconcile.Unmanaged {
	u := reconcile.Unmanaged{Kind: "Process", Name: p.name, Reason: fmt.Sprintf("QEMU (pid %d) was not started by this agent", p.pid)}
	if u.Name == "" {
		u.Name = "pid " + strconv.Itoa(p.pid)
	}
	if p.owner == d.owner {
		u.Reason = fmt.Sprintf("QEMU (pid %d) was started by this agent, but its record is lost and no machine with its UUID is declared", p.pid)
	}
	return u
}

func (d *Driver) observeMachine(ctx context.Context, m *machine, w *world, want *reconcile.Desired) (*reconcile.Live, string) {
	m.mu.Lock()
	rec, broken, busy := m.rec, m.broken, len(m.op) == 0
	m.mu.Unlock()
	if broken != nil {
		return nil, broken.Error()
	}
	procs := w.byUUID[m.uid]
	switch {
	case len(procs) > 1:
		return nil, fmt.Sprintf("two QEMU processes have this machine's UUID (pids %d and %d): end the wrong one by hand", procs[0].pid, procs[1].pid)
	case len(procs) == 0:
		d.drop(m)
		if rec == nil {
			return nil, ""
		}
		if !busy {
			if err := d.settle(m, w.boot); err != nil {
				return nil, err.Error()
			}
		}
		return d.stopped(m), ""
	}
	p := procs[0]
	r, err := d.attach(m, p).readBack(ctx, w.fresh)
	if err != nil {
		return nil, err.Error()
	}
	if rec == nil {
		var all []*reconcile.Object
		if want != nil {
			for _, o := range want.Objects {
				all = append(all, o)
			}
		}
		rec = lost(m.uid, p, r, all)
	} else if rec.Launch == nil || rec.Launch.ID != p.launch {
		return nil, fmt.Sprintf("QEMU (pid %d) is of launch %s, which the record does not know", p.pid, p.launch)
	}
	for _, log := range []string{d.consoleLog(m.uid), d.messageLog(m.uid)} {
		if err := turnOver(log); err != nil {
			d.cfg.Log.Warn("turn a log over", "vm", m.uid, "error", err)
		}
	}
	power := powerOf(r.status)
	if power == reconcile.PowerEnded && !busy {
		if err := d.ended(m, reasonOf(r.status)); err != nil {
			return nil, err.Error()
		}
		if now := m.snapshot(); now != nil {
			rec = now
		}
	}
	return rec.running(p, r, power, w.links), ""
}

// attach returns the link to the process.
func (d *Driver) attach(m *machine, p process) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.link != nil && (m.link.proc.pid != p.pid || m.link.proc.start != p.start) {
		m.link.close()
		m.link = nil
	}
	if m.link == nil {
		m.link = d.newLink(m.uid, p)
	}
	return m.link
}

// drop forgets the link to a process that is gone.
func (d *Driver) drop(m *machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.link != nil {
		m.link.close()
		m.link = nil
	}
}

// powerOf maps QEMU's RunState. A suspended guest sleeps by its own choice.
func powerOf(status string) reconcile.Power {
	switch status {
	case "running", "suspended":
		return reconcile.PowerRunning
	case "prelaunch":
		return reconcile.PowerStarting
	case "io-error":
		return reconcile.PowerIOError
	case "shutdown", "guest-panicked", "internal-error":
		return reconcile.PowerEnded
	case "inmigrate", "finish-migrate", "postmigrate", "colo":
		return reconcile.PowerMigrating
	}
	return reconcile.PowerPaused
}

// reasonOf says how a guest in PowerEnded ended.
func reasonOf(status string) exit {
	switch status {
	case "guest-panicked":
		return exit{Reason: "the guest panicked", Failed: true}
	case "internal-error":
		return exit{Reason: "QEMU stopped the guest after an internal error", Failed: true}
	}
	return exit{Reason: "the guest shut down"}
}

// The back-off of restarts after an end that nobody asked for: doubled from
// first to last, and forgotten after a run of calm.
const (
	backoffFirst = time.Second
	backoffLast  = 5 * time.Minute
	backoffCalm  = 10 * time.Minute
)

// askedFor is how long after its deadline an end still counts as our own.
const askedFor = time.Minute

// ended records how a launch ended, once. An end that was asked for leaves
// no trace.
func (d *Driver) ended(m *machine, how exit) error {
	rec := m.snapshot()
	if rec == nil || rec.Exit != nil {
		return nil
	}
	how.At = time.Now()
	if rec.Intent != "" && how.At.Sub(rec.IntentAt) < rec.shutdownTimeout()+askedFor {
		return nil
	}
	return d.record(m, func(r *record) {
		if how.At.Sub(r.Launch.At) >= backoffCalm {
			r.Failures = 0
		}
		wait := backoffLast
		if r.Failures < 9 {
			wait = min(backoffFirst<<r.Failures, backoffLast)
		}
		r.Failures++
		r.Exit, r.RetryAt, r.Intent = &how, how.At.Add(wait), ""
	})
}

// settle notes that the process of the recorded launch is gone.
func (d *Driver) settle(m *machine, boot string) error {
	rec := m.snapshot()
	if !rec.live() {
		return nil
	}
	sameBoot := rec.Launch.BootID == boot
	if sameBoot && rec.Launch.Started {
		reason := "QEMU ended"
		if line := d.lastMessage(m.uid); line != "" {
			reason += ": " + line
		}
		if err := d.ended(m, exit{Reason: reason, Failed: true}); err != nil {
			return err
		}
	}
	return d.record(m, func(r *record) {
		r.Launch.Over = true
		if r.Intent == intentStop {
			r.Intent = ""
		}
		if !sameBoot { // the host went down, not the guest
			r.Exit, r.Failures, r.RetryAt = nil, 0, time.Time{}
		}
	})
}

// lastMessage is the last line QEMU wrote to stderr, cut to a readable length.
func (d *Driver) lastMessage(uid string) string {
	f, err := os.Open(d.messageLog(uid))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 4096)
	if info, err := f.Stat(); err == nil {
		n, _ := f.ReadAt(b, max(0, info.Size()-int64(len(b)))) // ends with io.EOF
		b = b[:n]
	}
	s := strings.TrimSpace(string(b))
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return s[:min(len(s), 300)]
}

// stopped is a recorded machine without a process.
func (d *Driver) stopped(m *machine) *reconcile.Live {
	rec := m.snapshot()
	if rec == nil {
		return nil
	}
	live := &reconcile.Live{Object: rec.object(), VM: &reconcile.LiveVM{Power: reconcile.PowerStopped}}
	live.Fields = overlay(rec.Fields, func(string) bool { return true },
		[]reconcile.Field{{Path: "spec.powerState", Value: spec.PowerStopped}})
	rec.ending(live.VM)
	return live
}

func (r *record) ending(vm *reconcile.LiveVM) {
	if r.Exit != nil {
		vm.Exit, vm.Failed, vm.RetryAt = r.Exit.Reason, r.Exit.Failed, r.RetryAt
	}
}

// lost makes up for the record of a process of ours that has none: what QEMU
// tells, and which of the disks in the tree they are.
func lost(uid string, p process, r *reading, objects []*reconcile.Object) *record {
	rec := &record{UID: uid, Name: p.name, Launch: &launch{ID: p.launch, Started: true, Disks: map[string]diskEntry{}, NICs: map[string]nicEntry{}}}
	for entry, dr := range r.disks {
		e := diskEntry{UID: dr.node, Name: dr.node}
		for _, o := range objects {
			if o.Kind == spec.KindDisk && nodeName(o.UID) == dr.node {
				e = diskEntry{UID: o.UID, Name: o.Name}
			}
		}
		rec.Launch.Disks[entry] = e
	}
	for name := range r.nics {
		rec.Launch.NICs[name] = nicEntry{Network: "(unknown)"}
	}
	return rec
}

// running is a machine with a process: the record, overlaid with what QEMU and
// the kernel say.
func (r *record) running(p process, now *reading, power reconcile.Power, links links) *reconcile.Live {
	vm := &reconcile.LiveVM{Power: power, Launch: p.launch, PID: p.pid, Disks: map[string]string{}}
	state := spec.PowerRunning
	if power == reconcile.PowerEnded {
		state = spec.PowerStopped
		r.ending(vm)
	}
	f := []reconcile.Field{
		{Path: "spec.powerState", Value: state},
		{Path: "spec.cpu.sockets", Value: strconv.Itoa(now.sockets)},
		{Path: "spec.cpu.cores", Value: strconv.Itoa(now.cores)},
		{Path: "spec.cpu.threads", Value: strconv.Itoa(now.threads)},
		{Path: "spec.memory.size", Value: spec.Size(now.memory).String()},
	}
	here := map[string]bool{}
	for entry, e := range r.Launch.Disks {
		at := "spec.disks[" + entry + "]"
		here[at] = true
		vm.Disks[entry] = e.UID
		if now.disks[entry].node == nodeName(e.UID) {
			f = append(f, reconcile.Field{Path: at + ".disk", Value: e.Name, ID: e.UID},
				reconcile.Field{Path: at + ".size", Value: spec.Size(now.disks[entry].size).String()})
		} else { // an attach or detach that was cut off
			f = append(f, reconcile.Field{Path: at + ".disk", Value: e.Name + " (incomplete)"})
		}
	}
	for entry, dr := range now.disks { // attached by somebody else
		if _, ok := r.Launch.Disks[entry]; !ok {
			f = append(f, reconcile.Field{Path: "spec.disks[" + entry + "].disk", Value: dr.node})
		}
	}
	for name, e := range r.Launch.NICs {
		at := "spec.nics[" + name + "]"
		here[at] = true
		n, ok := now.nics[name]
		if !ok {
			f = append(f, reconcile.Field{Path: at + ".network", Value: e.Network + " (incomplete)"})
			continue
		}
		f = append(f, reconcile.Field{Path: at + ".network", Value: e.Network, ID: e.NetworkID},
			reconcile.Field{Path: at + ".backend", Value: links.backend(r.UID, name, n)},
			reconcile.Field{Path: at + ".mac", Value: n.mac})
	}
	for name, n := range now.nics {
		if _, ok := r.Launch.NICs[name]; !ok {
			f = append(f, reconcile.Field{Path: "spec.nics[" + name + "].mac", Value: n.mac})
		}
	}
	live := &reconcile.Live{Object: r.object(), VM: vm}
	live.Fields = overlay(r.Fields, func(entry string) bool { return here[entry] }, f)
	return live
}

// overlay returns recorded fields with observed ones in their place, without
// those of list entries that are not there, sorted by path.
func overlay(recorded []reconcile.Field, here func(entry string) bool, observed []reconcile.Field) []reconcile.Field {
	seen := map[string]bool{}
	for _, f := range observed {
		seen[f.Path] = true
	}
	out := slices.Clone(observed)
	for _, f := range recorded {
		entry, leaf, isEntry := strings.Cut(f.Path, "].")
		switch {
		case seen[f.Path]:
		case isEntry && strings.HasPrefix(entry, "spec.") && (!here(entry+"]") || readLeaf[leaf] && seenEntry(seen, entry)):
		default:
			out = append(out, f)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out
}

// readLeaf are the fields of disks and NICs that are always read back: of an
// incomplete entry the recorded ones are not in force.
var readLeaf = map[string]bool{"disk": true, "size": true, "network": true, "backend": true, "mac": true}

func seenEntry(seen map[string]bool, entry string) bool {
	return seen[entry+"].disk"] || seen[entry+"].network"]
}
