package kvm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// turnAt is the size, in bytes, from which a console log is turned over, well
// below the limit at which QEMU's writes fail.
const turnAt = 4 << 20

// makeConsole makes what QEMU opens as PATH.in and PATH.out: a pipe for what is
// typed, which QEMU itself keeps open, and nothing for what the guest writes.
func makeConsole(path string) error {
	for _, old := range []string{path, consoleIn(path), path + ".out"} { // PATH: the socket of an earlier build
		if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make the console: %w", err)
		}
	}
	if err := unix.Mkfifo(consoleIn(path), 0o600); err != nil {
		return fmt.Errorf("make the console: %w", err)
	}
	if err := os.Symlink(os.DevNull, path+".out"); err != nil {
		return fmt.Errorf("make the console: %w", err)
	}
	return nil
}

func consoleIn(path string) string { return path + ".in" }

// ConsoleInput is where what is typed on a machine's serial console goes: a
// named pipe, or, of a process that an earlier build started, a socket that
// serves one client at a time, both ways. Both are empty where there is none.
func (d *Driver) ConsoleInput(uid string) (pipe, socket string) {
	at := d.consolePath(uid)
	for path, found := range map[string]*string{consoleIn(at): &pipe, at: &socket} {
		if _, err := os.Stat(path); err == nil {
			*found = path
		}
	}
	return pipe, socket
}

// ConsoleLogs returns the paths of what the guest wrote to its serial console,
// older first. They may not exist.
func (d *Driver) ConsoleLogs(uid string) []string {
	return []string{d.consoleLog(uid) + ".1", d.consoleLog(uid)}
}

// turnOver keeps a log's content as PATH.1 and empties it. QEMU has the file
// open for appending and goes on at its start; what it writes meanwhile is kept,
// too, but for what falls between the last look and the next system call.
func turnOver(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() < turnAt {
		return err
	}
	if err := keepOlder(path, info.Size()-turnAt); err != nil {
		return fmt.Errorf("turn over the log: %w", err)
	}
	return nil
}

func keepOlder(path string, from int64) error {
	log, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	older, err := os.OpenFile(path+".1.new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer older.Close()
	if _, err := log.Seek(from, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(older, log); err != nil {
		return err
	}
	if err := os.Rename(older.Name(), path+".1"); err != nil {
		return err
	}
	if _, err := io.Copy(older, log); err != nil { // what has come since
		return err
	}
	return log.Truncate(0)
}
