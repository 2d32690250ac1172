package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/reconcile"
)

// Client is an Agent at the other end of the socket. The Caller of a request
// does not travel: the agent asks the kernel.
type Client struct {
	http     *http.Client
	socket   string
	timeouts timeouts
}

var _ Agent = (*Client)(nil)

// Dial finds the agent of a run directory. The error is ErrNoAgent where none
// listens.
func Dial(runDir string) (*Client, error) { return dialWith(runDir, defaultTimeouts) }

func dialWith(runDir string, t timeouts) (*Client, error) {
	c := &Client{socket: filepath.Join(runDir, SocketName), timeouts: t}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, runDir) },
		// A kept connection may be one to an agent that has ended since.
		DisableKeepAlives: true,
	}}
	ctx, cancel := context.WithTimeout(context.Background(), t.silence)
	defer cancel()
	conn, err := dial(ctx, runDir)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return c, conn.Close()
}

// explain says what a failure of the connection means.
func (c *Client) explain(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens on %s", ErrNoAgent, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return &Error{Code: Denied, Message: fmt.Sprintf("%s: permission denied", c.socket), Hint: "run the command as root"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return &Error{Code: Unavailable, Message: "the agent ended before it answered", Hint: "see its log"}
	}
	return fmt.Errorf("agent at %s: %w", c.socket, err)
}

// send makes a request and gives the answer's body, which has a bound.
func (c *Client) send(ctx context.Context, method, path string, req any) (io.ReadCloser, error) {
	var body io.Reader
	if method != http.MethodGet {
		data, err := json.Marshal(req)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	// The host is not used to connect.
	r, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		var e Error
		if err := json.NewDecoder(io.LimitReader(res.Body, maxResponse)).Decode(&e); err != nil || e.Code == "" {
			return nil, fmt.Errorf("agent at %s: answer %s", c.socket, res.Status)
		}
		return nil, &e
	}
	return struct {
		io.Reader
		io.Closer
	}{&bounded{r: res.Body, left: maxResponse}, res.Body}, nil
}

// bounded is a reader that fails beyond its bound, where io.LimitedReader ends.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("answer longer than %d bytes", maxResponse)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// ask makes a call that takes moments.
func ask[Res any](ctx context.Context, c *Client, method, path string, req any) (res Res, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeouts.call+c.timeouts.write, c.silent(c.timeouts.call))
	defer cancel()
	body, err := c.send(ctx, method, path, req)
	if err != nil {
		return res, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&res); err != nil {
		return res, c.explain(ctx, err)
	}
	return res, nil
}

func (c *Client) silent(d time.Duration) error {
	return &Error{Code: Unavailable, Message: fmt.Sprintf("the agent gave no answer within %s", d), Hint: "it may be stopped or overloaded; see its log"}
}

// watch makes a call that may take any time, as long as the agent shows signs of life.
func watch[Res any](ctx context.Context, c *Client, path string, req any, progress func(string)) (res Res, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(c.timeouts.silence, func() { cancel(c.silent(c.timeouts.silence)) })
	defer silence.Stop()
	body, err := c.send(ctx, http.MethodPost, path, req)
	if err != nil {
		return res, err
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	for {
		var l line
		if err := dec.Decode(&l); err != nil {
			return res, c.explain(ctx, err)
		}
		silence.Reset(c.timeouts.silence)
		switch {
		case l.Error != nil:
			return res, l.Error
		case l.Done:
			if err := json.Unmarshal(l.Result, &res); err != nil {
				return res, fmt.Errorf("agent at %s: %w", c.socket, err)
			}
			return res, nil
		case l.Progress != "" && progress != nil:
			progress(l.Progress)
		}
	}
}

// Status implements Agent.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Objects implements Agent.
func (c *Client) Objects(ctx context.Context) ([]Object, error) {
	return ask[[]Object](ctx, c, http.MethodGet, "/v1/objects", nil)
}

// Plan implements Agent.
func (c *Client) Plan(ctx context.Context, r PlanRequest) (*reconcile.Plan, error) {
	return watch[*reconcile.Plan](ctx, c, "/v1/plan", r, nil)
}

// Reconcile implements Agent.
func (c *Client) Reconcile(ctx context.Context, r ReconcileRequest, progress func(string)) (*reconcile.Plan, error) {
	return watch[*reconcile.Plan](ctx, c, "/v1/reconcile", r, progress)
}

// Suspend implements Agent.
func (c *Client) Suspend(ctx context.Context, r SuspendRequest) error {
	return c.tell(ctx, "/v1/suspend", r)
}

// Resume implements Agent.
func (c *Client) Resume(ctx context.Context, r ResumeRequest) error {
	return c.tell(ctx, "/v1/resume", r)
}

// Allow implements Agent.
func (c *Client) Allow(ctx context.Context, r AllowRequest) error {
	return c.tell(ctx, "/v1/allow", r)
}

// Accept implements Agent.
func (c *Client) Accept(ctx context.Context, r AcceptRequest) error {
	_, err := watch[none](ctx, c, "/v1/accept", r, nil)
	return err
}

// Restart implements Agent.
func (c *Client) Restart(ctx context.Context, r MachineRequest) error {
	return c.tell(ctx, "/v1/restart", r)
}

// Stop implements Agent.
func (c *Client) Stop(ctx context.Context, r MachineRequest) (StopResult, error) {
	return watch[StopResult](ctx, c, "/v1/stop", r, nil)
}

// Undelete implements Agent.
func (c *Client) Undelete(ctx context.Context, r UndeleteRequest) (UndeleteResult, error) {
	return watch[UndeleteResult](ctx, c, "/v1/undelete", r, nil)
}

// Revert implements Agent.
func (c *Client) Revert(ctx context.Context, r RevertRequest) error {
	return c.tell(ctx, "/v1/revert", r)
}

// Import implements Agent.
func (c *Client) Import(ctx context.Context, r ImportRequest) (ImportResult, error) {
	return watch[ImportResult](ctx, c, "/v1/import", r, nil)
}

// Access implements Agent.
func (c *Client) Access(ctx context.Context, r AccessRequest) (Access, error) {
	return watch[Access](ctx, c, "/v1/access", r, nil)
}

// ListAccess implements Agent.
func (c *Client) ListAccess(ctx context.Context) ([]Access, error) {
	return ask[[]Access](ctx, c, http.MethodGet, "/v1/access", nil)
}

// ClearReservations implements Agent.
func (c *Client) ClearReservations(ctx context.Context, r ClearRequest) (ClearResult, error) {
	return watch[ClearResult](ctx, c, "/v1/access/clear", r, nil)
}

// EndAccess implements Agent.
func (c *Client) EndAccess(ctx context.Context, r EndAccessRequest) error {
	_, err := watch[none](ctx, c, "/v1/access/end", r, nil)
	return err
}

// Console implements Agent.
func (c *Client) Console(ctx context.Context, vm string) (Console, error) {
	return ask[Console](ctx, c, http.MethodPost, "/v1/console", consoleQuery{VM: vm})
}

// Events implements Agent. With follow it returns at least one event, or fails.
func (c *Client) Events(ctx context.Context, after uint64, follow bool) ([]Event, error) {
	for {
		list, err := ask[[]Event](ctx, c, http.MethodPost, "/v1/events", eventQuery{After: after, Follow: follow})
		if err != nil || !follow || len(list) > 0 {
			return list, err
		}
	}
}

func (c *Client) tell(ctx context.Context, path string, req any) error {
	_, err := ask[none](ctx, c, http.MethodPost, path, req)
	return err
}
