package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
	"reconciler/gitrepo/internal/wire"
)

// Commit resolves a revision as a person writes it: a full or abbreviated hash
// (4 digits at least), HEAD or the followed branch (as of the last Fetch), a
// branch or tag of the remote, each with any number of ~N, ^ or ^N. What the
// cache has not is fetched; a server may refuse to give a bare hash that no
// branch or tag points to.
func (r *Repo) Commit(ctx context.Context, rev string) (Commit, error) {
	name, ops := rev, ""
	if i := strings.IndexAny(rev, "~^"); i >= 0 {
		name, ops = rev[:i], rev[i:]
	}
	h, err := r.resolve(ctx, name)
	if err != nil {
		return Commit{}, fmt.Errorf("revision %q: %w", rev, err)
	}
	cur := r.db.NewCursor()
	c, err := readCommit(cur, h)
	for err == nil && ops != "" {
		if h, ops, err = step(c, ops); err != nil {
			return Commit{}, fmt.Errorf("revision %q: %w", rev, err)
		}
		// "~N" is taken one generation at a time.
		c, err = readCommit(cur, h)
	}
	if err != nil {
		return Commit{}, fmt.Errorf("revision %q: %w", rev, r.readError(err))
	}
	return c, nil
}

// step takes the first of the operators and returns what remains of them.
func step(c Commit, ops string) (hash, string, error) {
	digits := len(ops) - len(strings.TrimLeft(ops[1:], "0123456789")) - 1
	n, err := 1, error(nil)
	if digits > 0 {
		if n, err = strconv.Atoi(ops[1 : 1+digits]); err != nil || n > 1_000_000 {
			return hash{}, "", fmt.Errorf("%w: bad number", ErrRevisionMissing)
		}
	}
	rest := ops[1+digits:]
	self := plumbing.NewHash(c.Hash)
	parent := 1
	switch ops[0] {
	case '~':
		if n == 0 {
			return self, rest, nil
		}
		if n > 1 {
			rest = fmt.Sprintf("~%d%s", n-1, rest)
		}
	case '^':
		if n == 0 {
			return self, rest, nil
		}
		parent = n
	default:
		return hash{}, "", fmt.Errorf("%w: unexpected %q", ErrRevisionMissing, ops)
	}
	if parent > len(c.parents) {
		return hash{}, "", fmt.Errorf("%w: %.12s has %d parents", ErrRevisionMissing, c.Hash, len(c.parents))
	}
	return c.parents[parent-1], rest, nil
}

func (r *Repo) resolve(ctx context.Context, name string) (hash, error) {
	switch name {
	case "", "HEAD", "@", r.cfg.Branch, "origin/" + r.cfg.Branch, "refs/heads/" + r.cfg.Branch:
		tip, err := r.readRef(r.tipRef())
		if err != nil {
			return hash{}, err
		}
		if tip == "" {
			return hash{}, fmt.Errorf("%w: nothing was fetched yet", ErrRevisionMissing)
		}
		return plumbing.NewHash(tip), nil
	}
	if plumbing.IsHash(name) {
		h := plumbing.NewHash(name)
		if r.db.Has(h) && !r.damaged() {
			return h, nil
		}
		return h, r.fetchRev(ctx, func(upload) (hash, error) { return h, nil })
	}
	if isAbbrev(name) {
		cur := r.db.NewCursor()
		h, err := r.db.Prefix(strings.ToLower(name), func(h hash) bool {
			o, err := cur.Get(h, maxCommit)
			return err == nil && o.Type == plumbing.CommitObject
		})
		if !errors.Is(err, odb.ErrNotFound) {
			return h, err
		}
	}
	var found hash
	err := r.fetchRev(ctx, func(s upload) (hash, error) {
		short := strings.TrimPrefix(name, "origin/")
		for _, ref := range []string{name, "refs/tags/" + name, "refs/heads/" + short} {
			if !validRef(ref) {
				continue
			}
			h, ok, err := s.peeled(ref)
			if err != nil {
				return hash{}, err
			}
			if ok {
				found = h
				return h, nil
			}
		}
		return hash{}, ErrRevisionMissing
	})
	return found, err
}

func isAbbrev(s string) bool {
	return len(s) >= 4 && len(s) < 40 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// fetchRev brings a commit that find chooses from what the remote offers.
func (r *Repo) fetchRev(ctx context.Context, find func(upload) (hash, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := r.deadline(ctx, r.cfg.CloneTimeout)
	defer cancel()
	s, err := r.remote.upload(ctx)
	if err != nil {
		return r.remoteError(ctx, err)
	}
	defer s.close()
	h, err := find(s)
	if err != nil {
		return r.remoteError(ctx, err)
	}
	err = r.bring(ctx, s, h)
	if errors.Is(err, wire.ErrNotOurRef) || errors.Is(err, ErrIncomplete) {
		err = fmt.Errorf("%w: %v", ErrRevisionMissing, err)
	}
	if err != nil {
		return r.remoteError(ctx, err)
	}
	return nil
}
