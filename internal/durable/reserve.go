package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	reserveDir   = ".reserve"
	reserveFiles = 24
	reserveBytes = 16 << 10 // of each of them
	largeFiles   = 2        // for records that are larger
	recordSuffix = ".json"  // of records: a directory of them may hold other files
)

// reserve is a set of files whose blocks are allocated in advance. On a full
// file system a record is written into one of them, which needs no block, and
// the two change places by name. So a record that is replaced gives its own
// blocks back to the reserve, with no moment in which a guest that writes to
// the same file system could take them; only a new record uses one up.
//
// It follows the largest record: two of its files have room for twice as much,
// so that records which grow with the number of objects can be replaced, too.
//
// That holds where an overwrite stays in place (ext4, xfs, tmpfs), not on a
// copy-on-write file system.
type reserve struct {
	dir     string
	largest int64 // record that was seen
}

// spare is a file of the reserve and what it is to have.
type spare struct {
	path         string
	least, bytes int64 // made anew below least
}

func (r *reserve) file(i int) string { return filepath.Join(r.dir, strconv.Itoa(i)) }

// spares lists the files, those for large records first.
func (r *reserve) spares() []spare {
	list := make([]spare, 0, reserveFiles+largeFiles)
	if room := roundUp(2 * r.largest); room > reserveBytes {
		for i := range largeFiles {
			list = append(list, spare{filepath.Join(r.dir, "large-"+strconv.Itoa(i)), roundUp(r.largest + r.largest/2), room})
		}
	}
	for i := range reserveFiles {
		list = append(list, spare{r.file(i), reserveBytes, reserveBytes})
	}
	return list
}

func roundUp(n int64) int64 { return (n + 4095) &^ 4095 }

// measure finds the largest record of a directory.
func (r *reserve) measure(entries []fs.DirEntry) {
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil {
			r.largest = max(r.largest, info.Size())
		}
	}
}

// fill makes the files that are missing or have lost blocks.
func (r *reserve) fill() error {
	if err := os.Mkdir(r.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, s := range r.spares() {
		if allocated(s.path) >= s.least {
			continue
		}
		if err := allocate(s.path, s.bytes); err != nil {
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

func allocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// The blocks are beyond the file's end: what is written into it is as long as
	// the record.
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.WriteAt(make([]byte, size), 0)
	}
	// Not synced: what a power failure takes of the reserve is made anew.
	return errors.Join(err, f.Close())
}

// writeReserved writes a record without needing space, into the smallest file
// that has room for it.
func (d *Dir) writeReserved(name string, data []byte) error {
	best, room := "", int64(0)
	for _, s := range d.spare.spares() {
		if n := allocated(s.path); n >= roundUp(int64(len(data))) && (best == "" || n < room) {
			best, room = s.path, n
		}
	}
	if best == "" {
		return fmt.Errorf("no room is set aside for the %d bytes of the record: %w", len(data), unix.ENOSPC)
	}
	if err := overwrite(best, data, d.mode); err != nil {
		return err
	}
	d.step("exchange " + name)
	return d.exchange(best, filepath.Join(d.path, name))
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
