package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
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

// Limits bound a revision. Zero fields mean the defaults.
type Limits struct {
	FileBytes  int64 // of one YAML file; default 1 MiB
	TotalBytes int64 // of all files of one Load; default 512 MiB
	Files      int   // YAML files; default 250,000
	Entries    int   // all entries visited, directories too; default 1,000,000
	FetchBytes int64 // of one fetched pack; default 1 GiB
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.FileBytes, 1<<20)
	set(&l.TotalBytes, 512<<20)
	set(&l.FetchBytes, 1<<30)
	if l.Files == 0 {
		l.Files = 250_000
	}
	if l.Entries == 0 {
		l.Entries = 1_000_000
	}
	return l
}

// Files lists the YAML files (*.yaml, *.yml) under the configured path at a
// commit the cache has. Names that start with a dot are left out, with all they
// contain. A symbolic link, a submodule or an unsafe name elsewhere is a
// *PathError: what it hides could be specs, and specs that vanish are deletions.
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
		switch class, err := classify(e, name); {
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
		if err := checkName(e.name); err != "" {
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

// checkName refuses names that are unsafe as a path component anywhere: what git
// itself refuses to check out, and what would mislead in a message.
func checkName(b []byte) Reason {
	name := string(b)
	switch {
	case name == "", name == ".", name == "..", len(name) > maxName,
		strings.EqualFold(name, ".git"), strings.ContainsAny(name, "/\\\x00"):
		return BadName
	case !utf8.ValidString(name):
		return NotUTF8
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return BadName
		}
	}
	return ""
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

func classify(e treeEntry, name string) (class, error) {
	switch kind(e.mode) {
	case typeDir:
		return isDir, nil
	case typeRegular:
		if ext := path.Ext(name); ext == ".yaml" || ext == ".yml" {
			return isYAML, nil
		}
		return isOther, nil
	case typeSymlink:
		return 0, &PathError{Path: name, Reason: Symlink, Hint: "links are not followed; commit the file itself, or set the path to a directory without links"}
	case typeGitlink:
		return 0, &PathError{Path: name, Reason: Submodule, Hint: "submodules are not read; commit the files themselves"}
	}
	return 0, &PathError{Path: name, Reason: BadTree}
}
