package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// PushEdit makes a ref of the remote one commit on top of base, in which some
// files (path from the repository's root → content, nil to remove) are replaced.
// Files that are replaced keep their mode. Nothing is pushed if the ref's tip is
// that already, or if the edits change nothing. base must be in the cache and on
// the remote. The ref is moved from wherever it was, as PushFiles does: only from
// the commit that was looked at, with opts.OwnOnly only if that is ours, and
// never the followed branch. commit is the ref's tip, base if the edits change
// nothing.
func (r *Repo) PushEdit(ctx context.Context, ref, base string, edits map[string][]byte, message string, opts PushOptions) (commit string, pushed bool, err error) {
	if !plumbing.IsHash(base) {
		return "", false, fmt.Errorf("%q: %w: not a full hash", base, ErrRevisionMissing)
	}
	return r.push(ctx, ref, opts, func(s receive, opts PushOptions) (string, bool, error) {
		return r.editOnce(ctx, s, ref, plumbing.NewHash(base), edits, message, opts)
	})
}

func (r *Repo) editOnce(ctx context.Context, s receive, ref string, base hash, edits map[string][]byte, message string, opts PushOptions) (string, bool, error) {
	c, err := r.known(r.db.NewCursor(), base.String())
	if err != nil {
		return "", false, err
	}
	e := editor{r: r, cur: r.db.NewCursor(), edits: edits}
	root, err := e.apply(c.tree)
	if err != nil {
		return "", false, err
	}
	if root == c.tree {
		return c.Hash, false, nil
	}
	old, exists, err := s.ref(ref)
	if err != nil {
		return "", false, err
	}
	if exists {
		tip, err := r.inspectCommit(ctx, ref, old)
		if err != nil {
			return "", false, err
		}
		if opts.OwnOnly && tip.committerEmail != opts.Email {
			return "", false, fmt.Errorf("%s: %w: %.12s", ref, ErrForeignTip, old)
		}
		if tip.tree == root && slices.Equal(tip.parents, []hash{base}) && tip.committerEmail == opts.Email {
			return tip.Hash, false, nil
		}
	}
	made, err := newCommit(root, []hash{base}, message, opts)
	if err != nil {
		return "", false, err
	}
	if err := s.push(ctx, ref, old, made.hash, append(e.made, made)); err != nil {
		return "", false, err
	}
	return made.hash.String(), true, nil
}

// inspectCommit reads the tip of a ref of the remote, which the cache need not have.
func (r *Repo) inspectCommit(ctx context.Context, ref string, tip hash) (Commit, error) {
	if c, err := readCommit(r.db.NewCursor(), tip); err == nil {
		return c, nil
	}
	s, err := r.remote.upload(ctx)
	if err != nil {
		return Commit{}, err
	}
	defer s.close()
	if now, ok, err := s.ref(ref); err != nil {
		return Commit{}, err
	} else if !ok || now != tip {
		return Commit{}, fmt.Errorf("%s: %w", ref, ErrRefChanged)
	}
	haves, err := r.haves()
	if err != nil {
		return Commit{}, err
	}
	staged, err := s.fetch(ctx, r.db, r.packLimits(), tip, haves, r.db.Has)
	if err != nil {
		return Commit{}, err
	}
	c, err := readCommit(staged.View().NewCursor(), tip)
	return c, errors.Join(err, staged.Discard())
}

// DeleteRef removes a ref of the remote; that it is not there is no error. With
// opts.OwnOnly a tip that was not committed by opts.Email is ErrForeignTip. The
// followed branch is refused.
func (r *Repo) DeleteRef(ctx context.Context, ref string, opts PushOptions) error {
	_, _, err := r.push(ctx, ref, opts, func(s receive, opts PushOptions) (string, bool, error) {
		old, exists, err := s.ref(ref)
		if err != nil || !exists {
			return "", false, err
		}
		if opts.OwnOnly {
			tip, err := r.inspectCommit(ctx, ref, old)
			if err != nil {
				return "", false, err
			}
			if tip.committerEmail != opts.Email {
				return "", false, fmt.Errorf("%s: %w: %.12s", ref, ErrForeignTip, old)
			}
		}
		return "", true, s.push(ctx, ref, old, hash{}, nil)
	})
	return err
}

