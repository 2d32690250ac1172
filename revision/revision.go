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
	repo    *gitrepo.Repo
	reports *gitrepo.Repo // where hosts report; the same unless told otherwise
	cache   *gitrepo.BlobCache

	mu   sync.Mutex
	tree *gitrepo.Tree // of the set
	set  *spec.Set
}

// New reads through a repository's cache, and keeps what was parsed in a file.
func New(repo *gitrepo.Repo, parsed string) (*Source, error) {
	cache, err := gitrepo.OpenBlobCache(parsed, spec.CodecVersion)
	if err != nil {
		return nil, fmt.Errorf("open the cache of parsed files: %w", err)
	}
	return &Source{repo: repo, reports: repo, cache: cache}, nil
}

// ReportTo makes another repository the one that hosts report to.
func (s *Source) ReportTo(reports *gitrepo.Repo) { s.reports = reports }

// Close writes the cache and releases it.
func (s *Source) Close() error { return s.cache.Close() }

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
func (s *Source) Publish(ctx context.Context, ref, message string, files map[string][]byte, opts gitrepo.PushOptions) error {
	_, _, err := s.reports.PushFiles(ctx, ref, files, message, opts)
	return err
}

// Report reads back a file of what a host published, what the signature of its
// commit covers, and the signature, nil if there is none.
func (s *Source) Report(ctx context.Context, ref, name string) (data, payload, signature []byte, err error) {
	c, err := s.reports.Commit(ctx, ref)
	if err != nil {
		return nil, nil, nil, err
	}
	if payload, signature, err = s.reports.Signed(ctx, c.Hash); err != nil {
		return nil, nil, nil, err
	}
	data, err = s.reports.ReadRef(ctx, c.Hash, name)
	return data, payload, signature, err
}

// Signed returns what the signature of a commit covers, and the signature.
func (s *Source) Signed(ctx context.Context, hash string) (payload, signature []byte, err error) {
	return s.repo.Signed(ctx, hash)
}

// Published reads back a file of what a host published.
func (s *Source) Published(ctx context.Context, ref, name string) ([]byte, error) {
	return s.reports.ReadRef(ctx, ref, name)
}

// maxRecordFiles bounds the files of a ref of records, signatures included.
const maxRecordFiles = 4000

// Records reads all files of a ref of ours; none if it is not there.
func (s *Source) Records(ctx context.Context, ref string) (map[string][]byte, error) {
	files, _, err := s.repo.ReadFiles(ctx, ref, maxRecordFiles)
	if errors.Is(err, gitrepo.ErrRevisionMissing) {
		return nil, nil
	}
	return files, err
}

// Between lists the commits of to that from does not contain, newest first.
func (s *Source) Between(ctx context.Context, from, to string, firstParent bool) ([]gitrepo.Commit, error) {
	return s.repo.Between(ctx, from, to, firstParent)
}

// Watch lists the local paths whose change means a push.
func (s *Source) Watch() []string { return s.repo.WatchPaths() }

// Load reads the specs of a commit. What is wrong with them is spec.Errors.
func (s *Source) Load(ctx context.Context, hash string) (*spec.Set, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tree != nil {
		if s.tree.Commit.Hash == hash {
			return s.set, nil
		}
		return s.next(ctx, hash)
	}
	tree, err := s.repo.Files(ctx, hash)
	if err != nil {
		return nil, err
	}
	parsed, perr, err := s.parse(ctx, tree, tree.Files)
	if err != nil {
		return nil, err
	}
	var objects []*spec.Object
	for _, list := range parsed {
		objects = append(objects, list...)
	}
	set, err := spec.Link(objects, perr)
	if err != nil {
		return nil, err
	}
	s.tree, s.set = tree, set
	return set, s.cache.Flush()
}

// next builds a set from the one before: it costs what differs.
func (s *Source) next(ctx context.Context, hash string) (*spec.Set, error) {
	tree, changes, err := s.repo.Update(ctx, s.tree, hash)
	if err != nil {
		return nil, err
	}
	var removed []string
	var files []gitrepo.File
	for _, c := range changes {
		if c.New.IsZero() {
			removed = append(removed, c.Path)
		} else {
			files = append(files, gitrepo.File{Path: c.Path, Blob: c.New})
		}
	}
	parsed, perr, err := s.parse(ctx, tree, files)
	if err != nil {
		return nil, err
	}
	added := make(map[string][]*spec.Object, len(files))
	for i, f := range files {
		added[f.Path] = parsed[i]
	}
	set, err := s.set.Update(removed, added, perr)
	if err != nil {
		return nil, err
	}
	s.tree, s.set = tree, set
	return set, s.cache.Flush()
}

// parse reads files of a tree, those from the cache that were read before.
// perr is what is wrong with their content.
func (s *Source) parse(ctx context.Context, tree *gitrepo.Tree, files []gitrepo.File) (parsed [][]*spec.Object, perr, err error) {
	parsed = make([][]*spec.Object, len(files))
	failed := make([]error, len(files))
	var fresh []gitrepo.File
	var index []int
	for i, f := range files {
		if data, ok := s.cache.Get(f.Blob); ok {
			if objects, err := spec.Decode(data); err == nil {
				parsed[i] = spec.InFile(f.Path, objects)
				continue
			}
		}
		fresh, index = append(fresh, f), append(index, i)
	}
	err = tree.Load(ctx, fresh, func(i int, data []byte) error {
		objects, err := spec.Parse(fresh[i].Path, data)
		parsed[index[i]], failed[index[i]] = objects, err
		if err == nil {
			s.cache.Put(fresh[i].Blob, spec.Encode(objects))
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read revision %s: %w", tree.Commit.Hash, err)
	}
	return parsed, errors.Join(failed...), nil
}
