package archtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const root = "../.."

func TestTree(t *testing.T) {
	tree, err := load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree) < 10 {
		t.Fatalf("only %d Go files under %s", len(tree), root)
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			for _, found := range rule(tree) {
				t.Error(found)
			}
		})
	}
}

var rules = map[string]func([]source) []string{
	"imports point downwards": checkImports,
	"pure packages are pure":  checkPure,
	"one package comment":     checkPackageComments,
	"files have one job":      checkLength,
	"tests wait for events":   checkNoSleep,
	"clean-up keeps its own":  checkDeferred,
}

// Every rule finds what it is there for, and nothing in what is allowed.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		rule  string
		path  string
		text  string
		finds string // "" for nothing
	}{
		{"imports point downwards", "agent/a.go", `package agent; import _ "reconciler/reconcile"`, ""},
		{"imports point downwards", "reconcile/a.go", `package reconcile; import _ "reconciler/spec"`, ""},
		{"imports point downwards", "spec/a.go", `package spec; import _ "reconciler/reconcile"`, "imports point downwards"},
		{"imports point downwards", "claim/a.go", `package claim; import _ "reconciler/spec"`, "imports point downwards"},
		{"imports point downwards", "drivers/kvm/a.go", `package kvm; import _ "reconciler/drivers/kvm/qmp"`, ""},
		{"imports point downwards", "drivers/kvm/a.go", `package kvm; import _ "reconciler/drivers/iscsi/volume"`, "of one layer"},
		{"imports point downwards", "gitrepo/a.go", `package gitrepo; import _ "reconciler/drivers/kvm"`, "of one layer"},
		{"imports point downwards", "drivers/kvm/a.go", `package kvm; import _ "reconciler/agent"`, "imports point downwards"},
		{"imports point downwards", "cmd/reconciler/a.go", `package main; import _ "reconciler/agent"`, ""},
		{"imports point downwards", "extra/a.go", `package extra; import _ "reconciler/agent"`, "no place"},
		{"imports point downwards", "agent/a.go", `package agent; import _ "reconciler/extra"`, "no place"},
		{"imports point downwards", "internal/x/a.go", `package x; import _ "reconciler/spec"`, "below all layers"},
		{"imports point downwards", "agent/a.go", `package agent; import _ "reconciler/internal/testbed"`, "for tests"},
		{"imports point downwards", "spec/a.go", `package spec; import _ "reconciler/internal/x"`, "standard library"},
		{"imports point downwards", "drivers/kvm/a_test.go", `package kvm; import _ "reconciler/drivers/iscsi"`, ""},

		{"pure packages are pure", "spec/a.go", `package spec; import _ "net/netip"`, ""},
		{"pure packages are pure", "spec/a.go", `package spec; import _ "net/http"`, "net/http"},
		{"pure packages are pure", "spec/sub/a.go", `package sub; import _ "os"`, "imports os"},
		{"pure packages are pure", "spec/a_test.go", `package spec; import _ "os"`, ""},
		{"pure packages are pure", "policy/a.go", `package policy; import "time"; var f = time.Now`, "policy/a.go:1"},
		{"pure packages are pure", "policy/a.go", `package policy; import clock "time"; var f = clock.Since`, "policy/a.go:1"},
		{"pure packages are pure", "policy/a.go", `package policy; import "time"; var d = time.Second`, ""},
		{"pure packages are pure", "agent/a.go", `package agent; import "time"; var f = time.Now`, ""},
		{"pure packages are pure", "spec/a.go", `package spec; import "github.com/google/uuid"; var f = uuid.NewSHA1`, ""},
		{"pure packages are pure", "spec/a.go", `package spec; import "github.com/google/uuid"; var f = uuid.New`, "uuid"},

		{"one package comment", "spec/a.go", "// Package spec is.\npackage spec", ""},
		{"one package comment", "spec/a.go", "package spec", "no package comment"},
		{"one package comment", "spec/a.go", "// The spec.\npackage spec", "does not start"},
		{"one package comment", "cmd/x/a.go", "// Command x is.\npackage main", ""},
		{"one package comment", "cmd/x/a.go", "// Package main is.\npackage main", "does not start"},

		{"files have one job", "spec/a.go", "package spec\n" + strings.Repeat("//\n", 599), ""},
		{"files have one job", "spec/a.go", "package spec\n" + strings.Repeat("//\n", 600), "601 lines"},
		{"files have one job", "spec/a_test.go", "package spec\n" + strings.Repeat("//\n", 600), ""},

		{"tests wait for events", "spec/a_test.go", `package spec; import "time"; var f = time.Sleep`, "time.Sleep"},
		{"tests wait for events", "spec/a.go", `package spec; import "time"; var f = time.Sleep`, ""},

		{"clean-up keeps its own", "agent/a.go", `package agent; func f() (r *T, err error) { defer func() { r.close() }(); return }`, "agent/a.go:1"},
		{"clean-up keeps its own", "agent/a.go", `package agent; func (t *T) f() (a, b func(), err error) { defer func() { b() }(); return }`, "agent/a.go:1"},
		{"clean-up keeps its own", "agent/a.go", `package agent; var f = func() (l net.Listener, err error) { defer func() { l.Close() }(); return }`, "agent/a.go:1"},
		{"clean-up keeps its own", "agent/a.go", `package agent; func f() (r *T, err error) { q := r; defer func() { q.close(); r, err = nil, g(err) }(); return }`, ""},
		{"clean-up keeps its own", "agent/a.go", `package agent; func f() (r *T, err error) { defer r.close(); return }`, ""},
		{"clean-up keeps its own", "agent/a.go", `package agent; func f() (err error) { defer func() { log(err.Error()) }(); return }`, ""},
	} {
		tree, err := load(fstest.MapFS{tt.path: {Data: []byte(tt.text)}})
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(rules[tt.rule](tree), "\n")
		if tt.finds == "" && got != "" || !strings.Contains(got, tt.finds) {
			t.Errorf("%s: %s: %.80q: found %q, want %q", tt.rule, tt.path, tt.text, got, tt.finds)
		}
	}
}

