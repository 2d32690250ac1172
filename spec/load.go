package spec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"strings"
	"sync"
)

// Load reads, parses and builds a whole tree, which is a repository. What
// becomes of its entries says UseOf. The error is Errors.
func Load(fsys fs.FS) (*Set, error) { return LoadBelow(fsys, "") }

// LoadBelow is Load of a directory of a repository.
func LoadBelow(fsys fs.FS, dir string) (*Set, error) {
	l := list(fsys, dir)
	names, errs := l.names, l.errs
	type result struct {
		objects []*Object
		errs    Errors
	}
	results := make([]result, len(names))
	var wg sync.WaitGroup
	next := make(chan int, 256)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				data, err := read(fsys, names[i])
				var objects []*Object
				if err == nil {
					objects, err = Parse(names[i], data)
				}
				results[i] = result{objects, asErrors(err)}
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	wg.Wait()

	objects := make([]*Object, 0, len(names))
	for _, r := range results {
		objects = append(objects, r.objects...)
		errs = append(errs, r.errs...)
	}
	set, err := Link(objects, errs)
	if set != nil {
		set.warnings = l.warnings
	}
	return set, err
}

// lister walks a tree for the files to read.
type lister struct {
	fsys     fs.FS
	dir      string
	names    []string
	errs     Errors
	warnings Errors
	total    int64
	entries  int
}

func (l *lister) fail(name, msg, hint string) {
	l.errs = append(l.errs, Error{File: name, Msg: msg, Hint: hint, lost: true})
}

func list(fsys fs.FS, dir string) *lister {
	l := &lister{fsys: fsys, dir: dir}
	if err := fs.WalkDir(fsys, ".", l.visit); err != nil {
		l.fail(".", reason(err), "")
		l.names = nil
	}
	return l
}

func (l *lister) visit(name string, d fs.DirEntry, err error) error {
	if err != nil {
		l.fail(name, reason(err), "")
		if d != nil && d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	if name == "." {
		return nil
	}
	if l.entries++; l.entries > MaxEntries {
		return fmt.Errorf("the tree has more than %d entries", MaxEntries)
	}
	t := l.typeOf(name, d)
	use, refused := UseOf(path.Join(l.dir, name), t, func() (string, error) { return fs.ReadLink(l.fsys, name) })
	switch {
	case refused != nil:
		l.fail(name, refused.Msg, refused.Hint)
	case use == ReadFile:
		return l.file(name, d)
	case use == ReadDir && strings.Count(name, "/") < MaxDepth:
		return nil
	case use == ReadDir:
		l.fail(name, fmt.Sprintf("directories are nested more than %d deep", MaxDepth), "")
	case t == SubmoduleEntry:
		l.submodule(name)
	case t == FileEntry && almostSpec(d.Name()):
		l.warn(name, "the file is not read", "the name of a spec ends in .yaml or .yml")
	}
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

func (l *lister) warn(name, msg, hint string) {
	l.warnings = append(l.warnings, Error{File: name, Msg: msg, Hint: hint})
}

func (l *lister) typeOf(name string, d fs.DirEntry) EntryType {
	switch {
	case d.Type()&fs.ModeSymlink != 0:
		return LinkEntry
	case d.IsDir():
		// Git keeps no other repository's files.
		if _, err := fs.Lstat(l.fsys, name+"/.git"); err == nil {
			return SubmoduleEntry
		}
		return DirEntry
	case d.Type().IsRegular():
		return FileEntry
	}
	return OtherEntry
}

// submodule warns of specs that lie in one. Hosts see its name alone.
func (l *lister) submodule(name string) {
	_ = fs.WalkDir(l.fsys, name, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir() && !IsSpecFile(strings.TrimPrefix(at, name+"/")):
			return nil
		case d.IsDir() && at != name && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		l.warn(at, "the file is not read: it belongs to a submodule", "commit the file itself")
		return fs.SkipAll
	})
}

func (l *lister) file(name string, d fs.DirEntry) error {
	if len(l.names) == MaxFiles {
		return fmt.Errorf("the tree has more than %d spec files", MaxFiles)
	}
	info, err := d.Info()
	if err != nil {
		l.fail(name, reason(err), "")
		return nil
	}
	if info.Size() > MaxFileSize {
		l.fail(name, fmt.Sprintf("the file has %d bytes", info.Size()), fmt.Sprintf("at most %d are read", MaxFileSize))
		return nil
	}
	if l.total += info.Size(); l.total > MaxTreeBytes {
		return fmt.Errorf("the spec files of the tree have more than %d bytes", int64(MaxTreeBytes))
	}
	l.names = append(l.names, name)
	return nil
}

// read reads a file, however large it became since it was listed.
func read(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, Errors{{File: name, Msg: reason(err), lost: true}}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, Errors{{File: name, Msg: reason(err), lost: true}}
	}
	return data, nil
}

// reason drops operation and path of a file error, which the place says already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return err.Error()
}
