package drift

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"reconciler/spec"
)

// text is a YAML file with the places of its lines, as the YAML reader counts
// them.
type text struct {
	data  []byte
	lines []int // offset of every line
	eol   string
	root  *yaml.Node // of the document that is edited
}

var bom = []byte("\xef\xbb\xbf")

func newText(data []byte) *text {
	t := &text{data: data, lines: []int{0}, eol: "\n"}
	for i := 0; i < len(data); {
		n := lineBreak(data[i:])
		if n == 0 {
			i++
			continue
		}
		if n == 2 && len(t.lines) == 1 && data[i] == '\r' {
			t.eol = "\r\n"
		}
		i += n
		t.lines = append(t.lines, i)
	}
	return t
}

// lineBreak is the length of the line break that b starts with (YAML 1.1
// section 5.4, as the reader has it); 0 if there is none.
func lineBreak(b []byte) int {
	switch {
	case bytes.HasPrefix(b, []byte("\r\n")), bytes.HasPrefix(b, []byte("\xc2\x85")):
		return 2
	case b[0] == '\n', b[0] == '\r':
		return 1
	case bytes.HasPrefix(b, []byte("\xe2\x80\xa8")), bytes.HasPrefix(b, []byte("\xe2\x80\xa9")):
		return 3
	}
	return 0
}

// offset of a place that the YAML reader names; its columns are characters.
func (t *text) offset(line, col int) (int, error) {
	if line < 1 || line > len(t.lines) {
		return 0, errPlace
	}
	at := t.lines[line-1]
	for ; col > 1; col-- {
		if at >= len(t.data) {
			return 0, errPlace
		}
		_, n := utf8.DecodeRune(t.data[at:])
		at += n
	}
	return at, nil
}

var errPlace = errors.New("its place in the file cannot be told")

// lineOf is the number, from 0, of the line an offset is in.
func (t *text) lineOf(at int) int {
	lo, hi := 0, len(t.lines)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; t.lines[mid] <= at {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// lineEnd is where the line of an offset ends, its break included.
func (t *text) lineEnd(at int) int {
	if n := t.lineOf(at) + 1; n < len(t.lines) {
		return t.lines[n]
	}
	return len(t.data)
}

// indent is what the line of an offset starts with up to it, when that is blank.
func (t *text) indent(at int) (string, bool) {
	s := string(t.data[t.lines[t.lineOf(at)]:at])
	return s, strings.Trim(s, " ") == ""
}

// body is where the value of a node starts, after its anchor and tag.
func (t *text) body(n *yaml.Node) (int, error) {
	at, err := t.offset(n.Line, n.Column)
	if err != nil {
		return 0, err
	}
	for at < len(t.data) && n.Kind != yaml.AliasNode && (t.data[at] == '&' || t.data[at] == '!') {
		for at < len(t.data) && !blank(t.data[at]) {
			at++
		}
		for at < len(t.data) && t.data[at] == ' ' {
			at++
		}
	}
	return at, nil
}

func blank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// end is the offset after the last character of a node.
func (t *text) end(n *yaml.Node) (int, error) {
	at, err := t.body(n)
	if err != nil {
		return 0, err
	}
	rest := t.data[at:]
	switch {
	case n.Kind == yaml.AliasNode:
		if bytes.HasPrefix(rest, []byte("*"+n.Value)) {
			return at + 1 + len(n.Value), nil
		}
	case n.Kind == yaml.ScalarNode:
		size, err := scalarSize(rest, n)
		return at + size, err
	case len(rest) > 0 && (rest[0] == '{' || rest[0] == '['):
		size, err := flowSize(rest)
		return at + size, err
	case len(n.Content) > 0:
		return t.end(n.Content[len(n.Content)-1])
	}
	return 0, errPlace
}

// scalarSize is the length of a scalar as it is written.
func scalarSize(b []byte, n *yaml.Node) (int, error) {
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return 0, errors.New("it is written as a block of text")
	case n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		return quotedSize(b)
	case n.Value == "" || !bytes.HasPrefix(b, []byte(n.Value)):
		return 0, errors.New("it is written over several lines")
	}
	return len(n.Value), nil
}

func quotedSize(b []byte) (int, error) {
	if len(b) == 0 || b[0] != '"' && b[0] != '\'' {
		return 0, errPlace
	}
	for i := 1; i < len(b); i++ {
		switch {
		case b[i] == '\\' && b[0] == '"':
			i++
		case b[i] == b[0] && b[0] == '\'' && i+1 < len(b) && b[i+1] == '\'':
			i++
		case b[i] == b[0]:
			return i + 1, nil
		}
	}
	return 0, errPlace
}

// flowSize is the length of a flow collection, up to its closing bracket.
func flowSize(b []byte) (int, error) {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return i + 1, nil
			}
		case (c == '"' || c == '\'') && starts(b, i):
			n, err := quotedSize(b[i:])
			if err != nil {
				return 0, err
			}
			i += n - 1
		case c == '#' && i > 0 && blank(b[i-1]):
			for i < len(b) && lineBreak(b[i:]) == 0 {
				i++
			}
		}
	}
	return 0, errPlace
}

// starts says whether a quote at i begins a scalar, and is not part of a plain one.
func starts(b []byte, i int) bool {
	for i--; i >= 0; i-- {
		if !blank(b[i]) {
			return strings.IndexByte("{[,:", b[i]) >= 0 || b[i] == '?'
		}
		if i > 0 && !blank(b[i-1]) && strings.IndexByte("{[,:?", b[i-1]) < 0 {
			// After a blank inside a plain scalar, or after an anchor or a tag.
			word := i
			for word > 0 && !blank(b[word-1]) && strings.IndexByte("{[,", b[word-1]) < 0 {
				word--
			}
			return b[word] == '&' || b[word] == '!'
		}
	}
	return true
}

// isFlow says whether a collection is written in brackets.
func (t *text) isFlow(n *yaml.Node) bool {
	at, err := t.body(n)
	return err == nil && at < len(t.data) && (t.data[at] == '{' || t.data[at] == '[')
}

// splice replaces a range of the file.
func (t *text) splice(from, to int, with string) []byte {
	out := make([]byte, 0, len(t.data)+len(with)-(to-from))
	out = append(out, t.data[:from]...)
	out = append(out, with...)
	return append(out, t.data[to:]...)
}

// find returns the value and the key of a mapping's field.
func find(m *yaml.Node, name string) (key, value *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == name && m.Content[i].Kind == yaml.ScalarNode {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

// value is the text of a field, seen through an alias.
func value(m *yaml.Node, name string) string {
	_, v := find(m, name)
	if v != nil && v.Kind == yaml.AliasNode {
		v = v.Alias
	}
	if v == nil {
		return ""
	}
	return v.Value
}

// documents reads the file's documents.
func documents(data []byte) (roots []*yaml.Node, err error) {
	list, err := spec.Documents(data)
	if err != nil {
		return nil, err
	}
	for _, doc := range list {
		if len(doc.Content) > 0 && doc.Content[0].Kind == yaml.MappingNode {
			roots = append(roots, doc.Content[0])
		}
	}
	return roots, nil
}
