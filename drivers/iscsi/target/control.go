package target

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// SocketName is the control socket's file in the run directory.
const SocketName = "target.sock"

// request and response are the control protocol: JSON values, one after the
// other, a response for each request in its order.
type request struct {
	Op string `json:"op"`
	// Timeout is how long the caller waits, in milliseconds.
	Timeout int64        `json:"timeout,omitempty"`
	IQN     string       `json:"iqn,omitempty"`
	Export  *Export      `json:"export,omitempty"`
	Size    int64        `json:"size,omitempty"`
	Access  []accessJSON `json:"access,omitempty"`
	Epoch   uint64       `json:"epoch,omitempty"`
}

type response struct {
	Error   string   `json:"error,omitempty"`
	Code    string   `json:"code,omitempty"` // of an error that callers tell apart
	PID     int      `json:"pid,omitempty"`
	Exports []Status `json:"exports,omitempty"`
}

const (
	opPing   = "ping"
	opPut    = "put"
	opRemove = "remove"
	opGrow   = "grow"
	opAccess = "access"
	opFence  = "fence"
	opList   = "list"
	opClear  = "clearReservations"
)

// codes are the errors that keep their identity over the socket.
var codes = []struct {
	name string
	err  error
}{
	{"notFound", ErrNotFound},
	{"fenced", ErrFenced},
	{"draining", ErrDraining},
	{"conflict", ErrConflict},
	{"other", ErrOther},
	{"invalid", ErrInvalid},
}

const (
	maxRequest     = 1 << 20
	defaultTimeout = 30 * time.Second
)

// serveControl answers one connection of the control socket.
func (srv *Server) serveControl(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	lim := &io.LimitedReader{R: c}
	dec := json.NewDecoder(bufio.NewReader(lim))
	enc := json.NewEncoder(c)
	for {
		lim.N = maxRequest
		var req request
		if err := dec.Decode(&req); err != nil {
			return
		}
		timeout := defaultTimeout
		if req.Timeout > 0 {
			timeout = time.Duration(req.Timeout) * time.Millisecond
		}
		rctx, cancel := context.WithTimeout(ctx, timeout)
		resp, err := srv.act(rctx, &req)
		cancel()
		if err != nil {
			resp.Error = err.Error()
			for _, c := range codes {
				if errors.Is(err, c.err) {
					resp.Code = c.name
					break
				}
			}
			srv.log.Warn("control request failed", "op", req.Op, "target", req.IQN, "error", err)
		}
		_ = c.SetWriteDeadline(time.Now().Add(defaultTimeout))
		if err := enc.Encode(resp); err != nil {
			return
		}
	}
}

func (srv *Server) act(ctx context.Context, req *request) (response, error) {
	switch req.Op {
	case opPing:
		return response{PID: os.Getpid()}, nil
	case opPut:
		if req.Export == nil {
			return response{}, ErrInvalid
		}
		return response{}, srv.put(ctx, *req.Export)
	case opRemove:
		return response{}, srv.remove(ctx, req.IQN)
	case opGrow:
		return response{}, srv.grow(ctx, req.IQN, req.Size)
	case opAccess:
		list := make([]Access, 0, len(req.Access))
		for _, a := range req.Access {
			list = append(list, a.access())
		}
		return response{}, srv.setAccess(ctx, req.IQN, list)
	case opFence:
		return response{}, srv.fence(ctx, req.IQN, req.Epoch)
	case opClear:
		return response{}, srv.clearReservations(ctx, req.IQN)
	case opList:
		return response{Exports: srv.list()}, nil
	}
	return response{}, ErrInvalid
}

func socketPath(runDir string) string { return filepath.Join(runDir, SocketName) }
