package kvm

import (
	"context"
	"fmt"
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
	known := d.known(want)
	w := &world{fresh: fresh, byUUID: map[string][]process{}, foreign: map[string]process{}, acts: map[string]uint64{}}
	for uid := range known {
		w.acts[uid] = d.machine(uid).acts.Load()
	}
	procs, err := processes()
	if err != nil {
		return state, err
	}
	w.boot, err = d.bootID()
	if err != nil {
		return state, err
	}
	for _, p := range procs {
		counts := d.counts(p)
		switch {
		case !counts || p.uuid == "":
		case p.owner == d.owner:
			w.byUUID[p.uuid] = append(w.byUUID[p.uuid], p)
		default:
			w.foreign[p.uuid] = p
		}
		if !counts || p.owner != d.owner || !known[p.uuid] {
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
	state.Facts = d.facts(ctx, want)
	state.Complete[spec.KindVirtualMachine] = true
	return state, nil
}

// world is what was seen of the host at one observation.
type world struct {
	boot   string
	fresh  bool
	byUUID map[string][]process // ours only
	// foreign are processes of others by UUID: a machine of ours that has the
	// same one must not be started, or taken for off.
	foreign map[string]process
	acts    map[string]uint64 // actions begun before byUUID was read
	links   links
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
	if p.owner == d.owner && !d.counts(p) {
		u.Reason = fmt.Sprintf("process %d calls itself a machine of this agent, and is none: it is of user %d and executes %q", p.pid, p.uid, p.exe)
	} else if p.owner == d.owner {
		u.Reason = fmt.Sprintf("QEMU (pid %d) was started by this agent, but its record is lost and no machine with its UUID is declared", p.pid)
	}
	return u
}

// errBusy is why a machine is unknown while it is being changed.
const errBusy = "an action on it is under way"

func (d *Driver) observeMachine(ctx context.Context, m *machine, w *world, want *reconcile.Desired) (*reconcile.Live, string) {
	if !m.op.TryAcquire(1) {
		return nil, errBusy
	}
	defer m.op.Release(1)
	m.mu.Lock()
	rec, broken := m.rec, m.broken
	m.mu.Unlock()
	if broken != nil {
		return nil, broken.Error()
	}
	procs := w.byUUID[m.uid]
	if m.acts.Load() != w.acts[m.uid] { // what was seen may have been before the action
		var err error
		if procs, err = d.ours(m.uid); err != nil {
			return nil, err.Error()
		}
	}
	if len(procs) > 1 {
		return nil, twice(procs).Error()
	}
	if p, ok := w.foreign[m.uid]; ok {
		return nil, taken(p).Error()
	}
	if len(procs) == 0 && rec.live() {
		p, err := d.holder(ctx, m)
		if err != nil {
			return nil, err.Error()
		}
		if p != nil {
			procs = []process{*p}
		}
	}
	if len(procs) == 0 {
		defer d.drop(m)
		if rec == nil {
			return nil, ""
		}
		d.removeSecrets(m.uid)
		if err := d.settle(m, w.boot); err != nil {
			return nil, err.Error()
		}
		return d.stopped(m), ""
	}
	return d.observeProcess(ctx, m, rec, procs[0], w, want)
}

func (d *Driver) observeProcess(ctx context.Context, m *machine, rec *record, p process, w *world, want *reconcile.Desired) (*reconcile.Live, string) {
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
	if w.links.err != nil {
		for _, n := range r.nics {
			if !strings.HasPrefix(n.netdev, "user-") {
				return nil, w.links.err.Error()
			}
		}
	}
	d.tidy(m)
	power := powerOf(r.status)
	if power == reconcile.PowerEnded {
		how := reasonOf(r.status)
		how.At = time.Now()
		if asked := m.askedFor(p.launch); asked != "" && !how.Failed {
			how.Reason, how.Asked = asked+" and "+how.Reason, true
		}
		if err := d.recordIf(m, func(now *record) bool { return now.Launch != nil && now.end(how) }); err != nil {
			return nil, err.Error()
		}
		if now := m.snapshot(); now != nil {
			rec = now
		}
	}
	return rec.running(p, r, power, w.links), ""
}

// tidy bounds the logs of a process and removes what a crash left of its start.
func (d *Driver) tidy(m *machine) {
	d.removeSecrets(m.uid)
	d.turning.Lock() // two may look at once
	defer d.turning.Unlock()
	for _, log := range []string{d.consoleLog(m.uid), d.messageLog(m.uid)} {
		if err := turnOver(log); err != nil {
			d.cfg.Log.Warn("turn a log over", "vm", m.uid, "error", err)
		}
	}
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

// lost makes up for the record of a process of ours that has none: what QEMU
// tells, and which of the disks in the tree they are.
func lost(uid string, p process, r *reading, objects []*reconcile.Object) *record {
	rec := &record{UID: uid, Name: p.name, Launch: &launch{ID: p.launch, Started: true, Seed: r.devices[seedDevice], Disks: map[string]diskEntry{}, NICs: map[string]nicEntry{}}}
	for id, dr := range r.disks {
		e := diskEntry{UID: dr.node, Name: dr.node}
		for _, o := range objects {
			if o.Kind == spec.KindDisk && nodeName(o.UID) == dr.node {
				e = diskEntry{UID: o.UID, Name: o.Name}
			}
		}
		rec.Launch.Disks[strings.TrimPrefix(id, diskDevice(""))] = e
	}
	for name := range r.nics {
		rec.Launch.NICs[name] = nicEntry{Network: "(unknown)"}
	}
	return rec
}

// running is a machine with a process: the record, overlaid with what QEMU and
// the kernel say.
func (r *record) running(p process, now *reading, power reconcile.Power, links links) *reconcile.Live {
	vm := &reconcile.LiveVM{Power: power, Launch: p.launch, PID: p.pid, Disks: map[string]string{}, Ports: now.ports()}
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
		if dr := now.disks[r.Launch.device(entry)]; dr.node == nodeName(e.UID) {
			f = append(f, reconcile.Field{Path: at + ".disk", Value: e.Name, ID: e.UID},
				reconcile.Field{Path: at + ".size", Value: spec.Size(dr.size).String()})
		} else { // an attach or detach that was cut off
			f = append(f, reconcile.Field{Path: at + ".disk", Value: e.Name + " (incomplete)"})
		}
	}
	for id, dr := range now.disks { // attached by somebody else
		if entry, known := r.Launch.entryOfDevice(id); !known {
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
	recorded := r.Fields
	if !now.devices[seedDevice] {
		recorded = withoutSeed(recorded)
	}
	live := &reconcile.Live{Object: r.object(), VM: vm}
	live.Fields = overlay(recorded, func(entry string) bool { return here[entry] }, f)
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
