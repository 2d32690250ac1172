package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"reconciler/spec"
)

// Misplaced finds the disks that a tree declares in another pool, or on another
// host, than the one where they are: by the record of the volume, else by what
// was last applied. A disk cannot move, and one of the same identity in another
// place would be a second, empty one. host is the name of the host in the tree.
func Misplaced(set *spec.Set, host string, base Base, have State) spec.Errors {
	at := map[string]Field{} // pool that a disk is in, by the disk's UID
	for k, b := range base {
		if f := b.at("spec.pool"); k.Kind == spec.KindDisk && f != nil {
			at[k.UID] = *f
		}
	}
	for k, h := range have.Objects {
		if f := h.at("spec.pool"); k.Kind == spec.KindDisk && f != nil {
			at[k.UID] = *f
		}
	}
	var errs spec.Errors
	for uid, was := range at {
		if o := set.ByUID(uid); o != nil && o.Kind == spec.KindDisk && was.ID != "" {
			if why := misplaced(set, host, o, was); why != "" {
				file, line, col := o.Position("spec.pool")
				errs = append(errs, spec.Error{File: file, Line: line, Col: col, Msg: "spec.pool: " + why, Hint: WayBack(spec.KindDisk)})
			}
		}
	}
	slices.SortFunc(errs, func(a, b spec.Error) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Msg, b.Msg))
	})
	return errs
}

func misplaced(set *spec.Set, host string, o *spec.Object, was Field) string {
	pool := set.Get(spec.KindStoragePool, o.Spec.(*spec.Disk).Pool)
	if pool == nil {
		return ""
	}
	name := was.Value // the pool may have been renamed since
	if p := set.ByUID(was.ID); p != nil {
		name = p.Meta.Name
	}
	switch to := set.HostOf(pool); {
	case pool.UID != was.ID && pool.Meta.Name == name:
		return fmt.Sprintf("Disk %q is on host %q in a StoragePool %q of another identity (%s)", o.Meta.Name, host, name, was.ID)
	case pool.UID != was.ID:
		return fmt.Sprintf("Disk %q is on host %q in StoragePool %q, and a disk cannot change its pool", o.Meta.Name, host, name)
	case to != host:
		return fmt.Sprintf("Disk %q is on host %q, and its StoragePool %q is now declared on host %q", o.Meta.Name, host, name, to)
	}
	return ""
}

// WayBack is what to do about an object that is declared on, or in, another place
// than it is.
func WayBack(k spec.Kind) string {
	switch k {
	case spec.KindVirtualMachine:
		return "put spec.host back; or remove the machine in one commit and declare it on the other host in another, once it is gone"
	case spec.KindDisk:
		return "put it back, or raise the disk's metadata.incarnation for a fresh one"
	}
	return "put it back, or raise its metadata.incarnation for a fresh one"
}
