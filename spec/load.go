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

// Bounds of a tree.
const (
	MaxFiles     = 1_000_000
	MaxTreeBytes = 2 << 30
)

// IsSpecFile says whether a file of the tree, by its slash-separated path, is
// read: *.yaml and *.yml, but nothing whose name or folder starts with a dot
// (.git, .github, .schema).
func IsSpecFile(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".") {
			return false
		}
	}
	ext := path.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

// Load reads, parses and builds a whole tree. Symbolic links are not followed:
// one that is named like a spec or leads out of the tree is an error. The
// error is Errors.
func Load(fsys fs.FS) (*Set, error) {
	names, errs := list(fsys)
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
	return Link(objects, errs)
}

// list walks the tree for the files to read.
func list(fsys fs.FS) ([]string, Errors) {
	var names []string
	var errs Errors
	var total int64
	fail := func(name, msg, hint string) {
		errs = append(errs, Error{File: name, Msg: msg, Hint: hint, lost: true})
	}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			fail(name, reason(err), "")
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		hidden := name != "." && strings.HasPrefix(d.Name(), ".")
		switch {
		case d.IsDir():
			if hidden {
				return fs.SkipDir
			}
		case hidden:
		case d.Type()&fs.ModeSymlink != 0:
			if msg := badLink(fsys, name); msg != "" {
				fail(name, msg, "put the file itself in the tree")
			}
		case !IsSpecFile(name):
		case !d.Type().IsRegular():
			fail(name, "not a regular file", "")
		case len(names) == MaxFiles:
			return fmt.Errorf("the tree has more than %d spec files", MaxFiles)
		default:
			info, err := d.Info()
			if err != nil {
				fail(name, reason(err), "")
				return nil
			}
			if info.Size() > MaxFileSize {
				fail(name, fmt.Sprintf("the file has %d bytes", info.Size()), fmt.Sprintf("at most %d are read", MaxFileSize))
				return nil
			}
			if total += info.Size(); total > MaxTreeBytes {
				return fmt.Errorf("the spec files of the tree have more than %d bytes", int64(MaxTreeBytes))
			}
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		fail(".", reason(err), "")
		return nil, errs
	}
	return names, errs
}

// badLink says what is wrong with a symbolic link. One inside the tree is
// harmless: what it leads to is read under its own name.
func badLink(fsys fs.FS, name string) string {
	if IsSpecFile(name) {
		return "the file is a symbolic link, which is not followed"
	}
	target, err := fs.ReadLink(fsys, name)
	if err != nil {
		return "a symbolic link that cannot be read: " + reason(err)
	}
	if path.IsAbs(target) || !fs.ValidPath(path.Join(path.Dir(name), target)) {
		return "a symbolic link that leads out of the tree"
	}
	return ""
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
