// Package gitrepo follows one branch of a Git repository: it fetches over
// file://, http(s) and ssh into a bare cache, verifies that what came is whole,
// reads revisions at tree level without a checkout, and pushes the agent's own
// refs. It never writes the branch it follows, and it runs no git program.
package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"

	"reconciler/gitrepo/internal/odb"
)

// Config says what to follow and where to keep it.
type Config struct {
	// URL is file:///path, /path, http(s)://…, ssh://[user@]host[:port]/path or
	// user@host:path.
	URL string
	// Branch is followed; empty means the remote's HEAD.
	Branch string
	// Path is the directory of the repository to read; empty means all of it.
	Path string
	// CacheDir is ours alone, created if missing.
	CacheDir string

	// TokenFile holds an http(s) token ("user:token", or the token alone). It is
	// read anew for each operation, so a token can be rotated.
	TokenFile string
	// SSHKeyFile is an unencrypted private key, KnownHostsFile the only source
	// of trusted host keys. Both are required for ssh.
	SSHKeyFile, KnownHostsFile string
	// Write are the credentials for pushes, where they are not those for reading.
	Write Credentials
	// CAFile adds PEM certificates to those the system trusts.
	CAFile string

	// Timeout bounds each operation with the remote as a whole; default 60 s.
	// The first fetch into an empty cache may take CloneTimeout; default 10 × Timeout.
	Timeout, CloneTimeout time.Duration

	Limits Limits
}

// Credentials prove to a server who we are. The fields are as in Config.
type Credentials struct{ TokenFile, SSHKeyFile string }

func (c Config) withDefaults() (Config, error) {
	if c.Timeout <= 0 {
		c.Timeout = time.Minute
	}
	if c.CloneTimeout <= 0 {
		c.CloneTimeout = 10 * c.Timeout
	}
	c.Limits = c.Limits.withDefaults()
	var err error
	if c.Branch, err = CleanBranch(c.Branch); err != nil {
		return c, fmt.Errorf("branch: %w", err)
	}
	if c.Path, err = CleanPath(c.Path); err != nil {
		return c, fmt.Errorf("path: %w", err)
	}
	if err := CheckURL(c.URL); err != nil {
		return c, fmt.Errorf("repository: %w", err)
	}
	if c.CacheDir == "" {
		return c, errors.New("no cache directory")
	}
	return c, nil
}

// Repo is an open cache and its remote. It is safe for concurrent use; one
// process at a time may have a cache open.
type Repo struct {
	cfg    Config
	dir    string
	db     *odb.DB
	remote remote
	writer remote // the same, with the credentials for pushes
	lock   *os.File

	mu     sync.Mutex // held by what changes the cache or talks to the remote
	pushed map[string]pushedTip

	// keep is held while it is decided what the cache keeps. It is never held while
	// anybody talks to the remote, which may not answer.
	keep sync.Mutex
}

const (
	pinRef     = "refs/reconciler/good"
	damageMark = "damaged"
	sourceFile = "source"
)

// Open opens or creates the cache. It does not use the network: what was pinned
// can be read at once. Leftovers of a killed process are removed; if a pack is
// found torn, the next Fetch transfers everything anew.
func Open(cfg Config) (*Repo, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	rem, err := newRemote(cfg)
	if err != nil {
		return nil, err
	}
	writer, err := newWriter(cfg, rem)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
		return nil, err
	}
	r := &Repo{cfg: cfg, dir: cfg.CacheDir, remote: rem, writer: writer, pushed: make(map[string]pushedTip)}
	if r.lock, err = lockCache(cfg.CacheDir); err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("cache %s: %w", cfg.CacheDir, err), r.lock.Close())
	}
	return r, nil
}

func lockCache(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w%s", ErrCacheInUse, holder(f))
		}
		f.Close()
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return f, nil
}

