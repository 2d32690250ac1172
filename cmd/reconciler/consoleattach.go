package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/api"
	"reconciler/internal/unixsock"
)

// errNoConsole says that no QEMU reads what is typed.
var errNoConsole = errors.New("the machine has no console")

// consolePoll is how often the log of an attached console is looked at: it
// shows what is typed, too.
const consolePoll = 20 * time.Millisecond

// attach shows what the guest writes to its log, and hands on what is typed,
// until the user leaves, the machine ends, or ctx ends.
func (a *app) attach(ctx context.Context, at api.Console) error {
	keys, err := openKeyboard(at.Input)
	if err != nil {
		return err
	}
	defer keys.close()
	log := &consoleLog{path: at.Log, dropped: a.sayDropped}
	defer log.close()
	if err := log.skip(); err != nil {
		return err
	}
	return a.join(ctx, keys, func() error {
		for {
			over := keys.ended() // before the last look
			if err := log.copy(a.stdout); err != nil || over {
				return err
			}
			if err := pause(ctx, consolePoll); err != nil {
				return err
			}
		}
	})
}

const typingPatience = time.Second

// join hands what is typed to w while receive shows what the guest writes.
func (a *app) join(ctx context.Context, w io.Writer, receive func() error) error {
	typing := false
	if in, ok := a.stdin.(*os.File); ok {
		if restore, err := rawTerminal(in); err == nil {
			typing = true
			if keys, ok := w.(*keyboard); ok {
				keys.patience = typingPatience
			}
			defer restore()
			fmt.Fprint(a.stderr, "Attached; Ctrl-] leaves.\r\n")
		}
	}
	left := make(chan error, 1)
	go func() {
		err := send(&typist{app: a, w: w, told: !typing}, a.stdin, typing)
		if err != nil || typing {
			left <- err
		}
		// A pipe that has ended: what the guest answers is still to come.
	}()
	received := make(chan error, 1)
	go func() { received <- receive() }()
	var err error
	select {
	case err = <-left:
	case err = <-received:
	case <-ctx.Done(): // whoever takes the output may hold up the rest
	}
	if typing {
		fmt.Fprint(a.stderr, "\r\n")
	}
	return err
}

// typist hands on what a person types; where somebody else has the keyboard it
// says so once, and goes on showing what the guest writes.
type typist struct {
	*app
	w    io.Writer
	told bool
}

func (t *typist) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	var busy *busyError
	if t.told || !errors.As(err, &busy) {
		return n, err
	}
	t.told = true
	fmt.Fprintf(t.stderr, "\r\nreconciler: %v; this one only watches\r\n", err)
	t.w = &retrying{t.w}
	return len(b), nil
}

// retrying is for a person who was told: what is typed in vain is dropped.
type retrying struct{ w io.Writer }

func (r *retrying) Write(b []byte) (int, error) {
	n, err := r.w.Write(b)
	if errors.As(err, new(*busyError)) {
		return len(b), nil
	}
	return n, err
}

// busyError says that another client has the keyboard.
type busyError struct{ pid string }

func (e *busyError) Error() string {
	who := "another console client"
	if e.pid != "" {
		who += " (process " + e.pid + ")"
	}
	return who + " has the keyboard until it leaves"
}

// keyboard is the pipe from which QEMU reads what is typed. Whoever writes first
// locks it until it is closed.
type keyboard struct {
	f    *os.File
	mine bool
	// patience is how long QEMU may take to read; 0: for ever. What a person types
	// must not hold up the key that leaves.
	patience time.Duration
}

func openKeyboard(path string) (*keyboard, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) { // nobody reads it any more
		return nil, errNoConsole
	}
	if err != nil {
		return nil, err
	}
	return &keyboard{f: f}, nil
}

func (k *keyboard) close() { k.f.Close() }

// control runs f with the descriptor.
func (k *keyboard) control(f func(fd int) error) error {
	conn, err := k.f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := conn.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

func (k *keyboard) Write(b []byte) (int, error) {
	if !k.mine {
		err := k.control(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		if errors.Is(err, unix.EWOULDBLOCK) {
			return 0, &busyError{k.holder()}
		}
		if err != nil {
			return 0, fmt.Errorf("lock the console: %w", err)
		}
		k.mine = true
	}
	if k.patience > 0 {
		if err := k.f.SetWriteDeadline(time.Now().Add(k.patience)); err != nil {
			return 0, err
		}
	}
	n, err := k.f.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return len(b), nil // the guest takes no more, and drops it
	}
	if errors.Is(err, unix.EPIPE) { // the machine ended, which is told elsewhere
		return len(b), nil
	}
	return n, err
}

// holder is the process that has the lock, as far as the kernel tells.
func (k *keyboard) holder() string {
	var st unix.Stat_t
	if k.control(func(fd int) error { return unix.Fstat(fd, &st) }) != nil {
		return ""
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer f.Close()
	at := fmt.Sprintf(":%d", st.Ino)
	for s := bufio.NewScanner(f); s.Scan(); {
		if field := strings.Fields(s.Text()); len(field) > 5 && field[1] == "FLOCK" && strings.HasSuffix(field[5], at) {
			return field[4]
		}
	}
	return ""
}

// ended says that QEMU, which keeps the pipe open, is gone.
func (k *keyboard) ended() bool {
	over := false
	err := k.control(func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		over = p[0].Revents&unix.POLLERR != 0
		return err
	})
	return over || err != nil && !errors.Is(err, unix.EINTR)
}

// attachSocket is attach for a process that an earlier build started: QEMU writes
// to the socket, and the guest stands still if nobody reads it.
func (a *app) attachSocket(ctx context.Context, socket string) error {
	conn, err := unixsock.Dial(ctx, socket)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return errNoConsole
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	return a.join(ctx, conn, func() error { return drain(conn, a.stdout, a.sayDropped) })
}

// drainRoom is how many reads may wait for whoever takes them.
const drainRoom = 1024

// drain copies, and never stops reading: what w does not take in time is dropped.
func drain(r io.Reader, w io.Writer, dropped func(int64)) error {
	read := make(chan []byte, drainRoom)
	var lost atomic.Int64
	result := make(chan error, 1)
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				select {
				case read <- append([]byte(nil), buf[:n]...):
				default:
					lost.Add(int64(n))
				}
			}
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				result <- err
				return
			}
		}
	}()
	for b := range read {
		if _, err := w.Write(b); err != nil {
			return err
		}
		if len(read) == 0 {
			if n := lost.Swap(0); n > 0 {
				dropped(n)
			}
		}
	}
	return <-result
}
