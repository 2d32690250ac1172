package spec

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// warnUserData warns of a user-data text that cloud-init passes over.
func (p *parser) warnUserData(text string) {
	const path = "spec.cloudInit.userData.inline"
	line, col, prob := userData(text)
	i := slices.IndexFunc(p.seen, func(v visit) bool { return v.field.path == path })
	if prob == nil || i < 0 {
		return
	}
	e := Error{Msg: path + ": " + prob.msg, Hint: prob.hint}
	e.Line, e.Col = p.within(p.seen[i].node, line, col)
	p.warnings = append(p.warnings, e)
}

// within is the place in the file of one in a text: exact in a block, else that
// of the text.
func (p *parser) within(n *yaml.Node, line, col int) (int, int) {
	if n.Style&yaml.LiteralStyle == 0 {
		return n.Line, n.Column
	}
	file, text := strings.Split(p.text(), "\n"), strings.Split(n.Value, "\n")
	if n.Line+line > len(file) || line > len(text) {
		return n.Line, n.Column
	}
	indent, ok := strings.CutSuffix(strings.TrimRight(file[n.Line+line-1], "\r"), strings.TrimRight(text[line-1], "\r"))
	if !ok {
		return n.Line, n.Column
	}
	return n.Line + line, utf8.RuneCountInString(indent) + col
}

// What user-data may begin with, the longer first where one begins another:
// INCLUSION_TYPES_MAP of cloud-init's handlers, with what only its own
// multipart messages use.
const (
	cloudConfig   = "#cloud-config"
	cloudArchive  = "#cloud-config-archive"
	cloudBoothook = "#cloud-boothook"
	shebang       = "#!"
	jinja         = "## template: jinja"
)

var userDataStarts = []string{
	cloudArchive, "#cloud-config-jsonp", cloudConfig, cloudBoothook, "#include-once", "#include", "#part-handler", shebang, jinja,
	"text/x-shellscript-per-boot", "text/x-shellscript-per-instance", "text/x-shellscript-per-once",
}

// userData says what keeps cloud-init 22.4, Debian 12's, from taking a text, and
// where in the text it is. It says nothing of what that takes.
func userData(text string) (line, col int, prob *problem) {
	if text == "" || strings.Contains(strings.ToLower(text[:min(len(text), 4096)]), "mime-version:") {
		return 0, 0, nil // the latter is a message of several parts
	}
	rest := strings.TrimLeftFunc(text, unicode.IsSpace)
	at := func(i int) (int, int) {
		return 1 + strings.Count(text[:i], "\n"), 1 + utf8.RuneCountInString(text[strings.LastIndexByte(text[:i], '\n')+1:i])
	}
	begin := len(text) - len(rest)
	line, col = at(begin)
	lower := strings.ToLower(rest)
	kind := slices.IndexFunc(userDataStarts, func(s string) bool { return strings.HasPrefix(lower, s) })
	if kind < 0 {
		return line, col, unknownStart(rest)
	}
	switch start := userDataStarts[kind]; start {
	case shebang, cloudBoothook, jinja:
		if begin > 0 {
			return 1, 1, &problem{"cloud-init takes " + quote(start) + " only at the very beginning of a text", "remove what is blank before it"}
		}
		if start == cloudBoothook && !strings.HasPrefix(strings.TrimLeftFunc(rest[len(start):], unicode.IsSpace), shebang) {
			return line, col, &problem{"what follows #cloud-boothook does not begin with #!, so that it cannot be run", "write #!/bin/sh below it"}
		}
		if start == jinja {
			_, rendered, _ := strings.Cut(rest, "\n")
			rendered = strings.TrimLeftFunc(rendered, unicode.IsSpace)
			line, col = at(len(text) - len(rendered))
			return line, col, unknownTemplate(rendered)
		}
	case cloudConfig:
		return userConfig(text, yaml.MappingNode)
	case cloudArchive:
		return userConfig(text, yaml.SequenceNode)
	}
	return 0, 0, nil
}

