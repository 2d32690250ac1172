package gitrepo

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// maxBetween bounds the commits that Between lists.
const maxBetween = 100_000

// dateSlack is by how much a commit may claim to be older than its ancestors
// without Between listing more than it should.
const dateSlack = 30 * 24 * time.Hour

// Between lists the commits that to contains and from does not, newest first; an
// empty from is none, so that all are listed. With firstParent only the chain of
// first parents is: what was committed or merged on the branch itself. What is
// not in the cache is ErrRevisionMissing. More than 100,000 commits are ErrTooLarge.
//
// Histories are walked by the dates that commits claim. Where one claims to be
// older than its ancestors by more than 30 days, commits that from contains may
// be listed, too; none is ever left out.
func (r *Repo) Between(ctx context.Context, from, to string, firstParent bool) ([]Commit, error) {
	for _, rev := range []string{from, to} {
		if !plumbing.IsHash(rev) && !(rev == "" && from == "") {
			return nil, fmt.Errorf("%q: %w: not a full hash", rev, ErrRevisionMissing)
		}
	}
	p := &painter{r: r, cur: r.db.NewCursor(), marks: map[hash]int{}}
	for _, rev := range []string{from, to} {
		if _, err := r.known(p.cur, rev); rev != "" && err != nil {
			return nil, err
		}
	}
	if from != "" {
		if err := p.visit(hashOf(from), fromRight); err != nil {
			return nil, err
		}
	}
	if err := p.visit(hashOf(to), fromLeft); err != nil {
		return nil, err
	}
	found := map[hash]Commit{}
	oldest := time.Time{}
	for p.waits(fromRight) || len(p.queue) > 0 && len(found) > 0 && p.queue[0].When.After(oldest.Add(-dateSlack)) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, h, mark := p.pop()
		if mark&fromRight == 0 {
			found[h] = c
			if len(found) > maxBetween {
				return nil, fmt.Errorf("%w: more than %d commits since %s", ErrTooLarge, maxBetween, cmp.Or(from, "the first"))
			}
			if oldest.IsZero() || c.When.Before(oldest) {
				oldest = c.When
			}
		}
		for _, parent := range c.parents {
			if err := p.visit(parent, mark); err != nil {
				return nil, err
			}
		}
	}
	var out []Commit
	if firstParent {
		for c, ok := found[hashOf(to)]; ok && p.marks[hashOf(c.Hash)]&fromRight == 0; {
			out = append(out, c)
			if len(c.parents) == 0 {
				break
			}
			c, ok = found[c.parents[0]]
		}
		return out, nil
	}
	for h, c := range found {
		if p.marks[h]&fromRight == 0 {
			out = append(out, c)
		}
	}
	return newestFirst(out), nil
}

// newestFirst sorts by date, but never a commit before one that it is a parent of.
func newestFirst(list []Commit) []Commit {
	children := map[string]int{}
	byHash := make(map[string]Commit, len(list))
	for _, c := range list {
		byHash[c.Hash] = c
		for _, parent := range c.Parents {
			children[parent]++
		}
	}
	ready := &byDate{}
	slices.SortFunc(list, byAge)
	for _, c := range list {
		if children[c.Hash] == 0 {
			heap.Push(ready, c)
		}
	}
	out := list[:0]
	for ready.Len() > 0 {
		c := heap.Pop(ready).(Commit)
		out = append(out, c)
		for _, parent := range c.Parents {
			if children[parent]--; children[parent] == 0 {
				if pc, ok := byHash[parent]; ok {
					heap.Push(ready, pc)
				}
			}
		}
	}
	return out
}

func byAge(a, b Commit) int { return cmp.Or(b.When.Compare(a.When), strings.Compare(a.Hash, b.Hash)) }
