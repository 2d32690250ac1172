package spec

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// World says where the truth of a field lies.
type World string

// The worlds of a field.
const (
	Observed World = "observed" // read back from the live host
	Recorded World = "recorded" // kept in the durable record of the object
	Policy   World = "policy"   // changes nothing that runs
)

// shape is how a Go type stands in YAML.
type shape uint8

const (
	shapeString shape = iota
	shapeInt
	shapeFloat
	shapeSize
	shapeDuration
	shapeStrings // list of strings
	shapeMap     // mapping of strings
	shapeStruct
	shapePtr   // optional mapping
	shapeEmpty // optional mapping without fields
	shapeList  // list of mappings
)

// field describes one field of the language. Decoder, encoder, flattener,
// schema and reference all work from it.
type field struct {
	name     string
	path     string // static path, an entry of a list as []: spec.disks[].disk
	id       uint16 // place among all fields of the kind
	index    int    // of the Go struct
	shape    shape
	typ      reflect.Type
	required bool
	world    World
	doc      string
	def      string
	enum     []string
	format   *format
	formatID string
	ref      Kind
	min, max int64 // in the unit of the type; of a float, whole numbers
	multiple int64
	key      *field // of a list: the field of the entry that identifies it
	keyFrom  string // of a list: the field whose value the key has by default
	inList   bool
	hasRefs  bool // a field below names another object
	elem     *structure
}

// structure describes a mapping with known fields.
type structure struct {
	typ    reflect.Type
	fields []*field
	choice choice
}

// choice says how many fields of a structure may be given.
type choice uint8

const (
	anyOf choice = iota
	oneOf
	atMostOneOf
	textOrSecret
)

var choices = map[reflect.Type]choice{
	reflect.TypeFor[PoolVolumes]():   oneOf,
	reflect.TypeFor[PoolTarget]():    oneOf,
	reflect.TypeFor[ImageSource]():   oneOf,
	reflect.TypeFor[DiskSource]():    atMostOneOf,
	reflect.TypeFor[Network]():       oneOf,
	reflect.TypeFor[CloudInitPart](): textOrSecret,
}

// definition describes a kind.
type definition struct {
	kind  Kind
	order int
	doc   string
	meta  *structure
	spec  *structure
	all   []*field // by id
	// leaves are all fields with a value, in the order of the types.
	leaves []*field
	// refs are the leaves that name another object.
	refs []*field
}

var definitions = define()

func define() []*definition {
	list := []*definition{
		{kind: KindCluster, doc: "What the whole tree belongs to. A tree has exactly one.", spec: &structure{typ: reflect.TypeFor[Cluster]()}},
		{kind: KindHost, doc: "A machine that runs an agent.", spec: &structure{typ: reflect.TypeFor[Host]()}},
		{kind: KindStoragePool, doc: "Where volumes live and how they are served.", spec: &structure{typ: reflect.TypeFor[StoragePool]()}},
		{kind: KindImage, doc: "The content a disk starts from, or a kernel or initrd.", spec: &structure{typ: reflect.TypeFor[Image]()}},
		{kind: KindSecret, doc: "Values that only the hosts read: a file that `sops` encrypted for age recipients. See secrets.md.", spec: &structure{typ: reflect.TypeFor[Secret]()}},
		{kind: KindNetwork, doc: "What a network card connects to: exactly one of its fields is given.", spec: &structure{typ: reflect.TypeFor[Network]()}},
		{kind: KindDisk, doc: "One logical volume, served over an iSCSI target of its own.", spec: &structure{typ: reflect.TypeFor[Disk]()}},
		{kind: KindVirtualMachine, doc: "One QEMU process.", spec: &structure{typ: reflect.TypeFor[VirtualMachine]()}},
	}
	for i, d := range list {
		d.order = i
		d.meta = d.structure(reflect.TypeFor[Meta](), "metadata")
		d.spec = d.structure(d.spec.typ, "spec")
		for _, f := range d.all {
			if f.elem == nil {
				d.leaves = append(d.leaves, f)
			}
			if f.ref != "" {
				d.refs = append(d.refs, f)
			}
		}
	}
	return list
}

// definitionOf returns nil for a kind that is not known.
func definitionOf(k Kind) *definition {
	for _, d := range definitions {
		if d.kind == k {
			return d
		}
	}
	return nil
}

