package drift

import (
	"errors"
	"strings"

	"gopkg.in/yaml.v3"

	"reconciler/spec"
)

// set replaces a scalar by another, in the style of the old one.
func (t *text) set(parent, v *yaml.Node, e FieldEdit) ([]byte, error) {
	if v.Kind != yaml.ScalarNode && (v.Kind != yaml.AliasNode || v.Alias.Kind != yaml.ScalarNode) {
		return nil, errPlace
	}
	if shared(t.root, v.Anchor) {
		return nil, errors.New("other places repeat it (anchor and alias)")
	}
	from, err := t.body(v)
	if err != nil {
		return nil, err
	}
	to, err := t.end(v)
	if err != nil {
		return nil, err
	}
	if v.Kind == yaml.AliasNode {
		v = nil
	}
	return t.splice(from, to, scalar(e.Value, v, t.isFlow(parent), kindOf(e))), nil
}

// order is where a new field goes: after the nearest of these that is there.
var order = map[spec.Kind][]string{
	spec.KindVirtualMachine: {
		"host", "powerState", "cpu", "sockets", "cores", "threads", "max", "model", "memory", "size", "machine", "boot",
		"disk", "disks", "name", "network", "mac", "nics", "shutdown",
	},
	spec.KindDisk: {"pool", "size"},
}

// addField writes a new field into a mapping.
func (t *text) addField(m *yaml.Node, e FieldEdit, name, text string) ([]byte, error) {
	if m.Kind != yaml.MappingNode {
		return nil, errPlace
	}
	line := name + ": " + text
	key, v := t.neighbour(m, e.Kind, name)
	if key == nil {
		return nil, errors.New("there is no field in the file beside which it could be written")
	}
	end, err := t.end(v)
	if err != nil {
		return nil, err
	}
	if t.isFlow(m) {
		return t.splice(end, end, ", "+line), nil
	}
	at, err := t.offset(key.Line, key.Column)
	if err != nil {
		return nil, err
	}
	return t.insertLine(end, strings.Repeat(" ", t.column(at)), line)
}

// column is the number of characters before an offset on its line.
func (t *text) column(at int) int {
	return len([]rune(string(t.data[t.lines[t.lineOf(at)]:at])))
}

// insertLine writes a line of its own after the line that at is in.
func (t *text) insertLine(at int, indent, line string) ([]byte, error) {
	end := t.lineEnd(at)
	if end > 0 && end == len(t.data) && !strings.HasSuffix(string(t.data), "\n") && !strings.HasSuffix(string(t.data), "\r") {
		return t.splice(end, end, t.eol+indent+line), nil
	}
	return t.splice(end, end, indent+line+t.eol), nil
}

// neighbour is the field after which a new one is written: the one before it in
// the language's order, if the place where it ends can be told.
func (t *text) neighbour(m *yaml.Node, kind spec.Kind, name string) (key, v *yaml.Node) {
	before := true
	for _, other := range order[kind] {
		if other == name {
			before = false
			if key != nil {
				return key, v
			}
		}
		if k, f := find(m, other); k != nil {
			if _, err := t.end(f); err != nil {
				continue
			}
			key, v = k, f
			if !before {
				return key, v
			}
		}
	}
	return key, v
}

// flowList is a list with one entry, on one line.
func flowList(pairs []Pair) string { return "[" + flowMap(pairs) + "]" }

