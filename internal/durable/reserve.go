package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	reserveDir   = ".reserve"
	reserveFiles = 24
	reserveBytes = 16 << 10 // of each file; no record is larger
)

// reserve is a set of files whose blocks are allocated in advance. On a full
// file system a record is written into one of them, which needs no block, and
// the two change places by name. So a record that is replaced gives its own
// blocks back to the reserve, with no moment in which a guest that writes to
// the same file system could take them; only a new record uses one up.
//
// That holds where an overwrite stays in place (ext4, xfs, tmpfs), not on a
// copy-on-write file system.
type reserve struct {
	dir string
}

func (r *reserve) file(i int) string { return filepath.Join(r.dir, strconv.Itoa(i)) }

// fill makes the files that are missing or have lost blocks.
func (r *reserve) fill() error {
	if err := os.Mkdir(r.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for i := range reserveFiles {
		if allocated(r.file(i)) >= reserveBytes {
			continue
		}
		if err := allocate(r.file(i)); err != nil {
			return err
		}
	}
	return nil
}

func allocated(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return -1
	}
	return st.Blocks * 512
}

func allocate(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.WriteAt(make([]byte, reserveBytes), 0)
	}
	// Not synced: what a power failure takes of the reserve is made anew.
	return errors.Join(err, f.Close())
}

// writeReserved writes a record without needing space.
func (d *Dir) writeReserved(name string, data []byte) error {
	if len(data) > reserveBytes {
		return fmt.Errorf("record of %d bytes: %w", len(data), unix.ENOSPC)
	}
	need := (int64(len(data)) + 4095) &^ 4095
	for i := range reserveFiles {
		spare := d.spare.file(i)
		if allocated(spare) < need {
			continue
		}
		if err := overwrite(spare, data, d.mode); err != nil {
			return err
		}
		d.step("exchange " + name)
		return d.exchange(spare, filepath.Join(d.path, name))
	}
	return fmt.Errorf("the reserve is used up: %w", unix.ENOSPC)
}

// overwrite fills a file in place. What it is longer than the record becomes
// white space, which JSON ignores, rather than blocks given up.
func overwrite(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	padded := make([]byte, max(int64(len(data)), st.Size()))
	for i := copy(padded, data); i < len(padded); i++ {
		padded[i] = '\n'
	}
	if _, err := f.WriteAt(padded, 0); err != nil {
		return err
	}
	return f.Sync()
}

// exchange gives the spare the record's name. The old record, if any, becomes
// the spare.
func (d *Dir) exchange(spare, record string) error {
	err := unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, record, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = os.Rename(spare, record)
	}
	if err != nil {
		return err
	}
	return errors.Join(SyncDir(d.path), SyncDir(d.spare.dir))
}
