package gitrepo

import (
	"container/heap"
	"context"
	"slices"

	"reconciler/gitrepo/internal/odb"
)

// Whence a walk of two histories came to a commit.
const (
	fromLeft = 1 << iota
	fromRight
	// beyond a common ancestor: there is no better one.
	beyond
)

// painter walks the histories of two commits, newest first, and marks each
// commit with where it was reached from.
type painter struct {
	r     *Repo
	cur   *odb.Cursor
	marks map[hash]int
	queue byDate
}

func (r *Repo) newPainter(left, right hash) (*painter, error) {
	p := &painter{r: r, cur: r.db.NewCursor(), marks: map[hash]int{}}
	if err := p.visit(left, fromLeft); err != nil {
		return nil, err
	}
	return p, p.visit(right, fromRight)
}

// visit adds a mark. A commit that had others comes up once more, to pass it on.
func (p *painter) visit(h hash, mark int) error {
	before := p.marks[h]
	if before|mark == before {
		return nil
	}
	c, err := readCommit(p.cur, h)
	if err != nil {
		return p.r.readError(missing("commit", h, err))
	}
	p.marks[h] = before | mark
	heap.Push(&p.queue, c)
	return nil
}

func (p *painter) pop() (c Commit, h hash, mark int) {
	c = heap.Pop(&p.queue).(Commit)
	h = hashOf(c.Hash)
	return c, h, p.marks[h]
}

// waits says whether a commit in the queue has none of some marks.
func (p *painter) waits(without int) bool {
	return slices.ContainsFunc(p.queue, func(c Commit) bool { return p.marks[hashOf(c.Hash)]&without == 0 })
}

// mergeBases finds the best common ancestors of two commits: those that no other
// common ancestor descends from. A criss-cross history has several.
func (r *Repo) mergeBases(ctx context.Context, left, right hash) ([]Commit, error) {
	p, err := r.newPainter(left, right)
	if err != nil {
		return nil, err
	}
	common := map[hash]Commit{}
	for p.waits(beyond) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, h, mark := p.pop()
		if mark == fromLeft|fromRight {
			common[h] = c
			mark |= beyond
		}
		for _, parent := range c.parents {
			if err := p.visit(parent, mark); err != nil {
				return nil, err
			}
		}
	}
	var best []Commit
	for h, c := range common {
		if p.marks[h]&beyond == 0 {
			best = append(best, c)
		}
	}
	slices.SortFunc(best, byAge)
	return r.independent(ctx, best)
}

// independent leaves out commits that another of them descends from. Dates are
// claims, so a walk in their order can end before it has seen that.
func (r *Repo) independent(ctx context.Context, list []Commit) ([]Commit, error) {
	var out []Commit
	for i, c := range list {
		redundant := false
		for j := range list {
			if i == j || redundant {
				continue
			}
			var err error
			if redundant, err = r.IsAncestor(ctx, c.Hash, list[j].Hash); err != nil {
				return nil, err
			}
		}
		if !redundant {
			out = append(out, c)
		}
	}
	return out, nil
}
