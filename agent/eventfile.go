package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"reconciler/api"
	"reconciler/internal/durable"
)

// eventFile is a list of events, one a line. It keeps the newest.
type eventFile struct {
	path  string
	bytes int64 // at which it is cut to half as much
	// careful says that every event is on stable storage when add returns, and that
	// space is set aside for it.
	careful bool

	file    *os.File
	size    int64 // of the file
	list    []api.Event
	written int // of list
}

// eventRoom is what a careful file has set aside on a disk that fills up.
const eventRoom = 64 << 10

func openEvents(dir, name string, most int64) (*eventFile, error) {
	f := &eventFile{path: filepath.Join(dir, name), bytes: most}
	data, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range bytes.Lines(data) {
		var e api.Event
		// A line torn by a crash is left out.
		if json.Unmarshal(line, &e) == nil {
			e.Message = bounded(e.Message)
			f.list = append(f.list, e)
		}
	}
	f.trim()
	f.written = len(f.list)
	if err := f.open(); err != nil {
		return nil, err
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		n, err := f.file.WriteString("\n")
		f.size += int64(n)
		return f, err
	}
	return f, nil
}

func (f *eventFile) open() error {
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	st, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if f.file != nil {
		_ = f.file.Close()
	}
	f.file, f.size = file, st.Size()
	return nil
}

// last is the number of the newest event.
func (f *eventFile) last() (seq uint64) {
	for i := range f.list {
		seq = max(seq, f.list[i].Seq)
	}
	return seq
}

// trim drops the oldest events, as far as the others fill half of the file.
func (f *eventFile) trim() {
	var size int64
	for i := len(f.list) - 1; i >= 0; i-- {
		if size += int64(len(encode(f.list[i]))); size > f.bytes/2 {
			f.written = max(0, f.written-i-1)
			f.list = append([]api.Event(nil), f.list[i+1:]...)
			return
		}
	}
}

func encode(e api.Event) []byte {
	line, _ := json.Marshal(e) // of strings, numbers and a time: cannot fail
	return append(line, '\n')
}

// add writes an event, and those that could not be written before.
func (f *eventFile) add(e api.Event) {
	f.list = append(f.list, e)
	if f.careful {
		// Without room for it the event is in memory only, as without this.
		_ = unix.Fallocate(int(f.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, f.size, eventRoom)
	}
	for f.written < len(f.list) {
		line := encode(f.list[f.written])
		if _, err := f.file.Write(line); err != nil {
			_ = f.file.Truncate(f.size) // no torn line, which would spoil the next
			break
		}
		f.size += int64(len(line))
		f.written++
	}
	if f.careful {
		_ = f.file.Sync()
	}
	if f.size <= f.bytes && len(f.list) < 2*maxEvents {
		return
	}
	f.trim()
	if f.size > f.bytes {
		_ = f.replace(f.list) // the old file is as good
	}
}

// maxEvents bounds what is in memory where nothing can be written.
const maxEvents = 20_000

// replace writes the file anew with this list.
func (f *eventFile) replace(list []api.Event) (err error) {
	f.list = list
	f.trim()
	var b bytes.Buffer
	for _, e := range f.list {
		b.Write(encode(e))
	}
	tmp := f.path + ".new"
	file, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(b.Bytes())
	// Before the name: a crash may otherwise leave the new name and no content.
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(tmp, f.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	f.written = len(f.list)
	return errors.Join(durable.SyncDir(filepath.Dir(f.path)), f.open())
}
