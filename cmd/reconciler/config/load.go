package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"reconciler/spec"
)

// maxFile bounds the file in bytes; a real one has less than two KiB.
const maxFile = 1 << 20

// Load reads a file over the defaults. Its errors are FILE:LINE:COL: message,
// one a line. A file that is not there is fs.ErrNotExist.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Config{}, err
	}
	if len(data) > maxFile {
		return Config{}, fmt.Errorf("%s: longer than %d bytes", path, maxFile)
	}
	return Parse(path, data)
}

// Parse reads the content of a file; the name is only for messages.
func Parse(file string, data []byte) (Config, error) {
	c := Default()
	d := decoder{file: file, at: map[string]*yaml.Node{}}
	docs, err := spec.Documents(data)
	if err != nil {
		why := spec.Explain(data, err)
		why.File = file
		return Config{}, why
	}
	if len(docs) == 0 {
		return c, nil
	}
	doc := docs[0]
	if len(docs) > 1 {
		d.fail(doc, "", "there must be one YAML document only")
	}
	d.mapping(doc.Content[0], reflect.ValueOf(&c).Elem(), "")
	c.Normalize()
	if len(d.errs) == 0 {
		for _, p := range c.Check() {
			d.fail(d.at[p.Key], p.Key, "%s", p.Msg)
		}
	}
	return c, errors.Join(d.errs...)
}

type decoder struct {
	file string
	at   map[string]*yaml.Node // by key, as limits.budget.count
	errs []error
}

func (d *decoder) fail(n *yaml.Node, key, format string, args ...any) {
	line, col := 1, 1
	if n != nil {
		line, col = max(n.Line, 1), max(n.Column, 1)
	}
	msg := fmt.Sprintf(format, args...)
	if key != "" {
		msg = key + ": " + msg
	}
	d.errs = append(d.errs, fmt.Errorf("%s:%d:%d: %s", d.file, line, col, msg))
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, prefix string) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a key without a value says nothing
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, strings.TrimSuffix(prefix, "."), "must be a mapping")
		return
	}
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		fields[v.Type().Field(i).Tag.Get("yaml")] = v.Field(i)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		key := prefix + k.Value
		field, known := fields[k.Value]
		switch {
		case !known:
			d.fail(k, "", "unknown key %s%s", key, d.known(fields))
		case seen[k.Value]:
			d.fail(k, key, "given twice")
		case field.Kind() == reflect.Struct:
			d.mapping(value, field, key+".")
		case field.Kind() == reflect.Slice && field.Type().Elem().Kind() == reflect.Struct:
			d.at[key] = value
			d.list(value, field, key)
		default:
			d.at[key] = value
			d.value(value, field, key)
		}
		seen[k.Value] = true
	}
}

// list reads mappings; the keys of entry 0 are windows[0].name and so on.
func (d *decoder) list(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.fail(n, key, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, entry := range n.Content {
		at := fmt.Sprintf("%s[%d]", key, i)
		d.at[at] = entry
		if short := shortField(v.Index(i)); short.IsValid() && entry.Kind == yaml.ScalarNode {
			d.value(entry, short, key)
			continue
		}
		d.mapping(entry, v.Index(i), at+".")
	}
}

// shortField is the field that a scalar in the place of a mapping stands for.
func shortField(v reflect.Value) reflect.Value {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("short") != "" {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

func (d *decoder) known(fields map[string]reflect.Value) string {
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	sort.Strings(names)
	return " (known here: " + strings.Join(names, ", ") + ")"
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, key string) {
	if n.Tag == "!!null" {
		return
	}
	want := "a string"
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		want = "a duration like 30s"
	case v.Kind() == reflect.Bool, v.Type() == reflect.TypeFor[*bool]():
		want = "true or false"
	case v.Kind() == reflect.Int:
		want = "a whole number"
	case v.Kind() == reflect.Slice:
		want = "a list of strings"
	}
	// yaml.v3 takes a number for a duration of nanoseconds, which nobody means.
	bare := v.Type() == reflect.TypeFor[time.Duration]() && n.Tag == "!!int"
	if err := n.Decode(v.Addr().Interface()); err != nil || bare {
		d.fail(n, key, "must be %s", want)
	}
}
