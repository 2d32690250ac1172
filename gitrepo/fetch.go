package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// maxPackObjects bounds the memory that indexing a hostile pack can take.
const maxPackObjects = 5_000_000

// maxHaves is how many commits we offer a server to find common ground.
const maxHaves = 64

func (r *Repo) packLimits() odb.Limits {
	return odb.Limits{Bytes: r.cfg.Limits.FetchBytes, Objects: maxPackObjects}
}

// Fetch brings the branch's newest commit into the cache, whole or not at all,
// and returns it. If that commit does not contain the pinned one the error is a
// *NonFastForwardError and the commit is valid all the same; whether to follow
// is the caller's decision, made known by Pin.
func (r *Repo) Fetch(ctx context.Context) (Commit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	tip, err := r.readRef(r.tipRef())
	if err != nil {
		return Commit{}, err
	}
	limit := r.cfg.Timeout
	if tip == "" || r.damaged() {
		limit = r.cfg.CloneTimeout
	}
	ctx, cancel := r.deadline(ctx, limit)
	defer cancel()
	s, err := r.remote.upload(ctx)
	if err != nil {
		return Commit{}, r.remoteError(ctx, err)
	}
	defer s.close()
	name, head, err := r.branchTip(s)
	if err != nil {
		return Commit{}, err
	}
	if err := r.bring(ctx, s, head); err != nil {
		return Commit{}, r.remoteError(ctx, err)
	}
	if tip != head.String() {
		if err := r.writeRef(r.tipRef(), head.String()); err != nil {
			return Commit{}, err
		}
	}
	c, err := readCommit(r.db.NewCursor(), head)
	if err != nil {
		return Commit{}, r.readError(err)
	}
	if err := r.maintain(ctx, hardLimits); err != nil {
		return Commit{}, err
	}
	return c, r.checkRewrite(ctx, name, c.Hash)
}

// branchTip finds the configured branch among what the remote has.
func (r *Repo) branchTip(s upload) (name string, h hash, err error) {
	ref := "HEAD"
	if r.cfg.Branch != "" {
		ref = "refs/heads/" + r.cfg.Branch
	}
	h, ok, err := s.ref(ref)
	if err != nil {
		return "", h, err
	}
	if !ok {
		return "", h, fmt.Errorf("%s: %w: %s", Redact(r.cfg.URL), ErrBranchMissing, r.whyMissing(s, ref))
	}
	if r.cfg.Branch == "" {
		return "HEAD", h, nil
	}
	return r.cfg.Branch, h, nil
}

// whyMissing says what is there in place of a branch.
func (r *Repo) whyMissing(s upload, ref string) string {
	if ref == "HEAD" {
		return "HEAD is on a branch without a commit; name the branch to follow (" + offers(s) + ")"
	}
	if slices.Contains(s.names(), "refs/tags/"+r.cfg.Branch) {
		return ref + " (" + r.cfg.Branch + " is a tag; " + offers(s) + ")"
	}
	return ref + " (" + offers(s) + ")"
}

// offers says which branches a remote has.
func offers(s upload) string {
	var list []string
	for _, ref := range s.names() {
		if name, ok := strings.CutPrefix(ref, "refs/heads/"); ok {
			list = append(list, printable(name))
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	const most = 10
	switch n := len(list); {
	case n == 0:
		return "it has no branch: nothing was pushed yet"
	case n == 1:
		return "its only branch is " + list[0]
	case n > most:
		return fmt.Sprintf("its branches are %s and %d more", strings.Join(list[:most], ", "), n-most)
	}
	return "its branches are " + strings.Join(list, ", ")
}

func (r *Repo) checkRewrite(ctx context.Context, branch, head string) error {
	pin, err := r.readRef(pinRef)
	if err != nil || pin == "" || pin == head {
		return err
	}
	// A pinned commit that damage took and the branch did not bring back is not
	// in the branch.
	ok := r.db.Has(plumbing.NewHash(pin))
	if ok {
		if ok, err = r.IsAncestor(ctx, pin, head); err != nil {
			return err
		}
	}
	if !ok {
		return &NonFastForwardError{Branch: branch, Old: pin, New: head}
	}
	return nil
}

// bring makes the cache have a commit of the remote with all that it needs.
func (r *Repo) bring(ctx context.Context, s upload, want hash) error {
	damaged := r.damaged()
	if !damaged && r.db.Has(want) {
		return nil
	}
	have := r.db.Has
	haves, err := r.haves()
	if err != nil && !r.damaged() {
		return err
	}
	if damaged = r.damaged(); damaged {
		have, haves = func(hash) bool { return false }, nil
	}
	staged, err := s.fetch(ctx, r.db, r.packLimits(), want, haves, have)
	if err != nil {
		return err
	}
	view := staged.View()
	if damaged {
		view = staged.Alone()
	}
	if _, err := closure(ctx, view, []hash{want}, have); err != nil {
		return errors.Join(err, staged.Discard())
	}
	if err := staged.Publish(); err != nil {
		return err
	}
	if damaged {
		return r.repaired(ctx, want)
	}
	return nil
}

// haves are the commits we have whole: the newest and pinned ones and, at
// growing distances, their ancestors, so that a server that dropped the newest
// still finds common ground.
func (r *Repo) haves() ([]hash, error) {
	var list []hash
	cur := r.db.NewCursor()
	seen := make(map[hash]bool)
	for _, ref := range []string{r.tipRef(), pinRef} {
		name, err := r.readRef(ref)
		if err != nil {
			return nil, err
		}
		if name == "" {
			continue
		}
		h := plumbing.NewHash(name)
		for step, n := 1, 0; n < maxHaves/2 && !seen[h]; n++ {
			seen[h] = true
			list = append(list, h)
			if n >= 8 {
				step *= 2
			}
			for range step {
				c, err := readCommit(cur, h)
				if err != nil {
					return nil, r.readError(missing("commit", h, err))
				}
				if len(c.parents) == 0 {
					step = 0
					break
				}
				h = c.parents[0]
			}
			if step == 0 {
				break
			}
		}
	}
	return list, nil
}

// remoteError gives an expired deadline its cause and an incomplete transfer
// the remote's name.
func (r *Repo) remoteError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); !errors.Is(err, cause) {
			return fmt.Errorf("%w (%w)", cause, err)
		}
	}
	return fmt.Errorf("%s: %w", Redact(r.cfg.URL), err)
}
