package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
	"reconciler/spec"
)

// BlobHash names the content of a file: equal hashes are equal bytes.
type BlobHash = plumbing.Hash

// File is a YAML file of a revision. Path is relative to the repository's root,
// with slashes.
type File struct {
	Path string
	Blob BlobHash
}

// Tree is the set of YAML files of one revision, sorted by path. It holds names
// and hashes, no content, and does not change.
type Tree struct {
	Commit Commit
	Files  []File

	repo *Repo
}

// Limits bound a revision. Zero fields mean the defaults, which are package
// spec's.
type Limits struct {
	FileBytes  int64 // of one YAML file
	TotalBytes int64 // of all files of one Load
	Files      int   // YAML files
	Entries    int   // all entries visited, directories too
	FetchBytes int64 // of one fetched pack; default 1 GiB
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.FileBytes, spec.MaxFileSize)
	set(&l.TotalBytes, spec.MaxTreeBytes)
	set(&l.FetchBytes, 1<<30)
	if l.Files == 0 {
		l.Files = spec.MaxFiles
	}
	if l.Entries == 0 {
		l.Entries = spec.MaxEntries
	}
	return l
}

// Files lists the spec files under the configured path at a commit the cache
// has, by the rules of spec.UseOf; what they refuse is a *PathError.
func (r *Repo) Files(ctx context.Context, rev string) (*Tree, error) {
	c, root, dir, err := r.root(ctx, rev)
	if err != nil {
		return nil, err
	}
	s := &scan{ctx: ctx, cur: r.db.NewCursor(), limits: r.cfg.Limits}
	if err := s.dir(root, dir, 0); err != nil {
		return nil, r.readError(err)
	}
	return &Tree{Commit: c, Files: s.files, repo: r}, nil
}

// root reads a commit and descends to the configured path.
func (r *Repo) root(ctx context.Context, rev string) (c Commit, root hash, dir string, err error) {
	if err := ctx.Err(); err != nil {
		return c, root, dir, err
	}
	if !plumbing.IsHash(rev) {
		return c, root, dir, fmt.Errorf("%s: %w: not a full hash", strconv.Quote(rev), ErrRevisionMissing)
	}
	cur := r.db.NewCursor()
	if c, err = readCommit(cur, plumbing.NewHash(rev)); err != nil {
		if errors.Is(err, odb.ErrNotFound) {
			err = fmt.Errorf("%.12s: %w in the cache", rev, ErrRevisionMissing)
		}
		return c, root, dir, r.readError(err)
	}
	root = c.tree
	if r.cfg.Path == "" {
		return c, root, "", nil
	}
	for _, name := range strings.Split(r.cfg.Path, "/") {
		dir = path.Join(dir, name)
		b, err := readTree(cur, root)
		if err != nil {
			return c, root, dir, r.readError(err)
		}
		found := false
		for len(b) > 0 && !found {
			var e treeEntry
			if e, b, err = nextEntry(b); err != nil {
				return c, root, dir, &PathError{Path: dir, Reason: BadTree}
			}
			if string(e.name) == name && kind(e.mode) == typeDir {
				root, found = e.hash, true
			}
		}
		if !found {
			return c, root, dir, &PathError{Path: dir, Reason: NotADir, Hint: "the configured path is not in revision " + c.Hash[:12]}
		}
	}
	return c, root, dir, nil
}

// scan walks one tree.
type scan struct {
	ctx     context.Context
	cur     *odb.Cursor
	limits  Limits
	files   []File
	entries int
}