// editor replaces files of a tree.
type editor struct {
	r     *Repo
	cur   *odb.Cursor
	edits map[string][]byte
	made  []object
}

func (e *editor) apply(root hash) (hash, error) {
	paths := make([]string, 0, len(e.edits))
	for p := range e.edits {
		for name := range strings.SplitSeq(p, "/") {
			if reason := checkName([]byte(name)); reason != "" {
				return hash{}, &PathError{Path: printable(p), Reason: reason}
			}
		}
		paths = append(paths, p)
	}
	slices.Sort(paths)
	h, err := e.dir(root, "", paths)
	if err == nil && h.IsZero() {
		h = e.add(plumbing.TreeObject, nil)
	}
	return h, err
}

func (e *editor) add(typ plumbing.ObjectType, data []byte) hash {
	o := newObject(typ, data)
	// That the cache has it does not mean that the remote does.
	e.made = append(e.made, o)
	return o.hash
}

// dir carries out the edits below prefix; paths are those, sorted. A directory
// that ends up empty is the zero hash, as git has none.
func (e *editor) dir(h hash, prefix string, paths []string) (hash, error) {
	var entries []treeEntry
	if !h.IsZero() {
		b, err := readTree(e.cur, h)
		if err != nil {
			return hash{}, e.r.readError(missing("directory "+prefix, h, err))
		}
		for len(b) > 0 {
			var entry treeEntry
			if entry, b, err = nextEntry(b); err != nil {
				return hash{}, &PathError{Path: orRoot(printable(prefix)), Reason: BadTree}
			}
			entries = append(entries, entry)
		}
	}
	for len(paths) > 0 {
		path := paths[0]
		name, _, nested := strings.Cut(strings.TrimPrefix(path, prefix), "/")
		at := slices.IndexFunc(entries, func(x treeEntry) bool { return string(x.name) == name })
		entry := treeEntry{name: []byte(name)}
		if at >= 0 {
			entry = entries[at]
			entries = slices.Delete(entries, at, at+1)
		}
		n := 1
		if nested {
			sub := prefix + name + "/"
			for n < len(paths) && strings.HasPrefix(paths[n], sub) {
				n++
			}
			if at >= 0 && !entry.isDir() {
				return hash{}, &PathError{Path: printable(prefix + name), Reason: NotADir}
			}
			h, err := e.dir(entry.hash, sub, paths[:n])
			if err != nil {
				return hash{}, err
			}
			entry.mode, entry.hash = typeDir, h
		} else if err := e.file(&entry, path); err != nil {
			return hash{}, err
		}
		paths = paths[n:]
		if !entry.hash.IsZero() {
			entries = append(entries, entry)
		}
	}
	if len(entries) == 0 {
		return hash{}, nil
	}
	data := encodeTree(entries)
	for i := range entries[1:] {
		if bytes.Equal(entries[i].name, entries[i+1].name) {
			return hash{}, &PathError{Path: printable(prefix + string(entries[i].name)), Reason: BadTree}
		}
	}
	return e.add(plumbing.TreeObject, data), nil
}

// file replaces or removes one entry, which must be a file if it is there. A
// symbolic link is not written through, nor replaced by what it points to.
func (e *editor) file(entry *treeEntry, path string) error {
	data := e.edits[path]
	switch {
	case data == nil && !entry.isDir():
		entry.hash = hash{}
		return nil
	case entry.hash.IsZero():
		entry.mode = typeRegular | 0o644
	case kind(entry.mode) == typeSymlink:
		return &PathError{Path: printable(path), Reason: Symlink}
	case kind(entry.mode) != typeRegular:
		return &PathError{Path: printable(path), Reason: BadTree, Hint: "it is no file"}
	}
	entry.hash = e.add(plumbing.BlobObject, data)
	return nil
}
