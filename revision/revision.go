// Package revision reads the specs of a commit: every file is parsed once in
// its life, and a commit costs what it changes.
package revision

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"reconciler/gitrepo"
	"reconciler/spec"
)

// Source is a followed repository as the agent needs it. It is safe for
// concurrent use.
type Source struct {
	repo *gitrepo.Repo

	mu   sync.Mutex
	tree *gitrepo.Tree // of the set
	set  *spec.Set
}

// New reads through a repository's cache.
func New(repo *gitrepo.Repo) *Source { return &Source{repo: repo} }

// Fetch returns the newest commit of the branch. Whether it may follow the
// last one is the caller's to decide.
func (s *Source) Fetch(ctx context.Context) (gitrepo.Commit, error) {
	c, err := s.repo.Fetch(ctx)
	var rewritten *gitrepo.NonFastForwardError
	if errors.As(err, &rewritten) {
		err = nil
	}
	return c, err
}

// Resolve finds a commit by hash, abbreviation, branch or tag.
func (s *Source) Resolve(ctx context.Context, rev string) (gitrepo.Commit, error) {
	return s.repo.Commit(ctx, rev)
}

// Descends says whether hash has ancestor among its ancestors, or is it.
func (s *Source) Descends(ctx context.Context, ancestor, hash string) (bool, error) {
	return s.repo.IsAncestor(ctx, ancestor, hash)
}

// Keep makes sure that a revision stays readable without the network.
func (s *Source) Keep(_ context.Context, hash string) error { return s.repo.Pin(hash) }

// Publish writes files to a ref of ours, if they differ from what is there.
func (s *Source) Publish(ctx context.Context, ref, message string, files map[string][]byte) error {
	_, _, err := s.repo.PushFiles(ctx, ref, files, message, gitrepo.PushOptions{})
	return err
}

// Watch lists the local paths whose change means a push.
func (s *Source) Watch() []string { return s.repo.WatchPaths() }

// Load reads the specs of a commit. What is wrong with them is spec.Errors.
func (s *Source) Load(ctx context.Context, hash string) (*spec.Set, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tree != nil && s.tree.Commit.Hash == hash {
		return s.set, nil
	}
	tree, err := s.repo.Files(ctx, hash)
	if err != nil {
		return nil, err
	}
	objects, err := parse(ctx, tree)
	if err != nil && !isSpecError(err) {
		return nil, err
	}
	set, err := spec.Link(objects, err)
	if err != nil {
		return nil, err
	}
	s.tree, s.set = tree, set
	return set, nil
}

// parse reads every file of a tree, and everything that is wrong with them.
func parse(ctx context.Context, tree *gitrepo.Tree) ([]*spec.Object, error) {
	parsed := make([][]*spec.Object, len(tree.Files))
	failed := make([]error, len(tree.Files))
	err := tree.Load(ctx, tree.Files, func(i int, data []byte) error {
		parsed[i], failed[i] = spec.Parse(tree.Files[i].Path, data)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read revision %s: %w", tree.Commit.Hash, err)
	}
	var objects []*spec.Object
	for _, list := range parsed {
		objects = append(objects, list...)
	}
	return objects, errors.Join(failed...)
}

func isSpecError(err error) bool {
	var e spec.Errors
	return errors.As(err, &e)
}
