package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// startQEMU runs a real one, for the test's length.
func startQEMU(t *testing.T) string {
	t.Helper()
	path := socketPath(t)
	cmd := exec.Command("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-S", "-nodefaults", "-no-user-config",
		"-display", "none", "-m", "16", "-qmp", "unix:"+path+",server=on,wait=off")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return path
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("QEMU did not listen within 10s")
		}
	}
}

func dial(t *testing.T, path string) *Conn {
	t.Helper()
	c, err := Dial(timeout(t), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func waitEvent(t *testing.T, s *Subscription, name string) Event {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case e, ok := <-s.C():
			if !ok {
				t.Fatalf("the subscription ended without event %s", name)
			}
			if e.Name == name {
				return e
			}
		case <-deadline:
			t.Fatalf("no event %s within 10s", name)
		}
	}
}

func wantClass(t *testing.T, err error, class string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Class != class || e.Desc == "" || e.Command == "" {
		t.Fatalf("error %v, want one of class %s", err, class)
	}
}

// dialogues hold for a real QEMU and for the fake alike.
var dialogues = map[string]func(t *testing.T, c *Conn){
	"the greeting tells the version": func(t *testing.T, c *Conn) {
		if v := c.Version(); v.Major < 7 {
			t.Fatalf("version %v", v)
		}
	},
	"a command changes the state and an event tells it": func(t *testing.T, c *Conn) {
		sub := c.Subscribe(16)
		raw := c.Raw(timeout(t))
		if s, err := raw.QueryStatus(); err != nil || s.Status.String() != "prelaunch" {
			t.Fatalf("status %v, %v", s, err)
		}
		if err := raw.Cont(); err != nil {
			t.Fatal(err)
		}
		if e := waitEvent(t, sub, "RESUME"); e.Time.IsZero() || e.Lost {
			t.Fatalf("event %+v", e)
		}
		if s, err := raw.QueryStatus(); err != nil || !s.Running {
			t.Fatalf("status %v, %v", s, err)
		}
	},
	"a refusal is typed": func(t *testing.T, c *Conn) {
		ctx := timeout(t)
		wantClass(t, c.Do(ctx, unknownCommand, nil, nil), "CommandNotFound")
		wantClass(t, c.Raw(ctx).DeviceDel("nothing"), "DeviceNotFound")
		wantClass(t, c.Do(ctx, "object-del", map[string]any{"id": "nothing"}, nil), "GenericError")
		if err := c.Do(ctx, "query-status", nil, nil); err != nil {
			t.Fatalf("after a refusal: %v", err)
		}
	},
	"objects come and go": func(t *testing.T, c *Conn) {
		ctx := timeout(t)
		secret := map[string]any{"qom-type": "secret", "id": "s1", "data": "x"}
		if err := c.Do(ctx, "object-add", secret, nil); err != nil {
			t.Fatal(err)
		}
		wantClass(t, c.Do(ctx, "object-add", secret, nil), "GenericError")
		if err := c.Raw(ctx).ObjectDel("s1"); err != nil {
			t.Fatal(err)
		}
	},
	"a reply of more than 200 KB": func(t *testing.T, c *Conn) {
		var schema json.RawMessage
		if err := c.Do(timeout(t), "query-qmp-schema", nil, &schema); err != nil || len(schema) < 200<<10 {
			t.Fatalf("%d bytes, %v", len(schema), err)
		}
	},
	"many at once": func(t *testing.T, c *Conn) {
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				ctx := timeout(t)
				if i%2 == 0 {
					var s struct{ Status string }
					if err := c.Do(ctx, "query-status", nil, &s); err != nil || s.Status != "prelaunch" {
						t.Errorf("status %q, %v", s.Status, err)
					}
				} else if err := c.Do(ctx, unknownCommand, nil, nil); err == nil {
					t.Error("the reply to another command")
				}
			})
		}
		wg.Wait()
	},
	"a file goes along": func(t *testing.T, c *Conn) {
		ctx := timeout(t)
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		name := map[string]any{"fdname": "null"}
		wantClass(t, c.Do(ctx, "getfd", name, nil), "GenericError")
		if err := c.DoFile(ctx, "getfd", name, nil, f); err != nil {
			t.Fatal(err)
		}
		if err := c.Raw(ctx).Closefd("null"); err != nil {
			t.Fatal(err)
		}
	},
	"go-qemu's monitor": func(t *testing.T, c *Conn) {
		ctx, cancel := context.WithCancel(timeout(t))
		m := c.Monitor(ctx)
		if err := m.Connect(); err != nil {
			t.Fatal(err)
		}
		events, err := m.Events(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Run([]byte(`{"execute":"cont"}`)); err != nil {
			t.Fatal(err)
		}
		if e := <-events; e.Event != "RESUME" || e.Timestamp.Seconds == 0 {
			t.Fatalf("event %+v", e)
		}
		out, err := m.Run([]byte(`{"execute":"query-status"}`))
		var reply struct{ Return struct{ Running bool } }
		if err == nil {
			err = json.Unmarshal(out, &reply)
		}
		if err != nil || !reply.Return.Running {
			t.Fatalf("%s, %v", out, err)
		}
		cancel()
		for range events { // closed when its context ends
		}
		if err := m.Disconnect(); err != nil || !errors.Is(m.Connect(), ErrClosed) {
			t.Fatalf("after Disconnect: %v, %v", err, m.Connect())
		}
	},
	"a second client waits for the first": func(t *testing.T, c *Conn) {
		path := c.conn.RemoteAddr().String()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := Dial(ctx, path)
		var silent *SilentError
		if !errors.As(err, &silent) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v, want a SilentError", err)
		}
		c.Close()
		dial(t, path)
	},
	"quit closes the connection": func(t *testing.T, c *Conn) {
		sub := c.Subscribe(1)
		ctx := timeout(t)
		if err := c.Raw(ctx).Quit(); err != nil && !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		select {
		case <-c.Done():
		case <-ctx.Done():
			t.Fatal("the connection is still there 10s after quit")
		}
		if err := c.Do(ctx, "query-status", nil, nil); !errors.Is(err, ErrClosed) {
			t.Fatalf("error %v, want ErrClosed", err)
		}
		for range sub.C() { // closed with the connection
		}
		if _, ok := <-c.Subscribe(1).C(); ok {
			t.Fatal("an event after the end")
		}
	},
}

func TestDialoguesWithQEMU(t *testing.T) {
	for name, dialogue := range dialogues {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dialogue(t, dial(t, startQEMU(t)))
		})
	}
}

func TestDialoguesWithFake(t *testing.T) {
	for name, dialogue := range dialogues {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			dialogue(t, dial(t, f.path))
			t.Logf("state at the end:\n%v", f)
		})
	}
}

func TestDialsALongPath(t *testing.T) {
	short := startQEMU(t)
	dir := t.TempDir()
	for len(dir) < 150 {
		dir = filepath.Join(dir, "quite-a-long-name")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, "qmp")
	if err := os.Rename(short, long); err != nil {
		t.Fatal(err)
	}
	dial(t, long)
}
