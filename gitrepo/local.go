package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"

	"reconciler/gitrepo/internal/odb"
)

// local is a repository on this machine, bare or with a work tree, read without
// a git process.
type local struct {
	path string

	mu sync.Mutex
	db *odb.DB // of the repository that dir was when last opened
	at string
}

// localDirs finds a repository's own directory (HEAD) and the one that holds
// objects and refs; they differ for linked work trees.
func localDirs(path string) (gitDir, commonDir string, err error) {
	gitDir = path
	if st, err := os.Stat(filepath.Join(path, ".git")); err == nil {
		gitDir = filepath.Join(path, ".git")
		if !st.IsDir() {
			b, err := os.ReadFile(gitDir)
			target, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "gitdir: ")
			if err != nil || !ok {
				return "", "", fmt.Errorf("%w: malformed .git file", ErrRepositoryMissing)
			}
			if gitDir = target; !filepath.IsAbs(target) {
				gitDir = filepath.Join(path, target)
			}
		}
	}
	commonDir = gitDir
	if b, err := os.ReadFile(filepath.Join(gitDir, "commondir")); err == nil {
		if commonDir = strings.TrimSpace(string(b)); !filepath.IsAbs(commonDir) {
			commonDir = filepath.Join(gitDir, commonDir)
		}
	}
	for _, need := range []string{filepath.Join(gitDir, "HEAD"), filepath.Join(commonDir, "objects")} {
		if _, err := os.Stat(need); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return "", "", ErrRepositoryMissing
			}
			return "", "", err
		}
	}
	return gitDir, commonDir, nil
}

type localSession struct {
	gitDir, commonDir string
	db                *odb.DB
}

func (l *local) open() (*localSession, error) {
	gitDir, commonDir, err := localDirs(l.path)
	if err != nil {
		return nil, err
	}
	if err := supported(commonDir); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	objects := filepath.Join(commonDir, "objects")
	if l.db == nil || l.at != objects {
		if l.db, err = odb.OpenRepository(objects); err != nil {
			l.db = nil
			return nil, err
		}
		l.at = objects
	} else if err := l.db.Refresh(); err != nil {
		return nil, err
	}
	return &localSession{gitDir, commonDir, l.db}, nil
}

// supported refuses formats that would look like an empty repository to us.
func supported(commonDir string) error {
	if _, err := os.Stat(filepath.Join(commonDir, "reftable")); err == nil {
		return fmt.Errorf("%w: the reftable format is not supported", ErrProtocol)
	}
	b, err := os.ReadFile(filepath.Join(commonDir, "config"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if format := extension(string(b), "objectformat"); format != "" && format != "sha1" {
		return fmt.Errorf("%w: %w: its objects are named by %s", ErrProtocol, errObjectFormat, strconv.Quote(format))
	}
	return nil
}

// extension is the value of extensions.NAME in a repository's configuration, in
// small letters. git keeps these in the file itself, never in one it includes.
func extension(config, name string) (value string) {
	inside := false
	config = strings.ReplaceAll(config, "\\\n", " ") // a value that goes on
	for line := range strings.Lines(config) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section, rest, _ := strings.Cut(line, "]")
			inside, line = strings.EqualFold(section, "[extensions"), strings.TrimSpace(rest)
		}
		key, val, _ := strings.Cut(line, "=")
		if inside && strings.EqualFold(strings.TrimSpace(key), name) {
			if i := strings.IndexAny(val, "#;"); i >= 0 {
				val = val[:i]
			}
			value = strings.ToLower(strings.Trim(val, "\" \t\r\n")) // the last one counts
		}
	}
	return value
}

func (l *local) upload(context.Context) (upload, error)   { return l.open() }
func (l *local) receive(context.Context) (receive, error) { return l.open() }

func (s *localSession) close() {}

func (s *localSession) ref(name string) (h hash, ok bool, err error) {
	for range 5 {
		dir := s.commonDir
		if name == "HEAD" {
			dir = s.gitDir
		} else if !validRef(name) {
			return h, false, fmt.Errorf("%q is not a valid ref name", name)
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOTDIR) {
			return s.packedRef(name)
		}
		if err != nil {
			return h, false, err
		}
		val := strings.TrimSpace(string(b))
		if target, ok := strings.CutPrefix(val, "ref:"); ok {
			name = strings.TrimSpace(target)
			continue
		}
		if !plumbing.IsHash(val) {
			return h, false, fmt.Errorf("%w: %s does not hold a hash", ErrIncomplete, name)
		}
		return plumbing.NewHash(val), true, nil
	}
	return h, false, fmt.Errorf("%s: symbolic refs nest too deep", name)
}