func (s *scan) dir(h hash, dir string, depth int) error {
	if depth > maxDepth {
		return &PathError{Path: dir, Reason: TooDeep}
	}
	if err := s.ctx.Err(); err != nil {
		return err
	}
	b, err := readTree(s.cur, h)
	if err != nil {
		return missing("directory "+dir, h, err)
	}
	return eachEntry(b, dir, func(e treeEntry, name string) error {
		if s.entries++; s.entries > s.limits.Entries {
			return &PathError{Path: dir, Reason: TooManyFiles, Hint: fmt.Sprintf("at most %d entries are visited", s.limits.Entries)}
		}
		switch class, err := classify(s.cur, e, name); {
		case err != nil:
			return err
		case class == isDir:
			return s.dir(e.hash, name, depth+1)
		case class == isYAML:
			if len(s.files) == s.limits.Files {
				return &PathError{Path: name, Reason: TooManyFiles, Hint: fmt.Sprintf("at most %d YAML files", s.limits.Files)}
			}
			s.files = append(s.files, File{Path: name, Blob: e.hash})
		}
		return nil
	})
}

// eachEntry calls fn for each entry of a tree's content, in git's order, which
// it enforces: an unordered tree can hide or repeat names. Entries whose name
// starts with a dot are checked and left out.
func eachEntry(b []byte, dir string, fn func(e treeEntry, name string) error) error {
	var prev treeEntry
	for len(b) > 0 {
		e, rest, err := nextEntry(b)
		if err != nil || prev.name != nil && compareEntries(prev, e) >= 0 {
			return &PathError{Path: orRoot(dir), Reason: BadTree}
		}
		b, prev = rest, e
		full := path.Join(dir, string(e.name))
		if err := checkPlace(e.name); err != "" {
			return &PathError{Path: printable(dir + "/" + string(e.name)), Reason: err}
		}
		if e.name[0] == '.' {
			continue
		}
		if err := fn(e, full); err != nil {
			return err
		}
	}
	return nil
}

func orRoot(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}

// compareEntries is git's order: directories sort as if their name ended in a slash.
func compareEntries(a, b treeEntry) int {
	n := min(len(a.name), len(b.name))
	if c := strings.Compare(string(a.name[:n]), string(b.name[:n])); c != 0 {
		return c
	}
	at := func(e treeEntry) int {
		switch {
		case len(e.name) > n:
			return int(e.name[n])
		case e.isDir():
			return '/'
		}
		return 0
	}
	if c := at(a) - at(b); c != 0 {
		return c
	}
	return len(a.name) - len(b.name)
}

const maxName = 255

// checkPlace refuses names that are unsafe as a path component anywhere: what
// git itself refuses to check out.
func checkPlace(b []byte) Reason {
	name := string(b)
	if name == "" || name == "." || name == ".." || len(name) > maxName ||
		strings.EqualFold(name, ".git") || strings.ContainsAny(name, "/\x00") {
		return BadName
	}
	return ""
}

// checkName refuses those and what would mislead in a message.
func checkName(b []byte) Reason {
	if reason := checkPlace(b); reason != "" {
		return reason
	}
	return Reason(spec.UnfitName(string(b)))
}

// printable quotes what would garble a terminal or a log.
func printable(p string) string {
	p = strings.TrimPrefix(p, "/")
	if checkName([]byte(strings.ReplaceAll(p, "/", "-"))) != "" && p != "" {
		return strconv.QuoteToASCII(p)
	}
	return p
}

type class int

const (
	isOther class = iota
	isDir
	isYAML
)

func classify(cur *odb.Cursor, e treeEntry, name string) (class, error) {
	var t spec.EntryType
	switch kind(e.mode) {
	case typeDir:
		t = spec.DirEntry
	case typeRegular:
		t = spec.FileEntry
	case typeSymlink:
		t = spec.LinkEntry
	case typeGitlink:
		t = spec.SubmoduleEntry
	default:
		return 0, &PathError{Path: printable(name), Reason: BadTree}
	}
	use, refused := spec.UseOf(name, t, func() (string, error) {
		o, err := cur.Get(e.hash, maxTarget)
		return string(o.Data), err
	})
	switch {
	case refused != nil:
		return 0, &PathError{Path: printable(name), Reason: Reason(refused.Reason), Hint: refused.Msg + "; " + refused.Hint}
	case use == spec.ReadDir:
		return isDir, nil
	case use == spec.ReadFile:
		return isYAML, nil
	}
	return isOther, nil
}

// maxTarget is what Linux takes for the target of a link, PATH_MAX.
const maxTarget = 4096
