package gitrepo

import (
	"context"
	"fmt"

	"github.com/go-git/go-git/v5/plumbing"
)

// ReadRef returns a file in the root directory of a ref's newest commit, such
// as what a host wrote of itself with PushFiles. The error is ErrRevisionMissing
// if the ref or the file is not there.
func (r *Repo) ReadRef(ctx context.Context, ref, name string) ([]byte, error) {
	c, err := r.Commit(ctx, ref)
	if err != nil {
		return nil, err
	}
	cur := r.db.NewCursor()
	b, err := readTree(cur, c.tree)
	if err != nil {
		return nil, r.readError(err)
	}
	for len(b) > 0 {
		var e treeEntry
		if e, b, err = nextEntry(b); err != nil {
			return nil, &PathError{Path: ref, Reason: BadTree}
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
	return nil, fmt.Errorf("%s has no %s: %w", ref, name, ErrRevisionMissing)
}
