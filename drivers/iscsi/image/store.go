// Package image keeps verified copies of images and writes them to new volumes.
// What an image says of itself is not trusted: its content is the one the
// SHA-256 names, its format the one that was stated.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/internal/durable"
	"reconciler/spec"
)

// Progress reports how far a long step is.
type Progress func(format string, args ...any)

// Config is what Open needs. What is zero takes its default.
type Config struct {
	Dir      string // holds the copies
	FileRoot string // file sources are below it
	Client   *http.Client
	MaxBytes int64 // of an image's file; 256 GiB
	// Window is how long MinBytes may take to come, so that a server that
	// trickles does not hold an attempt for ever; 60s and 60 KiB.
	Window   time.Duration
	MinBytes int64
	Convert  time.Duration // for one run of qemu-img; 1h
	QemuImg  string        // program; qemu-img
	// UID and GID run qemu-img, where this process is root; 65534, Debian's
	// nobody and nogroup.
	UID, GID uint32
	// Readers is the group that may read the copies: the one QEMU runs as, which
	// reads kernels by their path. Zero: nobody but root.
	Readers int
}

// Store is a directory of images by their SHA-256.
type Store struct {
	cfg     Config
	records *durable.Dir
	mu      sync.Mutex
	locks   map[string]chan struct{}
}

// record says of a copy that it was verified, and how it looked then.
type record struct {
	SHA256 string    `json:"sha256"`
	Size   int64     `json:"size"`  // bytes
	MTime  int64     `json:"mtime"` // nanoseconds since the epoch
	Source string    `json:"source"`
	At     time.Time `json:"at"`
}

const (
	recordVersion = 1
	partialPrefix = ".fetch-"
)

// Open opens the store, and makes its directory where it is not there.
func Open(cfg Config) (*Store, error) {
	if cfg.Client == nil {
		cfg.Client = &http.Client{CheckRedirect: redirects}
	}
	setDefault(&cfg.MaxBytes, 256<<30)
	setDefault(&cfg.Window, time.Minute)
	setDefault(&cfg.MinBytes, 60<<10)
	setDefault(&cfg.Convert, time.Hour)
	setDefault(&cfg.QemuImg, "qemu-img")
	setDefault(&cfg.UID, 65534)
	setDefault(&cfg.GID, 65534)
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, err
	}
	records, err := durable.Open(cfg.Dir, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, records: records, locks: map[string]chan struct{}{}}
	return s, errors.Join(s.close(), s.removeStale())
}

