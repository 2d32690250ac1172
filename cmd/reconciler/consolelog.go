package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// logPoll is how often a followed log is looked at.
const logPoll = 100 * time.Millisecond

// printLog writes a console's log, its older part (.1) first.
func (a *app) printLog(ctx context.Context, w io.Writer, path string, follow bool) error {
	older, err := os.Open(path + ".1")
	if err == nil {
		_, err = io.Copy(w, older)
		older.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log := &consoleLog{path: path, dropped: a.sayDropped}
	defer log.close()
	for {
		if err := log.copy(w); err != nil || !follow {
			return err
		}
		if err := pause(ctx, logPoll); err != nil {
			return err
		}
	}
}

func (a *app) sayDropped(n int64) {
	fmt.Fprintf(a.stderr, "\r\nreconciler: %d bytes of the guest's output were not taken in time and are not shown here\r\n", n)
}

// consoleLog reads a console's log while it grows. It is turned over by being
// emptied (truncate), after which QEMU goes on at its start.
type consoleLog struct {
	path    string
	dropped func(bytes int64)

	f    *os.File
	at   int64  // of the next byte
	size int64  // when it was last looked at
	last []byte // the last bytes that were read: they stand before at unless the log was turned over
}

// logChunk is how much is read before the log is looked at again: whoever takes
// it may be slow.
const logChunk = 32 << 10

// skip passes over everything that is there.
func (l *consoleLog) skip() error { return l.copy(io.Discard) }

func (l *consoleLog) close() {
	if l.f != nil {
		l.f.Close()
	}
}

// copy writes what is new. A log that is not there yet has nothing new.
func (l *consoleLog) copy(w io.Writer) error {
	if l.f == nil {
		f, err := os.Open(l.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		l.f = f
	}
	buf := make([]byte, logChunk)
	for {
		info, err := l.f.Stat()
		if err != nil {
			return err
		}
		turned, err := l.turned(info.Size())
		if err != nil {
			return err
		}
		if turned {
			if lost := l.size - l.at; lost > 0 {
				l.dropped(lost)
			}
			l.at, l.last = 0, nil
		}
		l.size = info.Size()
		n, err := l.f.ReadAt(buf, l.at)
		if n == 0 {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		l.at += int64(n)
		l.last = bytes.Clone(buf[max(0, n-64):n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// turned says that the log was emptied since it was last read. It may have
// grown beyond that place again.
func (l *consoleLog) turned(size int64) (bool, error) {
	if size < l.at {
		return true, nil
	}
	there := make([]byte, len(l.last))
	if n, err := l.f.ReadAt(there, l.at-int64(len(there))); n < len(there) {
		if errors.Is(err, io.EOF) { // emptied just now
			return true, nil
		}
		return false, err
	}
	return !bytes.Equal(there, l.last), nil
}
