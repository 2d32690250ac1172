package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
	"reconciler/internal/durable"
)

// PushOptions say who writes a ref of ours and how. The zero value is usable.
type PushOptions struct {
	// Name and Email sign the commit, as author and committer; default
	// "reconciler" and "reconciler@localhost".
	Name, Email string
	// When dates the commit; default now.
	When time.Time
	// History is how many commits the ref keeps at most; the next one starts
	// anew without a parent. Default 50.
	History int
	// Sign, if given, signs the commit: it gets what git signs, the commit
	// without its signature, and returns an armored signature.
	Sign func(payload []byte) (signature []byte, err error)
	// From, if given, is the only commit that the ref is moved from, empty if the
	// ref must not be there; else PushFiles fails with ErrRefChanged.
	From *string
	// Replaces, if given, is told of a tip that is about to be replaced and that
	// was not pushed through this cache. PushFiles calls it; with an error it stays.
	Replaces func(tip ForeignTip) error
	// Intend, if given, is told of the commit that is about to be pushed: it may
	// arrive although nobody hears of it. With an error nothing is pushed.
	Intend func(commit string) error
	// OwnOnly refuses, with ErrForeignTip, to move a ref whose tip was not
	// committed by Email.
	OwnOnly bool
}

func (o PushOptions) withDefaults() PushOptions {
	if o.Name == "" {
		o.Name = "reconciler"
	}
	if o.Email == "" {
		o.Email = "reconciler@localhost"
	}
	if o.When.IsZero() {
		o.When = time.Now()
	}
	if o.History <= 0 {
		o.History = 50
	}
	return o
}

// ForeignTip is the newest commit of a ref, which somebody else pushed.
type ForeignTip struct {
	Commit
	// Payload is what the signature covers, Signature nil if there is none.
	Payload, Signature []byte
	// File reads a file of the root directory.
	File func(name string) ([]byte, error)
}

// pushedTip remembers a commit of ours, so that the next push needs no fetch.
type pushedTip struct {
	Commit, Tree string
	Depth        int
	Own          bool
}

// pushedVersion is of the record of a pushed tip.
const pushedVersion = 1

// maxPushTries bounds how often a push is repeated because the ref moved.
const maxPushTries = 3

// PushFiles makes files (path → content) the whole tree of a ref of the remote
// and returns the ref's commit. Nothing is pushed when the tree is what the ref
// has. The ref moves only from the commit that was looked at (compare and swap).
// The followed branch is refused.
func (r *Repo) PushFiles(ctx context.Context, ref string, files map[string][]byte, message string, opts PushOptions) (commit string, pushed bool, err error) {
	return r.push(ctx, ref, opts, func(s receive, opts PushOptions) (string, bool, error) {
		return r.filesOnce(ctx, s, ref, files, message, opts)
	})
}

// push moves a ref of ours, again if it moved meanwhile.
func (r *Repo) push(ctx context.Context, ref string, opts PushOptions, once func(receive, PushOptions) (string, bool, error)) (commit string, pushed bool, err error) {
	if !validRef(ref) {
		return "", false, fmt.Errorf("%q is not a valid ref name", ref)
	}
	if ref == "refs/heads/"+r.cfg.Branch || r.cfg.Branch == "" && strings.HasPrefix(ref, "refs/heads/") {
		return "", false, fmt.Errorf("%s is the followed branch, which is never written", ref)
	}
	opts = opts.withDefaults()
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := r.deadline(ctx, r.cfg.Timeout)
	defer cancel()
	for try := 1; ; try++ {
		s, err := r.writer.receive(ctx)
		if err == nil {
			commit, pushed, err = once(s, opts)
			s.close()
		}
		if err == nil {
			return commit, pushed, nil
		}
		if !errors.Is(err, ErrRefChanged) || try == maxPushTries || opts.From != nil {
			return "", false, r.remoteError(ctx, err)
		}
	}
}

func (r *Repo) filesOnce(ctx context.Context, s receive, ref string, files map[string][]byte, message string, opts PushOptions) (string, bool, error) {
	old, exists, err := s.ref(ref)
	if err != nil {
		return "", false, err
	}
	if at := ""; opts.From != nil {
		if exists {
			at = old.String()
		}
		if at != *opts.From {
			return "", false, fmt.Errorf("%s: %w", ref, ErrRefChanged)
		}
	}
	tip := pushedTip{Own: true}
	if exists {
		if tip, err = r.inspect(ctx, ref, old, opts); err != nil {
			return "", false, err
		}
	}
	if opts.OwnOnly && !tip.Own {
		return "", false, fmt.Errorf("%s: %w: %.12s", ref, ErrForeignTip, old)
	}
	b := treeBuilder{}
	root, err := b.build(files)
	if err != nil {
		return "", false, err
	}
	if exists && root.String() == tip.Tree {
		return old.String(), false, nil
	}
	var parents []hash
	next := pushedTip{Tree: root.String(), Depth: 1, Own: true}
	if exists && tip.Own && tip.Depth < opts.History {
		parents, next.Depth = []hash{old}, tip.Depth+1
	}
	c, err := newCommit(root, parents, message, opts)
	if err != nil {
		return "", false, err
	}
	next.Commit = c.hash.String()
	if opts.Intend != nil {
		if err := opts.Intend(next.Commit); err != nil {
			return "", false, err
		}
	}
	if err := s.push(ctx, ref, old, c.hash, append(b.objects, c)); err != nil {
		return "", false, err
	}
	return next.Commit, true, r.remember(ref, next)
}

