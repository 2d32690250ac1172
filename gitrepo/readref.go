package gitrepo

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// ReadRef returns a file in the root directory of a ref's newest commit, such
// as what a host wrote of itself with PushFiles. The error is ErrRevisionMissing
// if the ref or the file is not there.
func (r *Repo) ReadRef(ctx context.Context, ref, name string) ([]byte, error) {
	c, err := r.Commit(ctx, ref)
	if err != nil {
		return nil, err
	}
	data, err := r.rootFile(r.db.NewCursor(), c, name)
	if errors.Is(err, ErrRevisionMissing) {
		err = fmt.Errorf("%s: %w", ref, err)
	}
	return data, err
}

// rootFile reads a file of a commit's root directory.
func (r *Repo) rootFile(cur *odb.Cursor, c Commit, name string) ([]byte, error) {
	b, err := readTree(cur, c.tree)
	if err != nil {
		return nil, r.readError(err)
	}
	for len(b) > 0 {
		var e treeEntry
		if e, b, err = nextEntry(b); err != nil {
			return nil, &PathError{Path: ".", Reason: BadTree}
		}
		if string(e.name) != name || e.isDir() {
			continue
		}
		o, err := cur.Get(e.hash, r.cfg.Limits.TotalBytes)
		if err != nil {
			return nil, missing("file "+name, e.hash, r.readError(err))
		}
		if o.Type != plumbing.BlobObject {
			return nil, &PathError{Path: name, Reason: BadTree}
		}
		return o.Data, nil
	}
	return nil, fmt.Errorf("there is no %s: %w", name, ErrRevisionMissing)
}

// maxRefBytes bounds what ReadFiles returns.
const maxRefBytes = 64 << 20

// ReadFiles returns all files of a ref's newest commit by path, and the commit:
// what was written with PushFiles, by us or by others of our kind. More than max
// files, or 64 MiB, are ErrTooLarge; the error is ErrRevisionMissing if the ref
// is not there.
func (r *Repo) ReadFiles(ctx context.Context, ref string, max int) (map[string][]byte, Commit, error) {
	c, err := r.Commit(ctx, ref)
	if err != nil {
		return nil, Commit{}, err
	}
	cur := r.db.NewCursor()
	files, size := map[string][]byte{}, 0
	var read func(h hash, dir string, depth int) error
	read = func(h hash, dir string, depth int) error {
		b, err := readTree(cur, h)
		if err != nil {
			return missing("directory "+dir, h, err)
		}
		return eachEntry(b, dir, func(e treeEntry, name string) error {
			if reason := checkName(e.name); reason != "" {
				return &PathError{Path: printable(name), Reason: reason}
			}
			if e.isDir() {
				if depth == maxDepth {
					return &PathError{Path: name, Reason: TooDeep}
				}
				return read(e.hash, name, depth+1)
			}
			if kind(e.mode) != typeRegular {
				return &PathError{Path: name, Reason: BadTree, Hint: "it is no file"}
			}
			o, err := cur.Get(e.hash, maxRefBytes)
			if err != nil {
				return missing("file "+name, e.hash, err)
			}
			if size += len(o.Data); size > maxRefBytes || len(files) == max {
				return fmt.Errorf("%s: %w: more than %d files or %d bytes", ref, ErrTooLarge, max, maxRefBytes)
			}
			files[name] = o.Data
			return nil
		})
	}
	if err := read(c.tree, "", 0); err != nil {
		return nil, Commit{}, r.readError(err)
	}
	return files, c, nil
}
