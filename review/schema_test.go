package review

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

const (
	planSchemaID   = "https://reconciler.local/plan/v1alpha1.schema.json"
	reportSchemaID = "https://reconciler.local/pull-request-plan/v1alpha1.schema.json"
)

func readSchema(t *testing.T) (*jsonschema.Schema, map[string]any) {
	t.Helper()
	c := jsonschema.NewCompiler()
	var doc any
	for id, path := range map[string]string{planSchemaID: "../docs/plan.schema.json", reportSchemaID: "../docs/pull-request-plan.schema.json"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		read, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if err := c.AddResource(id, read); err != nil {
			t.Fatal(err)
		}
		if id == reportSchemaID {
			doc = read
		}
	}
	s, err := c.Compile(reportSchemaID)
	if err != nil {
		t.Fatal(err)
	}
	return s, doc.(map[string]any)
}

// Whatever report comes out, the published schema admits it.
func TestReportsMatchSchema(t *testing.T) {
	schema, _ := readSchema(t)
	rapid.Check(t, func(t *rapid.T) {
		old, base, merge := drawDocs(t, "old"), drawDocs(t, "base"), drawDocs(t, "merge")
		h := applied(old, "host1")
		if rapid.Bool().Draw(t, "unknown") {
			h.Problem = "it has reported nothing"
		}
		data, err := json.Marshal(Compare(input(base, merge, h)))
		if err != nil {
			t.Fatal(err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(value); err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
	})
}

// The schema names every key that is written.
func TestSchemaNamesEveryKey(t *testing.T) {
	_, doc := readSchema(t)
	defs := doc["$defs"].(map[string]any)
	for name, c := range map[string]struct {
		schema any
		typ    reflect.Type
	}{
		"report": {doc, reflect.TypeFor[Report]()},
		"host":   {defs["host"], reflect.TypeFor[Host]()},
		"row":    {defs["row"], reflect.TypeFor[Row]()},
	} {
		var want []string
		for i := range c.typ.NumField() {
			if f := c.typ.Field(i); !f.Anonymous {
				key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				want = append(want, key)
			}
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(c.schema.(map[string]any)["properties"].(map[string]any))); !slices.Equal(got, want) {
			t.Errorf("%s: the schema has %v, the type %v", name, got, want)
		}
	}
}
