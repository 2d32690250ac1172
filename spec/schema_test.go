package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("spec.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("spec.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate holds every document of a file against the schema.
func validate(s *jsonschema.Schema, data string) error {
	dec := yaml.NewDecoder(strings.NewReader(data))
	for {
		var doc any
		if err := dec.Decode(&doc); err != nil {
			if err.Error() == "EOF" {
				return nil
			}
			return err
		}
		// By way of JSON, as editors do: a time without quotes is a string there.
		text, err := json.Marshal(doc)
		if err != nil {
			return fmt.Errorf("yaml that is no JSON: %w", err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			return err
		}
		if err := s.Validate(value); err != nil {
			return err
		}
	}
}

func TestSchemaAcceptsExamples(t *testing.T) {
	s := compileSchema(t)
	if err := validate(s, base); err != nil {
		t.Error(err)
	}
	for kind, doc := range examples {
		if err := validate(s, doc); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	tree := os.DirFS("../examples/cluster-repo")
	l := list(tree, "")
	if len(l.errs) > 0 || len(l.names) < 6 {
		t.Fatalf("%d files: %v", len(l.names), l.errs)
	}
	for _, name := range l.names {
		data, err := fs.ReadFile(tree, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(s, string(data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSchemaRefusesWhatItCan(t *testing.T) {
	s := compileSchema(t)
	for _, c := range badCases {
		err := validate(s, caseFile(c.doc))
		if c.schema && err == nil {
			t.Errorf("%s: the schema accepts it", c.name)
		}
		if !c.schema && err != nil && !strings.Contains(err.Error(), "yaml") && !strings.Contains(err.Error(), "already defined") {
			t.Errorf("%s: the schema refuses it, which the table does not say: %v", c.name, err)
		}
	}
}

func TestExampleRepository(t *testing.T) {
	set, err := Load(os.DirFS("../examples/cluster-repo"))
	if err != nil {
		t.Fatal(err)
	}
	vm := set.Get(KindVirtualMachine, "web-1")
	if vm == nil {
		t.Fatal("no machine web-1")
	}
	disks := set.DisksOf(vm)
	if len(disks) != 1 || set.HostOf(disks[0]) != "host1" || set.HostOf(vm) != "host1" {
		t.Errorf("disks of web-1: %v", disks)
	}
	file, _, _ := vm.Position("spec.host")
	if diskFile, _, _ := disks[0].Position("spec.size"); diskFile != file {
		t.Errorf("web-1 is in %s and its disk in %s: to remove one takes two changes", file, diskFile)
	}
	for _, name := range list(os.DirFS("../examples/cluster-repo"), "").names {
		data, err := os.ReadFile("../examples/cluster-repo/" + name)
		if err != nil {
			t.Fatal(err)
		}
		up := strings.Repeat("../", strings.Count(name, "/"))
		if want := "# yaml-language-server: $schema=" + up + ".schema/reconciler.schema.json\n"; !strings.HasPrefix(string(data), want) {
			t.Errorf("%s does not start with %q", name, want)
		}
	}
}
