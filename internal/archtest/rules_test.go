package archtest

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strings"
)

// layers of the tree, from the top. A package imports what is below its layer,
// and its own subtree; so only commands import the agent.
var layers = [][]string{
	{"cmd", "internal/bench"},
	{"agent"},
	{"api"},
	{"revision"},
	{"drivers/kvm", "drivers/iscsi", "gitrepo", "forge", "secret"},
	{"status", "drift", "review"},
	{"policy"},
	{"reconcile"},
	{"spec"},
	{"claim", "trust", "deadline"},
}

// pure packages compute: what they return follows from their arguments.
var pure = []string{"spec", "reconcile", "policy", "status", "drift", "review", "claim", "deadline"}

// testOnly packages are for tests and may look at anything.
var testOnly = []string{"internal/testbed", "internal/testcount", "internal/archtest"}

func layer(pkg string) (name string, rank int, ok bool) {
	for rank, names := range layers {
		for _, name := range names {
			if under(pkg, name) {
				return name, rank, true
			}
		}
	}
	return "", 0, false
}

func within(pkg string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return under(pkg, dir) })
}

// checkImports finds imports that do not point downwards. Tests are free.
func checkImports(tree []source) []string {
	var found []string
	for _, s := range tree {
		if s.test {
			continue
		}
		for _, imported := range s.imports {
			target, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			if why := forbidden(s.pkg(), target); why != "" {
				found = append(found, fmt.Sprintf("%s imports %s: %s", s.path, target, why))
			}
		}
	}
	slices.Sort(found)
	return found
}

// forbidden says why package from may not import package to, "" if it may.
func forbidden(from, to string) string {
	if within(from, testOnly) {
		return ""
	}
	fromName, fromRank, layered := layer(from)
	toName, toRank, toLayered := layer(to)
	switch {
	case within(to, testOnly) && !under(from, "internal/bench"):
		return "it is for tests"
	case !layered && !strings.HasPrefix(from, "internal/") && from != "":
		return "the importing package has no place among the layers"
	case !layered && toLayered:
		return "a package under internal is below all layers"
	case !toLayered && under(to, "internal"):
		if within(from, pure) {
			return "a pure package stands on the standard library"
		}
		return ""
	case !toLayered:
		return "the imported package has no place among the layers"
	case fromName == toName:
		return ""
	case toRank == fromRank:
		return "packages of one layer do not know each other"
	case toRank < fromRank:
		return "imports point downwards"
	}
	return ""
}

// impure are packages a pure one does not import: I/O, processes, logs, chance.
var impure = []string{
	"os", "os/exec", "os/signal", "os/user", "io/ioutil", "log", "log/slog", "log/syslog",
	"math/rand", "math/rand/v2", "crypto/rand", "syscall", "net", "plugin", "golang.org/x/sys", "golang.org/x/net",
}

// harmless are packages below those that do none of it.
var harmless = []string{"net/netip", "net/url"}

