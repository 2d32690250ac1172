package drift

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"reconciler/reconcile"
	"reconciler/spec"
)

// Document writes the YAML that declares an object as it is. cluster is the id
// of the cluster it would belong to; name gives the present name of an object
// by its UID, empty if it is not declared. What is written leads back to the
// same identity and the same fields, or there is an error.
func Document(o *reconcile.Object, cluster string, name func(uid string) string) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range o.Fields {
		v := f.Value
		if now := name(f.ID); f.ID != "" && now != "" {
			v = now
		}
		if !derived(o.Kind, f.Path) {
			put(root, o.Kind, f.Path, v)
		}
	}
	firstDisk(root, o)
	full, err := read(o.Kind, root)
	if err != nil {
		return nil, fmt.Errorf("what is recorded of it is no spec of this version: %w", err)
	}
	if uid := spec.UID(cluster, o.Kind, full.Meta); uid != o.UID {
		return nil, fmt.Errorf("it belongs to another cluster than %s, or its recorded names do not make its identity %s", cluster, o.UID)
	}
	want := flat(full)
	out := envelope(o.Kind)
	for _, f := range spec.Flatten(full) {
		if f.Path == "spec.nics"+entryName(f.Path)+".mac" && f.Value == spec.DerivedMAC(o.UID, entryKey(f.Path)) {
			delete(want, f.Path)
			continue
		}
		put(out, o.Kind, f.Path, f.Value)
	}
	prune(out, o.Kind, want)
	return encode(out)
}

// derived fields follow from other objects or stand in the entry's key.
func derived(k spec.Kind, path string) bool {
	list, _, leaf := split(path)
	return k == spec.KindVirtualMachine &&
		(path == "spec.boot.disk" || list == "spec.disks" && leaf == "size" || list == "spec.nics" && leaf == "backend")
}

func entryKey(path string) string { _, name, _ := split(path); return name }

func entryName(path string) string {
	if key := entryKey(path); key != "" {
		return "[" + key + "]"
	}
	return ""
}

func envelope(k spec.Kind) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	set(n, "apiVersion", leafNode(spec.APIVersion))
	set(n, "kind", leafNode(string(k)))
	return n
}

func leafNode(v string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: v} }

// set adds or replaces a field, and returns its value.
func set(m *yaml.Node, name string, v *yaml.Node) *yaml.Node {
	if key, old := find(m, name); key != nil {
		if v.Kind == yaml.ScalarNode {
			*old = *v
		}
		return old
	}
	key := leafNode(name)
	if !plain(name, false) {
		key.Style = yaml.DoubleQuotedStyle
	}
	m.Content = append(m.Content, key, v)
	return v
}

// put writes the value of a path into a document.
func put(root *yaml.Node, k spec.Kind, path, v string) {
	at := root
	parts := steps(path)
	for i, s := range parts[:len(parts)-1] {
		next := &yaml.Node{Kind: yaml.MappingNode}
		switch {
		case s.entry:
			n := entry(at, s.name)
			if n < 0 {
				set(next, "name", leafNode(s.name))
				at.Content = append(at.Content, next)
				n = len(at.Content) - 1
			}
			at = at.Content[n]
		case parts[i+1].entry && !keyed(path):
			next.Kind = yaml.SequenceNode
			at = set(at, s.name, next)
		default:
			at = set(at, s.name, next)
		}
	}
	last := parts[len(parts)-1].name
	switch {
	case path == "metadata.movedFrom" || path == "spec.roles" || strings.HasSuffix(path, ".portals"):
		list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, e := range strings.Split(v, ",") {
			list.Content = append(list.Content, leafNode(e))
		}
		set(at, last, list)
	case path == "spec.source.blank" || path == "spec.user":
		set(at, last, &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle})
	default:
		n := leafNode(v)
		if kindOf(FieldEdit{Kind: k, Path: path}) == words && path != "metadata.incarnation" && !plain(v, false) {
			n.Style = yaml.DoubleQuotedStyle
		}
		set(at, last, n)
	}
}

// keyed are mappings of free keys, whose paths look like those of entries.
func keyed(path string) bool {
	return strings.HasPrefix(path, "metadata.labels[") || strings.HasPrefix(path, "metadata.annotations[")
}

// firstDisk puts the disk that firmware boots from first: the order of the
// others is not recorded, and decides nothing.
func firstDisk(root *yaml.Node, o *reconcile.Object) {
	_, body := find(root, "spec")
	first := o.Get("spec.boot.disk")
	if body == nil || first == "" {
		return
	}
	if _, list := find(body, "disks"); list != nil {
		if i := entry(list, first); i > 0 {
			e := list.Content[i]
			list.Content = slices.Insert(slices.Delete(list.Content, i, i+1), 0, e)
		}
	}
}

func encode(n *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// read parses a document that lacks its envelope.
func read(k spec.Kind, root *yaml.Node) (*spec.Object, error) {
	if key, _ := find(root, "kind"); key == nil {
		n := envelope(k)
		n.Content = append(n.Content, root.Content...)
		root = n
	}
	data, err := encode(root)
	if err != nil {
		return nil, err
	}
	list, err := spec.Parse("document", data)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// prune takes away, one by one, the fields without which the document says the same.
func prune(root *yaml.Node, k spec.Kind, want map[string]string) {
	var walk func(m *yaml.Node)
	walk = func(m *yaml.Node) {
		for i := 0; i+1 < len(m.Content) && m.Kind == yaml.MappingNode; {
			if m == root && i < 4 { // apiVersion and kind
				i += 2
				continue
			}
			kept := slices.Clone(m.Content)
			m.Content = slices.Delete(slices.Clone(m.Content), i, i+2)
			if o, err := read(k, root); err == nil && equal(flat(o), want) {
				continue
			}
			m.Content = kept
			walk(m.Content[i+1])
			i += 2
		}
		if m.Kind == yaml.SequenceNode {
			for _, e := range m.Content {
				walk(e)
			}
		}
	}
	walk(root)
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}
