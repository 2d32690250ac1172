package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// printData writes v as -o asks. YAML has the same keys in the same order as
// JSON, and no type needs tags for both.
func printData(w io.Writer, format string, v any) error {
	if format == "yaml" {
		return printYAML(w, v)
	}
	return printJSON(w, v, "  ")
}

// printJSON writes a value and a line end. What would steer a terminal is
// escaped, DEL, C1 controls and marks that reorder text too: in JSON they can
// stand in strings only.
func printJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(escapeSteering(b.Bytes(), `\u%04x`))
	return err
}

func steersInLines(r rune) bool { return r != '\n' && steers(r) }

// escapeSteering writes what steers a terminal as a format says, but for line
// ends and tabs.
func escapeSteering(data []byte, format string) []byte {
	if bytes.IndexFunc(data, steersInLines) < 0 {
		return data
	}
	var out []byte
	for _, r := range string(data) {
		if steersInLines(r) {
			out = fmt.Appendf(out, format, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

func printYAML(w io.Writer, v any) error {
	var data bytes.Buffer
	if err := printJSON(&data, v, ""); err != nil {
		return err
	}
	// JSON is YAML, and a node keeps the order.
	var doc yaml.Node
	if err := yaml.Unmarshal(data.Bytes(), &doc); err != nil {
		return err
	}
	plain(&doc)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&doc), enc.Close()); err != nil {
		return err
	}
	_, err := w.Write(escapeSteering(b.Bytes(), `\u%04X`))
	return err
}

func plain(n *yaml.Node) {
	n.Style = 0
	switch {
	case n.Kind != yaml.ScalarNode && len(n.Content) == 0:
		n.Style = yaml.FlowStyle
	case n.Kind == yaml.ScalarNode && strings.ContainsFunc(n.Value, steersInLines):
		n.Style = yaml.DoubleQuotedStyle // where it can be escaped
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// table writes aligned columns for people.
type table struct {
	tw     *tabwriter.Writer
	indent string
}

func newTable(w io.Writer, indent string, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), indent}
	t.row(header...)
	return t
}

// row writes a line; a cell without a value is a dash.
func (t *table) row(cells ...string) {
	fmt.Fprint(t.tw, t.indent)
	for i, c := range cells {
		c = clean(strings.Join(strings.Fields(c), " "))
		if c == "" {
			c = "-"
		}
		if i > 0 {
			fmt.Fprint(t.tw, "\t")
		}
		fmt.Fprint(t.tw, c)
	}
	fmt.Fprintln(t.tw)
}

func (t *table) flush() error { return t.tw.Flush() }

// age is the time between, in its two largest units.
func age(from, to time.Time) string {
	if from.IsZero() {
		return ""
	}
	d := to.Sub(from)
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// when is a time for people, in UTC as everywhere.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func shortRev(rev string) string { return rev[:min(12, len(rev))] }
