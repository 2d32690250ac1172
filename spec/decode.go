package spec

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// part reads metadata or spec.
func (p *parser) part(root, n *yaml.Node, name string, s *structure, v reflect.Value) {
	if n == nil {
		if s.needed() {
			p.at(root, name+" is missing", "")
		}
		return
	}
	p.structure(n, s, v, name, 0)
}

// follow returns the node an alias stands for. What is reached through aliases
// is bounded, so that a small file cannot stand for a huge one.
func (p *parser) follow(n *yaml.Node) (*yaml.Node, bool) {
	if n.Kind != yaml.AliasNode {
		return n, true
	}
	at := n
	for n.Kind == yaml.AliasNode {
		p.aliasNodes++
		n = n.Alias
		if p.aliasNodes > maxAliasNodes {
			break
		}
	}
	weigh(n, &p.aliasNodes, &p.aliasBytes)
	if p.aliasNodes > maxAliasNodes || p.aliasBytes > maxAliasBytes {
		p.at(at, "aliases stand for too much", "write the values out")
		return nil, false
	}
	return n, true
}

// weigh counts what is below a node without following aliases, each of which is
// weighed when it is followed.
func weigh(n *yaml.Node, nodes, bytes *int) {
	*nodes++
	*bytes += len(n.Value)
	if *nodes > maxAliasNodes {
		return
	}
	for _, c := range n.Content {
		weigh(c, nodes, bytes)
	}
}

// structure reads a mapping with known fields. prefix is its path as the user
// wrote it, entry its place in the list it is in.
func (p *parser) structure(n *yaml.Node, s *structure, v reflect.Value, prefix string, entry int) {
	n, ok := p.follow(n)
	if !ok {
		return
	}
	if n.Kind != yaml.MappingNode || n.ShortTag() != "!!map" {
		hint := ""
		if isNull(n) && !s.needed() {
			hint = "write {} or leave it out"
		}
		p.at(n, prefix+": expected a mapping, found "+describe(n), hint)
		return
	}
	var given uint64 // by place in s.fields
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := -1
		if key.Kind == yaml.ScalarNode {
			for j, f := range s.fields {
				if f.name == key.Value {
					at = j
					break
				}
			}
		}
		if at < 0 {
			p.unknownField(key, prefix, s)
			continue
		}
		if given&(1<<at) != 0 {
			p.at(key, "duplicate field "+quote(key.Value)+" in "+prefix, "")
			continue
		}
		given |= 1 << at
		p.field(value, s.fields[at], v.Field(s.fields[at].index), prefix, entry)
	}
	p.choice(n, s, given, prefix)
}

// choice reports fields that are missing or exclude each other.
func (p *parser) choice(n *yaml.Node, s *structure, given uint64, prefix string) {
	count := 0
	var names []string
	for i, f := range s.fields {
		names = append(names, f.name)
		if given&(1<<i) != 0 {
			count++
		} else if f.required {
			p.at(n, prefix+"."+f.name+" is missing", "")
		}
	}
	switch {
	case s.choice == textOrSecret:
		p.textOrSecret(n, given, prefix)
	case s.choice == oneOf && count == 0 && len(n.Content) == 0:
		p.at(n, prefix+" is empty", "give "+orList(names))
	case s.choice != anyOf && count > 1:
		p.at(n, prefix+" takes one of "+strings.Join(names, ", "), "remove all but one")
	}
}

// unknownField reports a key that is no field of s.
func (p *parser) unknownField(key *yaml.Node, prefix string, s *structure) {
	var names []string
	path := ""
	for _, f := range s.fields {
		names = append(names, f.name)
		path = strings.TrimSuffix(f.path, f.name) + key.Value
	}
	if path == "" {
		path = prefix + "." + key.Value
	}
	if key.Kind == yaml.ScalarNode && laterFields[p.def.kind][path] {
		p.at(key, prefix+"."+key.Value+" is not supported yet", "")
		return
	}
	p.unknown(key, prefix, names)
}

func (p *parser) unknown(key *yaml.Node, prefix string, names []string) {
	in := ""
	if prefix != "" {
		in = " in " + prefix
	}
	switch {
	case key.Kind != yaml.ScalarNode:
		p.at(key, "the name of a field cannot be "+describe(key)+in, "")
		return
	case key.ShortTag() == "!!merge":
		p.at(key, "merge keys are not read"+in, "write the fields out")
		return
	}
	hint := ""
	if near := nearest(key.Value, slices.Values(names)); near != "" {
		hint = "did you mean " + near + "?"
	} else if len(names) > 0 && len(names) <= 12 {
		hint = "known are " + strings.Join(names, ", ")
	}
	p.at(key, "unknown field "+quote(key.Value)+in, hint)
}

