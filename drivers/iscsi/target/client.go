package target

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"reconciler/internal/unixsock"
)

// Client speaks to a running target. Its methods may be called concurrently; a
// call without a deadline gets 30 s.
type Client struct {
	path string

	mu   sync.Mutex
	idle []*clientConn
}

type clientConn struct {
	nc  net.Conn
	dec *json.Decoder
	enc *json.Encoder
}

// NewClient returns a client of the target whose control socket is in runDir. It
// connects when it is used.
func NewClient(runDir string) *Client { return &Client{path: socketPath(runDir)} }

// Close closes the connections that are not in use.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cc := range c.idle {
		_ = cc.nc.Close()
	}
	c.idle = nil
}

// remoteError is an error of the target. It is one of the package's where it
// says so.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

func (c *Client) conn(ctx context.Context, fresh bool) (*clientConn, bool, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 && !fresh {
		cc := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return cc, true, nil
	}
	c.mu.Unlock()
	nc, err := unixsock.Dial(ctx, c.path)
	if err != nil {
		return nil, false, err
	}
	return &clientConn{nc, json.NewDecoder(nc), json.NewEncoder(nc)}, false, nil
}

// call makes one request. All of them bear repeating, so that one on a
// connection of an earlier server is made again on a new one.
func (c *Client) call(ctx context.Context, req request) (response, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	for fresh := false; ; fresh = true {
		cc, reused, err := c.conn(ctx, fresh)
		if err != nil {
			return response{}, fmt.Errorf("target: %w", err)
		}
		resp, err := cc.call(ctx, req)
		if err != nil {
			_ = cc.nc.Close()
			if reused && ctx.Err() == nil {
				continue
			}
			return response{}, fmt.Errorf("target: %s: %w", req.Op, errors.Join(err, ctx.Err()))
		}
		c.mu.Lock()
		c.idle = append(c.idle, cc)
		c.mu.Unlock()
		if resp.Error == "" {
			return resp, nil
		}
		e := &remoteError{text: resp.Error}
		for _, k := range codes {
			if k.name == resp.Code {
				e.kind = k.err
			}
		}
		return resp, fmt.Errorf("target: %w", e)
	}
}

func (cc *clientConn) call(ctx context.Context, req request) (response, error) {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	// The server gives up a little earlier, so that its reason arrives.
	req.Timeout = max(left-left/10, time.Millisecond).Milliseconds()
	_ = cc.nc.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = cc.nc.SetDeadline(time.Now()) })
	defer stop()
	if err := cc.enc.Encode(req); err != nil {
		return response{}, err
	}
	var resp response
	err := cc.dec.Decode(&resp)
	return resp, err
}

// Ping asks whether the target answers, and returns the process's id.
func (c *Client) Ping(ctx context.Context) (pid int, err error) {
	resp, err := c.call(ctx, request{Op: opPing})
	return resp.PID, err
}

// Put serves an export, without access until SetAccess gives some. Doing it again
// changes nothing but the portals and the way of discovery. An error about a portal leaves the export in
// place; the portal is tried again.
func (c *Client) Put(ctx context.Context, e Export) error {
	_, err := c.call(ctx, request{Op: opPut, IQN: e.IQN, Export: &e})
	return err
}

// Remove ends an export: initiators are told, and when nil is returned no command
// is at the volume and its file is closed. One that does not exist is no error.
func (c *Client) Remove(ctx context.Context, iqn string) error {
	_, err := c.call(ctx, request{Op: opRemove, IQN: iqn})
	return err
}

// Grow makes the volume size bytes long, or with size 0 takes over what it has
// become; initiators get a unit attention.
func (c *Client) Grow(ctx context.Context, iqn string, size int64) error {
	_, err := c.call(ctx, request{Op: opGrow, IQN: iqn, Size: size})
	return err
}

// SetAccess makes list the grants of an export. It returns nil when they are
// persisted and in force, and no command of a grant that went can touch the
// volume any more; ErrDraining when such a command is still there (the new grants
// are then not admitted: call again), ErrFenced for an epoch that was fenced.
func (c *Client) SetAccess(ctx context.Context, iqn string, list []Access) error {
	req := request{Op: opAccess, IQN: iqn}
	for _, a := range list {
		req.Access = append(req.Access, a.wire())
	}
	_, err := c.call(ctx, req)
	return err
}

// Fence ends an epoch for ever. When it returns nil no command of it touches the
// volume any more and no login of it succeeds; with ErrDraining new commands are
// refused but one is still at the volume: call again.
func (c *Client) Fence(ctx context.Context, iqn string, epoch uint64) error {
	_, err := c.call(ctx, request{Op: opFence, IQN: iqn, Epoch: epoch})
	return err
}

// ClearReservations ends every reservation and registration of an export, whoever
// made it.
func (c *Client) ClearReservations(ctx context.Context, iqn string) error {
	_, err := c.call(ctx, request{Op: opClear, IQN: iqn})
	if errors.Is(err, ErrInvalid) {
		err = fmt.Errorf("the target that runs is of an older build, which cannot do this before it is restarted: %w", err)
	}
	return err
}

// List returns all exports, sorted by name.
func (c *Client) List(ctx context.Context) ([]Status, error) {
	resp, err := c.call(ctx, request{Op: opList})
	return resp.Exports, err
}
