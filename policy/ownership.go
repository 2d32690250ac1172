package policy

import (
	"fmt"

	"reconciler/reconcile"
	"reconciler/spec"
)

// Ownership tells whose the data of an object is. A name that is declared again
// is the same object with its old data: it must not come to another tenant.
type Ownership struct {
	Tenants []Tenant
	// Declared are the files that declare objects now, by UID.
	Declared func(uid string) string
	// Recorded are those who declared the objects that are there, by UID.
	Recorded map[string]Owner
}

// Owner is who declared an object. A directory may be renamed, or given to
// another tenant: the name decides, and the file only where there is none.
type Owner struct {
	Tenant string // empty: the operators, or nobody knew of tenants then
	File   string
}

// OwnerOf is who declares what stands in a file.
func OwnerOf(file string, tenants []Tenant) Owner {
	return Owner{Tenant: nameOf(tenantOf(file, tenants)), File: file}
}

// Tenant is who declares an object; empty for the operators.
func (o Ownership) Tenant(uid string) string { return nameOf(tenantOf(o.Declared(uid), o.Tenants)) }

// Kept says whether objects of a kind hold what another tenant must not get: a
// disk its data, a machine what it has in memory.
func Kept(k spec.Kind) bool {
	return k == spec.KindDisk || k == spec.KindVirtualMachine
}

// taken says why an action would give one owner's object to another; empty if
// it would not. What the operators take over they may look at anyway.
func (o Ownership) taken(a *reconcile.Action) string {
	if len(o.Tenants) == 0 || !Kept(a.Kind) || a.Want == nil || a.Have == nil {
		return ""
	}
	now := tenantOf(o.Declared(a.UID), o.Tenants)
	if now == nil {
		return ""
	}
	owner, known := o.Recorded[a.UID]
	was := &Tenant{Name: owner.Tenant}
	if owner.Tenant == "" {
		was = tenantOf(owner.File, o.Tenants)
	}
	switch {
	case known && nameOf(was) == now.Name:
		return ""
	case known:
		return fmt.Sprintf("tenant %s declares it, but it is %s (%s)", now.Name, whose(was), owner.File)
	case a.Op == reconcile.OpRestore:
		return fmt.Sprintf("tenant %s declares it, but nothing says whose the data in quarantine is", now.Name)
	}
	return "" // from before there were tenants
}

// holdTaken holds what would give an object to another owner, and what would
// use such an object: also where nothing about the object itself is to be done.
func (o Ownership) holdTaken(p *reconcile.Plan, allowed func(*reconcile.Action) bool) {
	if len(o.Tenants) == 0 {
		return
	}
	taken := map[reconcile.Key]string{}
	for i := range p.Actions {
		a := &p.Actions[i]
		why := o.taken(a)
		if why == "" || a.State == reconcile.Blocked || allowed(a) {
			continue
		}
		taken[a.Key()] = handle(a)
		if a.Op == reconcile.OpUnchanged {
			a.Op, a.Cause = reconcile.OpAdopt, reconcile.CauseRevision
		}
		hold(a, why, allowCommand(a))
	}
	if len(taken) == 0 {
		return
	}
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Want == nil || a.State != reconcile.Ready || a.Op == reconcile.OpUnchanged {
			continue
		}
		for _, r := range a.Want.Refs {
			if name := taken[r.To.Key()]; name != "" {
				hold(a, "waits for "+name+", which belongs to another", "")
			}
		}
	}
}
