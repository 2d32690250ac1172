package reconcile

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"reconciler/spec"
)

var update = flag.Bool("update", false, "write the generated part of docs/plan.md")

const (
	planDocument = "../docs/plan.md"
	planSchema   = "../docs/plan.schema.json"
)

// remarks say what a rule alone does not. A special field must have one.
var remarks = map[string]string{
	"StoragePool spec.target.embedded.portals": "**live**; waits while a disk of the pool is in use",
	"Disk spec.size":                     "**live** to grow; it never shrinks",
	"Disk spec.deletionPolicy":           "none; to `Delete` **destroy**",
	"Disk spec.retention":                "none; to a shorter one **destroy**",
	"StoragePool spec.host":              "never: a pool cannot move to another host; a renamed host is no change",
	"VirtualMachine spec.host":           "never: a machine does not move to another host yet; a renamed host is no change",
	"VirtualMachine spec.powerState":     "**stop** to `Stopped`; none to `Running`",
	"VirtualMachine spec.restartedAt":    "**restart**, at once; none if it is taken away",
	"VirtualMachine spec.boot.disk":      "**restart** where disks change places: firmware boots from the first; not written in the spec",
	"VirtualMachine spec.disks[].disk":   "**live**: an entry comes, goes or gets another disk",
	"VirtualMachine spec.disks[].size":   "**live**: the third step of growing, not written in the spec",
	"VirtualMachine spec.nics[].backend": "**live**: the network's content, not written in the spec",
}

// rulesTable is the table of docs/plan.md.
func rulesTable(t *testing.T) string {
	var b strings.Builder
	used := map[string]bool{}
	for _, kind := range spec.Kinds {
		fmt.Fprintf(&b, "\n**%s**\n\n| field | impact of a change |\n|---|---|\n", kind)
		for _, path := range slices.Sorted(maps.Keys(rules[kind])) {
			r, at := rules[kind][path], string(kind)+" "+path
			says, ok := remarks[at]
			used[at] = ok
			switch {
			case ok:
			case r.special:
				t.Errorf("%s is compared by code of its own; say in remarks what it takes", at)
			case r.never != "":
				says = "never: " + r.never
			case r.impact == ImpactNone:
				says = "none"
			default:
				says = "**" + r.impact.String() + "**"
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", strings.ReplaceAll(path, "[]", "[NAME]"), says)
		}
	}
	for at := range remarks {
		if !used[at] {
			t.Errorf("remarks speak of %s, for which there is no rule", at)
		}
	}
	return b.String() + "\n"
}

// What docs/plan.md says of the fields is what the rules say.
func TestPlanDocument(t *testing.T) {
	const begin, end = "<!-- rules: written by go test ./reconcile -run TestPlanDocument -update -->\n", "<!-- end of rules -->\n"
	data, err := os.ReadFile(planDocument)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the rules", planDocument)
	}
	table := rulesTable(t)
	if *update {
		if err := os.WriteFile(planDocument, []byte(before+begin+table+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != table {
		t.Errorf("%s is not current; go test ./reconcile -run TestPlanDocument -update writes it", planDocument)
	}
}

func readSchema(t *testing.T) (*jsonschema.Schema, map[string]any) {
	t.Helper()
	data, err := os.ReadFile(planSchema)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("plan.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("plan.json")
	if err != nil {
		t.Fatal(err)
	}
	return s, doc.(map[string]any)
}

// Whatever plan comes out, the published schema admits it.
func TestPlansMatchSchema(t *testing.T) {
	s, _ := readSchema(t)
	rapid.Check(t, func(t *rapid.T) {
		from, to := pair(t)
		have, base := world(from)
		for _, k := range SortedKeys(have.Objects) {
			if rapid.IntRange(0, 9).Draw(t, "unknown") == 0 {
				delete(have.Objects, k)
				have.Unknown[k] = "does not answer"
			}
		}
		have.Unmanaged = []Unmanaged{{Kind: "Process", Name: "other", Reason: "not ours"}}
		p := Diff(to, base, have, testNow)
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(value); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	})
}

// The example in docs/plan.md is a plan, too.
func TestExampleMatchesSchema(t *testing.T) {
	s, _ := readSchema(t)
	data, err := os.ReadFile(planDocument)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "```json\n")
	example, _, ok2 := strings.Cut(rest, "```\n")
	if !ok || !ok2 {
		t.Fatalf("%s has no example", planDocument)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(example))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(value); err != nil {
		t.Error(err)
	}
}

// The schema names every key that is written, and says which may be missing.
func TestSchemaNamesEveryKey(t *testing.T) {
	_, doc := readSchema(t)
	defs := doc["$defs"].(map[string]any)
	for name, typ := range map[string]reflect.Type{
		"":          reflect.TypeFor[Plan](),
		"host":      reflect.TypeFor[HostDigest](),
		"action":    reflect.TypeFor[Action](),
		"change":    reflect.TypeFor[Change](),
		"unmanaged": reflect.TypeFor[Unmanaged](),
	} {
		object := doc
		if name != "" {
			object = defs[name].(map[string]any)
		}
		var keys, required []string
		for i := range typ.NumField() {
			key, option, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if key == "" || key == "-" {
				continue
			}
			keys = append(keys, key)
			if option == "" {
				required = append(required, key)
			}
		}
		slices.Sort(keys)
		slices.Sort(required)
		if got := slices.Sorted(maps.Keys(object["properties"].(map[string]any))); !slices.Equal(got, keys) {
			t.Errorf("%s: the schema has %v, the type %v", typ, got, keys)
		}
		if got := slices.Sorted(slices.Values(words(object["required"]))); !slices.Equal(got, required) {
			t.Errorf("%s: the schema requires %v, the type always writes %v", typ, got, required)
		}
	}
	kinds := make([]string, len(spec.Kinds))
	for i, k := range spec.Kinds {
		kinds[i] = string(k)
	}
	ops := make([]string, 0, len(symbols))
	for op := range symbols {
		ops = append(ops, string(op))
	}
	for name, want := range map[string][]string{
		"op":     ops,
		"cause":  {string(CauseRevision), string(CauseDrift), string(CauseRetry), string(CauseExpiry)},
		"impact": impactNames,
		"state":  {string(Ready), string(Waiting), string(Held), string(Blocked)},
		"kind":   kinds,
	} {
		object, ok := defs[name].(map[string]any)
		if !ok {
			object = defs["action"].(map[string]any)["properties"].(map[string]any)[name].(map[string]any)
		}
		got := words(object["enum"])
		slices.Sort(got)
		if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
			t.Errorf("%s: the schema has %v, the program %v", name, got, want)
		}
	}
}

func words(v any) []string {
	var list []string
	for _, w := range v.([]any) {
		list = append(list, w.(string))
	}
	return list
}
