package spec

import (
	"maps"
	"reflect"
	"slices"
)

// Field is one value of an object.
type Field struct {
	Path  string // as users write it: spec.nics[front].network
	Value string // in canonical form
	World World
}

// Flatten lists every field of an object that has a value, in the order of the
// types, for comparison. Entries of a list follow each other as they are
// written; lists of plain values are joined with commas.
func Flatten(o *Object) []Field { return AppendFlat(nil, o) }

// AppendFlat is Flatten into a list that the caller has.
func AppendFlat(list []Field, o *Object) []Field {
	d := definitionOf(o.Kind)
	list = slices.Grow(list, len(d.leaves)+8)
	list = d.meta.flatten(list, reflect.ValueOf(&o.Meta).Elem(), "")
	return d.spec.flatten(list, reflect.ValueOf(o.Spec).Elem(), "")
}

// flatten appends the fields of a structure. entry is the path of the list's
// entry the structure is in, or empty.
func (s *structure) flatten(list []Field, v reflect.Value, entry string) []Field {
	for _, f := range s.fields {
		fv := v.Field(f.index)
		if f.elem == nil && fv.IsZero() {
			continue
		}
		path := f.path
		if entry != "" {
			path = entry + "." + f.name
		}
		switch f.shape {
		case shapeStruct:
			list = f.elem.flatten(list, fv, "")
		case shapePtr:
			if !fv.IsNil() {
				list = f.elem.flatten(list, fv.Elem(), "")
			}
		case shapeList:
			for i := range fv.Len() {
				e := fv.Index(i)
				list = f.elem.flatten(list, e, f.path+"["+e.Field(f.key.index).String()+"]")
			}
		case shapeMap:
			m := fv.Interface().(map[string]string)
			for _, k := range slices.Sorted(maps.Keys(m)) {
				list = append(list, Field{f.path + "[" + k + "]", m[k], f.world})
			}
		default:
			list = append(list, Field{path, f.write(fv), f.world})
		}
	}
	return list
}
