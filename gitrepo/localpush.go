package gitrepo

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// push writes loose objects and moves the ref under git's own lock file. The
// agent runs as root and the repository may be a user's: everything goes through
// an os.Root, so that a planted link leads nowhere, and belongs to that user
// afterwards, so that git can still work there.
func (s *localSession) push(ctx context.Context, name string, old, new hash, objects []object) error {
	root, err := os.OpenRoot(s.commonDir)
	if err != nil {
		return err
	}
	defer root.Close()
	w := &localWriter{root: root, uid: -1, gid: -1}
	var st unix.Stat_t
	if err := unix.Stat(s.commonDir, &st); err == nil && os.Geteuid() == 0 {
		w.uid, w.gid = int(st.Uid), int(st.Gid)
	}
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.db.Has(o.hash) {
			continue
		}
		if err := w.object(o); err != nil {
			return err
		}
	}
	if new.IsZero() {
		return w.remove(s, name, old)
	}
	return w.ref(s, name, old, new)
}

type localWriter struct {
	root     *os.Root
	uid, gid int
}

func (w *localWriter) mkdirAll(dir string) error {
	if dir == "." {
		return nil
	}
	if st, err := w.root.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := w.mkdirAll(path.Dir(dir)); err != nil {
		return err
	}
	if err := w.root.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return w.own(dir)
}

func (w *localWriter) own(name string) error {
	if w.uid < 0 {
		return nil
	}
	return w.root.Lchown(name, w.uid, w.gid)
}

// create writes a file that must not exist yet.
func (w *localWriter) create(name string, mode fs.FileMode, content []byte) error {
	f, err := w.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = w.own(name)
	}
	if err != nil {
		return errors.Join(err, w.root.Remove(name))
	}
	return nil
}

func (w *localWriter) object(o object) error {
	var buf bytes.Buffer
	zw := zlib.NewWriter(&buf)
	fmt.Fprintf(zw, "%s %d\x00", o.typ, len(o.data))
	zw.Write(o.data)
	if err := zw.Close(); err != nil {
		return err
	}
	hex := o.hash.String()
	dir := path.Join("objects", hex[:2])
	if err := w.mkdirAll(dir); err != nil {
		return err
	}
	// git gc removes stale tmp_obj_ files; one of ours is overwritten by name.
	tmp := path.Join(dir, "tmp_obj_"+hex[2:])
	if err := w.root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.create(tmp, 0o444, buf.Bytes()); err != nil {
		return err
	}
	return w.root.Rename(tmp, path.Join(dir, hex[2:]))
}

// ref moves a ref with git's protocol: NAME.lock is created exclusively, the old
// value compared under it, and the lock renamed over the ref.
func (w *localWriter) ref(s *localSession, name string, old, new hash) error {
	if err := w.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	lock := name + ".lock"
	if err := w.lock(lock, []byte(new.String()+"\n")); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	now, _, err := s.ref(name)
	if err == nil && now != old {
		err = fmt.Errorf("%s: %w", name, ErrRefChanged)
	}
	if err == nil {
		err = w.root.Rename(lock, name)
	}
	if err != nil {
		return errors.Join(err, w.root.Remove(lock))
	}
	return nil
}

// remove deletes a ref with git's protocol: with NAME.lock and packed-refs.lock
// held, it goes from packed-refs first, or an older value would come to light.
func (w *localWriter) remove(s *localSession, name string, old hash) (err error) {
	if err := w.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	lock := name + ".lock"
	if err := w.lock(lock, nil); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer func() { err = errors.Join(err, w.root.Remove(lock)) }()
	if now, _, err := s.ref(name); err != nil || now != old {
		return errors.Join(err, fmt.Errorf("%s: %w", name, ErrRefChanged))
	}
	if err := w.unpack(s, name); err != nil {
		return err
	}
	if err := w.root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lock creates one of git's lock files with its content.
func (w *localWriter) lock(name string, content []byte) error {
	err := w.create(name, 0o644, content)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: it is locked", ErrRefChanged)
	}
	return err
}

// unpack takes a ref out of packed-refs.
func (w *localWriter) unpack(s *localSession, name string) error {
	const packed = "packed-refs"
	if _, ok, err := s.packedRef(name); err != nil || !ok {
		return err
	}
	if err := w.lock(packed+".lock", nil); err != nil {
		return fmt.Errorf("%s: %w", packed, err)
	}
	b, err := w.root.ReadFile(packed)
	if err != nil {
		return errors.Join(err, w.root.Remove(packed+".lock"))
	}
	var keep []byte
	mine := false
	for line := range bytes.Lines(b) {
		// "^HASH" belongs to the tag in the line before.
		if !bytes.HasPrefix(line, []byte("^")) {
			_, ref, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
			mine = string(ref) == name
		}
		if !mine {
			keep = append(keep, line...)
		}
	}
	tmp := packed + ".new"
	err = w.create(tmp, 0o644, keep)
	if err == nil {
		err = w.root.Rename(tmp, packed)
	}
	return errors.Join(err, w.root.Remove(packed+".lock"))
}
