package spec

import (
	"hash/maphash"
	"iter"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// Rules between objects. Each is decided by looking at one object and what it
// names (references), or at two objects that claim the same thing (conflict).
// Both sides are hashed into keys, so that Update can tell whom a change
// concerns without asking everybody.

// keyring allocates the keys of many entries together.
type keyring struct{ free []uint64 }

func (k *keyring) add(e *entry) {
	start := len(k.free)
	k.free = appendKeys(k.free, e)
	if cap(k.free)-len(k.free) < 64 {
		// Keys already handed out stay where they are.
		e.keys = slices.Clip(k.free[start:])
		k.free = make([]uint64, 0, 4096)
		return
	}
	e.keys = k.free[start:len(k.free):len(k.free)]
}

// Domains of keys.
const (
	claimName   = iota // live name of a kind
	claimFormer        // live or former name of a kind
	claimUID
	claimDisk    // a machine's use of a disk
	claimAddress // a card's address on a network
	claimPath    // a pool's directory on a host
	refName      // a reference to an object, or the object as it is referred to
)

// claims are what two objects may not both have; a reference is no claim.
func isClaim(key uint64) bool { return key&7 != refName }

func key(domain uint64, parts ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, p := range parts {
		h.WriteString(p)
		h.WriteByte(0)
	}
	return h.Sum64()&^7 | domain
}

func nameKey(k Kind, name string) uint64 { return key(refName, string(k), name) }

func appendKeys(list []uint64, e *entry) []uint64 {
	o := e.obj
	list = append(list,
		key(claimName, string(o.Kind), o.Meta.Name),
		key(claimFormer, string(o.Kind), o.Meta.Name),
		key(claimUID, o.UID))
	for _, former := range o.Meta.MovedFrom {
		list = append(list, key(claimFormer, string(o.Kind), former))
	}
	switch s := o.Spec.(type) {
	case *StoragePool:
		if s.Volumes.File != nil {
			list = append(list, key(claimPath, s.Host, s.Volumes.File.Path))
		}
	case *VirtualMachine:
		for _, d := range s.Disks {
			list = append(list, key(claimDisk, d.Disk))
		}
		for _, c := range s.NICs {
			list = append(list, key(claimAddress, c.Network, c.MAC))
		}
	}
	for f, r := range e.refs() {
		list = append(list, nameKey(f.ref, r.name))
	}
	return list
}

// reference is one name of another object.
type reference struct {
	kind  Kind
	name  string
	entry int // of the list it is in
}

// refs yields the references of an object that are written.
func (e *entry) refs() iter.Seq2[*field, reference] {
	return func(yield func(*field, reference) bool) {
		if len(e.def.refs) > 0 {
			e.def.spec.eachRef(reflect.ValueOf(e.obj.Spec).Elem(), 0, yield)
		}
	}
}

func (s *structure) eachRef(v reflect.Value, at int, yield func(*field, reference) bool) bool {
	for _, f := range s.fields {
		if f.ref == "" && !f.hasRefs {
			continue
		}
		fv := v.Field(f.index)
		switch f.shape {
		case shapeString:
			if name := fv.String(); name != "" && !yield(f, reference{f.ref, name, at}) {
				return false
			}
		case shapeStruct:
			if !f.elem.eachRef(fv, at, yield) {
				return false
			}
		case shapePtr:
			if !fv.IsNil() && !f.elem.eachRef(fv.Elem(), at, yield) {
				return false
			}
		case shapeList:
			for i := range fv.Len() {
				if !f.elem.eachRef(fv.Index(i), i, yield) {
					return false
				}
			}
		}
	}
	return true
}

// checkLinks applies the rules between objects to some entries of the set:
// their references, and their conflicts with each other.
func (s *Set) checkLinks(list []*entry, gone losses) Errors {
	var errs Errors
	var mu sync.Mutex
	parallel(len(list), func(from, to int) {
		found := s.checkReferences(list[from:to], gone)
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, found...)
	})
	// Each worker has the claims of its share of all keys, so every group of
	// objects that claim one thing is seen by one worker.
	workers := uint64(min(runtime.GOMAXPROCS(0), 1+len(list)/1000))
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			found := s.checkClaims(list, func(k uint64) bool { return k>>3%workers == worker })
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, found...)
		})
	}
	wg.Wait()
	errs.sort() // which names get a suggestion must not depend on who found them
	s.suggest(errs)
	return errs
}