// inspect tells what the tip of a ref of ours holds: from memory, or, when it is
// not the commit we pushed last, from the remote.
func (r *Repo) inspect(ctx context.Context, ref string, tip hash, opts PushOptions) (pushedTip, error) {
	if t, err := r.recall(ref); err == nil && t.Commit == tip.String() {
		return t, nil
	}
	s, err := r.remote.upload(ctx)
	if err != nil {
		return pushedTip{}, err
	}
	defer s.close()
	if now, ok, err := s.ref(ref); err != nil {
		return pushedTip{}, err
	} else if !ok || now != tip {
		return pushedTip{}, fmt.Errorf("%s: %w", ref, ErrRefChanged)
	}
	staged, err := s.fetch(ctx, r.db, r.packLimits(), tip, nil, func(hash) bool { return false })
	if err != nil {
		return pushedTip{}, err
	}
	t, err := describeTip(staged.View().NewCursor(), tip, opts)
	if err == nil && opts.Replaces != nil {
		err = r.tellReplaced(staged.View().NewCursor(), tip, opts)
	}
	return t, errors.Join(err, staged.Discard())
}

func (r *Repo) tellReplaced(cur *odb.Cursor, tip hash, opts PushOptions) error {
	o, err := cur.Get(tip, maxCommit)
	if err != nil {
		return err
	}
	c, err := parseCommit(tip, o.Data)
	if err != nil {
		return err
	}
	payload, signature, err := splitSignature(o.Data)
	if err != nil {
		payload, signature = nil, nil // two signatures are as good as none
	}
	return opts.Replaces(ForeignTip{
		Commit: c, Payload: payload, Signature: signature,
		File: func(name string) ([]byte, error) { return r.rootFile(cur, c, name) },
	})
}

func describeTip(cur *odb.Cursor, tip hash, opts PushOptions) (pushedTip, error) {
	c, err := readCommit(cur, tip)
	if err != nil {
		return pushedTip{}, err
	}
	t := pushedTip{Commit: c.Hash, Tree: c.Tree, Depth: 1, Own: c.committerEmail == opts.Email}
	for len(c.parents) > 0 && t.Depth < opts.History {
		if c, err = readCommit(cur, c.parents[0]); err != nil {
			return pushedTip{}, err
		}
		t.Depth++
	}
	return t, nil
}

func (r *Repo) pushedFile(ref string) string {
	return filepath.Join(r.dir, "pushed", strings.ReplaceAll(strings.TrimPrefix(ref, "refs/"), "/", "%")+".json")
}

func (r *Repo) recall(ref string) (pushedTip, error) {
	if t, ok := r.pushed[ref]; ok {
		return t, nil
	}
	var t pushedTip
	b, err := os.ReadFile(r.pushedFile(ref))
	if err == nil {
		err = durable.Unmarshal(b, pushedVersion, &t)
	}
	return t, err
}

func (r *Repo) remember(ref string, t pushedTip) error {
	r.pushed[ref] = t
	b, err := durable.Marshal(pushedVersion, t)
	if err != nil {
		return err
	}
	return writeFile(r.pushedFile(ref), string(b)+"\n")
}

// treeBuilder makes tree objects from paths.
type treeBuilder struct{ objects []object }

func (b *treeBuilder) build(files map[string][]byte) (hash, error) {
	paths := make([]string, 0, len(files))
	for p := range files {
		for _, name := range strings.Split(p, "/") {
			if reason := checkName([]byte(name)); reason != "" {
				return hash{}, &PathError{Path: printable(p), Reason: reason}
			}
		}
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return b.dir(paths, "", files)
}

// dir builds the directory prefix from the sorted paths below it.
func (b *treeBuilder) dir(paths []string, prefix string, files map[string][]byte) (hash, error) {
	var entries []treeEntry
	for len(paths) > 0 {
		name, _, nested := strings.Cut(strings.TrimPrefix(paths[0], prefix), "/")
		if !nested {
			o := newObject(plumbing.BlobObject, files[paths[0]])
			b.objects = append(b.objects, o)
			entries = append(entries, treeEntry{typeRegular | 0o644, []byte(name), o.hash})
			paths = paths[1:]
			continue
		}
		sub := prefix + name + "/"
		n := 0
		for n < len(paths) && strings.HasPrefix(paths[n], sub) {
			n++
		}
		h, err := b.dir(paths[:n], sub, files)
		if err != nil {
			return hash{}, err
		}
		entries = append(entries, treeEntry{typeDir, []byte(name), h})
		paths = paths[n:]
	}
	slices.SortFunc(entries, compareEntries)
	for i, e := range entries {
		if i > 0 && bytes.Equal(e.name, entries[i-1].name) {
			return hash{}, fmt.Errorf("%s%s is both a file and a directory", prefix, e.name)
		}
	}
	o := newObject(plumbing.TreeObject, encodeTree(entries))
	b.objects = append(b.objects, o)
	return o.hash, nil
}
