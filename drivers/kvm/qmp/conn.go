// Package qmp speaks the QEMU Machine Protocol on a unix socket: commands with
// ids and deadlines, replies of any size, events that never hold up a reply.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/internal/unixsock"
)

// maxMessage bounds one message of QEMU, in bytes. The largest known,
// query-qmp-schema, has 207 KB; a guest that took over its QEMU must not be
// able to take the memory of its agent.
const maxMessage = 64 << 20

// Version is QEMU's, from the greeting.
type Version struct {
	Major, Minor, Micro int
	Package             string
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Conn is a connection to one QEMU. Its methods may be called concurrently:
// commands then go out at once and QEMU answers them in turn.
type Conn struct {
	conn    *net.UnixConn
	version Version

	writeMu sync.Mutex

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan reply
	err     error // why the connection is over; nil while it is not
	done    chan struct{}

	subMu sync.Mutex
	subs  map[*Subscription]struct{} // nil once closed
}

type reply struct {
	ret json.RawMessage
	err *Error
}

type message struct {
	QMP *struct {
		Version struct {
			QEMU    struct{ Major, Minor, Micro int }
			Package string
		}
	}
	Return    json.RawMessage `json:"return"`
	Error     *struct{ Class, Desc string }
	ID        *uint64
	Event     string
	Data      json.RawMessage
	Timestamp struct{ Seconds, Microseconds int64 }
}

// Dial connects to QEMU's socket, whose path may be of any length, and finishes the handshake before ctx ends. A
// QEMU that serves another client already is silent: SilentError.
func Dial(ctx context.Context, path string) (*Conn, error) {
	nc, err := unixsock.Dial(ctx, path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, waited(ctx, "greeting")
		}
		return nil, fmt.Errorf("qmp: %w", err)
	}
	c := &Conn{
		conn:    nc,
		pending: map[uint64]chan reply{},
		done:    make(chan struct{}),
		subs:    map[*Subscription]struct{}{},
	}
	greeting := make(chan Version, 1)
	go c.read(greeting)
	select {
	case c.version = <-greeting:
	case <-c.done:
		return nil, c.failure("greeting")
	case <-ctx.Done():
		c.Close()
		return nil, waited(ctx, "greeting")
	}
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Version is QEMU's version.
func (c *Conn) Version() Version { return c.version }

// Done is closed when the connection is over; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil while the connection lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Commands under way fail with ErrClosed.
func (c *Conn) Close() error {
	c.shut(ErrClosed)
	return nil
}

func (c *Conn) shut(why error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = why
	c.pending = nil
	close(c.done)
	c.mu.Unlock()
	c.conn.Close()
	c.closeSubscriptions()
}

func (c *Conn) failure(command string) error { return fmt.Errorf("%s: %w", command, c.Err()) }

// Do runs a command and decodes its result into out, if that is not nil. args
// is marshalled as the command's arguments; nil sends none. Errors are *Error,
// *SilentError, or wrap ErrClosed or ErrProtocol.
func (c *Conn) Do(ctx context.Context, command string, args, out any) error {
	return c.do(ctx, command, args, out, nil)
}

// DoFile is Do with an open file passed along, for getfd and add-fd.
func (c *Conn) DoFile(ctx context.Context, command string, args, out any, f *os.File) error {
	return c.do(ctx, command, args, out, f)
}

func (c *Conn) do(ctx context.Context, command string, args, out any, f *os.File) error {
	ret, err := c.exchange(ctx, command, args, f)
	if err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(ret, out); err != nil {
		return fmt.Errorf("qmp %s: decode the result: %w", command, err)
	}
	return nil
}

func (c *Conn) exchange(ctx context.Context, command string, args any, f *os.File) (json.RawMessage, error) {
	if ctx.Err() != nil {
		return nil, waited(ctx, command)
	}
	answer := make(chan reply, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.failure(command)
	}
	c.nextID++
	id := c.nextID
	c.pending[id] = answer
	c.mu.Unlock()
	defer c.forget(id)

	if err := c.send(ctx, id, command, args, f); err != nil {
		return nil, err
	}
	select {
	case r := <-answer:
		return r.result(command)
	case <-ctx.Done():
		return nil, waited(ctx, command)
	case <-c.done:
		// QEMU answers quit and closes at once: the answer counts.
		select {
		case r := <-answer:
			return r.result(command)
		default:
			return nil, c.failure(command)
		}
	}
}

func (r reply) result(command string) (json.RawMessage, error) {
	if r.err != nil {
		r.err.Command = command
		return nil, r.err
	}
	return r.ret, nil
}

func (c *Conn) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *Conn) send(ctx context.Context, id uint64, command string, args any, f *os.File) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("qmp %s: encode the arguments: %w", command, err)
	}
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	deadline, _ := ctx.Deadline() // the zero time is none
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return c.failed(command, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := c.write(append(b, '\n'), oob)
	if err != nil && n > 0 {
		// Half a command is on its way; whatever followed would be garbage.
		c.shut(fmt.Errorf("%w: %s was cut off", ErrClosed, command))
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			return waited(ctx, command)
		}
		return c.failed(command, err)
	}
	return nil
}