func (s *localSession) names() (list []string) {
	if b, err := os.ReadFile(filepath.Join(s.commonDir, "packed-refs")); err == nil {
		for line := range strings.Lines(string(b)) {
			if val, ref, ok := strings.Cut(strings.TrimSpace(line), " "); ok && plumbing.IsHash(val) {
				list = append(list, ref)
			}
		}
	}
	_ = fs.WalkDir(os.DirFS(s.commonDir), "refs", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && validRef(name) {
			list = append(list, name)
		}
		return nil
	})
	return list
}

func (s *localSession) peeled(name string) (h hash, ok bool, err error) {
	if h, ok, err = s.ref(name); err != nil || !ok {
		return h, ok, err
	}
	for range 5 {
		o, err := s.db.NewCursor().Get(h, maxCommit)
		if err != nil {
			return h, false, missing(name, h, err)
		}
		if o.Type != plumbing.TagObject {
			return h, true, nil
		}
		line, _, _ := strings.Cut(string(o.Data), "\n")
		target := strings.TrimPrefix(line, "object ")
		if !plumbing.IsHash(target) {
			return h, false, fmt.Errorf("%w: malformed tag %s", ErrIncomplete, name)
		}
		h = plumbing.NewHash(target)
	}
	return h, false, fmt.Errorf("%s: tags nest too deep", name)
}

func (s *localSession) packedRef(name string) (h hash, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(s.commonDir, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return h, false, nil
	}
	if err != nil {
		return h, false, err
	}
	for line := range strings.Lines(string(b)) {
		val, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		if ref == name && plumbing.IsHash(val) {
			return plumbing.NewHash(val), true, nil
		}
	}
	return h, false, nil
}

func (s *localSession) fetch(ctx context.Context, db *odb.DB, limits odb.Limits, want hash, _ []hash, have func(hash) bool) (*odb.Staged, error) {
	list, err := closure(ctx, s.db, []hash{want}, have)
	if errors.Is(err, ErrIncomplete) {
		// git gc may have moved objects into a pack while we looked.
		if err := s.db.Refresh(); err != nil {
			return nil, err
		}
		list, err = closure(ctx, s.db, []hash{want}, have)
	}
	if err != nil {
		if _, shallow := os.Stat(filepath.Join(s.commonDir, "shallow")); shallow == nil && errors.Is(err, ErrIncomplete) {
			err = fmt.Errorf("%w (the repository is a shallow clone; a full one is needed)", err)
		}
		return nil, err
	}
	return copyObjects(ctx, db, s.db, limits, list)
}

// copyObjects stages a pack of objects of another database, or of the same one.
func copyObjects(ctx context.Context, db, src *odb.DB, limits odb.Limits, list []hash) (*odb.Staged, error) {
	w, err := db.NewWriter(limits)
	if err != nil {
		return nil, err
	}
	cur := src.NewCursor()
	for _, i := range src.Order(len(list), func(i int) hash { return list[i] }) {
		err := ctx.Err()
		if err == nil {
			err = w.Copy(cur, list[i])
		}
		if err != nil {
			return nil, errors.Join(missing("object", list[i], err), w.Abort())
		}
	}
	return w.Finish()
}

// WatchPaths are the directories in which a push to a local repository shows:
// watch them for any event and fetch. It is nil for other remotes. Directories
// come and go (git packs refs), so ask again after each event.
func (r *Repo) WatchPaths() []string {
	l, ok := r.remote.(*local)
	if !ok {
		return nil
	}
	gitDir, commonDir, err := localDirs(l.path)
	if err != nil {
		return nil
	}
	paths := []string{commonDir} // packed-refs, HEAD
	if gitDir != commonDir {
		paths = append(paths, gitDir)
	}
	ref := "refs/heads/" + r.cfg.Branch
	if r.cfg.Branch == "" {
		ref = "refs/heads"
		if b, err := os.ReadFile(filepath.Join(gitDir, "HEAD")); err == nil {
			if target, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "ref: "); ok && validRef(target) {
				ref = target
			}
		}
	}
	// The nearest directory that exists: where the missing one would appear.
	dir := filepath.Dir(filepath.Join(commonDir, ref))
	for dir != commonDir {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return append(paths, dir)
		}
		dir = filepath.Dir(dir)
	}
	return paths
}