func unknownStart(rest string) *problem {
	first, _, _ := strings.Cut(rest, "\n")
	hint := "the first line is #cloud-config, #! and an interpreter, or another that cloud-init knows"
	letters := strings.ToLower(strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '\ufeff' {
			return -1
		}
		return r
	}, first))
	switch {
	case first == "":
		return &problem{"cloud-init passes over a blank text", hint}
	case strings.HasPrefix(letters, cloudConfig):
		hint = "write " + cloudConfig + " and nothing else"
	case IsMapping(rest):
		hint = "write " + cloudConfig + " as the first line"
	}
	return &problem{"cloud-init passes over a text that begins with " + quote(firstRunes(first, 40)), hint}
}

// unknownTemplate judges what only the guest can render by a first line in which
// nothing is to be rendered.
func unknownTemplate(text string) *problem {
	first, _, _ := strings.Cut(text, "\n")
	lower := strings.ToLower(first)
	if first == "" || strings.Contains(first, "{") || strings.HasPrefix(lower, cloudConfig) || strings.HasPrefix(first, shebang) {
		return nil
	}
	return &problem{"cloud-init passes over a template that begins with " + quote(firstRunes(first, 40)), "the line below " + jinja + " is " + cloudConfig + ", or #! and an interpreter"}
}

func firstRunes(s string, n int) string {
	r := []rune(s)
	return string(r[:min(len(r), n)])
}

// userConfig holds a text against what PyYAML's safe loader takes, as far as our
// reader tells.
func userConfig(text string, want yaml.Kind) (line, col int, prob *problem) {
	data := []byte(text)
	if bytes.HasPrefix(data, []byte("%")) || bytes.Contains(data, []byte("\n%")) {
		return 0, 0, nil // directives, of which ours knows fewer
	}
	const passes = "cloud-init passes over what is not YAML: "
	dec := yaml.NewDecoder(bytes.NewReader(data))
	root, err := next(dec)
	if errors.Is(err, io.EOF) {
		return 0, 0, nil // nothing to pass over
	}
	if err == nil {
		var second *yaml.Node
		if second, err = next(dec); err == nil {
			return second.Line, second.Column, &problem{"cloud-init passes over YAML of more than one document", "put all into one"}
		}
	}
	if !errors.Is(err, io.EOF) {
		// Python's reader knows an escape more.
		if strings.Contains(err.Error(), "unknown escape character") && strings.Contains(text, `\/`) {
			return 0, 0, nil
		}
		line, col, msg, hint := explain(data, err)
		if col == 1 {
			lines := strings.Split(text, "\n")
			col += len(lines[line-1]) - len(strings.TrimLeft(lines[line-1], " "))
		}
		return line, col, &problem{passes + msg, hint}
	}
	if len(root.Content) == 0 || isNull(root.Content[0]) {
		return 0, 0, nil
	}
	root = root.Content[0]
	if root.Kind != want {
		kind := map[yaml.Kind]string{yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}[want]
		return root.Line, root.Column, &problem{"cloud-init passes over YAML that is not " + kind, ""}
	}
	if n, why, hint := notPython(root); n != nil {
		return n.Line, n.Column, &problem{passes + why, hint}
	}
	return 0, 0, nil
}

// notPython finds what PyYAML's safe loader makes nothing of.
func notPython(n *yaml.Node) (at *yaml.Node, why, hint string) {
	known := []string{"!!str", "!!int", "!!float", "!!bool", "!!null", "!!map", "!!seq", "!!timestamp", "!!binary", "!!set", "!!omap", "!!pairs", "!!merge"}
	if tag := n.ShortTag(); n.Style&yaml.TaggedStyle != 0 && !slices.Contains(known, tag) && !strings.HasPrefix(tag, "!!python/") {
		return n, "the tag " + quote(tag) + " is not known", "write it in quotes"
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && (c.Kind == yaml.MappingNode || c.Kind == yaml.SequenceNode) {
			return c, "a key is no text", "write what is in braces in quotes"
		}
		if at, why, hint = notPython(c); at != nil {
			return at, why, hint
		}
	}
	return nil, "", ""
}
