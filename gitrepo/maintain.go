package gitrepo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// packLimit is when the cache is repacked.
type packLimit struct{ packs int }

var (
	softLimits = packLimit{packs: 16}
	hardLimits = packLimit{packs: 64}
)

// Maintain repacks the cache if that is worth it: all that the newest and the
// pinned commit need goes into one pack, the rest is dropped. Call it when idle;
// Fetch does the same at a higher threshold.
func (r *Repo) Maintain(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.maintain(ctx, softLimits)
}

func (r *Repo) maintain(ctx context.Context, limit packLimit) error {
	if r.damaged() || r.db.Stats().Packs <= limit.packs {
		return nil
	}
	r.keep.Lock()
	defer r.keep.Unlock()
	roots, err := r.roots()
	if err != nil {
		return err
	}
	return r.repack(ctx, roots)
}

// roots are the commits that must stay readable.
func (r *Repo) roots() ([]hash, error) {
	var roots []hash
	for _, ref := range []string{r.tipRef(), pinRef} {
		name, err := r.readRef(ref)
		if err != nil {
			return nil, err
		}
		if name != "" && r.db.Has(plumbing.NewHash(name)) {
			roots = append(roots, plumbing.NewHash(name))
		}
	}
	return roots, nil
}

// repack copies what roots need into one pack, in which directories of later
// commits are deltas on those of their parents: without that, every commit would
// keep its directories whole.
func (r *Repo) repack(ctx context.Context, roots []hash) error {
	w, err := walkFrom(ctx, r.db, roots, func(hash) bool { return false })
	if err != nil {
		return r.readError(err)
	}
	like, err := r.likeness(ctx, w.commits)
	if err != nil {
		return r.readError(err)
	}
	out, err := r.db.NewWriter(odb.Limits{})
	if err != nil {
		return err
	}
	var old, later []hash
	for _, h := range w.list {
		if r.db.InLargest(h) {
			old = append(old, h)
		} else {
			later = append(later, h)
		}
	}
	slices.Reverse(later) // oldest first: a base precedes its deltas
	cur := r.db.NewCursor()
	for _, i := range r.db.Order(len(old), func(i int) hash { return old[i] }) {
		if err := errors.Join(ctx.Err(), out.Copy(cur, old[i])); err != nil {
			return errors.Join(r.readError(err), out.Abort())
		}
	}
	for _, h := range later {
		if err := errors.Join(ctx.Err(), out.CopyOn(cur, h, like[h])); err != nil {
			return errors.Join(r.readError(err), out.Abort())
		}
	}
	staged, err := out.Finish()
	if err != nil {
		return err
	}
	return staged.Replace()
}

// likeness maps the directories of commits that came since the last repack to
// what was at their path one commit before.
func (r *Repo) likeness(ctx context.Context, commits []Commit) (map[hash]hash, error) {
	like := make(map[hash]hash)
	cur := r.db.NewCursor()
	var pair func(new, old hash, depth int) error
	pair = func(new, old hash, depth int) error {
		if _, done := like[new]; done || new == old || depth > maxDepth || r.db.InLargest(new) {
			return nil
		}
		like[new] = old
		a, err := subdirs(cur, new)
		if err != nil {
			return err
		}
		b, err := subdirs(cur, old)
		if err != nil {
			return err
		}
		for name, h := range a {
			if before, ok := b[name]; ok {
				if err := pair(h, before, depth+1); err != nil {
					return err
				}
			}
		}
		return ctx.Err()
	}
	for _, c := range commits {
		if len(c.parents) == 0 || r.db.InLargest(c.tree) {
			continue
		}
		parent, err := readCommit(cur, c.parents[0])
		if err != nil {
			return nil, err
		}
		if err := pair(c.tree, parent.tree, 0); err != nil {
			return nil, err
		}
	}
	return like, nil
}

func subdirs(cur *odb.Cursor, h hash) (map[string]hash, error) {
	b, err := readTree(cur, h)
	if err != nil {
		return nil, err
	}
	dirs := make(map[string]hash)
	for len(b) > 0 {
		var e treeEntry
		if e, b, err = nextEntry(b); err != nil {
			return nil, err
		}
		if e.isDir() {
			dirs[string(e.name)] = e.hash
		}
	}
	return dirs, nil
}

// repaired ends a fetch that trusted nothing: what is whole is kept, the rest
// dropped. A pinned commit that the damage took stays pinned by name, so that it
// is not taken for "nothing was ever applied".
func (r *Repo) repaired(ctx context.Context, tip hash) error {
	if err := r.db.DropDamaged(ctx); err != nil {
		return err
	}
	roots := []hash{tip}
	pin, err := r.readRef(pinRef)
	if err != nil {
		return err
	}
	if pin != "" {
		h := plumbing.NewHash(pin)
		if _, err := closure(ctx, r.db, []hash{h}, func(hash) bool { return false }); err == nil {
			roots = append(roots, h)
		}
	}
	if err := r.repack(ctx, roots); err != nil {
		return err
	}
	return os.Remove(filepath.Join(r.dir, damageMark))
}

// Stats is the size of the cache.
type Stats struct {
	Packs   int   // packfiles
	Objects int   // objects in them
	Bytes   int64 // on disk, indexes included
}

// Stats measures the cache.
func (r *Repo) Stats() Stats { return Stats(r.db.Stats()) }
