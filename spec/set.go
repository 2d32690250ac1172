package spec

import (
	"cmp"
	"reflect"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
)

// Set is the valid tree of one revision. It never changes; Update makes the next one.
type Set struct {
	cluster *entry
	id      string
	entries []*entry  // by kind in the order of Kinds, then by name
	objects []*Object // of entries, in their order

	names [kindCount]shards[*entry]  // by place in Kinds
	twice [kindCount]map[string]bool // names that more than one object has
	uids  shards[*entry]
	files shards[[]*entry]

	warnings Errors // of the tree, not of one object
}

// entry is an object in a set. Entries are shared between sets.
type entry struct {
	src *Object // as it was parsed
	obj *Object // with identity and the defaults of the cluster
	def *definition
	// keys are what must be unique and what is referred to, hashed; see keysOf.
	keys []uint64
}

// Build links the objects of a tree: identity, the cluster's defaults,
// duplicates, references. The objects are Parse's, not another set's; they are
// not changed. The error is Errors.
func Build(objects []*Object) (*Set, error) { return Link(objects, nil) }

// Link is Build for a tree whose files have errors: parse is what Parse
// returned for them (joined in any way), objects everything it could read. The
// errors of the links are added where they do not merely follow from it.
func Link(objects []*Object, parse error) (*Set, error) {
	errs := asErrors(parse)
	gone := lostObjects(errs)

	sources := make([]*Object, 0, len(objects))
	for _, o := range objects {
		src, err := parsed(o, "("+string(o.Kind)+" "+o.Meta.Name+")")
		if err != nil {
			errs = append(errs, asErrors(err)...)
			continue
		}
		sources = append(sources, src)
	}
	s := &Set{entries: arrange(sources)}
	errs = append(errs, s.findCluster()...)
	if s.cluster == nil {
		// The links are checked all the same, under no identity.
		s.cluster = &entry{src: &Object{Kind: KindCluster, Spec: &Cluster{}}, def: definitionOf(KindCluster)}
		if !gone.any {
			errs = append(errs, Error{File: ".", Msg: "the tree has no Cluster", Hint: "add a document of kind Cluster", empty: len(s.entries) == 0})
		}
	}
	parallel(len(s.entries), func(from, to int) {
		var keys keyring
		for _, e := range s.entries[from:to] {
			s.link(e)
			keys.add(e)
		}
	})
	s.index()
	if parse == nil {
		errs = append(errs, sound(s.entries)...)
	}
	errs = append(errs, s.checkLinks(s.entries, gone)...)
	errs = append(errs, s.checkBridges()...)
	if err := errs.sorted(); err != nil {
		return nil, err
	}
	return s, nil
}

// arrange makes entries of objects and sorts them. They are made in their final
// order and each on its own: in order, so that to walk them is to walk through
// memory; each on its own, so that a later set does not hold on to all of them.
func arrange(objects []*Object) []*entry {
	var kinds [kindCount][]named
	for _, o := range objects {
		d := definitionOf(o.Kind)
		kinds[d.order] = append(kinds[d.order], named{o.Meta.Name, o})
	}
	var wg sync.WaitGroup
	for _, list := range kinds {
		wg.Go(func() {
			slices.SortFunc(list, func(a, b named) int {
				return cmp.Or(strings.Compare(a.name, b.name), compareOrigins(a.from, b.from))
			})
		})
	}
	wg.Wait()
	entries := make([]*entry, 0, len(objects))
	for order, list := range kinds {
		for _, n := range list {
			entries = append(entries, &entry{src: n.Object, def: definitions[order]})
		}
	}
	return entries
}

// named keeps an object's name where sorting finds it without a detour.
type named struct {
	name string
	*Object
}

// parallel cuts n things into ranges, one for each processor.
func parallel(n int, do func(from, to int)) {
	parts := min(runtime.GOMAXPROCS(0), 1+n/1000)
	var wg sync.WaitGroup
	for i := range parts {
		wg.Go(func() { do(n*i/parts, n*(i+1)/parts) })
	}
	wg.Wait()
}

// losses are objects that are in the tree but could not be read: a reference to
// one of them is not dangling.
type losses struct {
	any   bool // of unknown names
	names map[string]bool
}

func lostObjects(errs Errors) losses {
	l := losses{names: make(map[string]bool)}
	for _, e := range errs {
		l.any = l.any || e.lost
		if e.lostName != "" {
			l.names[e.lostName] = true
		}
	}
	return l
}

