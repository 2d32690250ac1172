package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Fill writes the content of a new volume to f, an empty file. What it does not
// write stays a hole and reads as zeros.
type Fill func(ctx context.Context, f *os.File) error

// Make makes a volume of m.Size bytes. It begins anew over what an interrupted
// attempt left, and refuses to touch a file it did not make. If it fails,
// nothing is left; after a crash a record in state Creating is.
func (p *Pool) Make(ctx context.Context, m Meta, fill Fill) (err error) {
	switch old, err := p.Get(m.UID); {
	case err == nil && old.State != Creating:
		return fmt.Errorf("volume %s exists, in state %s", m.UID, old.State)
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		if _, err := os.Lstat(p.Path(m.UID)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there and is not ours", p.Path(m.UID))
		}
	}
	m.State = Creating
	if err := p.Put(m); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Discard(m.UID))
		}
	}()
	tmp := filepath.Join(p.dir, creatingPrefix+m.UID)
	if err := p.fillFile(ctx, tmp, m.Size, fill); err != nil {
		return fmt.Errorf("make volume %s: %w", m.UID, err)
	}
	if err := p.records.Rename(filepath.Base(tmp), m.UID+imageSuffix); err != nil {
		return err
	}
	m.State = Ready
	return p.Put(m)
}

func (p *Pool) fillFile(ctx context.Context, path string, size int64, fill Fill) (err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p.step("fill " + filepath.Base(path))
	if fill != nil {
		if err := fill(ctx, f); err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if st.Size() > size {
			return fmt.Errorf("content of %d bytes does not fit into %d", st.Size(), size)
		}
	}
	if err := f.Truncate(size); err != nil {
		return p.tooLarge(err, size)
	}
	return f.Sync()
}

// tooLarge says what a file system means by EFBIG.
func (p *Pool) tooLarge(err error, size int64) error {
	if !errors.Is(err, unix.EFBIG) {
		return err
	}
	return fmt.Errorf("the file system of %s takes no file of %d bytes (ext4 takes less than 16Ti, xfs more): make the disk smaller, or put it into a pool on another file system: %w", p.dir, size, err)
}

// Discard removes what is left of a volume that was never Ready.
func (p *Pool) Discard(uid string) error {
	v, err := p.Get(uid)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if v.State != Creating {
		return fmt.Errorf("volume %s is in state %s, not to be discarded", uid, v.State)
	}
	if err := p.records.Remove(creatingPrefix + uid); err != nil {
		return err
	}
	if err := p.records.Remove(uid + imageSuffix); err != nil {
		return err
	}
	return p.records.Remove(uid + recordSuffix)
}

// Grow makes a volume's file larger; the record follows with the next Put. A
// file that is large enough is left as it is.
func (p *Pool) Grow(uid string, size int64) error {
	if err := p.Check(); err != nil {
		return err
	}
	f, err := os.OpenFile(p.Path(uid), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() >= size {
		return nil
	}
	p.step("grow " + uid)
	if err := f.Truncate(size); err != nil {
		return p.tooLarge(err, size)
	}
	return f.Sync()
}

// Purge removes a volume's data, for ever. The caller has made sure that it may,
// and calls forget when the data is gone and the record still is there.
func (p *Pool) Purge(m Meta, forget func() error) error {
	m.State = Purging
	if err := p.Put(m); err != nil {
		return err
	}
	if err := p.records.Remove(m.UID + imageSuffix); err != nil {
		return err
	}
	if err := forget(); err != nil {
		return err
	}
	return p.records.Remove(m.UID + recordSuffix)
}
