package reconcile

import (
	"fmt"

	"reconciler/spec"
)

// graph looks actions up by object.
type graph map[Key]*Action

func (p *Plan) graph() graph {
	g := make(graph, len(p.Actions))
	for i := range p.Actions {
		g[p.Actions[i].Key()] = &p.Actions[i]
	}
	return g
}

// link finds what must be done before what, and what has to wait for a claim.
func (d *differ) link(p *Plan) {
	g := p.graph()
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.State != Ready || a.Op == OpUnchanged {
			continue
		}
		switch a.Kind {
		case spec.KindVirtualMachine:
			d.linkVM(g, a)
		case spec.KindDisk:
			d.linkDisk(g, a)
		}
	}
	for i := range p.Actions {
		breakCycles(g, &p.Actions[i])
	}
}

func (d *differ) linkDisk(g graph, a *Action) {
	if a.Want != nil {
		for _, r := range a.Want.Refs {
			a.after(g, r.To.Key())
		}
		return
	}
	holder := d.holders[a.UID]
	if holder == nil {
		for _, c := range a.Have.Disk.Claims {
			if c.Owner.VM != "" && d.leaked(a.UID, c) == "" {
				a.State, a.Reason = Waiting, "a machine that could not be observed has a claim on it"
			}
		}
		return
	}
	if !releases(g[holder.Key()], a.UID) {
		a.State, a.Reason = Waiting, "in use by VirtualMachine/"+holder.Name
		return
	}
	a.after(g, holder.Key())
}

func (d *differ) linkVM(g graph, a *Action) {
	switch a.Op {
	case OpCreate, OpStart, OpRestart:
		if a.Op == OpStart && a.Have != nil && (a.Have.VM.Power == PowerPaused || a.Have.VM.Power == PowerIOError) {
			return // it has its disks; it only goes on
		}
		for _, r := range a.Want.Refs {
			if why := d.unavailable(a, r.To); why != "" {
				a.State, a.Reason = Waiting, why
				return
			}
			a.after(g, r.To.Key())
			if r.To.Kind == spec.KindDisk {
				if why := d.handover(g, a, r.To, &a.After); why != "" {
					a.State, a.Reason = Waiting, why
					return
				}
			}
		}
	case OpUpdate:
		for i := range a.Changes {
			c := &a.Changes[i]
			if c.Waits == "" && c.To != "" {
				d.linkChange(g, a, c)
			}
		}
	}
}

// linkChange finds what one change of a running machine needs.
func (d *differ) linkChange(g graph, a *Action, c *Change) {
	to := a.Want.ref(c.Field)
	if name, _, ok := entry(c.Field, "spec.disks"); ok && to == nil {
		to = a.Want.ref("spec.disks[" + name + "].disk")
	}
	if name, _, ok := entry(c.Field, "spec.nics"); ok && to == nil {
		to = a.Want.ref("spec.nics[" + name + "].network")
	}
	if to == nil {
		return
	}
	if c.Waits = d.unavailable(a, to); c.Waits != "" {
		return
	}
	c.need(g, to.Key())
	_, field, _ := entry(c.Field, "spec.disks")
	c.follows = field == "size"
	if to.Kind == spec.KindDisk && d.holders[to.UID] != a.Have {
		c.Waits = d.handover(g, a, to, &c.needs)
	}
}

// unavailable says why an object that is referred to cannot be used from here.
func (d *differ) unavailable(a *Action, to *Object) string {
	k := to.Key()
	if at := d.want.Elsewhere[k]; at != "" {
		return fmt.Sprintf("%s/%s is on host %s; a disk of another host is not supported yet", to.Kind, to.Name, at)
	}
	if to.Kind != spec.KindDisk {
		return ""
	}
	if h := d.have.Objects[k]; h != nil {
		for _, c := range h.Disk.Claims {
			if c.Owner.Access != "" && !c.ReadOnly {
				return fmt.Sprintf("Disk/%s is lent to an access (%s)", to.Name, c.Owner.Access)
			}
			if !d.want.isHere(c.Owner.Host) && !c.ReadOnly {
				return fmt.Sprintf("Disk/%s is claimed by host %s", to.Name, c.Owner.Host)
			}
		}
	}
	return ""
}

// handover makes a machine wait for the one that has the disk now.
func (d *differ) handover(g graph, a *Action, disk *Object, after *[]Key) string {
	holder := d.holders[disk.UID]
	if holder == nil || holder.UID == a.UID {
		return ""
	}
	if !releases(g[holder.Key()], disk.UID) {
		return fmt.Sprintf("Disk/%s is attached to VirtualMachine/%s", disk.Name, holder.Name)
	}
	*after = append(*after, holder.Key())
	return ""
}

// releases says whether an action takes a disk from its machine.
func releases(a *Action, disk string) bool {
	if a == nil || a.State != Ready || a.Have == nil {
		return false
	}
	switch a.Op {
	case OpDelete, OpStop:
		return true
	case OpRestart:
		for _, r := range a.Want.Refs {
			if r.To.UID == disk {
				return false
			}
		}
		return true
	case OpUpdate:
		for _, c := range a.Changes {
			name, field, ok := entry(c.Field, "spec.disks")
			if ok && field == "disk" && c.Waits == "" && a.Have.VM.Disks[name] == disk {
				return true
			}
		}
	}
	return false
}