// checkClaims finds objects that claim the same thing, among the keys of a share.
func (s *Set) checkClaims(list []*entry, share func(uint64) bool) Errors {
	var errs Errors
	first := make(map[uint64]*entry, len(list))
	for _, e := range list {
		for i, k := range e.keys {
			if !isClaim(k) || !share(k) || slices.Contains(e.keys[:i], k) {
				continue
			}
			if other, ok := first[k]; ok {
				errs = s.conflict(errs, other, e)
			} else {
				first[k] = e
			}
		}
	}
	return errs
}

// checkReferences finds names of objects that are not there, and objects that
// do not serve.
func (s *Set) checkReferences(list []*entry, gone losses) Errors {
	var errs Errors
	for _, e := range list {
		for f, r := range e.refs() {
			to := s.get(f.ref, r.name)
			if to == nil {
				if !gone.any && !gone.names[r.name] {
					err := e.fail(f.path, r.entry, e.path(f, r.entry)+": there is no "+string(f.ref)+" "+quote(r.name), "")
					err.dangling = reference{kind: f.ref, name: r.name}
					errs = append(errs, err)
				}
				continue
			}
			if !to.src.from.bad && !e.src.from.bad && !s.twice[to.def.order][r.name] {
				errs = s.checkReference(errs, e, f, r, to)
			}
		}
	}
	return errs
}

// checkReference holds an object against one that it names.
func (s *Set) checkReference(errs Errors, e *entry, f *field, r reference, to *entry) Errors {
	where := e.path(f, r.entry)
	switch target := to.obj.Spec.(type) {
	case *Host:
		role := RoleHypervisor
		if e.def.kind == KindStoragePool {
			role = RoleStorage
		}
		if !slices.Contains(target.Roles, role) {
			errs = append(errs, e.fail(f.path, r.entry, where+": host "+quote(r.name)+" does not have the role "+role, "its roles are at "+to.place("spec.roles", 0)))
		}
	case *Secret:
		return s.checkKey(errs, e, f, target)
	case *Image:
		disk, ok := e.obj.Spec.(*Disk)
		switch {
		case !ok && target.Format != FormatRaw:
			errs = append(errs, e.fail(f.path, r.entry, where+": image "+quote(r.name)+" has the format "+target.Format, "a kernel or initrd is raw"))
		case ok && target.VirtualSize == 0:
			errs = append(errs, e.fail(f.path, r.entry, where+": image "+quote(r.name)+" does not say its virtualSize", "qemu-img info shows it"))
		case ok && disk.Size < target.VirtualSize:
			errs = append(errs, e.fail("spec.size", 0, "spec.size: "+disk.Size.String()+" is less than the virtualSize of image "+quote(r.name)+", "+target.VirtualSize.String(), ""))
		}
	}
	return errs
}

// conflict compares two objects that share a key; the error is put at the one
// that stands later in the tree.
func (s *Set) conflict(errs Errors, a, b *entry) Errors {
	if compareOrigins(a.src.from, b.src.from) > 0 {
		a, b = b, a
	}
	if a.def != b.def || a.def.kind == KindCluster {
		return errs
	}
	am, bm := a.obj.Meta, b.obj.Meta
	kind := string(a.def.kind)
	if am.Name == bm.Name {
		return append(errs, b.fail("metadata.name", 0, "duplicate "+kind+" "+quote(bm.Name)+", the first is at "+a.src.Pos, "names are unique within a kind"))
	}
	for _, pair := range [][2]*entry{{a, b}, {b, a}} {
		live, other := pair[0], pair[1]
		if i := slices.Index(other.obj.Meta.MovedFrom, live.obj.Meta.Name); i >= 0 {
			return append(errs, live.fail("metadata.name", 0,
				kind+" "+quote(live.obj.Meta.Name)+" is a former name of "+quote(other.obj.Meta.Name)+", at "+other.place("metadata.movedFrom", i),
				"take another name; a former name stays taken"))
		}
	}
	if a.obj.UID == b.obj.UID {
		return append(errs, b.fail("metadata.movedFrom", 0,
			kind+" "+quote(bm.Name)+" and "+quote(am.Name)+" at "+a.src.Pos+" have the same identity",
			"both started as "+quote(am.OldestName())+"; a new object needs another movedFrom or incarnation"))
	}
	switch as := a.obj.Spec.(type) {
	case *StoragePool:
		bs := b.obj.Spec.(*StoragePool)
		if as.Host == bs.Host && as.Volumes.File != nil && bs.Volumes.File != nil && bs.Volumes.File.Path != "" && as.Volumes.File.Path == bs.Volumes.File.Path {
			errs = append(errs, b.fail("spec.volumes.file.path", 0,
				"spec.volumes.file.path: "+quote(bs.Volumes.File.Path)+" on host "+quote(bs.Host)+" belongs to pool "+quote(am.Name)+" at "+a.src.Pos, "every pool has a directory of its own"))
		}
	case *VirtualMachine:
		errs = s.conflictMachines(errs, a, as, b, b.obj.Spec.(*VirtualMachine))
	}
	return errs
}