// field reads one value.
func (p *parser) field(n *yaml.Node, f *field, v reflect.Value, prefix string, entry int) {
	n, ok := p.follow(n)
	if !ok {
		return
	}
	p.seen = append(p.seen, visit{f, entry, n})
	// The path is put together only where somebody will read it or build on it.
	path := func() string {
		if f.inList {
			return prefix + "." + f.name
		}
		return f.path
	}
	switch f.shape {
	case shapeStruct:
		p.structure(n, f.elem, v, path(), entry)
	case shapePtr:
		v.Set(reflect.New(f.typ.Elem()))
		p.structure(n, f.elem, v.Elem(), path(), entry)
	case shapeEmpty:
		if n.Kind != yaml.MappingNode || n.ShortTag() != "!!map" {
			p.at(n, path()+": expected an empty mapping, found "+describe(n), "write "+f.name+": {}")
			return
		}
		if len(n.Content) > 0 {
			p.emptyFields(n, f, path())
		}
		v.Set(reflect.New(f.typ.Elem()))
	case shapeList:
		p.list(n, f, v, path())
	case shapeStrings:
		p.strings(n, f, v, path)
	case shapeMap:
		p.mapping(n, f, v, path)
	default:
		p.scalar(n, f, v, path)
	}
}

// emptyFields reports the fields of a mapping that has none.
func (p *parser) emptyFields(n *yaml.Node, f *field, path string) {
	for i := 0; i < len(n.Content); i += 2 {
		key := n.Content[i]
		if laterFields[p.def.kind][f.path+"."+key.Value] {
			p.at(key, path+"."+key.Value+" is not supported yet", "")
			continue
		}
		p.unknown(key, path, nil)
	}
}

func (p *parser) scalar(n *yaml.Node, f *field, v reflect.Value, path func() string) {
	if expected := f.mismatch(n); expected != "" {
		hint := ""
		if expected == "a string" && n.Kind == yaml.ScalarNode && !isNull(n) {
			hint = "write it in quotes"
		}
		p.at(n, path()+": expected "+expected+", found "+describe(n), hint)
		return
	}
	if laterValues[p.def.kind][f.path][n.Value] {
		p.at(n, path()+": "+n.Value+" is not supported yet", "")
		return
	}
	if prob := f.set(v, n.Value); prob != nil {
		p.at(n, path()+": "+prob.msg, prob.hint)
	}
}

// mismatch says what a field expects if a node is something else.
func (f *field) mismatch(n *yaml.Node) string {
	tag := ""
	if n.Kind == yaml.ScalarNode {
		tag = n.ShortTag()
	}
	switch f.shape {
	case shapeInt:
		if tag != "!!int" {
			return "a whole number"
		}
	case shapeFloat:
		if tag != "!!int" && tag != "!!float" {
			return "a number"
		}
	case shapeSize:
		if tag != "!!str" && tag != "!!int" {
			return "a size"
		}
	case shapeDuration:
		if tag != "!!str" && tag != "!!int" {
			return "a duration"
		}
	default:
		// A time without quotes is a timestamp to YAML.
		if tag != "!!str" && (tag != "!!timestamp" || f.formatID != "time") {
			return "a string"
		}
	}
	return ""
}

func (p *parser) strings(n *yaml.Node, f *field, v reflect.Value, path func() string) {
	if n.Kind != yaml.SequenceNode || n.ShortTag() != "!!seq" {
		p.at(n, path()+": expected a list, found "+describe(n), "")
		return
	}
	if len(n.Content) == 0 && f.required {
		p.at(n, path()+" is empty", "")
		return
	}
	if !p.bounded(n, len(n.Content), path()) {
		return
	}
	list := make([]string, 0, len(n.Content))
	known := make(map[string]bool, len(n.Content))
	for i, e := range n.Content {
		e, ok := p.follow(e)
		if !ok {
			return
		}
		p.seen = append(p.seen, visit{f, i, e})
		where := func() string { return path() + "[" + strconv.Itoa(i) + "]" }
		if e.Kind != yaml.ScalarNode || e.ShortTag() != "!!str" {
			hint := ""
			if e.Kind == yaml.ScalarNode && !isNull(e) {
				hint = "write it in quotes"
			}
			p.at(e, where()+": expected a string, found "+describe(e), hint)
			continue
		}
		s, prob := f.text(e.Value)
		if prob != nil {
			p.at(e, where()+": "+prob.msg, prob.hint)
			continue
		}
		// A name can come back after another: renamed, and renamed back.
		if f.path == "metadata.movedFrom" {
			if len(list) > 0 && list[len(list)-1] == s {
				p.at(e, where()+": "+quote(s)+" follows itself", "")
			}
		} else if known[s] {
			p.at(e, where()+": duplicate "+quote(s), "")
		}
		known[s] = true
		list = append(list, s)
	}
	v.Set(reflect.ValueOf(list))
}

