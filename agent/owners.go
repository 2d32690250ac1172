package agent

import (
	"encoding/json"
	"errors"
	"maps"

	"reconciler/internal/durable"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
)

// owners are those who declared the objects which are on the host, by UID: who
// may have their data once they are declared again elsewhere.
type owners map[string]policy.Owner

const ownersFile = "owners.json"

// ownersRecord is the form of owners on disk. The names of tenants stand beside
// the files, so that an earlier build reads what it knows of.
type ownersRecord struct {
	mapRecord[string]
	Tenants map[string]string
}

func (r ownersRecord) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Entries map[string]string `json:"entries"`
		Tenants map[string]string `json:"tenants,omitempty"`
	}{r.Entries, r.Tenants})
}

func (r *ownersRecord) UnmarshalJSON(data []byte) error {
	if err := r.mapRecord.UnmarshalJSON(data); err != nil {
		return err
	}
	v, err := durable.Version(data)
	if err != nil || v == 0 {
		return err
	}
	var named struct {
		Tenants map[string]string `json:"tenants"`
	}
	err = json.Unmarshal(data, &named)
	r.Tenants = named.Tenants
	return err
}

func (o owners) record() ownersRecord {
	r := ownersRecord{mapRecord[string]{map[string]string{}}, map[string]string{}}
	for uid, owner := range o {
		r.Entries[uid] = owner.File
		if owner.Tenant != "" {
			r.Tenants[uid] = owner.Tenant
		}
	}
	return r
}

// loadOwners reads who has what. What an earlier build wrote down by its file
// alone belongs to whom the file belongs now, once and for all.
func (a *Agent) loadOwners() error {
	var r ownersRecord
	if err := loadRecord(a, ownersFile, &r); err != nil {
		return err
	}
	a.owners = owners{}
	unnamed := false
	for uid, file := range r.Entries {
		o := policy.Owner{Tenant: r.Tenants[uid], File: file}
		if o.Tenant == "" {
			o = policy.OwnerOf(file, a.cfg.Tenants)
			unnamed = unnamed || o.Tenant != ""
		}
		a.owners[uid] = o
	}
	if !unnamed {
		return nil
	}
	return a.store.save(ownersFile, a.owners.record())
}

// declaredIn looks up which file of a tree declares an object.
func declaredIn(set *spec.Set) func(uid string) string {
	return func(uid string) string {
		if set == nil {
			return ""
		}
		o := set.ByUID(uid)
		if o == nil {
			return ""
		}
		file, _, _ := o.Position("")
		return file
	}
}

// ownership is what tells whose the data of an object is. a.mu is held.
func (a *Agent) ownership(set *spec.Set) policy.Ownership {
	return policy.Ownership{Tenants: a.cfg.Tenants, Declared: declaredIn(set), Recorded: a.owners}
}

// own writes down who has the objects of some actions that policy let pass,
// before any of them is there. a.mu is held.
func (a *Agent) own(actions ...*reconcile.Action) error {
	changed := owners{}
	file := declaredIn(a.set)
	for _, act := range actions {
		if act.Want == nil || !policy.Kept(act.Kind) {
			continue
		}
		f, was := file(act.UID), a.owners[act.UID]
		if f == "" {
			continue
		}
		now := policy.OwnerOf(f, a.cfg.Tenants)
		if len(a.cfg.Tenants) == 0 { // which may be for a while only
			now.Tenant = was.Tenant
		}
		if now != was {
			changed[act.UID] = now
		}
	}
	return a.keepOwners(changed, nil)
}

// disown forgets who had what is nowhere any more. a.mu is held.
func (a *Agent) disown(listed map[reconcile.Key]bool, have reconcile.State) error {
	if !have.Complete[spec.KindDisk] || !have.Complete[spec.KindVirtualMachine] {
		return nil
	}
	var gone []string
	for uid := range a.owners {
		if !listed[reconcile.Key{Kind: spec.KindDisk, UID: uid}] && !listed[reconcile.Key{Kind: spec.KindVirtualMachine, UID: uid}] {
			gone = append(gone, uid)
		}
	}
	return a.keepOwners(nil, gone)
}

// keepOwners changes the record on disk, then in memory.
func (a *Agent) keepOwners(changed owners, gone []string) error {
	if len(changed) == 0 && len(gone) == 0 {
		return nil
	}
	next := maps.Clone(a.owners)
	maps.Copy(next, changed)
	for _, uid := range gone {
		delete(next, uid)
	}
	if err := a.store.save(ownersFile, next.record()); err != nil {
		return err
	}
	a.owners = next
	return nil
}

// tenancy is what was found of one tree: it is looked at once, not every pass.
type tenancy struct {
	set *spec.Set
	err error
}

// checkTenants refuses a tree in which a tenant declares what it may not.
func (a *Agent) checkTenants(set *spec.Set) error {
	a.mu.Lock()
	known := a.tenancy
	a.mu.Unlock()
	if known.set != set {
		known = tenancy{set: set}
		var errs spec.Errors
		if err := policy.CheckTenants(set, a.cfg.Tenants); errors.As(err, &errs) {
			known.err = &refusal{"TenantViolation", "a tenant declares what it may not: " + errs.Error()}
		}
		a.mu.Lock()
		a.tenancy = known
		a.mu.Unlock()
	}
	return known.err
}
