package gitrepo

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"reconciler/gitrepo/internal/odb"
	"reconciler/gitrepo/internal/wire"
	"reconciler/spec"
)

// Errors of the remote side. Every error that Fetch, Commit and PushFiles
// return for a remote matches at most one of them with errors.Is; what matches
// none is local (disk, damaged cache, bad arguments).
var (
	// ErrUnreachable is a network, server (5xx, 429) or deadline failure:
	// trying again later may help, and nothing is known of the branch.
	ErrUnreachable = wire.ErrUnreachable
	// ErrAuth is a refused, missing or insufficient credential.
	ErrAuth = wire.ErrAuth
	// ErrHostKey is an ssh host key that is not in, or differs from, known_hosts.
	ErrHostKey = wire.ErrHostKey
	// ErrCertificate is a TLS certificate that does not verify.
	ErrCertificate = wire.ErrCertificate
	// ErrRepositoryMissing is an answer that there is no such repository.
	ErrRepositoryMissing = wire.ErrRepositoryMissing
	// ErrProtocol is an answer that is not Git's.
	ErrProtocol = wire.ErrProtocol
	// ErrBranchMissing is a repository without the configured branch.
	ErrBranchMissing = errors.New("branch not found")
	// ErrRevisionMissing is a revision that neither cache nor remote has.
	ErrRevisionMissing = errors.New("revision not found")
	// ErrAmbiguous is an abbreviated hash that several commits match.
	ErrAmbiguous = odb.ErrAmbiguous
	// ErrIncomplete is a branch whose commits, trees or files are not all
	// there: a push cut off half-way, a damaged or a shallow repository.
	ErrIncomplete = errors.New("repository is incomplete")
	// ErrTooLarge is a pack, object or file over its limit.
	ErrTooLarge = odb.ErrTooLarge
	// ErrRefChanged is a ref somebody else moved while we pushed.
	ErrRefChanged = wire.ErrStale
	// ErrForeignTip is a ref whose tip was not written by us.
	ErrForeignTip = errors.New("tip is not ours")
	// ErrRejected is a push the server refused by its own rules.
	ErrRejected = wire.ErrRejected
	// ErrCacheInUse is a cache directory another process holds.
	ErrCacheInUse = errors.New("cache is in use by another process")
)

var errObjectFormat = errors.New("only repositories with SHA-1 names are read")

// NonFastForwardError says that the branch no longer contains the pinned
// commit: it was rewritten or moved back. The commit that Fetch returns with it
// is complete and can be read.
type NonFastForwardError struct {
	Branch   string
	Old, New string
}

func (e *NonFastForwardError) Error() string {
	return fmt.Sprintf("branch %s was rewritten: %.12s does not contain %.12s", e.Branch, e.New, e.Old)
}

// Reason classifies what is wrong with an entry of a tree.
type Reason string

const (
	Symlink      Reason = spec.ReasonLink
	Submodule    Reason = spec.ReasonSubmodule
	BadName      Reason = spec.ReasonName
	NotUTF8      Reason = spec.ReasonNotUTF8
	OverSize     Reason = "file too large"
	OverTotal    Reason = "files too large together"
	TooManyFiles Reason = "too many files"
	TooDeep      Reason = "directories nested too deep"
	BadTree      Reason = "malformed tree"
	NotADir      Reason = "not a directory"
)

// PathError is an entry of the tree that is refused. Path is relative to the
// repository's root and safe to print.
type PathError struct {
	Path   string
	Reason Reason
	Hint   string
}

func (e *PathError) Error() string {
	s := e.Path + ": " + string(e.Reason)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Redact returns a repository URL without user, password, query and fragment,
// for messages and status.
func Redact(raw string) string {
	u, err := url.Parse(raw)
	if err == nil && u.Scheme != "" {
		if u.Scheme == "ssh" && u.User != nil {
			u.User = url.User(u.User.Username())
		} else {
			u.User = nil
		}
		u.RawQuery, u.Fragment = "", ""
		return u.String()
	}
	if i := strings.Index(raw, "://"); i >= 0 {
		rest := raw[i+3:]
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			rest = rest[at+1:]
		}
		return raw[:i+3] + rest
	}
	return raw
}
