package drift

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"reconciler/spec"
)

// FieldEdit is one change of one object's document.
type FieldEdit struct {
	Kind spec.Kind
	Name string
	// Path is written as in a plan: spec.memory.size, spec.nics[front].network;
	// spec.disks[data] is a whole entry. Empty is the whole document, which can
	// only be removed.
	Path string
	// Value is the new value in canonical form.
	Value string
	// Entry makes a new entry of a list: its fields in order.
	Entry []Pair
	// Remove takes the field, the entry or the document away.
	Remove bool
}

// Pair is one field of a new entry.
type Pair struct{ Name, Value string }

func (e FieldEdit) String() string { return fmt.Sprintf("%s/%s %s", e.Kind, e.Name, e.Path) }

// UnsafeError says why an edit is not made: the file does not allow it without
// touching more than the one field.
type UnsafeError struct {
	Edit FieldEdit
	Why  error
}

func (e *UnsafeError) Error() string { return fmt.Sprintf("%s: %v", e.Edit, e.Why) }

func (e *UnsafeError) Unwrap() error { return e.Why }

// Edit changes fields of a file and nothing else. The result is read back: it
// holds what was asked for, and every other field as it was, or Edit returns
// an error and no result. A file of which nothing is left is returned empty.
func Edit(file string, data []byte, edits []FieldEdit) ([]byte, error) {
	if len(edits) == 0 {
		return data, nil
	}
	before, err := spec.Parse(file, data)
	if err != nil {
		return nil, err
	}
	mark := 0
	if bytes.HasPrefix(data, bom) {
		mark = len(bom)
	}
	body := data[mark:]
	for _, e := range edits {
		if body, err = apply(body, e); err != nil {
			return nil, &UnsafeError{e, err}
		}
	}
	out := append(bytes.Clone(data[:mark]), body...)
	after, err := spec.Parse(file, out)
	if err != nil {
		return nil, &UnsafeError{edits[0], fmt.Errorf("what really runs cannot be declared: %w", err)}
	}
	if e, err := compare(before, after, edits); err != nil {
		return nil, &UnsafeError{e, err}
	}
	if len(after) == 0 && len(before) > 0 && !slices.ContainsFunc(bytes.Split(out, []byte("\n")), says) {
		return []byte{}, nil
	}
	return out, nil
}

// says that a line holds more than the frame of a document.
func says(line []byte) bool {
	s := strings.TrimSpace(string(line))
	return s != "" && s != "---" && s != "..."
}

// apply makes one edit.
func apply(data []byte, e FieldEdit) ([]byte, error) {
	roots, err := documents(data)
	if err != nil {
		return nil, err
	}
	t := newText(data)
	for _, root := range roots {
		_, meta := find(root, "metadata")
		if meta != nil && meta.Kind == yaml.AliasNode {
			meta = meta.Alias
		}
		if meta == nil || value(root, "kind") != string(e.Kind) || value(meta, "name") != e.Name {
			continue
		}
		t.root = root
		if e.Path == "" {
			if !e.Remove {
				return nil, errors.New("a whole document can only be removed")
			}
			return t.removeDocument()
		}
		return t.edit(e)
	}
	return nil, errors.New("the file has no such object")
}

// step is one part of a path: a field, or an entry by its key.
type step struct {
	name  string
	entry bool
}

func steps(path string) []step {
	var list []step
	for path != "" {
		dot, open := strings.IndexByte(path, '.'), strings.IndexByte(path, '[')
		switch {
		case dot < 0 && open < 0:
			return append(list, step{name: path})
		case open < 0 || dot >= 0 && dot < open:
			if dot > 0 {
				list = append(list, step{name: path[:dot]})
			}
			path = path[dot+1:]
		default:
			if open > 0 {
				list = append(list, step{name: path[:open]})
			}
			rest := path[open+1:]
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return append(list, step{name: rest, entry: true})
			}
			list = append(list, step{name: rest[:end], entry: true})
			path = strings.TrimPrefix(rest[end+1:], ".")
		}
	}
	return list
}

