package reconcile

import (
	"maps"
	"slices"
	"strings"

	"reconciler/spec"
)

const diskList = "spec.disks["

// Renamed says which entries of a machine's disks have another name in the tree,
// by their former one. An entry that is called as its disk has no name of its
// own: it is known by the disk's UID, and follows when the disk is renamed. have
// are the UIDs of the disks by entry. Where the new name belongs to an entry
// that is none of these, that one gives way: it is called by its disk's UID.
func Renamed(want *Object, have map[string]string) map[string]string {
	var renamed map[string]string
	for _, f := range want.Fields {
		name, leaf, ok := entry(f.Path, "spec.disks")
		if !ok || leaf != "disk" || name != f.Value || f.ID == "" || have[name] == f.ID {
			continue
		}
		for former, uid := range have {
			if uid == f.ID {
				if renamed == nil {
					renamed = map[string]string{}
				}
				renamed[former] = name
			}
		}
	}
	for _, name := range slices.Sorted(maps.Values(renamed)) {
		if _, follows := renamed[name]; !follows && have[name] != "" {
			renamed[name] = have[name]
		}
	}
	return renamed
}

// RenameEntries returns the fields of a machine with the entries of its disks
// renamed.
func RenameEntries(fields []Field, renamed map[string]string) []Field {
	if len(renamed) == 0 {
		return fields
	}
	out := slices.Clone(fields)
	for i, f := range out {
		if name, leaf, ok := entry(f.Path, "spec.disks"); ok && renamed[name] != "" {
			out[i].Path = diskList + renamed[name] + "]." + leaf
		}
	}
	slices.SortFunc(out, func(a, b Field) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// EntryDisks are the UIDs of the disks in a machine's fields, by entry.
func EntryDisks(fields []Field) map[string]string {
	disks := map[string]string{}
	for _, f := range fields {
		if name, leaf, ok := entry(f.Path, "spec.disks"); ok && leaf == "disk" && f.ID != "" {
			disks[name] = f.ID
		}
	}
	return disks
}

// follow gives the entries of a machine that is there the names they have in
// the tree.
func (h *Live) follow(want *Object) (*Live, map[string]string) {
	disks := EntryDisks(h.Fields)
	if h.VM != nil {
		maps.Copy(disks, h.VM.Disks)
	}
	renamed := Renamed(want, disks)
	if len(renamed) == 0 {
		return h, nil
	}
	live := *h
	live.Fields = RenameEntries(h.Fields, renamed)
	if h.VM != nil {
		vm := *h.VM
		vm.Disks = make(map[string]string, len(h.VM.Disks))
		for name, uid := range h.VM.Disks {
			if now := renamed[name]; now != "" {
				name = now
			}
			vm.Disks[name] = uid
		}
		live.VM = &vm
	}
	return &live, renamed
}

// follow is the same for what was last applied.
func (b *Applied) follow(want *Object) *Applied {
	if b == nil {
		return nil
	}
	renamed := Renamed(want, EntryDisks(b.Fields))
	if len(renamed) == 0 {
		return b
	}
	c := *b
	c.Fields = RenameEntries(b.Fields, renamed)
	return &c
}

// follow lets the entries of machines follow the renames of their disks, before
// anything is compared by name. What the caller handed in stays as it is.
func (d *differ) follow() {
	d.applied = d.base
	d.renamed = map[Key]map[string]string{}
	cloned := false
	for k, w := range d.want.Objects {
		if k.Kind != spec.KindVirtualMachine {
			continue
		}
		if h := d.have.Objects[k]; h != nil {
			if live, renamed := h.follow(w); renamed != nil {
				if len(d.renamed) == 0 {
					d.have.Objects = maps.Clone(d.have.Objects)
				}
				d.have.Objects[k], d.renamed[k] = live, renamed
			}
		}
		if b := d.base[k]; b != nil {
			if followed := b.follow(w); followed != b {
				if !cloned {
					d.base, cloned = maps.Clone(d.base), true
				}
				d.base[k] = followed
			}
		}
	}
}

// renames are the changes by which the record of a machine follows.
func (d *differ) renames(a *Action) {
	renamed := d.renamed[a.Key()]
	disks := EntryDisks(a.Want.Fields)
	for _, former := range slices.Sorted(maps.Keys(renamed)) {
		name := renamed[former]
		if _, wanted := disks[name]; !wanted { // it gives way, and goes
			continue
		}
		// The record is ours alone: that it lags behind is never drift.
		cause := CauseRetry
		if b := d.applied[a.Key()]; b == nil || !b.Done || b.at(diskList+former+"].disk") != nil {
			cause = CauseRevision
		}
		a.Changes = append(a.Changes, Change{Field: diskList + name + "].name", From: former, To: name, cause: cause, id: disks[name]})
	}
}
