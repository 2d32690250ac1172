package gitrepo

import (
	"container/heap"
	"context"
	"errors"
	"fmt"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// IsAncestor reports whether new contains old; a commit contains itself. What is
// not in the cache is ErrRevisionMissing.
func (r *Repo) IsAncestor(ctx context.Context, old, new string) (bool, error) {
	if !plumbing.IsHash(old) || !plumbing.IsHash(new) {
		return false, fmt.Errorf("%w: not a full hash", ErrRevisionMissing)
	}
	cur := r.db.NewCursor()
	base, err := r.known(cur, old)
	if err != nil {
		return false, err
	}
	target := plumbing.NewHash(old)
	start, err := r.known(cur, new)
	if err != nil {
		return false, err
	}
	// Newest first, so that the common case, a base a few commits back, ends
	// early. Dates are claims, so older ones are visited too, only last.
	q := &byDate{start}
	seen := map[hash]bool{}
	for q.Len() > 0 {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		c := heap.Pop(q).(Commit)
		if c.Hash == base.Hash {
			return true, nil
		}
		for _, p := range c.parents {
			if p == target {
				return true, nil
			}
			if seen[p] {
				continue
			}
			seen[p] = true
			pc, err := readCommit(cur, p)
			if err != nil {
				return false, r.readError(missing("commit", p, err))
			}
			heap.Push(q, pc)
		}
	}
	return false, nil
}

// known reads a commit that is to be in the cache.
func (r *Repo) known(cur *odb.Cursor, rev string) (Commit, error) {
	c, err := readCommit(cur, plumbing.NewHash(rev))
	if errors.Is(err, odb.ErrNotFound) {
		return c, fmt.Errorf("%.12s: %w in the cache", rev, ErrRevisionMissing)
	}
	return c, r.readError(err)
}

type byDate []Commit

func (q byDate) Len() int           { return len(q) }
func (q byDate) Less(i, j int) bool { return q[i].When.After(q[j].When) }
func (q byDate) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *byDate) Push(x any)        { *q = append(*q, x.(Commit)) }
func (q *byDate) Pop() any {
	old := *q
	c := old[len(old)-1]
	*q = old[:len(old)-1]
	return c
}
