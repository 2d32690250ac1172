package gitrepo

import (
	"bytes"
	"errors"
	"hash/maphash"
	"slices"
	"strings"
)

// gone is what a merge met that git, which follows renames, may see otherwise:
// files that both sides removed, and directories that one side removed and the
// other added to.
type gone struct {
	files []goneFile
	same  []goneDir // where both made the same of a directory: files may be gone, too
	dirs  []goneDir
}

type goneFile struct {
	path  string
	entry treeEntry
}

type goneDir struct {
	path    string
	base    hash
	other   hash // the directory where it still is
	removed side3
}

// side3 names a side of a merge.
type side3 int

const (
	ours side3 = iota
	theirs
)

func (g *gone) note(path string, base, left, right hash) {
	switch {
	case base.IsZero():
	case left.IsZero():
		g.dirs = append(g.dirs, goneDir{path, base, right, ours})
	case right.IsZero():
		g.dirs = append(g.dirs, goneDir{path, base, left, theirs})
	}
}

// suspectRenames turns into conflicts what would come out differently, or not at
// all, if what was removed was in truth renamed: a file that both removed, of
// which one kept a copy under another name; and a file added to a directory that
// the other side renamed.
func (m *merger) suspectRenames(base, left, right hash) error {
	removed := m.gone.files
	for _, d := range m.gone.same {
		if err := m.added(d.other, d.base, d.path, 0, &removed); err != nil {
			return err
		}
	}
	if len(removed) == 0 && len(m.gone.dirs) == 0 {
		return nil
	}
	var added [2][]goneFile
	for s, tree := range []hash{left, right} {
		if err := m.added(base, tree, "", 0, &added[s]); err != nil {
			return err
		}
	}
	for _, f := range removed {
		for s := range added {
			// What both added alike is no difference.
			targets := slices.DeleteFunc(slices.Clone(added[s]), func(t goneFile) bool {
				return slices.ContainsFunc(added[1-s], func(u goneFile) bool { return u.path == t.path && u.entry.hash == t.entry.hash })
			})
			if like, err := m.anyLike(f, targets); err != nil {
				return err
			} else if like {
				m.renamed(f.path)
			}
		}
	}
	for _, d := range m.gone.dirs {
		var news, olds []goneFile
		if err := m.added(d.base, d.other, d.path, 0, &news); err != nil {
			return err
		}
		if len(news) == 0 || len(added[d.removed]) == 0 {
			continue
		}
		if err := m.added(hash{}, d.base, d.path, 0, &olds); err != nil {
			return err
		}
		for _, f := range olds {
			if like, err := m.anyLike(f, added[d.removed]); err != nil {
				return err
			} else if like {
				m.renamed(news[0].path)
				break
			}
		}
	}
	return nil
}

func (m *merger) renamed(path string) {
	m.conflicts = append(m.conflicts, printable(path)+" (it may have been renamed)")
}

// added lists the files of a tree whose paths base has not.
func (m *merger) added(base, tree hash, path string, depth int, list *[]goneFile) error {
	if base == tree || tree.IsZero() {
		return nil
	}
	if depth > maxDepth {
		return &PathError{Path: printable(path), Reason: TooDeep}
	}
	if err := m.ctx.Err(); err != nil {
		return err
	}
	old, err := m.read(base, path)
	if err != nil {
		return err
	}
	now, err := m.read(tree, path)
	if err != nil {
		return err
	}
	for _, name := range names(now) {
		full := strings.TrimPrefix(path+"/"+name, "/")
		if e := now[name]; !e.dir.hash.IsZero() {
			if err := m.added(old[name].dir.hash, e.dir.hash, full, depth+1, list); err != nil {
				return err
			}
		} else if old[name].file.hash.IsZero() && kind(e.file.mode) != typeGitlink {
			*list = append(*list, goneFile{full, e.file})
		}
	}
	return nil
}

// alike is the part of a file's bytes that must stand, in whole lines, in
// another for the one to be taken for the other renamed. git asks for half;
// less is asked for here, so that what it takes for a rename is one here.
const alike = 0.4

// maxCompared bounds how many pairs of files are compared; beyond, what was
// removed counts as renamed.
const maxCompared = 100_000

func (m *merger) anyLike(f goneFile, targets []goneFile) (bool, error) {
	if m.compared += len(targets); m.compared > maxCompared {
		return len(targets) > 0, nil
	}
	for _, t := range targets {
		if t.entry.hash == f.entry.hash {
			return true, nil
		}
	}
	data, err := m.blob(f.entry.hash, f.path)
	if errors.Is(err, ErrTooLarge) {
		return len(targets) > 0, nil
	}
	if err != nil || len(data) == 0 {
		return false, err
	}
	for _, t := range targets {
		other, err := m.blob(t.entry.hash, t.path)
		if errors.Is(err, ErrTooLarge) {
			continue // too different in size
		}
		if err != nil {
			return false, err
		}
		if similarity(data, other) >= alike {
			return true, nil
		}
	}
	return false, nil
}

var lineSeed = maphash.MakeSeed()

// similarity is the share of the larger text that stands in the smaller, too.
func similarity(a, b []byte) float64 {
	if len(a) == 0 || len(b) == 0 || min(len(a), len(b)) < int(alike*float64(max(len(a), len(b)))) {
		return 0
	}
	count := map[uint64]int{}
	for chunk := range chunks(a) {
		count[maphash.Bytes(lineSeed, chunk)] += len(chunk)
	}
	shared := 0
	for chunk := range chunks(b) {
		if h := maphash.Bytes(lineSeed, chunk); count[h] > 0 {
			n := min(count[h], len(chunk))
			count[h] -= n
			shared += n
		}
	}
	return float64(shared) / float64(max(len(a), len(b)))
}

// chunks cuts a text into lines, and long lines into pieces.
func chunks(b []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(len(b), 64)
			if i := bytes.IndexByte(b[:n], '\n'); i >= 0 {
				n = i + 1
			}
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}