// impureFuncs are functions a pure package does not name, by package.
var impureFuncs = map[string][]string{
	"time":                   {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
	"fmt":                    {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
	"path/filepath":          {"Abs", "EvalSymlinks", "Glob", "Walk", "WalkDir"},
	"github.com/google/uuid": {"New", "NewString", "NewRandom", "NewUUID", "NewV6", "NewV7"},
}

func checkPure(tree []source) []string {
	var found []string
	for _, s := range tree {
		if s.test || !within(s.pkg(), pure) {
			continue
		}
		for _, imported := range s.imports {
			if within(imported, impure) && !slices.Contains(harmless, imported) {
				found = append(found, fmt.Sprintf("%s imports %s: %s is pure", s.path, imported, s.pkg()))
			}
		}
		for imported, names := range impureFuncs {
			for _, place := range s.uses(imported, names...) {
				found = append(found, fmt.Sprintf("%s: %s of its functions is not pure, %s is", place, imported, s.pkg()))
			}
		}
	}
	slices.Sort(found)
	return found
}

// checkPackageComments wants one comment a package, in one file, that starts
// as go doc shows it.
func checkPackageComments(tree []source) []string {
	type comment struct{ path, text string }
	comments := map[string][]comment{}
	want := map[string]string{}
	onlyTests := map[string]bool{}
	for _, s := range tree {
		if !s.test {
			onlyTests[s.dir] = false
		} else if _, seen := onlyTests[s.dir]; !seen {
			onlyTests[s.dir] = true
		}
	}
	for _, s := range tree {
		if s.test && !onlyTests[s.dir] {
			continue
		}
		want[s.dir] = "Package " + strings.TrimSuffix(s.file.Name.Name, "_test") + " "
		if s.file.Name.Name == "main" {
			want[s.dir] = "Command " + path.Base(s.dir) + " "
		}
		if s.file.Doc != nil {
			comments[s.dir] = append(comments[s.dir], comment{s.path, s.file.Doc.Text()})
		}
	}
	var found []string
	for dir, start := range want {
		switch c := comments[dir]; {
		case len(c) == 0:
			found = append(found, fmt.Sprintf("%s has no package comment", dir))
		case len(c) > 1:
			found = append(found, fmt.Sprintf("%s has package comments in %s and %s", dir, c[0].path, c[1].path))
		case !strings.HasPrefix(strings.ReplaceAll(c[0].text, "\n", " "), start):
			found = append(found, fmt.Sprintf("%s: the package comment does not start with %q", c[0].path, start))
		}
	}
	slices.Sort(found)
	return found
}

const maxLines = 600

func checkLength(tree []source) []string {
	var found []string
	for _, s := range tree {
		if !s.test && s.lines > maxLines && !ast.IsGenerated(s.file) {
			found = append(found, fmt.Sprintf("%s has %d lines, %d are allowed: it has two jobs", s.path, s.lines, maxLines))
		}
	}
	return found
}

// checkNoSleep finds tests that wait for time to pass and not for something to
// happen.
func checkNoSleep(tree []source) []string {
	var found []string
	for _, s := range tree {
		if s.test {
			for _, place := range s.uses("time", "Sleep") {
				found = append(found, place+": time.Sleep in a test; wait for what must happen, with a deadline")
			}
		}
	}
	return found
}

// checkDeferred finds deferred functions that call a named result, or a method
// of one: "return nil, err" has set it to nil before they run.
func checkDeferred(tree []source) []string {
	var found []string
	for _, s := range tree {
		ast.Inspect(s.file, func(n ast.Node) bool {
			var typ *ast.FuncType
			var body *ast.BlockStmt
			switch f := n.(type) {
			case *ast.FuncDecl:
				typ, body = f.Type, f.Body
			case *ast.FuncLit:
				typ, body = f.Type, f.Body
			}
			if body != nil {
				for _, name := range calledLate(body, results(typ)) {
					found = append(found, s.at(name)+": "+name.Name+" is a result, which a return has overwritten; clean up what a variable of its own holds")
				}
			}
			return true
		})
	}
	return found
}

// results are the named results of a function that are no errors.
func results(f *ast.FuncType) map[string]bool {
	names := map[string]bool{}
	if f.Results == nil {
		return names
	}
	for _, field := range f.Results.List {
		if t, ok := field.Type.(*ast.Ident); ok && t.Name == "error" {
			continue
		}
		for _, name := range field.Names {
			names[name.Name] = true
		}
	}
	return names
}

// calledLate are the names that deferred function literals call, or whose
// methods they call.
func calledLate(body *ast.BlockStmt, names map[string]bool) (list []*ast.Ident) {
	ast.Inspect(body, func(n ast.Node) bool {
		d, ok := n.(*ast.DeferStmt)
		if !ok {
			return true
		}
		lit, ok := d.Call.Fun.(*ast.FuncLit)
		if !ok {
			return true
		}
		ast.Inspect(lit.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			called := call.Fun
			if sel, ok := called.(*ast.SelectorExpr); ok {
				called = sel.X
			}
			if id, ok := called.(*ast.Ident); ok && names[id.Name] {
				list = append(list, id)
			}
			return true
		})
		return true
	})
	return list
}
