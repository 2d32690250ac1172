package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/diff3"
	"reconciler/gitrepo/internal/odb"
)

// ConflictError says that two revisions cannot be merged without a person.
type ConflictError struct {
	Base, Head string
	Paths      []string // sorted, safe to print; none if Reason says it all
	Reason     string   // what is in the way; "" for changes to the same lines
}

func (e *ConflictError) Error() string {
	const shown = 10
	s := fmt.Sprintf("%.12s does not merge into %.12s", e.Head, e.Base)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if n := len(e.Paths); n > shown {
		s += fmt.Sprintf(": conflicts in %s and %d more", strings.Join(e.Paths[:shown], ", "), n-shown)
	} else if n > 0 {
		s += ": conflicts in " + strings.Join(e.Paths, ", ")
	}
	return s + " (update the branch: merge or rebase, and resolve it there)"
}

// mergeOptions are of the commits that Merge makes, which are the same whoever
// makes them and when.
var mergeOptions = PushOptions{Name: "reconciler", Email: "reconciler@localhost", When: time.Unix(0, 0)}

// Merge returns the merge of head into base as a forge would make it: three-way,
// with the lines of files that both changed merged as git does. Revisions are
// resolved as Commit does. The merge commit, with the parents base and head and
// always the same for the same two, is kept in the cache only, until that is
// repacked; it can be read like any other.
//
// What cannot be merged is a *ConflictError. Renames are not followed: where
// that could matter, it is a conflict. So are files over Limits.FileBytes that
// both sides changed. Merge drivers of .gitattributes are not run.
func (r *Repo) Merge(ctx context.Context, base, head string) (Commit, error) {
	left, err := r.Commit(ctx, base)
	if err != nil {
		return Commit{}, err
	}
	right, err := r.Commit(ctx, head)
	if err != nil {
		return Commit{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := newMerger(ctx, r)
	tree, err := m.commits(left, right, 0)
	if conflict, ok := errors.AsType[*ConflictError](err); ok {
		conflict.Base, conflict.Head = left.Hash, right.Hash
		return Commit{}, conflict
	}
	if err != nil {
		return Commit{}, r.readError(err)
	}
	message := fmt.Sprintf("merge %.12s into %.12s", right.Hash, left.Hash)
	made, err := newCommit(tree, []hash{hashOf(left.Hash), hashOf(right.Hash)}, message, mergeOptions)
	if err != nil {
		return Commit{}, err
	}
	if !r.db.Has(made.hash) {
		if err := m.keep(made); err != nil {
			return Commit{}, err
		}
	}
	return parseCommit(made.hash, made.data)
}

// merger merges trees. What it makes is in made, and not in the cache yet.
type merger struct {
	ctx  context.Context
	r    *Repo
	cur  *odb.Cursor
	made map[hash]object
	list []object // in the order they were made

	entries   int
	compared  int // pairs of files
	conflicts []string
	gone      gone
}

func newMerger(ctx context.Context, r *Repo) *merger {
	return &merger{ctx: ctx, r: r, cur: r.db.NewCursor(), made: map[hash]object{}}
}

func (m *merger) add(typ plumbing.ObjectType, data []byte) hash {
	o := newObject(typ, data)
	if _, ok := m.made[o.hash]; !ok && !m.r.db.Has(o.hash) {
		m.made[o.hash] = o
		m.list = append(m.list, o)
	}
	return o.hash
}

// keep writes what was made to the cache.
func (m *merger) keep(commit object) error {
	w, err := m.r.db.NewWriter(m.r.packLimits())
	if err != nil {
		return err
	}
	for _, o := range append(m.list, commit) {
		if _, err := w.Add(o.typ, o.data); err != nil {
			return errors.Join(err, w.Abort())
		}
	}
	staged, err := w.Finish()
	if err != nil {
		return err
	}
	return staged.Publish()
}

// maxCrossings bounds how deep merge bases are merged with one another.
const maxCrossings = 20

// commits merges two commits and returns the tree.
func (m *merger) commits(left, right Commit, depth int) (hash, error) {
	bases, err := m.r.mergeBases(m.ctx, hashOf(left.Hash), hashOf(right.Hash))
	if err != nil {
		return hash{}, err
	}
	switch {
	case len(bases) == 0:
		return hash{}, &ConflictError{Reason: "they have no common history"}
	case len(bases) == 1:
		return m.trees(bases[0].tree, left.tree, right.tree)
	case len(bases) > 2 || depth == maxCrossings:
		return hash{}, &ConflictError{Reason: "their histories cross too often"}
	}
	// In a criss-cross history the base is the merge of both bases, as it is for
	// git. git goes on if they conflict, with the conflict as the base.
	base, err := m.commits(bases[0], bases[1], depth+1)
	if conflict, ok := errors.AsType[*ConflictError](err); ok {
		conflict.Reason = "their histories cross, and the common ancestors do not merge"
		return hash{}, conflict
	}
	if err != nil {
		return hash{}, err
	}
	return m.trees(base, left.tree, right.tree)
}

// trees merges two trees made from base.
func (m *merger) trees(base, left, right hash) (hash, error) {
	m.conflicts, m.gone = nil, gone{}
	tree, err := m.dir(base, left, right, "", 0)
	if err == nil {
		err = m.suspectRenames(base, left, right)
	}
	if err != nil {
		return hash{}, err
	}
	if len(m.conflicts) > 0 {
		slices.Sort(m.conflicts)
		return hash{}, &ConflictError{Paths: slices.Compact(m.conflicts)}
	}
	if tree.IsZero() {
		tree = m.add(plumbing.TreeObject, nil)
	}
	return tree, nil
}

func (m *merger) conflict(path string) { m.conflicts = append(m.conflicts, printable(path)) }

// slot is what one side has under a name: a file, a directory, or nothing.
type slot struct{ file, dir treeEntry }

// read lists a directory by name; an absent one is empty.
func (m *merger) read(h hash, path string) (map[string]slot, error) {
	if h.IsZero() {
		return nil, nil
	}
	b, err := m.data(h, path)
	if err != nil {
		return nil, err
	}
	list := map[string]slot{}
	var prev treeEntry
	for len(b) > 0 {
		var e treeEntry
		if e, b, err = nextEntry(b); err != nil || prev.name != nil && compareEntries(prev, e) >= 0 {
			return nil, &PathError{Path: orRoot(printable(path)), Reason: BadTree}
		}
		if m.entries++; m.entries > m.r.cfg.Limits.Entries {
			return nil, &PathError{Path: orRoot(printable(path)), Reason: TooManyFiles}
		}
		if _, twice := list[string(e.name)]; twice {
			return nil, &PathError{Path: orRoot(printable(path)), Reason: BadTree}
		}
		prev = e
		if e.isDir() {
			list[string(e.name)] = slot{dir: e}
		} else {
			list[string(e.name)] = slot{file: e}
		}
	}
	return list, nil
}

// data is the content of a tree, made or of the cache.
func (m *merger) data(h hash, path string) ([]byte, error) {
	if o, ok := m.made[h]; ok {
		return o.data, nil
	}
	b, err := readTree(m.cur, h)
	if err != nil {
		return nil, missing("directory "+printable(path), h, err)
	}
	return b, nil
}

// dir merges a directory, which each side may lack; the zero hash is an empty one.
func (m *merger) dir(base, left, right hash, path string, depth int) (hash, error) {
	switch {
	case base == right:
		return left, nil
	case left == right:
		m.gone.same = append(m.gone.same, goneDir{path: path, base: base, other: left})
		return left, nil
	case base == left:
		return right, nil
	case depth > maxDepth:
		return hash{}, &PathError{Path: printable(path), Reason: TooDeep}
	}
	if err := m.ctx.Err(); err != nil {
		return hash{}, err
	}
	o, err := m.read(base, path)
	if err != nil {
		return hash{}, err
	}
	a, err := m.read(left, path)
	if err != nil {
		return hash{}, err
	}
	b, err := m.read(right, path)
	if err != nil {
		return hash{}, err
	}
	m.gone.note(path, base, left, right)
	var entries []treeEntry
	for _, name := range names(o, a, b) {
		full := strings.TrimPrefix(path+"/"+name, "/")
		file, err := m.file(o[name].file, a[name].file, b[name].file, full)
		if err != nil {
			return hash{}, err
		}
		dir, err := m.dir(o[name].dir.hash, a[name].dir.hash, b[name].dir.hash, full, depth+1)
		if err != nil {
			return hash{}, err
		}
		if !dir.IsZero() {
			entries = append(entries, treeEntry{typeDir, []byte(name), dir})
		}
		if !file.hash.IsZero() {
			if !dir.IsZero() {
				m.conflict(full)
				continue
			}
			file.name = []byte(name)
			entries = append(entries, file)
		}
	}
	if len(entries) == 0 {
		return hash{}, nil
	}
	return m.add(plumbing.TreeObject, encodeTree(entries)), nil
}

func names(sides ...map[string]slot) []string {
	var list []string
	for _, s := range sides {
		for name := range s {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func encodeTree(entries []treeEntry) []byte {
	slices.SortFunc(entries, compareEntries)
	var buf bytes.Buffer
	for _, e := range entries {
		fmt.Fprintf(&buf, "%o %s\x00", uint32(e.mode), e.name)
		buf.Write(e.hash[:])
	}
	return buf.Bytes()
}

// file merges one file, which each side may lack.
func (m *merger) file(o, a, b treeEntry, path string) (treeEntry, error) {
	same := func(x, y treeEntry) bool { return x.hash == y.hash && x.mode == y.mode }
	switch {
	case same(a, b):
		if a.hash.IsZero() && !o.hash.IsZero() {
			m.gone.files = append(m.gone.files, goneFile{path, o})
		}
		return a, nil
	case same(o, b):
		return a, nil
	case same(o, a):
		return b, nil
	case a.hash.IsZero() || b.hash.IsZero():
		m.conflict(path) // changed here, removed there
		return o, nil
	case kind(a.mode) != typeRegular || kind(b.mode) != typeRegular:
		m.conflict(path)
		return o, nil
	}
	out := treeEntry{mode: b.mode}
	if a.mode != b.mode && a.mode != o.mode {
		if out.mode = a.mode; b.mode != o.mode {
			m.conflict(path)
		}
	}
	switch {
	case a.hash == b.hash || a.hash == o.hash:
		out.hash = b.hash
	case b.hash == o.hash:
		out.hash = a.hash
	default:
		h, err := m.content(o, a, b, path)
		if err != nil {
			return out, err
		}
		out.hash = h
	}
	return out, nil
}

// content merges the lines of three files.
func (m *merger) content(o, a, b treeEntry, path string) (hash, error) {
	var text [3][]byte
	for i, e := range []treeEntry{o, a, b} {
		if e.hash.IsZero() || kind(e.mode) != typeRegular {
			continue
		}
		data, err := m.blob(e.hash, path)
		if errors.Is(err, ErrTooLarge) || err == nil && bytes.IndexByte(data[:min(len(data), binaryHead)], 0) >= 0 {
			m.conflict(path)
			return a.hash, nil
		}
		if err != nil {
			return hash{}, err
		}
		text[i] = data
	}
	merged, ok := diff3.Merge(text[0], text[1], text[2])
	if !ok {
		m.conflict(path)
		return a.hash, nil
	}
	return m.add(plumbing.BlobObject, merged), nil
}

// binaryHead is how far into a file git looks for a NUL, which text has not.
const binaryHead = 8000

func (m *merger) blob(h hash, path string) ([]byte, error) {
	if o, ok := m.made[h]; ok {
		return o.data, nil
	}
	o, err := m.cur.Get(h, m.r.cfg.Limits.FileBytes)
	if err != nil {
		return nil, missing("file "+printable(path), h, err)
	}
	if o.Type != plumbing.BlobObject {
		return nil, &PathError{Path: printable(path), Reason: BadTree}
	}
	return o.Data, nil
}