// write sends everything; the file goes with the first byte.
func (c *Conn) write(b, oob []byte) (int, error) {
	n := 0
	if oob != nil {
		var err error
		if n, _, err = c.conn.WriteMsgUnix(b, oob, nil); err != nil || n == len(b) {
			return n, err
		}
	}
	m, err := c.conn.Write(b[n:])
	return n + m, err
}

// lastWords is how long the reader may take to find the end of a connection
// that a write found closed.
const lastWords = 100 * time.Millisecond

// failed prefers the reason the reader found over a write's broken pipe.
func (c *Conn) failed(command string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &SilentError{command}
	}
	if errors.Is(err, unix.EPIPE) {
		// QEMU is gone, and what it said last may still be unread.
		timer := time.NewTimer(lastWords)
		defer timer.Stop()
		select {
		case <-c.done:
		case <-timer.C:
		}
	}
	c.shut(fmt.Errorf("%w: %w", ErrClosed, err))
	return c.failure(command)
}

func (c *Conn) read(greeting chan<- Version) {
	r := bufio.NewReaderSize(c.conn, 16<<10)
	for {
		line, err := readLine(r)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				if errors.Is(err, io.EOF) {
					err = ErrClosed
				} else {
					err = fmt.Errorf("%w: %w", ErrClosed, err)
				}
			}
			c.shut(err)
			return
		}
		if len(line) == 0 {
			continue
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			c.shut(fmt.Errorf("%w: %w", ErrProtocol, err))
			return
		}
		switch {
		case m.Event != "":
			c.publish(Event{Name: m.Event, Data: m.Data,
				Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		case m.QMP != nil && greeting != nil:
			v := m.QMP.Version
			greeting <- Version{v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro, v.Package}
			greeting = nil
		case m.ID != nil && (m.Error != nil || m.Return != nil):
			c.deliver(*m.ID, m)
		case m.Error != nil:
			// Without an id, QEMU could not even read what was sent.
			c.shut(fmt.Errorf("%w: %s: %s", ErrProtocol, m.Error.Class, m.Error.Desc))
			return
		default:
			c.shut(fmt.Errorf("%w: unexpected message", ErrProtocol))
			return
		}
	}
}

// deliver hands a reply to whoever waits; one that came too late is dropped.
func (c *Conn) deliver(id uint64, m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, ok := c.pending[id]
	if !ok {
		return
	}
	delete(c.pending, id)
	r := reply{ret: m.Return}
	if m.Error != nil {
		r.err = &Error{Class: m.Error.Class, Desc: m.Error.Desc}
	}
	answer <- r
}

// readLine returns the next line without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxMessage {
			return nil, fmt.Errorf("%w: a message of more than %d bytes", ErrProtocol, maxMessage)
		}
		switch {
		case err == nil && line == nil:
			return bytes.TrimSpace(part), nil
		case err == nil:
			return bytes.TrimSpace(append(line, part...)), nil
		case errors.Is(err, bufio.ErrBufferFull):
			line = append(line, part...)
		case errors.Is(err, io.EOF) && len(line)+len(part) > 0:
			return nil, fmt.Errorf("%w: closed within a message", ErrClosed)
		default:
			return nil, err
		}
	}
}
