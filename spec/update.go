package spec

import (
	"cmp"
	"maps"
	"slices"
	"sort"
)

// InFile returns the objects as they are when another file has the same
// content: only the place changes.
func InFile(file string, objects []*Object) []*Object {
	list := make([]*Object, len(objects))
	for i, o := range objects {
		list[i] = o.inFile(file)
	}
	return list
}

func (o *Object) inFile(file string) *Object {
	if o.from == nil || o.from.file == file {
		return o
	}
	moved, from := *o, *o.from
	from.file = file
	moved.from, moved.Pos = &from, place(file, from.line, from.col)
	return &moved
}

// Update builds the set of the next revision: without what stood in the
// removed files, and with the objects of the added or changed ones in place of
// what stood there. parse is what Parse returned for the added files. The
// result and the errors are those of Link for the whole tree, at a cost that
// follows the change, unless that is to the Cluster. The set itself stays as
// it is.
func (s *Set) Update(removed []string, added map[string][]*Object, parse error) (*Set, error) {
	files := slices.Sorted(maps.Keys(added))
	var out, in []*entry
	for _, f := range files {
		list, _ := s.files.get(f)
		out = append(out, list...)
	}
	for _, f := range removed {
		if _, again := added[f]; !again {
			list, _ := s.files.get(f)
			out = append(out, list...)
		}
	}
	sortEntries(out)
	out = slices.Compact(out)
	errs := asErrors(parse)
	for _, f := range files {
		for _, o := range added[f] {
			src, err := parsed(o, f)
			if err != nil {
				errs = append(errs, asErrors(err)...)
				continue
			}
			in = append(in, &entry{src: src.inFile(f), def: definitionOf(src.Kind)})
		}
	}
	sortEntries(in)
	kept := without(s.entries, out)

	isCluster := func(e *entry) bool { return e.def.kind == KindCluster }
	large := len(out)+len(in) > len(s.entries)/4
	if large || len(errs) > 0 || slices.ContainsFunc(out, isCluster) || slices.ContainsFunc(in, isCluster) {
		all := make([]*Object, 0, len(kept)+len(in))
		for _, e := range merge(kept, in) {
			all = append(all, e.src)
		}
		return Link(all, errs)
	}

	for _, e := range in {
		s.link(e)
		e.keys = slices.Clip(appendKeys(nil, e))
	}
	next := s.with(kept, out, in)
	concerned := merge(changes(out, in).among(kept), in)
	if err := append(sound(in), next.checkLinks(concerned, losses{})...).sorted(); err != nil {
		return nil, err
	}
	return next, nil
}

// with makes a set out of what is kept and what comes in; the rest of the
// arguments say how it differs.
func (s *Set) with(kept, out, in []*entry) *Set {
	next := &Set{cluster: s.cluster, id: s.id, entries: merge(kept, in), uids: s.uids.copy(), files: s.files.copy()}
	for i := range s.names {
		next.names[i] = s.names[i].copy()
	}
	for _, e := range out {
		next.names[e.def.order].remove(e.obj.Meta.Name)
		next.uids.remove(e.obj.UID)
		next.files.remove(e.src.from.file)
	}
	byFile := make(map[string][]*entry)
	for _, e := range slices.Backward(in) {
		next.name(e)
		next.uids.put(e.obj.UID, e)
	}
	for _, e := range in {
		byFile[e.src.from.file] = append(byFile[e.src.from.file], e)
	}
	for f, list := range byFile {
		next.files.put(f, list)
	}
	next.objects = objectsOf(next.entries)
	return next
}

// without returns sorted entries except some of them, sorted alike.
func without(list, out []*entry) []*entry {
	if len(out) == 0 {
		return list
	}
	kept := make([]*entry, 0, len(list)-len(out))
	for _, e := range list {
		if len(out) > 0 && e == out[0] {
			out = out[1:]
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// merge joins two sorted lists, of which the second is usually short.
func merge(a, b []*entry) []*entry {
	if len(b) == 0 {
		return a
	}
	list := make([]*entry, 0, len(a)+len(b))
	for _, e := range b {
		n := sort.Search(len(a), func(i int) bool { return compareEntries(a[i], e) > 0 })
		list = append(append(list, a[:n]...), e)
		a = a[n:]
	}
	return append(list, a...)
}

// keySet is a set of keys with a quick no.
type keySet struct {
	bits [1 << 10]uint64
	keys map[uint64]struct{}
}

func (k *keySet) add(key uint64) {
	k.bits[key>>3&1023] |= 1 << (key >> 13 & 63)
	k.keys[key] = struct{}{}
}

func (k *keySet) has(key uint64) bool {
	if k.bits[key>>3&1023]&(1<<(key>>13&63)) == 0 {
		return false
	}
	_, ok := k.keys[key]
	return ok
}

// changes are the keys by which a change can concern objects that stay: what
// comes in may claim what they have, and what they refer to may be gone or
// another thing.
func changes(out, in []*entry) *keySet {
	set := &keySet{keys: make(map[uint64]struct{})}
	for _, e := range in {
		for _, k := range e.keys {
			if isClaim(k) {
				set.add(k)
			}
		}
	}
	for _, e := range out {
		i, found := slices.BinarySearchFunc(in, e, func(a, b *entry) int {
			return cmp.Or(cmp.Compare(a.def.order, b.def.order), cmp.Compare(a.obj.Meta.Name, b.obj.Meta.Name))
		})
		if !found || !sameTarget(e.obj, in[i].obj) {
			set.add(nameKey(e.def.kind, e.obj.Meta.Name))
		}
	}
	return set
}

// among returns the entries that have one of the keys.
func (k *keySet) among(list []*entry) []*entry {
	var found []*entry
	for _, e := range list {
		if slices.ContainsFunc(e.keys, k.has) {
			found = append(found, e)
		}
	}
	return found
}

// sameTarget says that two objects are alike in all that checkReference and
// conflict look at in an object that others refer to.
func sameTarget(a, b *Object) bool {
	switch as := a.Spec.(type) {
	case *Host:
		return slices.Equal(as.Roles, b.Spec.(*Host).Roles)
	case *Image:
		bs := b.Spec.(*Image)
		return as.Format == bs.Format && as.VirtualSize == bs.VirtualSize
	case *Network:
		return (as.Bridge == nil) == (b.Spec.(*Network).Bridge == nil)
	}
	return true
}
