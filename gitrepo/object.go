package gitrepo

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"

	"reconciler/gitrepo/internal/odb"
)

type hash = plumbing.Hash

// Commit is what a revision says of itself. Names, subject and date are the
// author's claim; only Hash and Tree are proof of anything.
type Commit struct {
	Hash        string
	Tree        string
	Parents     []string
	Author      string
	AuthorEmail string
	Committer   string
	Subject     string    // first line of the message, at most 200 bytes, valid UTF-8
	When        time.Time // committer's date

	committerEmail string
	tree           hash
	parents        []hash
}

const (
	maxCommit = 1 << 20
	maxTree   = 64 << 20
)

func readCommit(c *odb.Cursor, h hash) (Commit, error) {
	o, err := c.Get(h, maxCommit)
	if err != nil {
		return Commit{}, err
	}
	if o.Type != plumbing.CommitObject {
		return Commit{}, fmt.Errorf("object %s is a %s, not a commit", h, o.Type)
	}
	return parseCommit(h, o.Data)
}

func parseCommit(h hash, b []byte) (Commit, error) {
	bad := func(what string) (Commit, error) {
		return Commit{}, fmt.Errorf("commit %s: %w: %s", h, odb.ErrCorrupt, what)
	}
	c := Commit{Hash: h.String()}
	head, message, _ := bytes.Cut(b, []byte("\n\n"))
	// As git reads it, and with it whoever reviews: the tree comes first, then the
	// parents; headers of these names further on mean nothing.
	inOrder := true
	for line := range bytes.Lines(head) {
		key, val, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		switch {
		case c.Tree == "":
			if key != "tree" || !plumbing.IsHash(val) {
				return bad("no tree")
			}
			c.Tree, c.tree = val, plumbing.NewHash(val)
		case key == "parent" && inOrder:
			if !plumbing.IsHash(val) {
				return bad("malformed parent")
			}
			c.Parents = append(c.Parents, val)
			c.parents = append(c.parents, plumbing.NewHash(val))
		default:
			inOrder = false
			switch key {
			case "author":
				c.Author, c.AuthorEmail, _ = parseSignature(val)
			case "committer":
				c.Committer, c.committerEmail, c.When = parseSignature(val)
			}
		}
	}
	if c.Tree == "" {
		return bad("no tree")
	}
	subject, _, _ := strings.Cut(strings.TrimLeft(string(message), "\n"), "\n")
	if len(subject) > 200 {
		subject = subject[:200]
	}
	c.Subject = strings.ToValidUTF8(subject, "\uFFFD")
	return c, nil
}

// parseSignature reads "NAME <EMAIL> SECONDS ZONE" and forgives what it cannot.
func parseSignature(s string) (name, email string, when time.Time) {
	s = strings.ToValidUTF8(s, "\uFFFD")
	name, rest, _ := strings.Cut(s, " <")
	email, rest, _ = strings.Cut(rest, ">")
	if f := strings.Fields(rest); len(f) > 0 {
		if sec, err := strconv.ParseInt(f[0], 10, 64); err == nil && sec >= 0 && sec < 1<<40 {
			when = time.Unix(sec, 0).UTC()
		}
	}
	return name, email, when
}

// treeEntry is one entry of a tree object; name points into its data.
type treeEntry struct {
	mode filemode.FileMode
	name []byte
	hash hash
}

func (e treeEntry) isDir() bool { return kind(e.mode) == typeDir }

// readTree returns the raw content of a tree.
func readTree(c *odb.Cursor, h hash) ([]byte, error) {
	o, err := c.Get(h, maxTree)
	if err != nil {
		return nil, err
	}
	if o.Type != plumbing.TreeObject {
		return nil, fmt.Errorf("%w: object %s is a %s, not a tree", odb.ErrCorrupt, h, o.Type)
	}
	return o.Data, nil
}

// nextEntry decodes the first entry of a tree's content and returns the rest.
func nextEntry(b []byte) (e treeEntry, rest []byte, err error) {
	sp := bytes.IndexByte(b, ' ')
	if sp < 1 || sp > 7 {
		return e, nil, fmt.Errorf("%w: tree entry without a mode", odb.ErrCorrupt)
	}
	mode, err := strconv.ParseUint(string(b[:sp]), 8, 32)
	if err != nil {
		return e, nil, fmt.Errorf("%w: tree entry mode", odb.ErrCorrupt)
	}
	b = b[sp+1:]
	nul := bytes.IndexByte(b, 0)
	if nul < 0 || len(b) < nul+1+len(e.hash) {
		return e, nil, fmt.Errorf("%w: tree entry cut short", odb.ErrCorrupt)
	}
	e.mode, e.name = filemode.FileMode(mode), b[:nul]
	copy(e.hash[:], b[nul+1:])
	return e, b[nul+1+len(e.hash):], nil
}

func hashOf(s string) hash { return plumbing.NewHash(s) }
