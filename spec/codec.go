package spec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"math"
	"reflect"
)

// codecRevision is raised by hand when Parse accepts, refuses or fills in
// something else without a change to the types and their tags.
const codecRevision = 4

// CodecVersion says what Decode reads. It follows from the types and their
// rules: whatever was encoded under another version must be parsed again.
var CodecVersion = codecVersion()

func codecVersion() string {
	h := fnv.New64a()
	fmt.Fprintln(h, codecRevision, APIVersion)
	for _, d := range definitions {
		for _, f := range d.all {
			pattern, most := "", 0
			if f.format != nil {
				pattern, most = f.format.pattern, f.format.max
			}
			fmt.Fprintf(h, "%s %s %d %t %q %q %q %q %d %q %d %d %d\n", d.kind, f.path, f.shape, f.required,
				f.def, f.enum, f.formatID, pattern, most, f.ref, f.min, f.max, f.multiple)
		}
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// ErrCodec is returned for data that this build did not encode, or that was
// damaged since.
var ErrCodec = errors.New("not encoded by this version")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const codecHeader = 16 + 4 // version, checksum of what follows

// Encode writes objects from Parse in a form that Decode reads much faster than
// Parse does YAML. Objects with errors must be left out.
func Encode(objects []*Object) []byte {
	e := encoder{b: make([]byte, codecHeader, codecHeader+256*len(objects))}
	e.uint(uint64(len(objects)))
	file, sealed := "", ""
	for _, o := range objects {
		d := definitionOf(o.Kind)
		from := o.from
		if from == nil {
			from = &origin{}
		}
		if from.bad {
			panic("spec: encode: " + o.Pos + " has errors")
		}
		e.uint(uint64(d.order)<<1 | bit(from.file != file))
		if from.file != file {
			file = from.file
			e.string(file)
		}
		e.uint(uint64(from.line))
		e.uint(uint64(from.col))
		e.structure(d.meta, reflect.ValueOf(&o.Meta).Elem())
		e.structure(d.spec, reflect.ValueOf(o.Spec).Elem())
		if s, ok := o.Spec.(*Secret); ok {
			e.uint(bit(s.File != sealed))
			if s.File != sealed {
				sealed = s.File
				e.string(sealed)
			}
		}
		e.uint(uint64(len(from.marks)))
		line := uint32(from.line)
		for _, m := range from.marks {
			e.uint(uint64(m.field))
			e.uint(uint64(m.entry))
			e.b = binary.AppendVarint(e.b, int64(m.line)-int64(line))
			e.uint(uint64(m.col))
			line = m.line
		}
		e.uint(uint64(len(from.warnings)))
		for _, w := range from.warnings {
			e.uint(uint64(w.Line))
			e.uint(uint64(w.Col))
			e.string(w.Msg)
			e.string(w.Hint)
		}
	}
	return seal(e.b)
}

// seal fills in the header.
func seal(b []byte) []byte {
	copy(b, CodecVersion)
	binary.BigEndian.PutUint32(b[16:], crc32.Checksum(b[codecHeader:], castagnoli))
	return b
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

type encoder struct{ b []byte }

func (e *encoder) uint(n uint64)   { e.b = binary.AppendUvarint(e.b, n) }
func (e *encoder) string(s string) { e.uint(uint64(len(s))); e.b = append(e.b, s...) }

// structure writes which fields are not zero, then those.
func (e *encoder) structure(s *structure, v reflect.Value) {
	var given uint64
	for i, f := range s.fields {
		if f.shape == shapeStruct || !v.Field(f.index).IsZero() {
			given |= 1 << i
		}
	}
	e.uint(given)
	for i, f := range s.fields {
		if given&(1<<i) == 0 {
			continue
		}
		fv := v.Field(f.index)
		switch f.shape {
		case shapeString:
			e.string(fv.String())
		case shapeInt, shapeSize, shapeDuration:
			e.uint(uint64(fv.Int()))
		case shapeFloat:
			e.uint(math.Float64bits(fv.Float()))
		case shapeStrings:
			e.uint(uint64(fv.Len()))
			for _, s := range fv.Interface().([]string) {
				e.string(s)
			}
		case shapeMap:
			m := fv.Interface().(map[string]string)
			e.uint(uint64(len(m)))
			for _, k := range sorted(m) {
				e.string(k)
				e.string(m[k])
			}
		case shapeStruct:
			e.structure(f.elem, fv)
		case shapePtr:
			e.structure(f.elem, fv.Elem())
		case shapeList:
			e.uint(uint64(fv.Len()))
			for j := range fv.Len() {
				e.structure(f.elem, fv.Index(j))
			}
		}
	}
}

// Decode reads what Encode wrote; ErrCodec where it cannot.
func Decode(data []byte) ([]*Object, error) {
	if len(data) < codecHeader || string(data[:16]) != CodecVersion {
		return nil, ErrCodec
	}
	if crc32.Checksum(data[codecHeader:], castagnoli) != binary.BigEndian.Uint32(data[16:]) {
		return nil, ErrCodec
	}
	// All strings of the objects are parts of this one.
	d := decoder{s: string(data[codecHeader:])}
	list := make([]*Object, 0, d.count())
	file, sealed := "", ""
	for range cap(list) {
		head := d.uint()
		if head>>1 >= uint64(len(definitions)) {
			d.bad = true
		}
		if d.bad {
			break
		}
		def := definitions[head>>1]
		if head&1 != 0 {
			file = d.string()
		}
		from := &origin{file: file, line: int(d.uint()), col: int(d.uint())}
		o := &Object{Kind: def.kind, Pos: place(file, from.line, from.col), from: from}
		spec := reflect.New(def.spec.typ)
		d.structure(def.meta, reflect.ValueOf(&o.Meta).Elem())
		d.structure(def.spec, spec.Elem())
		if s, ok := spec.Interface().(*Secret); ok {
			if d.uint() != 0 {
				sealed = d.string()
			}
			s.File = sealed
		}
		o.Spec = spec.Interface()
		from.marks = make([]mark, d.count())
		line := int64(from.line)
		for i := range from.marks {
			m := &from.marks[i]
			m.field, m.entry = uint16(d.uint()), uint16(d.uint())
			line += d.int()
			m.line, m.col = uint32(line), uint32(d.uint())
			if int(m.field) >= len(def.all) {
				d.bad = true
			}
		}
		for range d.count() {
			w := Error{Line: int(d.uint()), Col: int(d.uint()), Msg: d.string(), Hint: d.string()}
			from.warnings = append(from.warnings, w)
		}
		list = append(list, o)
	}
	if d.bad || d.s != "" {
		return nil, ErrCodec
	}
	return list, nil
}

type decoder struct {
	s   string // what is left
	bad bool
}

func (d *decoder) uint() uint64 {
	var v uint64
	for i := 0; i < len(d.s) && i < binary.MaxVarintLen64; i++ {
		c := d.s[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			d.s = d.s[i+1:]
			return v
		}
	}
	d.bad, d.s = true, ""
	return 0
}

func (d *decoder) int() int64 {
	u := d.uint()
	return int64(u>>1) ^ -int64(u&1)
}

// count reads a number of things of at least one byte each.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.s)) {
		d.bad, d.s = true, ""
		return 0
	}
	return int(n)
}

func (d *decoder) string() string {
	n := d.count()
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}

func (d *decoder) structure(s *structure, v reflect.Value) {
	given := d.uint()
	if given>>len(s.fields) != 0 {
		d.bad = true
		return
	}
	for i, f := range s.fields {
		if given&(1<<i) == 0 {
			continue
		}
		fv := v.Field(f.index)
		switch f.shape {
		case shapeString:
			fv.SetString(d.string())
		case shapeInt, shapeSize, shapeDuration:
			fv.SetInt(int64(d.uint()))
		case shapeFloat:
			fv.SetFloat(math.Float64frombits(d.uint()))
		case shapeStrings:
			list := make([]string, d.count())
			for j := range list {
				list[j] = d.string()
			}
			*fv.Addr().Interface().(*[]string) = list
		case shapeMap:
			n := d.count()
			m := make(map[string]string, n)
			for range n {
				k := d.string()
				m[k] = d.string()
			}
			*fv.Addr().Interface().(*map[string]string) = m
		case shapeStruct:
			d.structure(f.elem, fv)
		case shapePtr:
			fv.Set(reflect.New(f.typ.Elem()))
			d.structure(f.elem, fv.Elem())
		case shapeEmpty:
			fv.Set(reflect.New(f.typ.Elem()))
		case shapeList:
			n := d.count()
			fv.Set(reflect.MakeSlice(f.typ, n, n))
			for j := range n {
				d.structure(f.elem, fv.Index(j))
			}
		}
	}
}
