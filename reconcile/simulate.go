package reconcile

import (
	"sort"

	"reconciler/spec"
)

// LiveFromApplied is an object as it would be if all that was applied were
// still so.
func LiveFromApplied(b *Applied) *Live {
	h := &Live{Object: b.Object}
	h.derive()
	return h
}

// StateFromBase is the world as if base were fully applied.
func StateFromBase(base Base) State {
	s := NewState()
	for _, k := range spec.Kinds {
		s.Complete[k] = true
	}
	for k, b := range base {
		if b.Done {
			s.Objects[k] = LiveFromApplied(b)
		}
	}
	return s
}

// Calm is the world in which a commit is seen for what it asks: as if base were
// fully applied, and what is to go were there, also if it was never finished.
func Calm(want *Desired, base Base) State {
	s := StateFromBase(base)
	for k, b := range base {
		if !b.Done && want.Objects[k] == nil {
			s.Objects[k] = LiveFromApplied(b)
		}
	}
	return s
}

// derive fills what a kind has beyond its fields.
func (h *Live) derive() {
	switch h.Kind {
	case spec.KindVirtualMachine:
		h.VM = &LiveVM{Power: PowerStopped}
		if h.Get("spec.powerState") != spec.PowerStopped {
			h.VM.Power, h.VM.Launch, h.VM.Disks = PowerRunning, "simulated", map[string]string{}
			for _, f := range h.Fields {
				if name, field, ok := entry(f.Path, "spec.disks"); ok && field == "disk" {
					h.VM.Disks[name] = f.ID
				}
			}
		}
	case spec.KindDisk:
		size := bytesOf(h.Get("spec.size"))
		h.Disk = &LiveDisk{Volume: size, LUN: size}
	case spec.KindStoragePool:
		h.Pool = &LivePool{Free: bytesOf(h.Get("spec.capacity"))}
	}
}

// Simulate is the world after every ready action of the plan succeeded.
func Simulate(have State, p Plan) State {
	s := NewState()
	s.Merge(have)
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.State != Ready {
			continue
		}
		k := a.Key()
		switch a.Op {
		case OpUnchanged:
		case OpDelete, OpPurge:
			delete(s.Objects, k)
		case OpQuarantine:
			h := *a.Have
			disk := *h.Disk
			disk.Quarantined, disk.Claims = true, nil
			h.Disk = &disk
			s.Objects[k] = &h
		default:
			h := &Live{Object: *a.Want}
			h.Fields = a.Reached()
			h.derive()
			if a.Op == OpStop {
				h.VM = &LiveVM{Power: PowerStopped}
				if a.Have != nil {
					h.VM.Exit, h.VM.Failed = a.Have.VM.Exit, a.Have.VM.Failed
				}
			}
			s.Objects[k] = h
		}
	}
	return s
}

// Reached are the fields of the object after the action: the wanted ones, but
// for the changes that wait.
func (a *Action) Reached() []Field {
	waits := map[string]bool{}
	for _, c := range a.Changes {
		if c.Waits != "" {
			waits[c.Field] = true
		}
	}
	if len(waits) == 0 || a.Have == nil {
		return a.Want.Fields
	}
	var fields []Field
	for _, f := range a.Want.Fields {
		if !waits[f.Path] {
			fields = append(fields, f)
		}
	}
	for _, f := range a.Have.Fields {
		if waits[f.Path] {
			fields = append(fields, f)
		}
	}
	sort.Slice(fields, func(i, j int) bool { return fields[i].Path < fields[j].Path })
	return fields
}

// Begin notes in base that an action is about to run, so that the next plan
// can tell a retry from a new request.
func (b Base) Begin(a *Action) {
	k := a.Key()
	e := b[k]
	if e == nil {
		e = &Applied{Object: Object{Kind: a.Kind, Name: a.Name, UID: a.UID}}
	} else {
		c := *e
		e = &c
	}
	e.Attempted = removed
	if a.Want != nil {
		e.Attempted = a.Want.Generation()
	}
	b[k] = e
}

// Finish notes in base that an action succeeded, or that there was nothing to do.
func (b Base) Finish(a *Action) {
	k := a.Key()
	if a.Want == nil {
		delete(b, k)
		return
	}
	o := *a.Want
	o.Spec, o.Refs = nil, nil
	o.Fields = a.inForce(b[k])
	b[k] = &Applied{Object: o, Done: true}
}

// inForce is the new base: what waits keeps the value it was last applied
// with, so that the commit stays its cause.
func (a *Action) inForce(old *Applied) []Field {
	waits := false
	for _, c := range a.Changes {
		waits = waits || c.Waits != ""
	}
	if !waits {
		return a.Want.Fields
	}
	if old == nil || !old.Done {
		return a.Reached()
	}
	kept := *a
	kept.Have = &Live{Object: old.follow(a.Want).Object}
	return kept.Reached()
}

// BaseOf is the base after all of a revision was applied.
func BaseOf(d *Desired) Base {
	base := make(Base, len(d.Objects))
	for k, w := range d.Objects {
		o := *w
		o.Spec, o.Refs = nil, nil
		base[k] = &Applied{Object: o, Done: true}
	}
	return base
}
