package agent

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"reconciler/api"
	"reconciler/drift"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Import writes the specs of what is here and no tree declares. Our own records
// say what an object was made from, and the world how it is now: committed, the
// document is found to be as it is wanted, and nothing is done.
func (a *Agent) Import(ctx context.Context, r api.ImportRequest) (api.ImportResult, error) {
	out := api.ImportResult{Documents: []api.ImportDocument{}, Notes: []string{}}
	a.mu.Lock()
	set, inForce := a.set, a.mem.Good
	a.mu.Unlock()
	if set == nil {
		return out, errNoRevision
	}
	plan, err := a.Plan(ctx, api.PlanRequest{Rev: inForce})
	if err != nil {
		return out, err
	}
	wanted := func(object string) bool { return len(r.Objects) == 0 || slices.Contains(r.Objects, object) }
	a.mu.Lock()
	stray := a.strays(plan)
	a.mu.Unlock()
	for i := range plan.Actions {
		act := &plan.Actions[i]
		if stray[act.UID] == "" || !wanted(objectName(act)) {
			continue
		}
		d := api.ImportDocument{Kind: string(act.Kind), Name: act.Name, Adopted: true}
		if act.Have.Disk != nil && act.Have.Disk.Quarantined {
			out.Notes = append(out.Notes, fmt.Sprintf("%s is in quarantine: reconciler undelete disk/%s prints its document", objectName(act), act.Name))
			continue
		}
		yaml, err := document(set, act, stray)
		if err != nil {
			out.Notes = append(out.Notes, fmt.Sprintf("%s cannot be imported: %v", objectName(act), err))
			continue
		}
		d.YAML, d.Notes = yaml, missing(set, act, stray)
		d.Adopted = len(d.Notes) == 0
		out.Documents = append(out.Documents, d)
	}
	a.foreign(ctx, r, &out)
	for _, object := range r.Objects {
		found := slices.ContainsFunc(out.Documents, func(d api.ImportDocument) bool { return d.Kind+"/"+d.Name == object })
		noted := slices.ContainsFunc(out.Notes, func(n string) bool { return strings.HasPrefix(n, object) })
		if !found && !noted {
			return out, api.Errorf(api.NotFound, "%s is not here, or is declared", object)
		}
	}
	for _, u := range plan.Unmanaged {
		if len(r.Objects) == 0 && u.Kind != "Process" {
			out.Notes = append(out.Notes, fmt.Sprintf("%s %s: %s; without a record it is not known whose it is, and it is left alone", u.Kind, u.Name, u.Reason))
		}
	}
	return out, nil
}

// strays are the names, by UID, of what is here and nobody declares. a.mu is held.
func (a *Agent) strays(plan *reconcile.Plan) map[string]string {
	list := map[string]string{}
	for i := range plan.Actions {
		if act := &plan.Actions[i]; a.orphan(act) {
			list[act.UID] = act.Name
		}
	}
	return list
}

// document declares an object that is here as it is.
func document(set *spec.Set, act *reconcile.Action, stray map[string]string) (string, error) {
	yaml, err := drift.Document(present(act.Have), set.ClusterID(), func(uid string) string {
		if o := set.ByUID(uid); o != nil {
			return o.Meta.Name
		}
		return stray[uid]
	})
	return string(yaml), err
}

// undeclared are the objects that are here, with records of ours, that nobody
// declares and that can be taken over as they are. a.mu is held.
func (a *Agent) undeclared(plan *reconcile.Plan) (list []drift.Item) {
	stray := a.strays(plan)
	for i := range plan.Actions {
		act := &plan.Actions[i]
		if stray[act.UID] == "" || act.Have.Disk != nil && act.Have.Disk.Quarantined || len(missing(a.set, act, stray)) > 0 {
			continue
		}
		if yaml, err := document(a.set, act, stray); err == nil {
			file := path.Join(a.cfg.Drift.Dir, "imported", a.name()+".yaml")
			list = append(list, drift.Item{Kind: act.Kind, Name: act.Name, UID: act.UID, Document: yaml, File: file})
		}
	}
	return list
}

// orphan says that an object is here with a record of ours and nobody declares
// it. What is declared on another host, or is about to be removed by a commit,
// is none. a.mu is held.
func (a *Agent) orphan(act *reconcile.Action) bool {
	k := act.Key()
	if act.Want != nil || act.Have == nil || a.base[k] != nil || a.share != nil && a.share.Elsewhere[k] != "" {
		return false
	}
	return k.Kind == spec.KindVirtualMachine || k.Kind == spec.KindDisk
}

// present is an object as it is: what was left half done in an entry of a list
// is left out.
func present(h *reconcile.Live) *reconcile.Object {
	o := h.Object
	gone := map[string]bool{}
	for _, f := range o.Fields {
		if list := listEntry(f.Path); list != "" && f.ID == "" && (f.Path == list+".disk" || f.Path == list+".network") {
			gone[list] = true
		}
	}
	o.Fields = slices.DeleteFunc(slices.Clone(o.Fields), func(f reconcile.Field) bool { return gone[listEntry(f.Path)] })
	return &o
}

// missing are the objects that a document refers to and that neither the tree
// nor the import has.
func missing(set *spec.Set, act *reconcile.Action, stray map[string]string) []string {
	var notes []string
	for _, f := range act.Have.Fields {
		kind, ok := references[genericPath(f.Path)]
		if !ok || f.Value == "" || f.ID != "" && (set.ByUID(f.ID) != nil || stray[f.ID] != "") || set.Get(kind, f.Value) != nil {
			continue
		}
		notes = append(notes, fmt.Sprintf("%s names %s/%s, which is not declared: declare it first", f.Path, kind, f.Value))
	}
	return notes
}

// references are the fields of machines and disks that name another object.
var references = map[string]spec.Kind{
	"spec.pool": spec.KindStoragePool, "spec.source.image": spec.KindImage,
	"spec.host": spec.KindHost, "spec.disks[].disk": spec.KindDisk, "spec.nics[].network": spec.KindNetwork,
	"spec.boot.kernel.image": spec.KindImage, "spec.boot.initrd.image": spec.KindImage,
}

// foreign adds what was not started by an agent of ours.
func (a *Agent) foreign(ctx context.Context, r api.ImportRequest, out *api.ImportResult) {
	if a.cfg.Drift.Foreign == nil {
		return
	}
	for _, d := range a.cfg.Drift.Foreign(ctx, a.name()) {
		object := d.Kind + "/" + d.Name
		if len(r.Objects) > 0 && !slices.Contains(r.Objects, object) {
			continue
		}
		if d.YAML == "" {
			for _, note := range d.Notes {
				out.Notes = append(out.Notes, object+": "+note)
			}
			continue
		}
		out.Documents = append(out.Documents, d)
	}
}

// listEntry is the entry that a path leads into, spec.disks[data]; empty if none.
func listEntry(path string) string {
	end := strings.Index(path, "].")
	if end < 0 {
		return ""
	}
	return path[:end+1]
}

// genericPath drops the key of an entry: spec.disks[data].disk → spec.disks[].disk.
func genericPath(path string) string {
	entry := listEntry(path)
	if entry == "" {
		return path
	}
	return entry[:strings.IndexByte(entry, '[')] + "[]" + path[len(entry):]
}
