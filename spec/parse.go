package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Bounds of one file. To read YAML takes up to 250 times its size in memory.
const (
	MaxFileSize = 1 << 20

	maxErrors     = 1000
	maxEntries    = 1024 // of a list or a mapping
	maxAliasNodes = 10_000
	maxAliasBytes = 1 << 20
)

// origin is where a parsed object comes from.
type origin struct {
	file      string
	line, col int
	marks     []mark
	warnings  Errors // whose file is this one
	// bad: the object has errors, so its values prove nothing.
	bad bool
}

// mark is the place of one field's value.
type mark struct {
	field uint16
	entry uint16 // of the list the field is in or is
	line  uint32
	col   uint32
}

// Parse reads one file's documents, apart from any file system; file is only
// for messages. It applies the defaults that follow from the file alone, and
// checks everything that can be checked in it. The error is Errors, all of
// them; the objects whose kind and name could be read are returned beside it,
// so that Link does not take them for missing.
func Parse(file string, data []byte) ([]*Object, error) {
	p := &parser{file: file}
	p.text = sync.OnceValue(func() string { return string(data) })
	if len(data) > MaxFileSize {
		p.lose(1, 1, fmt.Sprintf("the file has %d bytes", len(data)), fmt.Sprintf("at most %d are read", MaxFileSize))
		return nil, p.errs.sorted()
	}
	if bytes.HasPrefix(data, []byte("version https://git-lfs.github.com/spec/")) {
		p.lose(1, 1, "the file is a pointer of Git LFS, not its content", "keep specs out of LFS: git lfs untrack, then git add --renormalize")
		return nil, p.errs.sorted()
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !p.readable(data) {
		return nil, p.errs.sorted()
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for first := true; ; first = false {
		root, err := next(dec)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			p.syntax(data, err)
			break
		}
		p.document(root, first)
	}
	return p.objects, p.errs.sorted()
}

type parser struct {
	file    string
	text    func() string // the file, one copy for all who keep it
	objects []*Object
	errs    Errors

	// Of the document being read:
	def        *definition
	seen       []visit
	aliasNodes int
	aliasBytes int
	warnings   Errors
}

// visit is a value that was read, and where.
type visit struct {
	field *field
	entry int
	node  *yaml.Node
}

func (p *parser) add(e Error) {
	e.File = p.file
	for _, c := range invisible {
		if strings.Contains(e.Msg, c.quoted()) {
			e.Hint = c.hint()
		}
	}
	switch {
	case len(p.errs) < maxErrors:
		p.errs = append(p.errs, e)
	case len(p.errs) == maxErrors:
		p.errs = append(p.errs, Error{File: p.file, Line: e.Line, Col: e.Col, Msg: "too many errors in this file", Hint: "those after here are not shown", lost: true})
	}
}

// lose reports that documents are missing because of an error.
func (p *parser) lose(line, col int, msg, hint string) {
	p.add(Error{Line: line, Col: col, Msg: msg, Hint: hint, lost: true})
}

func (p *parser) at(n *yaml.Node, msg, hint string) {
	p.add(Error{Line: n.Line, Col: n.Column, Msg: msg, Hint: hint})
}

// readable refuses what is not text before the YAML reader sees it.
func (p *parser) readable(data []byte) bool {
	line, start := 1, 0
	for i := 0; i < len(data); {
		c := data[i]
		if c >= ' ' && c < 0x7f || c == '\t' || c == '\r' {
			i++
			continue
		}
		if c == '\n' {
			i++
			line, start = line+1, i
			continue
		}
		col := utf8.RuneCount(data[start:i]) + 1
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			p.lose(line, col, "the file is not UTF-8", "save it as UTF-8 text")
			return false
		case r < ' ' || r == 0x7f:
			p.lose(line, col, fmt.Sprintf("control character %#02x", r), "a spec is plain text")
			return false
		}
		i += size
	}
	return true
}

// syntax reports an error of the YAML reader.
func (p *parser) syntax(data []byte, err error) {
	line, col, msg, hint := explain(data, err)
	p.lose(line, col, "not YAML: "+msg, hint)
}

// explain finds the place of an error of the YAML reader, which tells the line at
// most.
func explain(data []byte, err error) (line, col int, msg, hint string) {
	msg = strings.TrimPrefix(err.Error(), "yaml: ")
	line, col = 1, 1
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		number, after, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			line, msg = n, after
		}
		// The parser proper counts lines from 0, the scanner from 1.
		if strings.HasPrefix(msg, "did not find expected") && !strings.Contains(msg, "comment or line break") {
			line++
		}
	}
	lines := bytes.Split(data, []byte("\n"))
	line = min(line, len(lines))
	// A tab where spaces indent gives errors that do not mention it, a line off.
	for i := max(line-2, 0); i < min(line+1, len(lines)); i++ {
		indent := lines[i][:len(lines[i])-len(bytes.TrimLeft(lines[i], " \t"))]
		if tab := bytes.IndexByte(indent, '\t'); tab >= 0 {
			line, col, hint = i+1, tab+1, "indent with spaces, not tabs"
			break
		}
	}
	if hint == "" {
		if at, why := oddity(data, line); why != "" {
			line = 1 + bytes.Count(data[:at], []byte("\n"))
			col = 1 + utf8.RuneCount(data[bytes.LastIndexByte(data[:at], '\n')+1:at])
			hint = why
		}
	}
	if rest, ok := strings.CutPrefix(msg, "unknown anchor '"); ok {
		hint = "an anchor is known in its own document only"
		name, _, _ := strings.Cut(rest, "'")
		if i := bytes.Index(data, []byte("*"+name)); i >= 0 {
			line = 1 + bytes.Count(data[:i], []byte("\n"))
			col = 1 + i - (1 + bytes.LastIndexByte(data[:i], '\n'))
		}
	}
	return line, col, msg, hint
}