// edit walks to what is edited. An alias on the way is shared with other
// places, which must not change.
func (t *text) edit(e FieldEdit) ([]byte, error) {
	path := steps(e.Path)
	at := t.root
	for i, s := range path {
		last := i == len(path)-1
		if at.Kind == yaml.AliasNode {
			return nil, errors.New("it is written once for several places (anchor and alias)")
		}
		if shared(t.root, at.Anchor) {
			return nil, errors.New("other places repeat it (anchor and alias)")
		}
		if s.entry {
			n := entry(at, s.name)
			switch {
			case last && e.Remove && n >= 0:
				return t.removeEntry(path[:i], at, n)
			case last && e.Entry != nil && n < 0:
				return t.addEntry(at, e.Entry)
			case n < 0 || last:
				return nil, errors.New("the list has no such entry, or has it already")
			}
			at = at.Content[n]
			continue
		}
		if at.Kind != yaml.MappingNode {
			return nil, errPlace
		}
		key, v := find(at, s.name)
		switch {
		case v == nil && e.Entry != nil && i == len(path)-2:
			return t.addField(at, e, s.name, flowList(e.Entry))
		case v == nil && last && !e.Remove:
			return t.addField(at, e, s.name, scalar(e.Value, nil, t.isFlow(at), kindOf(e)))
		case v == nil:
			return nil, errors.New("it is not written in the file")
		case last && e.Remove:
			return t.removeField(at, key, v)
		case last:
			return t.set(at, v, e)
		}
		at = v
	}
	return nil, errPlace
}

// entry finds an entry by its name, or by the disk it attaches.
func entry(list *yaml.Node, name string) int {
	for i, e := range list.Content {
		if e.Kind == yaml.AliasNode {
			e = e.Alias
		}
		own := value(e, "name")
		if own == "" {
			own = value(e, "disk")
		}
		if own == name {
			return i
		}
	}
	return -1
}

// shared says whether an alias of the document repeats an anchor.
func shared(n *yaml.Node, anchor string) bool {
	if anchor == "" {
		return false
	}
	if n.Kind == yaml.AliasNode {
		return n.Value == anchor
	}
	return slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return shared(c, anchor) })
}

// compare proves that the edits, and nothing else, were made.
func compare(before, after []*spec.Object, edits []FieldEdit) (FieldEdit, error) {
	type object struct {
		kind spec.Kind
		name string
	}
	have := map[object]map[string]string{}
	for _, o := range after {
		have[object{o.Kind, o.Meta.Name}] = flat(o)
	}
	for _, o := range before {
		k := object{o.Kind, o.Meta.Name}
		now, there := have[k]
		delete(have, k)
		was := flat(o)
		for _, e := range edits {
			if e.Kind != o.Kind || e.Name != o.Meta.Name {
				continue
			}
			if e.Path == "" {
				if there {
					return e, errors.New("the document would stay")
				}
				now, was = nil, nil
				break
			}
			if err := e.made(was, now); err != nil {
				return e, err
			}
		}
		if was == nil {
			continue
		}
		if !there {
			return edits[0], fmt.Errorf("%s/%s would be lost", o.Kind, o.Meta.Name)
		}
		for path, v := range was {
			if now[path] != v {
				return edits[0], fmt.Errorf("%s of %s/%s would become %q", path, o.Kind, o.Meta.Name, now[path])
			}
			delete(now, path)
		}
		for path := range now {
			return edits[0], fmt.Errorf("%s of %s/%s would appear", path, o.Kind, o.Meta.Name)
		}
	}
	for k := range have {
		return edits[0], fmt.Errorf("%s/%s would appear", k.kind, k.name)
	}
	return FieldEdit{}, nil
}

func flat(o *spec.Object) map[string]string {
	m := map[string]string{}
	for _, f := range spec.Flatten(o) {
		m[f.Path] = f.Value
	}
	return m
}

// made checks that an edit is in now, and takes what it concerns from both.
func (e FieldEdit) made(was, now map[string]string) error {
	switch {
	case e.Entry != nil:
		for _, p := range e.Entry {
			if now[e.Path+"."+p.Name] != p.Value {
				return fmt.Errorf("%s would be %q", p.Name, now[e.Path+"."+p.Name])
			}
		}
	case e.Remove:
		for path := range now {
			if strings.HasPrefix(path, e.Path+".") {
				return fmt.Errorf("%s would stay", path)
			}
		}
	case now[e.Path] != e.Value:
		return fmt.Errorf("it would be %q", now[e.Path])
	}
	for _, m := range []map[string]string{was, now} {
		for path := range m {
			if path == e.Path || strings.HasPrefix(path, e.Path+".") {
				delete(m, path)
			}
		}
	}
	return nil
}
