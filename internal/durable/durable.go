// Package durable writes small records so that a crash at any instruction
// leaves the old one or the new one, also when the file system is full.
package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Temporary names start with this; what a crash left under them is rubbish.
const tempPrefix = ".tmp-"

// Dir is a directory of records. Its methods may be called from any number of
// goroutines of one process; no other process may write records in it.
type Dir struct {
	path  string
	mode  fs.FileMode
	spare *reserve
	mu    sync.Mutex               // one write at a time: the reserve and temporary names are shared
	later map[string]*VersionError // records that a later build wrote: they stay as they are
	// Step, if set, is called before each operation that changes the directory,
	// with its name. A test ends the process in it.
	Step func(op string)
}

// Open opens a directory of records of the given mode, making it where it is
// not there, and sets space aside in it for writes when the file system is full.
func Open(path string, mode fs.FileMode) (*Dir, error) {
	dirMode := fs.FileMode(0o700)
	if mode&0o044 != 0 {
		dirMode = 0o755
	}
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, err
	}
	d := &Dir{path: path, mode: mode, spare: &reserve{dir: filepath.Join(path, reserveDir)}}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.Remove(filepath.Join(path, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	d.spare.measure(entries)
	// Where there is no room to set aside any, the directory still works.
	if err := d.spare.fill(); err != nil && !isFull(err) {
		return nil, err
	}
	return d, SyncDir(path)
}

// Path is the directory.
func (d *Dir) Path() string { return d.path }

func (d *Dir) step(op string) {
	if d.Step != nil {
		d.Step(op)
	}
}

// Write replaces the record of that name. When it returns nil, the record is on
// stable storage; when it does not, the old record stands, or the new one.
func (d *Dir) Write(name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if later := d.later[name]; later != nil {
		return later
	}
	d.step("write " + name)
	err := d.fault("write "+name, Before)
	if err == nil {
		err = d.writeFresh(name, data)
	}
	if isFull(err) {
		err = d.writeReserved(name, data)
	}
	if err == nil {
		err = d.fault("write "+name, After)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(d.path, name), err)
	}
	if strings.HasSuffix(name, recordSuffix) {
		d.spare.largest = max(d.spare.largest, int64(len(data)))
	}
	// A reserve that could not be filled again now is filled by the next write.
	if err := d.spare.fill(); err != nil && !isFull(err) {
		return err
	}
	return nil
}

// WriteJSON writes v, a struct, as a record of that version.
func (d *Dir) WriteJSON(name string, version int, v any) error {
	data, err := Marshal(version, v)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	return d.Write(name, b.Bytes())
}

// ReadJSON reads a record of at most that version; the error is fs.ErrNotExist
// where there is none, a *VersionError for a later one, which is then neither
// replaced nor removed while it is there, and a *DamagedError for what makes no sense.
func (d *Dir) ReadJSON(name string, version int, v any) error {
	data, err := os.ReadFile(d.file(name))
	if err != nil {
		d.guard(name, nil)
		return err
	}
	err = Unmarshal(data, version, v)
	var later *VersionError
	if errors.As(err, &later) {
		later.File = d.file(name)
	}
	d.guard(name, later)
	if err == nil || later != nil {
		return err
	}
	return &DamagedError{d.file(name), err}
}

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }

// Remove removes a record durably; that there is none is no error.
func (d *Dir) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if later := d.later[name]; later != nil {
		return later
	}
	d.step("remove " + name)
	if err := d.fault("remove "+name, Before); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return errors.Join(SyncDir(d.path), d.fault("remove "+name, After))
}

// Rename gives a file of the directory another name, durably.
func (d *Dir) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step("rename " + from + " " + to)
	if err := d.fault("rename "+to, Before); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to)); err != nil {
		return err
	}
	d.step("renamed " + to)
	return errors.Join(SyncDir(d.path), d.fault("rename "+to, After))
}

// Close gives the reserved space back. The directory is not used any more.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return os.RemoveAll(d.spare.dir)
}

// Owns says whether a name in a directory of records belongs to this package.
func Owns(name string) bool {
	return name == reserveDir || strings.HasPrefix(name, tempPrefix)
}

// Names lists the records whose names end with suffix, without it, sorted.
func (d *Dir) Names(suffix string) ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && !strings.HasPrefix(name, ".") && e.Type().IsRegular() {
			names = append(names, name)
		}
	}
	return names, nil
}

func (d *Dir) writeFresh(name string, data []byte) error {
	tmp := filepath.Join(d.path, tempPrefix+name)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, d.mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		// Delayed allocation reports a full disk here at the latest.
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		d.step("rename " + name)
		err = os.Rename(tmp, filepath.Join(d.path, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return SyncDir(d.path)
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
