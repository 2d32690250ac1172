package kvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"reconciler/drivers/kvm/qmp"
	"reconciler/reconcile"
	"reconciler/spec"
)

// live is a running machine in the course of an update.
type live struct {
	d    *Driver
	m    *machine
	conn *qmp.Conn
	now  *reading
	want *reconcile.Object
	vm   *spec.VirtualMachine
	in   reconcile.Inputs
	// waits are the paths of changes that are not carried out now, or failed.
	waits map[string]bool
}

// update carries out the changes of the action that do not wait, in the
// running guest where there is one.
func (d *Driver) update(ctx context.Context, m *machine, a *reconcile.Action, in reconcile.Inputs) error {
	vm, err := wanted(a)
	if err != nil {
		return err
	}
	p, err := d.find(ctx, m)
	if err != nil {
		return err
	}
	waits := map[string]bool{}
	disks, nics := map[string]bool{}, map[string]bool{}
	for _, c := range a.Changes {
		if c.Waits != "" {
			waits[c.Field] = true
		} else if entry, ok := entryOf(c.Field, "spec.disks["); ok {
			disks[entry] = true
		} else if entry, ok := entryOf(c.Field, "spec.nics["); ok {
			nics[entry] = true
		}
	}
	var l *live
	if p != nil {
		if l, err = d.open(ctx, m, *p, a.Want); err != nil {
			return err
		}
	}
	if err := d.recordIf(m, func(r *record) bool { return r.follow(a.Want) }); err != nil {
		return err
	}
	d.step("renamed")
	var errs []error
	if l != nil {
		l.want, l.vm, l.in, l.waits = a.Want, vm, in, waits
		errs = l.converge(ctx, sorted(disks), sorted(nics), waits)
	}
	err = d.record(m, func(r *record) {
		r.Name, r.Incarnation = a.Want.Name, a.Want.Incarnation
		r.Fields = merge(r.Fields, a.Want.Fields, waits)
	})
	return errors.Join(append(errs, err)...)
}

func sorted(set map[string]bool) []string {
	var list []string
	for s := range set {
		list = append(list, s)
	}
	sort.Strings(list)
	return list
}

// entryOf splits spec.disks[root].size: the list's prefix is spec.disks[.
func entryOf(path, list string) (entry string, ok bool) {
	rest, ok := strings.CutPrefix(path, list)
	if !ok {
		return "", false
	}
	entry, _, ok = strings.Cut(rest, "]")
	return entry, ok
}

// merge returns the fields in force after everything but what waits was done.
func merge(have, want []reconcile.Field, waits map[string]bool) []reconcile.Field {
	var out []reconcile.Field
	for _, f := range want {
		if !waits[f.Path] {
			out = append(out, f)
		}
	}
	for _, f := range have {
		if waits[f.Path] {
			out = append(out, f)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out
}

func (r *record) setField(f reconcile.Field) {
	i, found := slices.BinarySearchFunc(r.Fields, f.Path, func(g reconcile.Field, path string) int {
		return strings.Compare(g.Path, path)
	})
	if found {
		r.Fields[i] = f
	} else {
		r.Fields = slices.Insert(r.Fields, i, f)
	}
}

// open reads the machine anew, and gives a process whose record was lost a
// record again.
func (d *Driver) open(ctx context.Context, m *machine, p process, want *reconcile.Object) (*live, error) {
	link := d.attach(m, p)
	now, err := link.readBack(ctx, true)
	if err != nil {
		return nil, err
	}
	conn, err := link.connection(ctx)
	if err != nil {
		return nil, err
	}
	rec := m.snapshot()
	if rec == nil {
		var disks []*reconcile.Object
		for _, ref := range want.Refs {
			disks = append(disks, ref.To)
		}
		rec = lost(m.uid, p, now, disks)
		if err := d.record(m, func(r *record) { *r = *rec }); err != nil {
			return nil, err
		}
	}
	if rec.Launch == nil || rec.Launch.ID != p.launch {
		return nil, fmt.Errorf("QEMU (pid %d) is of launch %s, which the record does not know", p.pid, p.launch)
	}
	return &live{d: d, m: m, conn: conn, now: now}, nil
}

// entrySlack is the time for one entry beyond the guest's and the storage's.
const entrySlack = 20 * time.Second

// converge makes the named entries what the spec says. It goes on after an
// error; the paths of an entry that failed are added to waits. What is to go
// goes first: a disk may be wanted under another entry's name.
func (l *live) converge(ctx context.Context, disks, nics []string, waits map[string]bool) (errs []error) {
	limit := l.d.cfg.UnplugTimeout + l.d.cfg.DiskTimeout + entrySlack
	each := func(list string, entries []string, f func(ctx context.Context, entry string) error) {
		for _, entry := range entries {
			at := list + "[" + entry + "]"
			if waits[at+".failed"] {
				continue
			}
			ectx, cancel := context.WithTimeout(ctx, limit)
			err := f(ectx, entry)
			cancel()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", at, err))
				waits[at+".failed"] = true
				for _, o := range [][]reconcile.Field{l.want.Fields, l.m.snapshot().Fields} {
					for _, field := range o {
						if strings.HasPrefix(field.Path, at+".") {
							waits[field.Path] = true
						}
					}
				}
			}
		}
	}
	each("spec.disks", disks, l.releaseDisk)
	each("spec.nics", nics, l.releaseNIC)
	each("spec.disks", disks, l.haveDisk)
	each("spec.nics", nics, l.haveNIC)
	return errs
}

// refresh reads the machine again after something was done to it.
func (l *live) refresh(ctx context.Context) error {
	now, err := readMachine(ctx, l.conn)
	if err == nil {
		l.now = now
	}
	return err
}

// answers asks the storage for every disk of the machine.
func (l *live) answers(ctx context.Context, more ...string) error {
	uids := append(l.m.snapshot().Launch.disks(), more...)
	slices.Sort(uids)
	return l.d.answers(ctx, slices.Compact(uids))
}

// slot returns the root port for a device, and what to record for it.
func (l *live) slot(device string) (map[string]int, int, error) {
	rec := l.m.snapshot().clone()
	if rec.Slots == nil {
		rec.Slots = map[string]int{}
	}
	var inUse []string
	for id := range l.now.devices {
		if entry, known := rec.Launch.entryOfDevice(id); known {
			id = diskDevice(entry) // by which its port is recorded
		}
		inUse = append(inUse, id)
	}
	err := assign(rec.Slots, inUse, device, rec.Launch.Ports)
	return rec.Slots, rec.Slots[device], err
}
