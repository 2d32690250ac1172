package gitrepo

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

const (
	headerSignature = "gpgsig "
	// headerOther is the signature of the same commit under its SHA-256 name,
	// which no signature covers.
	headerOther = "gpgsig-sha256 "
)

// Signed returns what the signature of a commit of the cache covers, and the
// signature as it stands in the commit, armored. The signature is nil if the
// commit has none. Whose it is, and whether it is good, is not looked at.
func (r *Repo) Signed(_ context.Context, rev string) (payload, signature []byte, err error) {
	if !plumbing.IsHash(rev) {
		return nil, nil, fmt.Errorf("%q: %w: not a full hash", rev, ErrRevisionMissing)
	}
	cur := r.db.NewCursor()
	if _, err := r.known(cur, rev); err != nil {
		return nil, nil, err
	}
	o, err := cur.Get(plumbing.NewHash(rev), maxCommit)
	if err != nil {
		return nil, nil, r.readError(err)
	}
	return splitSignature(o.Data)
}

// splitSignature takes the signature headers out of a commit, as git does to
// verify it: a header goes on in lines that start with a space.
func splitSignature(commit []byte) (payload, signature []byte, err error) {
	head := len(commit)
	if i := bytes.Index(commit, []byte("\n\n")); i >= 0 {
		head = i + 1
	}
	found, into := 0, &payload
	var dropped []byte
	for line := range bytes.Lines(commit[:head]) {
		switch {
		case bytes.HasPrefix(line, []byte(headerSignature)):
			found++
			into, line = &signature, line[len(headerSignature):]
		case bytes.HasPrefix(line, []byte(headerOther)):
			into = &dropped
		case line[0] != ' ':
			into = &payload
		case into == &signature:
			line = line[1:]
		}
		*into = append(*into, line...)
	}
	if found > 1 {
		return nil, nil, fmt.Errorf("it carries %d signatures", found)
	}
	return append(payload, commit[head:]...), signature, nil
}

// newCommit makes a commit object, signed if the options say so.
func newCommit(tree hash, parents []hash, message string, o PushOptions) (object, error) {
	clean := strings.NewReplacer("<", "", ">", "", "\n", " ", "\x00", "")
	who := fmt.Sprintf("%s <%s> %d +0000", clean.Replace(o.Name), clean.Replace(o.Email), o.When.Unix())
	var b strings.Builder
	fmt.Fprintf(&b, "tree %s\n", tree)
	for _, p := range parents {
		fmt.Fprintf(&b, "parent %s\n", p)
	}
	fmt.Fprintf(&b, "author %s\ncommitter %s\n", who, who)
	rest := "\n" + strings.TrimRight(message, "\n") + "\n"
	if o.Sign != nil {
		signature, err := o.Sign([]byte(b.String() + rest))
		if err != nil {
			return object{}, fmt.Errorf("sign the commit: %w", err)
		}
		lines := strings.TrimRight(string(signature), "\n")
		b.WriteString(headerSignature + strings.ReplaceAll(lines, "\n", "\n ") + "\n")
	}
	return newObject(plumbing.CommitObject, []byte(b.String()+rest)), nil
}