// holder names the process that has a file locked, where the kernel tells of it.
func holder(f *os.File) string {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks") // proc_locks(5)
	if err != nil {
		return ""
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		if f := strings.Fields(line); len(f) > 5 && f[1] == "FLOCK" && f[5] == inode {
			words, err := os.ReadFile("/proc/" + f[4] + "/cmdline")
			if err != nil {
				return ""
			}
			command := strings.ReplaceAll(strings.TrimRight(string(words), "\x00"), "\x00", " ")
			return fmt.Sprintf(": %s, %.100q", f[4], command)
		}
	}
	return ""
}

func (r *Repo) open() error {
	// HEAD and refs make the cache a repository that git can inspect.
	if err := os.MkdirAll(filepath.Join(r.dir, "refs"), 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(r.dir, "HEAD"), "ref: refs/heads/none\n"); err != nil {
		return err
	}
	db, removed, err := odb.OpenCache(filepath.Join(r.dir, "objects"))
	if err != nil {
		return err
	}
	r.db = db
	for _, name := range removed {
		// A pack without its index is the trace of a crash before the pack
		// counted; an index that was thrown out took published objects along.
		if strings.HasSuffix(name, ".idx") && !strings.HasPrefix(name, "tmp_") {
			if err := r.markDamaged(); err != nil {
				return err
			}
		}
	}
	for _, ref := range []string{r.tipRef(), pinRef} {
		name, err := r.readRef(ref)
		if errors.Is(err, errNoHash) { // what it held is found again with the next fetch
			err = errors.Join(r.deleteRef(ref), r.markDamaged())
		}
		if err != nil {
			return err
		}
		if name != "" && !db.Has(plumbing.NewHash(name)) {
			if err := r.markDamaged(); err != nil {
				return err
			}
		}
	}
	// Another URL or branch shares objects and the pin, not the notion of what
	// is newest.
	source := Redact(r.cfg.URL) + "\n" + r.cfg.Branch + "\n"
	path := filepath.Join(r.dir, sourceFile)
	if b, err := os.ReadFile(path); err != nil || string(b) != source {
		if err := errors.Join(r.deleteRef(r.tipRef()), writeFile(path, source)); err != nil {
			return err
		}
	}
	return nil
}

// Close releases the cache.
func (r *Repo) Close() error { return r.lock.Close() }

func (r *Repo) tipRef() string { return "refs/remotes/origin/tip" }

// Newest is the commit the last successful Fetch found, "" if there was none.
// It survives restarts.
func (r *Repo) Newest() (string, error) { return r.readRef(r.tipRef()) }

// Pin keeps a commit of the cache, and all it needs, until another is pinned:
// it can be read without network and after upstream has dropped it.
func (r *Repo) Pin(rev string) error {
	r.keep.Lock()
	defer r.keep.Unlock()
	if !plumbing.IsHash(rev) {
		return fmt.Errorf("%q: %w: not a full hash", rev, ErrRevisionMissing)
	}
	if _, err := readCommit(r.db.NewCursor(), plumbing.NewHash(rev)); err != nil {
		return r.readError(err)
	}
	return r.writeRef(pinRef, rev)
}

// Unpin lets the pinned commit go.
func (r *Repo) Unpin() error {
	r.keep.Lock()
	defer r.keep.Unlock()
	return r.deleteRef(pinRef)
}

// Pinned is the pinned commit's hash, "" if there is none.
func (r *Repo) Pinned() (string, error) { return r.readRef(pinRef) }

// markDamaged makes the next fetch trust nothing the cache has. It survives
// restarts until that fetch is complete.
func (r *Repo) markDamaged() error {
	return writeFile(filepath.Join(r.dir, damageMark), "")
}

func (r *Repo) damaged() bool {
	_, err := os.Lstat(filepath.Join(r.dir, damageMark))
	return err == nil
}

// readError notes damage that reading has found, so that the next fetch repairs it.
func (r *Repo) readError(err error) error {
	if err == nil || !errors.Is(err, odb.ErrCorrupt) && !errors.Is(err, ErrIncomplete) {
		return err
	}
	return errors.Join(fmt.Errorf("cache %s: %w", r.dir, err), r.markDamaged())
}

// deadline derives the context of one operation with the remote.
func (r *Repo) deadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w: %s: no result within %s", ErrUnreachable, Redact(r.cfg.URL), d))
}
