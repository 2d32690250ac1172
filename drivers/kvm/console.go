package kvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"reconciler/internal/unixsock"
)

// turnAt is the size, in bytes, from which a console log is turned over, well
// below the limit at which QEMU's writes fail.
const turnAt = 4 << 20

// Console connects to the machine's serial console. QEMU serves one client at
// a time; what the guest writes meanwhile is in the log, too.
func (d *Driver) Console(ctx context.Context, uid string) (net.Conn, error) {
	conn, err := unixsock.Dial(ctx, d.consolePath(uid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("console: the machine has no console socket; it is not running, or the run directory was lost since it started")
	}
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	return conn, nil
}

// ConsoleSocket is the path of the machine's console socket, which is there
// while the machine runs.
func (d *Driver) ConsoleSocket(uid string) string { return d.consolePath(uid) }

// ConsoleLogs returns the paths of what the guest wrote to its serial console,
// older first. They may not exist.
func (d *Driver) ConsoleLogs(uid string) []string {
	return []string{d.consoleLog(uid) + ".1", d.consoleLog(uid)}
}

// turnOver keeps a log's content as PATH.1 and empties it. QEMU has the file
// open for appending and goes on at its start.
func turnOver(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() < turnAt {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("turn over the console log: %w", err)
	}
	b = b[max(0, len(b)-turnAt):]
	if err := os.WriteFile(path+".1", b, 0o600); err != nil {
		return fmt.Errorf("turn over the console log: %w", err)
	}
	return os.Truncate(path, 0)
}