// after adds an edge where the other action does anything.
func (a *Action) after(g graph, k Key) {
	if dep := g[k]; dep != nil && dep.Op != OpUnchanged {
		a.After = append(a.After, k)
	}
}

func (c *Change) need(g graph, k Key) {
	if dep := g[k]; dep != nil && dep.Op != OpUnchanged {
		c.needs = append(c.needs, k)
	}
}

// breakCycles finds machines that wait for each other, as when two swap disks:
// one of them gives its disk away first and gets the other's in the next plan,
// when its claim is seen to be free.
func breakCycles(g graph, a *Action) {
	if a.Kind != spec.KindVirtualMachine {
		return
	}
	const why = "waits for a disk that another machine gives away first"
	for i := range a.Changes {
		c := &a.Changes[i]
		for _, k := range c.needs {
			if c.Waits == "" && k.Kind == spec.KindVirtualMachine && g.reaches(k, a.Key(), map[Key]bool{}) {
				c.Waits, c.needs = why, nil
			}
		}
	}
	for _, k := range a.After {
		if k.Kind == spec.KindVirtualMachine && g.reaches(k, a.Key(), map[Key]bool{}) {
			a.State, a.Reason, a.After = Waiting, why, nil
			return
		}
	}
}

func (g graph) reaches(from, to Key, seen map[Key]bool) bool {
	if from == to {
		return true
	}
	a := g[from]
	if a == nil || seen[from] {
		return false
	}
	seen[from] = true
	for _, k := range a.Dependencies() {
		if k.Kind == spec.KindVirtualMachine && g.reaches(k, to, seen) {
			return true
		}
	}
	return false
}

// Dependencies are the objects whose actions must run before this one.
func (a *Action) Dependencies() []Key {
	deps := append([]Key(nil), a.After...)
	for _, c := range a.Changes {
		if c.Waits == "" {
			deps = append(deps, c.needs...)
		}
	}
	return deps
}

// Settle lets what cannot run hold its dependants, and sums the plan up. It is
// called again after policy has held actions.
func (p *Plan) Settle() {
	g := p.graph()
	for changed := true; changed; {
		changed = false
		for i := range p.Actions {
			changed = p.Actions[i].settle(g) || changed
		}
	}
	p.Impact, p.Summary = ImpactNone, map[Op]int{}
	for i := range p.Actions {
		a := &p.Actions[i]
		p.Summary[a.Op]++
		if a.State != Blocked {
			p.Impact = max(p.Impact, a.Impact)
		}
	}
}

// settle returns whether it changed anything.
func (a *Action) settle(g graph) bool {
	if a.State != Ready || a.Op == OpUnchanged {
		return false
	}
	for _, k := range a.After {
		if dep := g[k]; dep.obstructs() {
			a.State, a.Reason = Waiting, dep.hindrance()
			return true
		}
	}
	changed, able, possible, left, why := false, 0, 0, 0, ""
	for i := range a.Changes {
		c := &a.Changes[i]
		for _, k := range c.needs {
			dep := g[k]
			if c.Waits == "" && dep.obstructs() {
				c.Waits, changed = dep.hindrance(), true
			}
			if c.Waits == "" && c.follows {
				c.Waits, c.never = dep.withholds("spec.size")
				changed = changed || c.Waits != ""
			}
		}
		if c.Waits == "" {
			able++
		} else if !c.Drift && (why == "" || !c.never) {
			why = c.Waits
		}
		if c.Drift {
			left++
		} else if !c.never {
			possible++
		}
	}
	if a.Op != OpUpdate || able > 0 || len(a.Changes) == 0 {
		return changed
	}
	switch {
	case left == len(a.Changes):
		a.State, a.Reason = Held, joined(a.Reason, a.Changes[0].Waits)
	case possible == 0:
		a.Op, a.State, a.Reason = OpBlocked, Blocked, why
	default:
		a.State, a.Reason = Waiting, why
	}
	return true
}

// obstructs says whether the action keeps those after it from running: it will
// not run, and its object is not there to be used as it is.
func (a *Action) obstructs() bool {
	if a.State == Ready {
		return false
	}
	usable := a.Have != nil && !a.Have.quarantined() && !a.unknown && a.Want != nil
	return !usable || a.Kind == spec.KindVirtualMachine
}

// withholds says why a field of the object stays as it is for now, or for good.
func (a *Action) withholds(path string) (why string, never bool) {
	for _, c := range a.Changes {
		if c.Field != path {
			continue
		}
		if c.Waits != "" {
			return fmt.Sprintf("waits for %s/%s: %s", a.Kind, a.Name, c.Waits), c.never
		}
		if a.State != Ready {
			return a.hindrance(), false
		}
	}
	return "", false
}

func (a *Action) hindrance() string {
	return fmt.Sprintf("waits for %s/%s, which is %s: %s", a.Kind, a.Name, a.State, a.Reason)
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
