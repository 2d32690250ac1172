package gitrepo

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// FS is the tree as a file system rooted at the repository's root, of the YAML
// files only. Content is read when a file is opened; ctx bounds that.
func (t *Tree) FS(ctx context.Context) fs.FS { return &treeFS{ctx: ctx, t: t} }

type treeFS struct {
	ctx  context.Context
	t    *Tree
	once sync.Once
	dirs map[string][]fs.DirEntry
}

// index builds the directories, which only listing needs.
func (v *treeFS) index() map[string][]fs.DirEntry {
	v.once.Do(func() {
		v.dirs = map[string][]fs.DirEntry{".": nil}
		for _, f := range v.t.Files {
			v.dirs[path.Dir(f.Path)] = append(v.dirs[path.Dir(f.Path)], fs.FileInfoToDirEntry(&fileInfo{v: v, f: f}))
			for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
				up := path.Dir(dir)
				if _, known := v.dirs[up]; known && slices.ContainsFunc(v.dirs[up], func(e fs.DirEntry) bool { return e.IsDir() && e.Name() == path.Base(dir) }) {
					break
				}
				v.dirs[up] = append(v.dirs[up], fs.FileInfoToDirEntry(dirInfo{path.Base(dir), v.t.Commit.When}))
			}
		}
		for _, list := range v.dirs {
			slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		}
	})
	return v.dirs
}

func (v *treeFS) find(name string) (File, bool) {
	i, ok := slices.BinarySearchFunc(v.t.Files, name, func(f File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return File{}, false
	}
	return v.t.Files[i], true
}

func (v *treeFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	if f, ok := v.find(name); ok {
		b, err := v.t.Read(v.ctx, f)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return &openFile{Reader: bytes.NewReader(b), info: &fileInfo{v: v, f: f, size: int64(len(b)), known: true}}, nil
	}
	if list, ok := v.index()[name]; ok {
		return &openDir{info: dirInfo{path.Base(name), v.t.Commit.When}, left: list}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// ReadFile is fs.ReadFileFS.
func (v *treeFS) ReadFile(name string) ([]byte, error) {
	if f, ok := v.find(name); ok {
		return v.t.Read(v.ctx, f)
	}
	err := fs.ErrNotExist
	if !fs.ValidPath(name) {
		err = fs.ErrInvalid
	}
	return nil, &fs.PathError{Op: "read", Path: name, Err: err}
}

type fileInfo struct {
	v     *treeFS
	f     File
	size  int64
	known bool
}

func (i *fileInfo) Name() string { return path.Base(i.f.Path) }

// Size is -1 if the object cannot be read; Open says why.
func (i *fileInfo) Size() int64 {
	if i.known {
		return i.size
	}
	n, err := i.v.t.repo.db.NewCursor().Size(i.f.Blob)
	if err != nil {
		return -1
	}
	return n
}
func (i *fileInfo) Mode() fs.FileMode  { return 0o444 }
func (i *fileInfo) ModTime() time.Time { return i.v.t.Commit.When }
func (i *fileInfo) IsDir() bool        { return false }
func (i *fileInfo) Sys() any           { return i.f.Blob }

type dirInfo struct {
	name string
	when time.Time
}

func (i dirInfo) Name() string       { return i.name }
func (i dirInfo) Size() int64        { return 0 }
func (i dirInfo) Mode() fs.FileMode  { return fs.ModeDir | 0o555 }
func (i dirInfo) ModTime() time.Time { return i.when }
func (i dirInfo) IsDir() bool        { return true }
func (i dirInfo) Sys() any           { return nil }

type openFile struct {
	*bytes.Reader
	info fs.FileInfo
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }

type openDir struct {
	info fs.FileInfo
	left []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.Name(), Err: fs.ErrInvalid}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 || n > len(d.left) {
		if n > 0 && len(d.left) == 0 {
			return nil, io.EOF
		}
		n = len(d.left)
	}
	list := d.left[:n:n]
	d.left = d.left[n:]
	return list, nil
}
