package archtest

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

const module = "reconciler"

// source is one Go file of the tree.
type source struct {
	path    string // slash-separated, from the module's root
	dir     string // "." for the root
	test    bool
	lines   int
	file    *ast.File
	fset    *token.FileSet
	imports map[string]string // by the name the file uses
}

// pkg is the directory as an import path below the module, "" for the root.
func (s source) pkg() string { return strings.TrimPrefix(s.dir, ".") }

// at is where a node stands, for messages.
func (s source) at(n ast.Node) string {
	return s.path + ":" + strconv.Itoa(s.fset.Position(n.Pos()).Line)
}

// load parses every Go file, whatever its build constraints.
func load(fsys fs.FS) ([]source, error) {
	var tree []source
	var errs []error
	err := fs.WalkDir(fsys, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if e.IsDir() {
			if name != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		s := source{
			path: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"),
			lines: strings.Count(string(text), "\n"), fset: token.NewFileSet(), imports: map[string]string{},
		}
		s.file, err = parser.ParseFile(s.fset, name, text, parser.ParseComments)
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		for _, spec := range s.file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports[localName(spec, imported)] = imported
		}
		tree = append(tree, s)
		return nil
	})
	return tree, errors.Join(append(errs, err)...)
}

// localName is what a file calls an import. Without the imported package's
// source it is a guess, a right one for the standard library.
func localName(spec *ast.ImportSpec, imported string) string {
	if spec.Name != nil {
		if spec.Name.Name == "_" || spec.Name.Name == "." {
			return spec.Name.Name + imported
		}
		return spec.Name.Name
	}
	base := path.Base(imported)
	if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
		base = path.Base(path.Dir(imported))
	}
	return base
}

// uses reports every place where the file names one of an imported package's
// functions, called or not.
func (s source) uses(imported string, names ...string) []string {
	var places []string
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok || !slices.Contains(names, sel.Sel.Name) {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && s.imports[x.Name] == imported {
			places = append(places, s.at(sel))
		}
		return true
	})
	return places
}

// under reports whether pkg is dir or below it.
func under(pkg, dir string) bool {
	return pkg == dir || strings.HasPrefix(pkg, dir+"/")
}
