package api

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"time"

	"reconciler/internal/unixsock"
)

// SocketName is the socket's name in the run directory.
const SocketName = "agent.sock"

const (
	maxRequest  = 64 << 10  // bytes of a request's body; bodies are a few names and a reason
	maxResponse = 256 << 20 // bytes of an answer; a plan of 5,000 objects has about 5 MiB
)

// timeouts bound what the two sides wait for each other.
type timeouts struct {
	read      time.Duration // for a request that has begun
	write     time.Duration // for one line or answer to be taken
	call      time.Duration // for an answer
	poll      time.Duration // for an event
	heartbeat time.Duration // between signs of life of a call that may take any time
	silence   time.Duration // without a sign of life, after which the agent is given up
}

var defaultTimeouts = timeouts{
	read:      5 * time.Second,
	write:     10 * time.Second,
	call:      2 * time.Minute,
	poll:      25 * time.Second,
	heartbeat: 5 * time.Second,
	silence:   30 * time.Second,
}

// line is one line of an answer that may take any time. One that has nothing is
// a sign of life. Only the last one has Done, with a result or an error.
type line struct {
	Progress string          `json:"progress,omitempty"`
	Done     bool            `json:"done,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Listen makes the socket in the run directory. The caller holds the run
// directory's lock.
func Listen(runDir string) (net.Listener, error) {
	return unixsock.Listen(filepath.Join(runDir, SocketName))
}

func dial(ctx context.Context, runDir string) (net.Conn, error) {
	c, err := unixsock.Dial(ctx, filepath.Join(runDir, SocketName))
	if err != nil {
		return nil, err
	}
	return c, nil
}