func flowMap(pairs []Pair) string {
	parts := make([]string, len(pairs))
	for i, p := range pairs {
		parts[i] = p.Name + ": " + scalar(p.Value, nil, true, words)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// addEntry writes a new entry at the end of a list.
func (t *text) addEntry(list *yaml.Node, pairs []Pair) ([]byte, error) {
	if list.Kind != yaml.SequenceNode {
		return nil, errPlace
	}
	if t.isFlow(list) {
		if len(list.Content) == 0 {
			at, err := t.body(list)
			return t.splice(at+1, at+1, flowMap(pairs)), err
		}
		end, err := t.end(list.Content[len(list.Content)-1])
		return t.splice(end, end, ", "+flowMap(pairs)), err
	}
	last := list.Content[len(list.Content)-1]
	end, err := t.end(last)
	if err != nil {
		return nil, err
	}
	dash, err := t.offset(list.Line, list.Column)
	if err != nil {
		return nil, err
	}
	indent := strings.Repeat(" ", t.column(dash))
	if last.Kind != yaml.MappingNode || t.isFlow(last) {
		return t.insertLine(end, indent, "- "+flowMap(pairs))
	}
	var lines []string
	for i, p := range pairs {
		lead := "  "
		if i == 0 {
			lead = "- "
		}
		lines = append(lines, lead+p.Name+": "+scalar(p.Value, nil, false, words))
	}
	return t.insertLine(end, indent, strings.Join(lines, t.eol+indent))
}

// removeEntry takes an entry out of a list, and the list with its last one.
func (t *text) removeEntry(path []step, list *yaml.Node, n int) ([]byte, error) {
	item := list.Content[n]
	if anchored(t.root, item) {
		return nil, errors.New("other places repeat a part of it (anchor and alias)")
	}
	if t.isFlow(list) {
		return t.removeFlow(list.Content, n, n)
	}
	if len(list.Content) == 1 {
		m := t.root
		for _, s := range path[:len(path)-1] {
			if _, m = find(m, s.name); m == nil {
				return nil, errPlace
			}
		}
		key, v := find(m, path[len(path)-1].name)
		return t.removeField(m, key, v)
	}
	dash, err := t.dash(list, item)
	if err != nil {
		return nil, err
	}
	end, err := t.end(item)
	if err != nil {
		return nil, err
	}
	return t.removeLines(dash, end), nil
}

// dash is the offset of the hyphen before an entry, which may stand on a line
// above it.
func (t *text) dash(list, item *yaml.Node) (int, error) {
	for line := item.Line; line >= list.Line; line-- {
		at, err := t.offset(line, list.Column)
		if err == nil && at < len(t.data) && t.data[at] == '-' {
			if _, free := t.indent(at); !free {
				return 0, errors.New("its list begins on the line of something else")
			}
			return at, nil
		}
	}
	return 0, errPlace
}

// anchored says whether something outside a node repeats a part of it.
func anchored(root, n *yaml.Node) bool {
	if shared(root, n.Anchor) {
		return true
	}
	for _, c := range n.Content {
		if anchored(root, c) {
			return true
		}
	}
	return false
}

// removeField takes a field out of a mapping.
func (t *text) removeField(m, key, v *yaml.Node) ([]byte, error) {
	if anchored(t.root, v) {
		return nil, errors.New("other places repeat a part of it (anchor and alias)")
	}
	if t.isFlow(m) {
		for i := range m.Content {
			if m.Content[i] == key {
				return t.removeFlow(m.Content, i, i+1)
			}
		}
	}
	from, err := t.offset(key.Line, key.Column)
	if err != nil {
		return nil, err
	}
	if _, free := t.indent(from); !free {
		return nil, errors.New("it shares its line with something else")
	}
	to, err := t.end(v)
	if err != nil {
		return nil, err
	}
	return t.removeLines(from, to), nil
}

// removeLines takes away what is written from an offset to another, with its
// lines; comments that have a line of their own stay.
func (t *text) removeLines(from, to int) []byte {
	first, last := t.lineOf(from), t.lineOf(max(from, to-1))
	var kept strings.Builder
	for n := first + 1; n <= last; n++ {
		line := string(t.data[t.lines[n]:t.lineEnd(t.lines[n])])
		if strings.HasPrefix(strings.TrimLeft(line, " \t"), "#") {
			kept.WriteString(line)
		}
	}
	return t.splice(t.lines[first], t.lineEnd(t.lines[last]), kept.String())
}

// removeFlow takes parts of a flow collection out, with one of the commas
// around them; with its line where that is all there is on it. A comma may be
// left before the closing bracket then, which YAML allows.
func (t *text) removeFlow(parts []*yaml.Node, first, last int) ([]byte, error) {
	from, err := t.offset(parts[first].Line, parts[first].Column)
	if err != nil {
		return nil, err
	}
	to, err := t.end(parts[last])
	if err != nil {
		return nil, err
	}
	next := to
	for next < len(t.data) && (t.data[next] == ' ' || t.data[next] == '\t') {
		next++
	}
	comma := next < len(t.data) && t.data[next] == ','
	if comma {
		next++
	} else {
		next = to
	}
	if start, end, whole := t.wholeLine(from, next); whole {
		return t.splice(start, end, ""), nil
	}
	if first > 0 {
		before, err := t.end(parts[first-1])
		if err == nil && strings.ContainsRune(string(t.data[before:from]), '#') {
			err = errors.New("a comment stands between it and the comma before it")
		}
		return t.splice(before, to, ""), err
	}
	for comma && next < len(t.data) && t.data[next] == ' ' {
		next++
	}
	return t.splice(from, next, ""), nil
}

// wholeLine widens a range to its line, where it is all there is on it but a
// comment.
func (t *text) wholeLine(from, to int) (start, end int, whole bool) {
	start, end = t.lines[t.lineOf(from)], t.lineEnd(to-1)
	tail := strings.TrimSpace(string(t.data[to:end]))
	alone := strings.TrimSpace(string(t.data[start:from])) == "" && (tail == "" || tail[0] == '#')
	return start, end, alone && t.lineOf(from) == t.lineOf(to-1)
}

// removeDocument takes the document away, with the separator
// before it, or after the first.
func (t *text) removeDocument() ([]byte, error) {
	end, err := t.end(t.root)
	if err != nil {
		return nil, err
	}
	first, last := t.root.Line-1, t.lineOf(max(0, end-1))
	from, to := t.lines[first], len(t.data)
	led := false
	for n := first; n >= 0 && !led; n-- {
		if t.separates(n) {
			from, led = t.lines[n], true
		}
	}
	for n := last + 1; n < len(t.lines); n++ {
		if t.separates(n) {
			to = t.lines[n]
			if !led {
				to = t.lineEnd(t.lines[n])
			}
			break
		}
	}
	return t.splice(from, to, ""), nil
}

// separates says whether a line ends one document and begins another.
func (t *text) separates(n int) bool {
	line := t.data[t.lines[n]:t.lineEnd(t.lines[n])]
	return len(line) >= 3 && string(line[:3]) == "---" && (len(line) == 3 || blank(line[3]))
}

// AddDocument appends a document to a file.
func AddDocument(data, doc []byte) []byte {
	t := newText(data)
	out := append([]byte(nil), data...)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, t.eol...)
	}
	if len(out) > 0 {
		out = append(out, "---"+t.eol...)
	}
	return append(out, strings.ReplaceAll(string(doc), "\n", t.eol)...)
}