func TestTwoPackageComments(t *testing.T) {
	tree, err := load(fstest.MapFS{
		"spec/a.go":      {Data: []byte("// Package spec is.\npackage spec")},
		"spec/b.go":      {Data: []byte("// Package spec is not.\npackage spec")},
		"spec/b_test.go": {Data: []byte("// Whatever.\npackage spec")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := checkPackageComments(tree); len(got) != 1 || !strings.Contains(got[0], "a.go and spec/b.go") {
		t.Errorf("got %q", got)
	}
}

// Every module that our source imports, or that is a tool, has its line in
// docs/dependencies.md, and every line there has its module.
func TestDependenciesAreExplained(t *testing.T) {
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod edit: %v", err)
	}
	var mod struct {
		Require []struct{ Path string }
		Tool    []struct{ Path string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	tree, err := load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	wanted := map[string]bool{} // import paths
	for _, tool := range mod.Tool {
		wanted[tool.Path] = true
	}
	for _, s := range tree {
		for _, imported := range s.imports {
			wanted[imported] = true
		}
	}
	text, err := os.ReadFile(root + "/docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	var explained []string
	for _, m := range regexp.MustCompile("(?m)^- `([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		explained = append(explained, m[1])
	}
	var required []string
	for _, r := range mod.Require {
		required = append(required, r.Path)
		direct := false
		for imported := range wanted {
			direct = direct || under(imported, r.Path)
		}
		if direct && !slices.Contains(explained, r.Path) {
			t.Errorf("docs/dependencies.md does not say why we depend on %s", r.Path)
		}
	}
	for _, name := range explained {
		if !slices.Contains(required, name) {
			t.Errorf("docs/dependencies.md explains %s, which go.mod does not require", name)
		}
	}
}
