package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Field is one value of an object.
type Field struct {
	Path  string // as users write it: spec.nics[front].network
	Value string // in canonical form; of a text, its start; of a secret, (sensitive)
	World World
	// Digest is set where Value is not all: SHA-256 in hexadecimal digits of the
	// text, or of the encrypted value.
	Digest string
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
				list = append(list, f.show(f.path+"["+k+"]", m[k]))
			}
		default:
			list = append(list, f.show(path, f.write(fv)))
		}
	}
	return list
}

// show is a value as a plan may show it.
func (f *field) show(path, value string) Field {
	shown := Field{Path: path, Value: value, World: f.world}
	switch {
	case f.format != nil && f.format.sensitive:
		shown.Value, shown.Digest = "(sensitive)", Digest(value)
	case f.formatID == "text":
		shown.Value, shown.Digest = abridged(value), Digest(value)
	}
	return shown
}

// Digest is how an encrypted value, or a text, is told from another: SHA-256 in
// hexadecimal digits.
func Digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// abridged is the first line of a text and its size.
func abridged(text string) string {
	const most = 40
	line, _, _ := strings.Cut(text, "\n")
	line = strings.TrimRight(line, "\r")
	if len(line) > most {
		line = strings.ToValidUTF8(line[:most], "")
	}
	if line != text {
		line += "…"
	}
	return line + " (" + strconv.Itoa(len(text)) + " bytes)"
}
