package spec

import (
	"cmp"
	"maps"
	"slices"
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
	edits := s.edits(out, in)
	next := &Set{cluster: s.cluster, id: s.id, entries: splice(s.entries, edits, func(e *entry) *entry { return e })}

	isCluster := func(e *entry) bool { return e.def.kind == KindCluster }
	large := len(out)+len(in) > len(s.entries)/4
	if large || len(errs) > 0 || slices.ContainsFunc(out, isCluster) || slices.ContainsFunc(in, isCluster) {
		all := make([]*Object, len(next.entries))
		for i, e := range next.entries {
			all[i] = e.src
		}
		return Link(all, errs)
	}

	for _, e := range in {
		s.link(e)
		e.keys = slices.Clip(appendKeys(nil, e))
	}
	concerned := slices.DeleteFunc(changes(out, in).among(s.entries), func(e *entry) bool {
		_, gone := slices.BinarySearchFunc(out, e, compareEntries)
		return gone
	})
	concerned = append(concerned, in...)
	sortEntries(concerned)
	next.objects = splice(s.objects, edits, func(e *entry) *Object { return e.obj })
	next.reindex(s, out, in)
	errs = append(sound(in), next.checkLinks(concerned, losses{})...)
	if err := append(errs, next.checkBridges()...).sorted(); err != nil {
		return nil, err
	}
	return next, nil
}

// edit is a change to the entries of a set, or to its objects.
type edit struct {
	at     int    // in the list as it was
	insert *entry // nil: what is there goes
}

func (s *Set) edits(out, in []*entry) []edit {
	edits := make([]edit, 0, len(out)+len(in))
	for _, e := range in {
		at, _ := slices.BinarySearchFunc(s.entries, e, compareEntries)
		edits = append(edits, edit{at, e})
	}
	for _, e := range out {
		at, _ := slices.BinarySearchFunc(s.entries, e, compareEntries)
		edits = append(edits, edit{at, nil})
	}
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	return edits
}

// splice returns a list with edits made. What lies between two of them is
// copied as a block.
func splice[T any](list []T, edits []edit, inserted func(*entry) T) []T {
	next := make([]T, 0, len(list)+len(edits))
	from := 0
	for _, e := range edits {
		next = append(next, list[from:e.at]...)
		from = e.at
		if e.insert != nil {
			next = append(next, inserted(e.insert))
		} else {
			from++
		}
	}
	return append(next, list[from:]...)
}

// reindex fills in what is looked up, sharing what did not change with s.
func (s *Set) reindex(old *Set, out, in []*entry) {
	s.uids, s.files = old.uids.copy(), old.files.copy()
	for i := range s.names {
		s.names[i] = old.names[i].copy()
	}
	for _, e := range out {
		s.names[e.def.order].remove(e.obj.Meta.Name)
		s.uids.remove(e.obj.UID)
		s.files.remove(e.src.from.file)
	}
	byFile := make(map[string][]*entry)
	for _, e := range slices.Backward(in) {
		s.name(e)
		s.uids.put(e.obj.UID, e)
	}
	for _, e := range in {
		byFile[e.src.from.file] = append(byFile[e.src.from.file], e)
	}
	for f, list := range byFile {
		s.files.put(f, list)
	}
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
	case *Secret:
		return slices.Equal(sorted(as.Data), sorted(b.Spec.(*Secret).Data))
	case *Network:
		return (as.Bridge == nil) == (b.Spec.(*Network).Bridge == nil)
	}
	return true
}
