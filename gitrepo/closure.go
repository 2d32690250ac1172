package gitrepo

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-git/go-git/v5/plumbing/filemode"

	"reconciler/gitrepo/internal/odb"
	"reconciler/spec"
)

const (
	maxDepth    = spec.MaxDepth
	typeMask    = 0o170000
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeGitlink = 0o160000
)

func kind(m filemode.FileMode) filemode.FileMode { return m & typeMask }

// closure lists every object that roots (commits) need and for which have is
// false. It relies on the cache's invariant: whatever the cache has, it has with
// all that it needs. An object that src lacks is ErrIncomplete.
func closure(ctx context.Context, src *odb.DB, roots []hash, have func(hash) bool) ([]hash, error) {
	w, err := walkFrom(ctx, src, roots, have)
	if err != nil {
		return nil, err
	}
	return w.list, nil
}

// walkFrom is closure that tells the commits too, newest first.
func walkFrom(ctx context.Context, src *odb.DB, roots []hash, have func(hash) bool) (*walk, error) {
	w := &walk{ctx: ctx, src: src, cur: src.NewCursor(), have: have, seen: make(map[hash]struct{})}
	for _, h := range roots {
		w.commit(h)
	}
	for len(w.queue) > 0 {
		h := w.queue[len(w.queue)-1]
		w.queue = w.queue[:len(w.queue)-1]
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, err := readCommit(w.cur, h)
		if err != nil {
			return nil, missing("commit", h, err)
		}
		w.commits = append(w.commits, c)
		if err := w.tree(c.tree, "", 0); err != nil {
			return nil, fmt.Errorf("commit %.12s: %w", c.Hash, err)
		}
		for _, p := range c.parents {
			w.commit(p)
		}
	}
	return w, nil
}

func missing(what string, h hash, err error) error {
	if errors.Is(err, odb.ErrNotFound) {
		return fmt.Errorf("%w: %s %s is missing", ErrIncomplete, what, h)
	}
	return err
}

type walk struct {
	ctx   context.Context
	src   *odb.DB
	cur   *odb.Cursor
	have  func(hash) bool
	seen  map[hash]struct{}
	queue []hash
	list  []hash

	commits []Commit
}

// add reports whether the object is new and wanted.
func (w *walk) add(h hash) bool {
	if _, ok := w.seen[h]; ok || w.have(h) {
		return false
	}
	w.seen[h] = struct{}{}
	w.list = append(w.list, h)
	return true
}

func (w *walk) commit(h hash) {
	if w.add(h) {
		w.queue = append(w.queue, h)
	}
}

func (w *walk) tree(h hash, path string, depth int) error {
	if !w.add(h) {
		return nil
	}
	if depth > maxDepth {
		return &PathError{Path: printable(path), Reason: TooDeep}
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	b, err := readTree(w.cur, h)
	if err != nil {
		return missing("directory "+printable(path), h, err)
	}
	for len(b) > 0 {
		var e treeEntry
		if e, b, err = nextEntry(b); err != nil {
			return &PathError{Path: printable(path), Reason: BadTree}
		}
		switch kind(e.mode) {
		case typeDir:
			if err := w.tree(e.hash, path+"/"+string(e.name), depth+1); err != nil {
				return err
			}
		case typeGitlink:
		default:
			if w.add(e.hash) && !w.src.Has(e.hash) {
				return missing("file "+printable(path+"/"+string(e.name)), e.hash, odb.ErrNotFound)
			}
		}
	}
	return nil
}