func (p *parser) mapping(n *yaml.Node, f *field, v reflect.Value, path func() string) {
	if n.Kind != yaml.MappingNode || n.ShortTag() != "!!map" {
		p.at(n, path()+": expected a mapping, found "+describe(n), "")
		return
	}
	if len(n.Content) == 0 && f.required {
		p.at(n, path()+" is empty", "")
		return
	}
	if !p.bounded(n, len(n.Content)/2, path()) {
		return
	}
	m := make(map[string]string, len(n.Content)/2)
	for i := 0; i < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge":
			p.at(key, "merge keys are not read in "+path(), "write the fields out")
			continue
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			p.at(key, path()+": expected a string as key, found "+describe(key), "")
			continue
		case !labelKey(key.Value):
			p.at(key, path()+": "+quote(key.Value)+" is not a key", "letters, digits and . _ / -, at most 128 characters")
			continue
		}
		if _, ok := m[key.Value]; ok {
			p.at(key, "duplicate field "+quote(key.Value)+" in "+path(), "")
			continue
		}
		e, ok := p.follow(n.Content[i+1])
		if !ok {
			return
		}
		where := func() string { return path() + "[" + key.Value + "]" }
		if e.Kind != yaml.ScalarNode || e.ShortTag() != "!!str" {
			hint, found := "", describe(e)
			if f.format != nil && f.format.sensitive && e.Kind == yaml.ScalarNode {
				found, hint = "a value that is not "+f.format.what, f.format.hint
			} else if e.Kind == yaml.ScalarNode && !isNull(e) {
				hint = "write it in quotes"
			}
			p.at(e, where()+": expected a string, found "+found, hint)
			continue
		}
		s, prob := f.text(e.Value)
		if prob != nil {
			p.at(e, where()+": "+prob.msg, prob.hint)
			continue
		}
		m[key.Value] = s
	}
	v.Set(reflect.ValueOf(m))
}

func (p *parser) bounded(n *yaml.Node, entries int, path string) bool {
	if entries > maxEntries {
		p.at(n, path+" has "+strconv.Itoa(entries)+" entries", "at most "+strconv.Itoa(maxEntries))
	}
	return entries <= maxEntries
}

// labelKey keeps brackets and blanks out of paths.
func labelKey(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') && (i == 0 || !strings.ContainsRune("._/-", rune(s[i]))) {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// list reads entries that are told apart by a key.
func (p *parser) list(n *yaml.Node, f *field, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode || n.ShortTag() != "!!seq" {
		p.at(n, path+": expected a list, found "+describe(n), "")
		return
	}
	if !p.bounded(n, len(n.Content), path) {
		return
	}
	v.Set(reflect.MakeSlice(f.typ, len(n.Content), len(n.Content)))
	known := make(map[string]bool, len(n.Content))
	for i, e := range n.Content {
		ev := v.Index(i)
		p.structure(e, f.elem, ev, path+"["+f.label(e, i)+"]", i)
		completeEntry(ev.Addr().Interface())
		name := ev.Field(f.key.index).String()
		if name == "" {
			continue
		}
		if known[name] {
			p.at(e, path+": duplicate "+f.key.name+" "+quote(name), "every entry has a "+f.key.name+" of its own")
		}
		known[name] = true
	}
}

// label is how a path names the entry of a list: by its key, or by its place
// where it has none.
func (f *field) label(n *yaml.Node, i int) string {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	label := strconv.Itoa(i)
	if n.Kind != yaml.MappingNode {
		return label
	}
	for j := 0; j < len(n.Content); j += 2 {
		key, value := n.Content[j], n.Content[j+1]
		if value.Kind != yaml.ScalarNode || !isName(value.Value) {
			continue
		}
		switch {
		case key.Value == f.key.name:
			return value.Value
		case key.Value == f.keyFrom:
			label = value.Value
		}
	}
	return label
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe names what a node is, in the words of YAML.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		if n.ShortTag() == "!!map" {
			return "a mapping"
		}
	case yaml.SequenceNode:
		if n.ShortTag() == "!!seq" {
			return "a list"
		}
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!str":
			return "the string " + quote(n.Value)
		case "!!int":
			return "the number " + n.Value
		case "!!float":
			return "the number " + n.Value
		case "!!bool":
			return "the boolean " + n.Value
		case "!!null":
			return "nothing"
		case "!!timestamp":
			return "the time " + n.Value
		}
	}
	return "a value tagged " + quote(n.ShortTag())
}
