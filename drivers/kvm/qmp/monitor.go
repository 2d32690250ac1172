package qmp

import (
	"context"
	"encoding/json"
	"fmt"

	goqemu "github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
)

// Monitor is a connection as go-qemu sees it, bound to a context: go-qemu's
// commands have no deadline of their own.
type Monitor struct {
	ctx  context.Context
	conn *Conn
}

var _ goqemu.Monitor = Monitor{}

// Monitor returns the connection for go-qemu; every command ends with ctx.
func (c *Conn) Monitor(ctx context.Context) Monitor { return Monitor{ctx, c} }

// Raw returns go-qemu's typed commands; each ends with ctx. They were made from
// a schema older than QEMU 7.2: object-add, device_add, netdev_add,
// query-cpus-fast and set-action do not match it and need Do.
func (c *Conn) Raw(ctx context.Context) *raw.Monitor { return raw.NewMonitor(c.Monitor(ctx)) }

// Connect reports whether the connection, made by Dial, still lives.
func (m Monitor) Connect() error {
	if err := m.conn.Err(); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// Disconnect closes the connection.
func (m Monitor) Disconnect() error { return m.conn.Close() }

// Run sends a command in JSON and returns QEMU's reply in JSON. The id is ours.
func (m Monitor) Run(command []byte) ([]byte, error) {
	var cmd struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("qmp: decode the command: %w", err)
	}
	var args any
	if len(cmd.Arguments) > 0 {
		args = cmd.Arguments
	}
	ret, err := m.conn.exchange(m.ctx, cmd.Execute, args, nil)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]json.RawMessage{"return": ret})
}

// Events returns a channel that is closed when ctx or the connection ends. A
// reader that falls far behind loses the oldest events.
func (m Monitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	sub := m.conn.Subscribe(64)
	out := make(chan goqemu.Event)
	go func() {
		defer close(out)
		defer sub.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case e, ok := <-sub.C():
				if !ok {
					return
				}
				g := goqemu.Event{Event: e.Name}
				g.Timestamp.Seconds = e.Time.Unix()
				g.Timestamp.Microseconds = int64(e.Time.Nanosecond() / 1000)
				if len(e.Data) > 0 {
					_ = json.Unmarshal(e.Data, &g.Data) // an object by QMP's definition; else there is no data
				}
				select {
				case out <- g:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}