// document reads one document into an object.
func (p *parser) document(root *yaml.Node, first bool) {
	if len(root.Content) == 0 {
		return
	}
	n := root.Content[0]
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.lose(n.Line, n.Column, "expected an object, found "+describe(n), "a document has apiVersion, kind, metadata and spec")
		return
	}
	p.aliasNodes, p.aliasBytes, p.warnings = 0, 0, nil
	p.seen = p.seen[:0]
	before := len(p.errs)

	if !first {
		for _, alias := range borrowed(root) {
			p.at(alias, "the anchor "+quote(alias.Value)+" is another document's", "an anchor is known in its own document only; write the value out")
		}
	}
	if p.sealedEnvelope(n) {
		return
	}
	var parts [len(envelope)]*yaml.Node
	for i := 0; i < len(n.Content); i += 2 {
		key := n.Content[i]
		at := -1
		for j, name := range envelope {
			if key.Kind == yaml.ScalarNode && key.Value == name {
				at = j
			}
		}
		switch {
		case at < 0:
			p.unknown(key, "", envelope[:4])
		case parts[at] != nil:
			p.at(key, "duplicate field "+quote(key.Value), "")
		default:
			parts[at] = n.Content[i+1]
		}
	}
	apiVersion, kind, metadata, body := parts[0], parts[1], parts[2], parts[3]

	if apiVersion == nil {
		p.at(n, "apiVersion is missing", "write apiVersion: "+APIVersion)
	} else if v, ok := p.word(apiVersion, "apiVersion"); ok && v != APIVersion {
		p.at(apiVersion, "apiVersion: "+quote(v)+" is not known", "write "+APIVersion)
	}
	p.def = p.kind(n, kind)
	if p.def == nil {
		p.lost(before, metadata)
		return
	}
	o := &Object{Kind: p.def.kind, from: &origin{file: p.file, line: n.Line, col: n.Column}}
	o.Pos = place(p.file, n.Line, n.Column)
	p.part(n, metadata, "metadata", p.def.meta, reflect.ValueOf(&o.Meta).Elem())
	spec := reflect.New(p.def.spec.typ)
	p.part(n, body, "spec", p.def.spec, spec.Elem())
	o.Spec = spec.Interface()

	p.def.spec.fill(spec.Elem())
	complete(o.Spec)
	p.check(o, n)
	p.sops(o, n, parts[4])
	if secret, ok := o.Spec.(*Secret); ok {
		secret.File = p.text()
	}
	o.from.bad, o.from.warnings = len(p.errs) > before, p.warnings
	o.from.marks = p.marks()
	if o.Meta.Name == "" {
		p.lost(before, nil)
		return
	}
	p.objects = append(p.objects, o)
}

// lost marks the errors since before: the object they are about is not
// returned, and only its metadata may tell its name.
func (p *parser) lost(before int, metadata *yaml.Node) {
	name := ""
	if metadata != nil && metadata.Kind == yaml.MappingNode {
		for i := 0; i < len(metadata.Content); i += 2 {
			if metadata.Content[i].Value == "name" {
				name = metadata.Content[i+1].Value
			}
		}
	}
	for i := before; i < len(p.errs); i++ {
		p.errs[i].lost, p.errs[i].lostName = name == "", name
	}
}

var envelope = [...]string{"apiVersion", "kind", "metadata", "spec", "sops"}

// kind returns nil after reporting why the kind cannot be read.
func (p *parser) kind(root, n *yaml.Node) *definition {
	if n == nil {
		p.at(root, "kind is missing", "")
		return nil
	}
	v, ok := p.word(n, "kind")
	if !ok {
		return nil
	}
	d := definitionOf(Kind(v))
	switch {
	case d != nil:
	case laterKinds[v]:
		p.at(n, "kind "+v+" is not supported yet", "")
	default:
		hint := ""
		if near := nearest(v, kindNames); near != "" {
			hint = "did you mean " + near + "?"
		}
		p.at(n, "unknown kind "+quote(v), hint)
	}
	return d
}

func kindNames(yield func(string) bool) {
	for _, k := range Kinds {
		if !yield(string(k)) {
			return
		}
	}
}

// word reads a string of the envelope.
func (p *parser) word(n *yaml.Node, name string) (string, bool) {
	n, ok := p.follow(n)
	if !ok {
		return "", false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		p.at(n, name+": expected a string, found "+describe(n), "")
		return "", false
	}
	return n.Value, true
}

func (p *parser) marks() []mark {
	marks := make([]mark, len(p.seen))
	for i, s := range p.seen {
		marks[i] = mark{s.field.id, uint16(min(s.entry, 1<<16-1)), uint32(s.node.Line), uint32(s.node.Column)}
	}
	return marks
}