// parsed returns the object itself, or, of one made in a program, what parsing
// its YAML as a file gives: defaults, canonical values, and the same checks.
func parsed(o *Object, file string) (*Object, error) {
	if o.from != nil {
		return o, nil
	}
	data, err := Marshal(o)
	if err != nil {
		return nil, Errors{{File: file, Msg: err.Error(), lost: true}}
	}
	list, err := Parse(file, data)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// sound reports objects that Parse returned beside errors, should a caller have
// dropped those.
func sound(list []*entry) Errors {
	var errs Errors
	for _, e := range list {
		if from := e.src.from; from.bad {
			errs = append(errs, Error{File: from.file, Line: from.line, Col: from.col, Msg: string(e.src.Kind) + " " + quote(e.src.Meta.Name) + " has errors"})
		}
	}
	return errs
}

func sortEntries(list []*entry) {
	slices.SortFunc(list, compareEntries)
}

func compareEntries(a, b *entry) int {
	return cmp.Or(
		cmp.Compare(a.def.order, b.def.order),
		strings.Compare(a.src.Meta.Name, b.src.Meta.Name),
		compareOrigins(a.src.from, b.src.from),
	)
}

func compareOrigins(a, b *origin) int {
	return cmp.Or(
		strings.Compare(a.file, b.file),
		cmp.Compare(a.line, b.line),
		cmp.Compare(a.col, b.col),
	)
}

// findCluster sets the cluster of sorted entries.
func (s *Set) findCluster() Errors {
	var errs Errors
	for _, e := range s.entries {
		if e.def.kind != KindCluster {
			break
		}
		if s.cluster == nil {
			s.cluster = e
			continue
		}
		errs = append(errs, e.fail("metadata.name", 0,
			"second Cluster "+quote(e.src.Meta.Name)+", the first is at "+s.cluster.src.Pos, "a tree has exactly one"))
	}
	if s.cluster == nil {
		return errs
	}
	s.id = s.cluster.src.Spec.(*Cluster).ID
	if s.id == "" {
		s.id = s.cluster.src.Meta.OldestName()
	}
	return errs
}

// link gives an entry its identity and the defaults that follow from the cluster.
func (s *Set) link(e *entry) {
	o := *e.src
	o.UID = UID(s.id, o.Kind, o.Meta)
	switch v := o.Spec.(type) {
	case *Cluster:
		c := *v
		c.ID = s.id
		o.Spec = &c
	case *VirtualMachine:
		vm := *v
		if vm.CPU.Model == "" {
			vm.CPU.Model = s.cluster.src.Spec.(*Cluster).Defaults.CPUModel
		}
		vm.NICs = slices.Clone(v.NICs)
		for i := range vm.NICs {
			if vm.NICs[i].MAC == "" {
				vm.NICs[i].MAC = DerivedMAC(o.UID, vm.NICs[i].Name)
			}
		}
		o.Spec = &vm
	}
	e.obj = &o
}

// index fills everything that is looked up from sorted entries. Of two objects
// with one name the first is found.
func (s *Set) index() {
	var wg sync.WaitGroup
	for i := range s.names {
		from, to := s.span(i)
		wg.Go(func() {
			s.names[i] = newShards[*entry](to - from)
			for _, e := range slices.Backward(s.entries[from:to]) {
				s.name(e)
			}
		})
	}
	wg.Go(func() {
		s.uids = newShards[*entry](len(s.entries))
		for _, e := range slices.Backward(s.entries) {
			s.uids.put(e.obj.UID, e)
		}
	})
	wg.Go(func() {
		s.objects = objectsOf(s.entries)
		s.files = newShards[[]*entry](len(s.entries))
		for _, e := range s.entries {
			file := e.src.from.file
			list, _ := s.files.get(file)
			s.files.put(file, append(list, e))
		}
	})
	wg.Wait()
}

// name makes an entry known by its name. A set with a name that stands for two
// things is never returned, but which errors it has must not depend on which
// of the two is found.
func (s *Set) name(e *entry) {
	order, name := e.def.order, e.obj.Meta.Name
	if _, ok := s.names[order].get(name); ok {
		if s.twice[order] == nil {
			s.twice[order] = make(map[string]bool)
		}
		s.twice[order][name] = true
	}
	s.names[order].put(name, e)
}

func objectsOf(entries []*entry) []*Object {
	list := make([]*Object, len(entries))
	for i, e := range entries {
		list[i] = e.obj
	}
	return list
}

// span is where the entries of a kind are, by its place in Kinds.
func (s *Set) span(order int) (from, to int) {
	from = sort.Search(len(s.entries), func(i int) bool { return s.entries[i].def.order >= order })
	to = sort.Search(len(s.entries), func(i int) bool { return s.entries[i].def.order > order })
	return from, to
}

// Cluster is the tree's only Cluster.
func (s *Set) Cluster() *Object { return s.cluster.obj }

// ClusterID is what every UID is derived from: Cluster.spec.id, else the oldest
// name of the Cluster.
func (s *Set) ClusterID() string { return s.id }

// Len is the number of objects.
func (s *Set) Len() int { return len(s.objects) }

// All lists the objects by kind in the order of Kinds, then by name. The list
// belongs to the set.
func (s *Set) All() []*Object { return s.objects }

// Of lists the objects of a kind by name. The list belongs to the set.
func (s *Set) Of(k Kind) []*Object {
	d := definitionOf(k)
	if d == nil {
		return nil
	}
	from, to := s.span(d.order)
	return s.objects[from:to:to]
}

// Get returns the object of a kind and name, or nil.
func (s *Set) Get(k Kind, name string) *Object {
	if e := s.get(k, name); e != nil {
		return e.obj
	}
	return nil
}

func (s *Set) get(k Kind, name string) *entry {
	d := definitionOf(k)
	if d == nil {
		return nil
	}
	e, _ := s.names[d.order].get(name)
	return e
}

// ByUID returns the object with an identity, or nil.
func (s *Set) ByUID(uid string) *Object {
	if e, ok := s.uids.get(uid); ok {
		return e.obj
	}
	return nil
}

// DisksOf lists the disks of a machine in the order of its spec.
func (s *Set) DisksOf(vm *Object) []*Object {
	spec, ok := vm.Spec.(*VirtualMachine)
	if !ok {
		return nil
	}
	list := make([]*Object, 0, len(spec.Disks))
	for _, d := range spec.Disks {
		if o := s.Get(KindDisk, d.Disk); o != nil {
			list = append(list, o)
		}
	}
	return list
}

// HostOf returns the name of the host that carries an object out: a machine's
// hypervisor, the storage host of a pool or a disk, a host itself. Every host
// knows the other kinds: empty.
func (s *Set) HostOf(o *Object) string {
	switch v := o.Spec.(type) {
	case *Host:
		return o.Meta.Name
	case *StoragePool:
		return v.Host
	case *Disk:
		if pool := s.Get(KindStoragePool, v.Pool); pool != nil {
			return pool.Spec.(*StoragePool).Host
		}
	case *VirtualMachine:
		return v.Host
	}
	return ""
}

// PlaceOf is the Host object of HostOf: the host by its identity, which outlives
// its name. nil where every host knows the object.
func (s *Set) PlaceOf(o *Object) *Object {
	if name := s.HostOf(o); name != "" {
		return s.Get(KindHost, name)
	}
	return nil
}

// HostCalled is the host that has a name or once had it; a former name stays
// taken, so there is at most one.
func (s *Set) HostCalled(name string) *Object {
	if o := s.Get(KindHost, name); o != nil {
		return o
	}
	for _, o := range s.Of(KindHost) {
		if slices.Contains(o.Meta.MovedFrom, name) {
			return o
		}
	}
	return nil
}

// fail is an error at a field of the entry's object.
func (e *entry) fail(path string, at int, msg, hint string) Error {
	file, line, col := e.src.position(path, at)
	return Error{File: file, Line: line, Col: col, Msg: msg, Hint: hint}
}

// position finds a field by its static path, or else what encloses it.
func (o *Object) position(path string, at int) (file string, line, col int) {
	if o.from == nil {
		return "", 0, 0
	}
	all := definitionOf(o.Kind).all
	for path != "" {
		for _, m := range o.from.marks {
			if f := all[m.field]; f.path == path && (int(m.entry) == at || !f.inList && f.shape != shapeStrings) {
				return o.from.file, int(m.line), int(m.col)
			}
		}
		path = enclosing(path)
	}
	return o.from.file, o.from.line, o.from.col
}

// Position says where a field stands, as a path from Flatten names it; of a
// field that is not written, where the nearest thing around it stands.
func (o *Object) Position(path string) (file string, line, col int) {
	static, at := path, 0
	if open := strings.IndexByte(path, '['); open >= 0 {
		if end := strings.IndexByte(path[open:], ']'); end > 0 {
			name := path[open+1 : open+end]
			static = path[:open] + "[]" + path[open+end+1:]
			at = o.entryOf(path[:open], name)
		}
	}
	return o.position(strings.TrimSuffix(static, "[]"), at)
}

// entryOf is the place of an entry in the list at a path.
func (o *Object) entryOf(path, name string) int {
	d := definitionOf(o.Kind)
	for _, f := range d.spec.fields {
		if f.path != path || f.shape != shapeList {
			continue
		}
		list := reflect.ValueOf(o.Spec).Elem().Field(f.index)
		for i := range list.Len() {
			if list.Index(i).Field(f.key.index).String() == name {
				return i
			}
		}
	}
	return 0
}
