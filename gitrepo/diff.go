package gitrepo

import (
	"context"
	"slices"
	"strings"

	"reconciler/gitrepo/internal/odb"
)

// Change is a YAML file that differs between two revisions. Old or New is zero
// where the file did not or does not exist.
type Change struct {
	Path     string
	Old, New BlobHash
}

// Changes lists, sorted by path, the YAML files under the configured path that
// differ between two commits of the cache. It reads only directories whose
// hashes differ. What Files refuses is refused in the directories it reads of
// the new revision.
func (r *Repo) Changes(ctx context.Context, old, new string) ([]Change, error) {
	_, from, _, err := r.root(ctx, old)
	if err != nil {
		return nil, err
	}
	_, to, dir, err := r.root(ctx, new)
	if err != nil {
		return nil, err
	}
	return r.changes(ctx, from, to, dir)
}

func (r *Repo) changes(ctx context.Context, from, to hash, dir string) ([]Change, error) {
	d := &differ{ctx: ctx, cur: r.db.NewCursor(), limits: r.cfg.Limits}
	if err := d.dir(from, to, dir, 0); err != nil {
		return nil, r.readError(err)
	}
	return d.list, nil
}

// Update is Files for a revision that is close to one already read: it costs
// what changed, and returns that too.
func (r *Repo) Update(ctx context.Context, prev *Tree, rev string) (*Tree, []Change, error) {
	_, from, _, err := r.root(ctx, prev.Commit.Hash)
	if err != nil {
		return nil, nil, err
	}
	c, to, dir, err := r.root(ctx, rev)
	if err != nil {
		return nil, nil, err
	}
	changes, err := r.changes(ctx, from, to, dir)
	if err != nil {
		return nil, nil, err
	}
	t := &Tree{Commit: c, Files: prev.Files, repo: r}
	if len(changes) > 0 {
		t.Files = merge(prev.Files, changes)
	}
	if len(t.Files) > r.cfg.Limits.Files {
		return nil, nil, &PathError{Path: orRoot(dir), Reason: TooManyFiles}
	}
	return t, changes, nil
}

// merge applies changes to files; both are sorted by path.
func merge(files []File, changes []Change) []File {
	out := make([]File, 0, len(files)+len(changes))
	for _, c := range changes {
		i, same := slices.BinarySearchFunc(files, c.Path, func(f File, p string) int { return strings.Compare(f.Path, p) })
		out = append(out, files[:i]...)
		if same {
			i++
		}
		files = files[i:]
		if !c.New.IsZero() {
			out = append(out, File{c.Path, c.New})
		}
	}
	return append(out, files...)
}

type differ struct {
	ctx     context.Context
	cur     *odb.Cursor
	limits  Limits
	list    []Change
	entries int
}

type side struct {
	treeEntry
	path  string
	class class
}

// read lists a directory that may be absent. The old revision was checked when
// it was new, or refused then; here its faults are only left out.
func (d *differ) read(h hash, dir string, isNew bool) ([]side, error) {
	if h.IsZero() {
		return nil, nil
	}
	b, err := readTree(d.cur, h)
	if err != nil {
		return nil, missing("directory "+dir, h, err)
	}
	var list []side
	err = eachEntry(b, dir, func(e treeEntry, name string) error {
		if d.entries++; d.entries > 2*d.limits.Entries {
			return &PathError{Path: orRoot(dir), Reason: TooManyFiles}
		}
		class, err := classify(d.cur, e, name)
		if err != nil && isNew {
			return err
		}
		list = append(list, side{e, name, class})
		return nil
	})
	if err != nil && !isNew {
		err = d.ctx.Err()
	}
	return list, err
}

func (d *differ) dir(from, to hash, dir string, depth int) error {
	if from == to {
		return nil
	}
	if depth > maxDepth {
		return &PathError{Path: dir, Reason: TooDeep}
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	a, err := d.read(from, dir, false)
	if err != nil {
		return err
	}
	b, err := d.read(to, dir, true)
	if err != nil {
		return err
	}
	for len(a) > 0 || len(b) > 0 {
		var old, new side
		switch c := order(a, b); {
		case c < 0:
			old, a = a[0], a[1:]
		case c > 0:
			new, b = b[0], b[1:]
		default:
			old, a = a[0], a[1:]
			new, b = b[0], b[1:]
		}
		if err := d.pair(old, new, depth); err != nil {
			return err
		}
	}
	return nil
}

func order(a, b []side) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return compareEntries(a[0].treeEntry, b[0].treeEntry)
}

// pair compares one name; a directory and a file of one name never meet here,
// as git sorts them apart.
func (d *differ) pair(old, new side, depth int) error {
	if old.class == isDir || new.class == isDir {
		return d.dir(old.hash, new.hash, max(old.path, new.path), depth+1)
	}
	c := Change{Path: max(old.path, new.path)}
	if old.class == isYAML {
		c.Old = old.hash
	}
	if new.class == isYAML {
		c.New = new.hash
	}
	if c.Old != c.New {
		d.list = append(d.list, c)
	}
	return nil
}
