package gitrepo

import (
	"context"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// remote is where the branch comes from.
type remote interface {
	upload(context.Context) (upload, error)
	receive(context.Context) (receive, error)
}

// upload is one conversation in which we may take objects.
type upload interface {
	// ref looks up a full ref name, or HEAD.
	ref(name string) (h hash, ok bool, err error)
	// names lists the full names of branches and tags.
	names() []string
	// peeled is ref, and for an annotated tag the commit it points to.
	peeled(name string) (h hash, ok bool, err error)
	// fetch stages the objects of want that the cache lacks.
	fetch(ctx context.Context, db *odb.DB, limits odb.Limits, want hash, haves []hash, have func(hash) bool) (*odb.Staged, error)
	close()
}

// receive is one conversation in which we may give objects.
type receive interface {
	ref(name string) (h hash, ok bool, err error)
	// push stores objects and moves a ref from old to new, or removes it if new
	// is zero; it fails with ErrRefChanged if the ref is not at old.
	push(ctx context.Context, name string, old, new hash, objects []object) error
	close()
}

// object is one we made.
type object struct {
	typ  plumbing.ObjectType
	hash hash
	data []byte
}

func newObject(typ plumbing.ObjectType, data []byte) object {
	return object{typ, plumbing.ComputeHash(typ, data), data}
}

// newWriter is the remote for those who may push there.
func newWriter(cfg Config, reader remote) (remote, error) {
	if _, local := localPath(cfg.URL); local || cfg.Write == (Credentials{}) {
		return reader, nil
	}
	cfg.TokenFile, cfg.SSHKeyFile = cfg.Write.TokenFile, cfg.Write.SSHKeyFile
	return newNetwork(cfg)
}

func newRemote(cfg Config) (remote, error) {
	if path, ok := localPath(cfg.URL); ok {
		return &local{path: filepath.Clean(path)}, nil
	}
	return newNetwork(cfg)
}

// localPath tells paths and file:// URLs from the rest.
func localPath(raw string) (string, bool) {
	if rest, ok := strings.CutPrefix(raw, "file://"); ok {
		rest = strings.TrimPrefix(rest, "localhost")
		if p, err := url.PathUnescape(rest); err == nil {
			rest = p
		}
		return rest, true
	}
	if strings.Contains(raw, "://") {
		return "", false
	}
	// user@host:path, as git: a colon before the first slash.
	if colon := strings.IndexByte(raw, ':'); colon > 0 && !strings.Contains(raw[:colon], "/") {
		return "", false
	}
	return raw, true
}
