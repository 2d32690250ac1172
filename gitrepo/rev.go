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

// Commit resolves a revision as gitrevisions(7) has it, as far as it is one
// commit of a remote: a full or abbreviated hash (4 digits at least), HEAD or the
// followed branch (of a server as of the last Fetch), a branch or tag, each with
// any number of ~N, ^, ^N and ^{}. What the cache has not is fetched; a server may
// refuse to give a bare hash that no branch or tag points to.
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
	if kind, rest, ok := strings.Cut(strings.TrimPrefix(ops, "^{"), "}"); ok && strings.HasPrefix(ops, "^{") {
		if kind != "" && kind != "commit" {
			return hash{}, "", fmt.Errorf("%w: ^{%s} is not a commit", ErrRevisionMissing, kind)
		}
		return plumbing.NewHash(c.Hash), rest, nil // tags were followed already
	}
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
	switch {
	case strings.Contains(name, "@{"):
		return hash{}, fmt.Errorf("%w: where branches were before is not known", ErrRevisionMissing)
	case strings.Contains(name, ".."):
		return hash{}, fmt.Errorf("%w: a range is not one revision", ErrRevisionMissing)
	}
	_, local := r.remote.(*local)
	switch name {
	case "", "HEAD", "@", r.cfg.Branch, "heads/" + r.cfg.Branch, "refs/heads/" + r.cfg.Branch:
		return r.followed(ctx)
	case "origin/HEAD", "origin/" + r.cfg.Branch:
		// In a clone on this machine, it is what that was cloned from.
		if !local {
			return r.followed(ctx)
		}
	}
	if plumbing.IsHash(name) {
		h := plumbing.NewHash(name)
		if r.db.Has(h) && !r.damaged() {
			return h, nil
		}
		return h, r.fetchRev(ctx, func(upload) (hash, error) { return h, nil })
	}
	if isAbbrev(name) {
		h, err := abbreviated(r.db, name)
		if errors.Is(err, odb.ErrNotFound) {
			if _, ferr := r.followed(ctx); ferr == nil {
				h, err = abbreviated(r.db, name)
			}
		}
		if !errors.Is(err, odb.ErrNotFound) {
			return h, err
		}
	}
	var found hash
	err := r.fetchRev(ctx, func(s upload) (hash, error) {
		for _, ref := range []string{
			name, "refs/" + name, "refs/tags/" + name, "refs/heads/" + name, "refs/remotes/" + name, "refs/remotes/" + name + "/HEAD",
			"refs/heads/" + strings.TrimPrefix(name, "origin/"),
		} {
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
		if here, ok := s.(*localSession); ok && isAbbrev(name) {
			var err error
			if found, err = abbreviated(here.db, name); !errors.Is(err, odb.ErrNotFound) {
				return found, err
			}
		}
		if strings.HasPrefix(name, "refs/") {
			return hash{}, ErrRevisionMissing // one of ours, which need not be there
		}
		return hash{}, fmt.Errorf("%w (%s)", ErrRevisionMissing, offers(s))
	})
	return found, err
}

// followed is the newest commit of the branch: of a repository on this machine
// always, of a server as of the last Fetch, if there was one.
func (r *Repo) followed(ctx context.Context) (hash, error) {
	tip, err := r.readRef(r.tipRef())
	if err != nil {
		return hash{}, err
	}
	if _, here := r.remote.(*local); here || tip == "" {
		c, err := r.Fetch(ctx)
		var rewritten *NonFastForwardError
		if err == nil || errors.As(err, &rewritten) {
			return plumbing.NewHash(c.Hash), nil
		}
		if tip == "" {
			return hash{}, err
		}
	}
	return plumbing.NewHash(tip), nil
}

// abbreviated finds the one commit of a database whose hash begins so.
func abbreviated(db *odb.DB, name string) (hash, error) {
	cur := db.NewCursor()
	return db.Prefix(strings.ToLower(name), func(h hash) bool {
		o, err := cur.Get(h, maxCommit)
		return err == nil && o.Type == plumbing.CommitObject
	})
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
