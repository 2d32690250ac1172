package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/spec"
)

// What others wrote steers no terminal in any format, and data says the same.
func TestNothingSteers(t *testing.T) {
	const hostile = "a\x1b[2J\u009b2J\x7f\u202eb\u2066\u0085 <é> \t"
	event := api.Event{Type: "Warning", Reason: "X", Message: hostile + "\nsecond line"}
	p := &reconcile.Plan{Actions: []reconcile.Action{{
		Kind: spec.KindDisk, Name: "d", Op: reconcile.OpUpdate, State: reconcile.Held, Reason: hostile,
		Changes: []reconcile.Change{{Field: "spec.x", From: hostile, To: hostile}},
	}}}
	for format, print := range map[string]func(*bytes.Buffer) error{
		"json":          func(b *bytes.Buffer) error { return printData(b, "json", event) },
		"json a line":   func(b *bytes.Buffer) error { return printJSON(b, event, "") },
		"yaml":          func(b *bytes.Buffer) error { return printData(b, "yaml", event) },
		"text":          func(b *bytes.Buffer) error { printEvent(b, "", event); return nil },
		"plan":          func(b *bytes.Buffer) error { return printPlan(b, "text", p) },
		"plan json":     func(b *bytes.Buffer) error { return printPlan(b, "json", p) },
		"plan markdown": func(b *bytes.Buffer) error { return printPlan(b, "markdown", p) },
	} {
		var b bytes.Buffer
		if err := print(&b); err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexFunc(b.String(), steersInLines); i >= 0 {
			t.Errorf("%s: %q", format, b.String())
		}
		var got api.Event
		switch format {
		case "json", "json a line":
			if err := json.Unmarshal(b.Bytes(), &got); err != nil || !reflect.DeepEqual(got, event) {
				t.Errorf("%s: %+v, %v", format, got, err)
			}
		case "yaml":
			var m map[string]any
			if err := yaml.Unmarshal(b.Bytes(), &m); err != nil || m["message"] != event.Message {
				t.Errorf("yaml: %q, %v", m["message"], err)
			}
		}
	}
}