func (d *definition) structure(t reflect.Type, path string) *structure {
	s := &structure{typ: t, choice: choices[t]}
	for i := range t.NumField() {
		sf := t.Field(i)
		name, opts, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if name == "-" { // not part of the language
			continue
		}
		f := &field{
			name:     name,
			path:     path + "." + name,
			id:       uint16(len(d.all)),
			index:    i,
			typ:      sf.Type,
			required: !strings.Contains(opts, "omitempty"),
			world:    World(sf.Tag.Get("world")),
			doc:      sf.Tag.Get("doc"),
			def:      sf.Tag.Get("default"),
			formatID: sf.Tag.Get("format"),
			ref:      Kind(sf.Tag.Get("ref")),
			inList:   strings.Contains(path, "[]"),
		}
		if v := sf.Tag.Get("enum"); v != "" {
			f.enum = strings.Split(v, ",")
		}
		if f.ref != "" {
			f.formatID = "name"
		}
		if f.formatID != "" {
			f.format = formats[f.formatID]
			if f.format == nil {
				panic("spec: no format " + f.formatID + " for " + f.path)
			}
		}
		d.all = append(d.all, f)
		f.shape = shapeOf(sf.Type)
		switch f.shape {
		case shapeStruct:
			f.elem = d.structure(sf.Type, f.path)
		case shapePtr:
			f.elem = d.structure(sf.Type.Elem(), f.path)
		case shapeList:
			f.elem = d.structure(sf.Type.Elem(), f.path+"[]")
			f.key = f.elem.find(sf.Tag.Get("key"))
			f.keyFrom = sf.Tag.Get("keyFrom")
			if f.key == nil {
				panic("spec: no key for " + f.path)
			}
		}
		if f.elem != nil {
			f.hasRefs = slices.ContainsFunc(f.elem.fields, func(e *field) bool { return e.ref != "" || e.hasRefs })
		}
		f.min, f.max, f.multiple = f.bound(sf, "min"), f.bound(sf, "max"), f.bound(sf, "multiple")
		s.fields = append(s.fields, f)
	}
	return s
}

func (s *structure) find(name string) *field {
	for _, f := range s.fields {
		if f.name == name {
			return f
		}
	}
	return nil
}

// needed reports that a structure cannot be left out.
func (s *structure) needed() bool {
	return s.choice == oneOf || s.choice == textOrSecret || slices.ContainsFunc(s.fields, func(f *field) bool { return f.required })
}

func shapeOf(t reflect.Type) shape {
	switch t {
	case reflect.TypeFor[Size]():
		return shapeSize
	case reflect.TypeFor[Duration]():
		return shapeDuration
	case reflect.TypeFor[[]string]():
		return shapeStrings
	case reflect.TypeFor[map[string]string]():
		return shapeMap
	}
	switch t.Kind() {
	case reflect.String:
		return shapeString
	case reflect.Int:
		return shapeInt
	case reflect.Float64:
		return shapeFloat
	case reflect.Struct:
		return shapeStruct
	case reflect.Slice:
		return shapeList
	case reflect.Pointer:
		if t.Elem().NumField() == 0 {
			return shapeEmpty
		}
		return shapePtr
	}
	panic("spec: no shape for " + t.String())
}

// bound reads a numeric tag in the unit of the field's type; 0 where there is none.
func (f *field) bound(sf reflect.StructField, tag string) int64 {
	s, ok := sf.Tag.Lookup(tag)
	if !ok {
		return 0
	}
	var v int64
	var err error
	switch f.shape {
	case shapeSize:
		var size Size
		err = size.UnmarshalText([]byte(s))
		v = int64(size)
	case shapeDuration:
		var d Duration
		err = d.UnmarshalText([]byte(s))
		v = int64(d)
	default:
		v, err = strconv.ParseInt(s, 10, 64)
	}
	if err != nil {
		panic("spec: " + f.path + ": " + tag + ": " + err.Error())
	}
	return v
}

// fill gives fields that have no value the default their tag says.
func (s *structure) fill(v reflect.Value) {
	for _, f := range s.fields {
		fv := v.Field(f.index)
		switch f.shape {
		case shapeStruct:
			f.elem.fill(fv)
		case shapePtr:
			if !fv.IsNil() {
				f.elem.fill(fv.Elem())
			}
		case shapeList:
			for i := range fv.Len() {
				f.elem.fill(fv.Index(i))
			}
		default:
			if f.def != "" && fv.IsZero() {
				if p := f.set(fv, f.def); p != nil {
					panic("spec: default of " + f.path + ": " + p.Error())
				}
			}
		}
	}
}