// close takes from others what earlier builds let everybody read, and gives it
// to the readers of today.
func (s *Store) close() error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	errs := []error{s.restrict(s.cfg.Dir, 0o750)}
	for _, e := range entries {
		if validSHA(e.Name()) && e.Type().IsRegular() {
			errs = append(errs, s.restrict(s.path(e.Name()), 0o440))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) restrict(path string, mode fs.FileMode) error {
	if err := os.Lchown(path, -1, s.cfg.Readers); err != nil && os.Geteuid() == 0 {
		return err
	}
	return os.Chmod(path, mode)
}

// stalePartial is how long what came of an image is kept for another attempt.
const stalePartial = 7 * 24 * time.Hour

func (s *Store) removeStale() error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), partialPrefix) {
			continue
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < stalePartial {
			continue
		}
		if err := removeIfThere(filepath.Join(s.cfg.Dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Trace sets a function that is called before each durable step.
func (s *Store) Trace(step func(op string)) { s.records.Step = step }

func (s *Store) path(sha string) string { return filepath.Join(s.cfg.Dir, sha) }

// partial is what one Image has got so far. It shares it with no other: with a
// range of its own choice, a server could have another's bytes count for its.
func (s *Store) partial(sha string, by Prover) string {
	return filepath.Join(s.cfg.Dir, partialPrefix+sha+"-"+by.UID)
}

func (s *Store) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		s.mu.Lock()
		wait, taken := s.locks[key]
		if !taken {
			done := make(chan struct{})
			s.locks[key] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.locks, key)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Have returns the path of a verified copy, if there is one: a file that looks
// as it did when it was verified. Copy reads the content again.
func (s *Store) Have(sha string) (path string, ok bool) {
	if !validSHA(sha) {
		return "", false
	}
	var r record
	if err := s.records.ReadJSON(sha+".json", recordVersion, &r); err != nil || r.SHA256 != sha {
		return "", false
	}
	st, err := os.Lstat(s.path(sha))
	if err != nil || !st.Mode().IsRegular() || st.Size() != r.Size || st.ModTime().UnixNano() != r.MTime {
		return "", false
	}
	return s.path(sha), true
}

// Prover is an Image that asks for content by its SHA-256. Who knows the number
// need not have the content: a copy that others got counts only for an Image
// whose own source has had it, once.
type Prover struct {
	UID    string
	Proved bool // by an earlier Ensure of the same content, which the caller has recorded
}

// Ensure returns the path of a verified copy of an image. It reads the image's
// own source if there is no copy, or if the image has not proved yet that its
// source has the content. What an interrupted attempt got is used.
func (s *Store) Ensure(ctx context.Context, img *spec.Image, by Prover, progress Progress) (string, error) {
	sha := img.SHA256
	if !validSHA(sha) {
		return "", fmt.Errorf("sha256 %q is not 64 hex digits", sha)
	}
	// Images of one content do not wait for each other's sources.
	unlock, err := s.lock(ctx, sha+"-"+by.UID)
	if err != nil {
		return "", err
	}
	defer unlock()
	path, have := s.Have(sha)
	if have && by.Proved {
		return path, nil
	}
	var source string
	partial := s.partial(sha, by)
	switch {
	case img.Source.HTTP != nil:
		source = img.Source.HTTP.URL
		err = s.download(ctx, source, partial, sha, progress)
	case img.Source.File != nil && have:
		return path, s.proveFile(ctx, img.Source.File.Path, sha)
	case img.Source.File != nil:
		source = img.Source.File.Path
		err = s.copyIn(ctx, source, partial, sha, progress)
	default:
		err = errors.New("the image has no source")
	}
	if err != nil {
		return "", err
	}
	return s.path(sha), s.accept(ctx, partial, sha, source)
}

// accept gives the verified partial file its name. The record is written last:
// without it the file does not count.
func (s *Store) accept(ctx context.Context, partial, sha, source string) error {
	unlock, err := s.lock(ctx, sha)
	if err != nil {
		return err
	}
	defer unlock()
	if _, have := s.Have(sha); have {
		return s.records.Remove(filepath.Base(partial))
	}
	f, err := os.OpenFile(partial, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(s.restrict(partial, 0o440), f.Sync())
	st, serr := f.Stat()
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return err
	}
	if err := s.records.Rename(filepath.Base(partial), sha); err != nil {
		return err
	}
	return s.records.WriteJSON(sha+".json", recordVersion, record{
		SHA256: sha, Size: st.Size(), MTime: st.ModTime().UnixNano(), Source: source, At: time.Now().UTC(),
	})
}

// Drop removes a copy. What others have got of the same content so far is theirs.
func (s *Store) Drop(sha string) error {
	if !validSHA(sha) {
		return nil
	}
	for _, name := range []string{sha + ".json", sha} {
		if err := s.records.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

func validSHA(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// MismatchError says that content is not what the spec names.
type MismatchError struct{ Want, Got string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("its content has sha256 %s, the spec says %s", e.Got, e.Want)
}

// verify hashes a file from its beginning.
func verify(ctx context.Context, f io.ReaderAt, sha string) error {
	h := sha256.New()
	if _, err := io.Copy(h, &ctxReader{ctx, io.NewSectionReader(f, 0, 1<<62)}); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sha {
		return &MismatchError{sha, got}
	}
	return nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// Abandon removes what an Image has got so far of a content that it does not ask
// for any more.
func (s *Store) Abandon(sha string, by Prover) error {
	if !validSHA(sha) {
		return nil
	}
	return s.records.Remove(filepath.Base(s.partial(sha, by)))
}

// proveFile reads a file of the image directory for its hash only.
func (s *Store) proveFile(ctx context.Context, path, sha string) error {
	src, err := s.openSource(path)
	if err != nil {
		return err
	}
	defer src.Close()
	return verify(ctx, src, sha)
}

// copyIn copies a file of the image directory, so that it cannot change after
// it was verified.
func (s *Store) copyIn(ctx context.Context, path, partial, sha string, progress Progress) (err error) {
	src, err := s.openSource(path)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if st.Size() > s.cfg.MaxBytes {
		return fmt.Errorf("%s has %d bytes, more than the %d allowed", path, st.Size(), s.cfg.MaxBytes)
	}
	dst, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, dst.Close())
		if err != nil {
			err = errors.Join(err, removeIfThere(partial))
		}
	}()
	progress("copying %s", path)
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		if _, err := io.Copy(dst, &ctxReader{ctx, io.LimitReader(src, s.cfg.MaxBytes)}); err != nil {
			return err
		}
	}
	return verify(ctx, dst, sha)
}

// openSource opens a file below the image directory. No link leads out of it,
// also not one that is put there at this moment.
func (s *Store) openSource(path string) (*os.File, error) {
	if s.cfg.FileRoot == "" {
		return nil, errors.New("this host has no image directory")
	}
	root, err := os.Open(s.cfg.FileRoot)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open below the image directory", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(fmt.Errorf("%s is not a regular file", path), err)
	}
	return f, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