func (s *Set) conflictMachines(errs Errors, a *entry, as *VirtualMachine, b *entry, bs *VirtualMachine) Errors {
	for i, d := range bs.Disks {
		if d.Disk != "" && slices.ContainsFunc(as.Disks, func(e VMDisk) bool { return e.Disk == d.Disk }) {
			errs = append(errs, b.fail("spec.disks[].disk", i,
				"spec.disks["+d.Name+"].disk: "+quote(d.Disk)+" belongs to machine "+quote(a.obj.Meta.Name)+" at "+a.src.Pos, "a disk belongs to one machine"))
		}
	}
	for i, c := range bs.NICs {
		// QEMU's user mode network connects one machine only.
		net := s.get(KindNetwork, c.Network)
		if net == nil || net.obj.Spec.(*Network).Bridge == nil || s.twice[net.def.order][c.Network] {
			continue
		}
		if slices.ContainsFunc(as.NICs, func(e NIC) bool { return e.Network == c.Network && e.MAC == c.MAC }) {
			errs = append(errs, b.fail("spec.nics[].mac", i,
				"spec.nics["+c.Name+"].mac: "+c.MAC+" on network "+quote(c.Network)+" is an address of machine "+quote(a.obj.Meta.Name)+" at "+a.src.Pos, "give one of them another mac"))
		}
	}
	return errs
}

// checkBridges finds machines of one host that have one address on one bridge by
// way of different Networks. On different hosts, bridges of one name may be
// different networks.
func (s *Set) checkBridges() Errors {
	count, bridges := map[string]int{}, map[string]string{}
	for _, e := range s.entries {
		if n, ok := e.obj.Spec.(*Network); ok && n.Bridge != nil {
			count[n.Bridge.Name]++
			bridges[e.obj.Meta.Name] = n.Bridge.Name
		}
	}
	maps.DeleteFunc(bridges, func(_, bridge string) bool { return count[bridge] < 2 })
	if len(bridges) == 0 {
		return nil
	}
	type address struct{ host, bridge, mac string }
	type card struct {
		of  *entry
		nic NIC
	}
	var errs Errors
	first := map[address]card{}
	for _, e := range s.entries {
		vm, ok := e.obj.Spec.(*VirtualMachine)
		if !ok {
			continue
		}
		for i, c := range vm.NICs {
			bridge := bridges[c.Network]
			if bridge == "" {
				continue
			}
			at := address{vm.Host, bridge, c.MAC}
			other, taken := first[at]
			if !taken {
				first[at] = card{e, c}
				continue
			}
			if other.nic.Network != c.Network {
				errs = append(errs, e.fail("spec.nics[].mac", i,
					"spec.nics["+c.Name+"].mac: "+c.MAC+" on network "+quote(c.Network)+", bridge "+quote(bridge)+", is an address of machine "+
						quote(other.of.obj.Meta.Name)+" on network "+quote(other.nic.Network)+" of the same bridge, at "+other.of.src.Pos, "give one of them another mac"))
			}
		}
	}
	return errs
}

// place is where a field of the entry's object stands.
func (e *entry) place(path string, at int) string { return place(e.src.position(path, at)) }

// path writes the path of a field as Flatten does.
func (e *entry) path(f *field, at int) string {
	if !f.inList {
		return f.path
	}
	for _, l := range e.def.spec.fields {
		if l.shape == shapeList && slices.Contains(l.elem.fields, f) {
			name := reflect.ValueOf(e.obj.Spec).Elem().Field(l.index).Index(at).Field(l.key.index).String()
			return l.path + "[" + name + "]." + f.name
		}
	}
	return f.path + "[" + strconv.Itoa(at) + "]"
}

// suggest adds to dangling names what they may have meant. A tree in which
// everything dangles is not worth comparing every name with every other.
func (s *Set) suggest(errs Errors) {
	const most = 50
	known := make(map[[2]string]string)
	for i, e := range errs {
		if e.dangling.name == "" {
			continue
		}
		id := [2]string{string(e.dangling.kind), e.dangling.name}
		near, ok := known[id]
		if !ok && len(known) < most {
			near = nearest(e.dangling.name, func(yield func(string) bool) {
				for _, o := range s.Of(e.dangling.kind) {
					if !yield(o.Meta.Name) {
						return
					}
				}
			})
			known[id] = near
		}
		if near != "" {
			errs[i].Hint = "did you mean " + near + "?"
		}
		errs[i].dangling = reference{}
	}
}
