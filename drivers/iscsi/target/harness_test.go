package target

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/drivers/iscsi/scsi"

	"reconciler/internal/testbed"
)

const (
	testIQN  = "iqn.2026-11.test:disk"
	testName = "iqn.2026-11.test:host1"
)

// gate is a logical unit whose writes can be held up.
type gate struct {
	LogicalUnit
	mu   sync.Mutex
	hold func(cdb []byte) <-chan struct{} // of a command that is to wait; nil runs it
	in   chan struct{}                    // one for each command that waits
}

func (g *gate) Execute(ctx context.Context, c *scsi.Command) scsi.Result {
	g.mu.Lock()
	hold := g.hold
	g.mu.Unlock()
	if hold != nil {
		if wait := hold(c.CDB); wait != nil {
			g.in <- struct{}{}
			<-wait // like a system call: nothing cancels it
		}
	}
	return g.LogicalUnit.Execute(ctx, c)
}

// holdOpcode makes commands of an opcode wait until the returned function is
// called.
func (g *gate) holdOpcode(op byte) (release func()) {
	wait := make(chan struct{})
	g.mu.Lock()
	g.hold = func(cdb []byte) <-chan struct{} {
		if cdb[0] == op {
			return wait
		}
		return nil
	}
	g.mu.Unlock()
	var once sync.Once
	return func() {
		once.Do(func() {
			g.mu.Lock()
			g.hold = nil
			g.mu.Unlock()
			close(wait)
		})
	}
}

// bed is a server in this process with one export.
type bed struct {
	t      testing.TB
	dir    string
	portal string
	volume string
	client *Client
	gate   *gate
	stop   func() error
}

func freePortal(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// serveTest runs a server on the directory until the test, or stop, ends it.
func serveTest(t testing.TB, dir string, change func(*Config)) (client *Client, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cfg := Config{StateDir: filepath.Join(dir, "s"), RunDir: filepath.Join(dir, "r"), Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, cfg) }()
	client = NewClient(cfg.RunDir)
	var once sync.Once
	var ended error
	stop = func() error {
		once.Do(func() {
			cancel()
			client.Close()
			select {
			case ended = <-done:
			case <-time.After(waitLimit):
				ended = errors.New("the server does not stop")
			}
		})
		return ended
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	waitFor(t, "the control socket", func() bool {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("server ended: %v", err)
		default:
		}
		_, err := client.Ping(context.Background())
		return err == nil
	})
	return client, stop
}

// waitFor waits until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testbed.Await(t, waitLimit, what, cond)
}

const testSize = 64 << 20

func newVolume(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	return path
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tgt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newBed serves one volume to testName without CHAP.
func newBed(t testing.TB, change func(*Config)) *bed {
	t.Helper()
	b := &bed{t: t, dir: shortDir(t), portal: freePortal(t)}
	b.volume = newVolume(t, b.dir, "v")
	b.gate = &gate{in: make(chan struct{}, 1000)}
	b.client, b.stop = serveTest(t, b.dir, func(c *Config) {
		c.Open = func(e Export) (LogicalUnit, error) {
			lu, err := c.openVolume(e)
			if err != nil {
				return nil, err
			}
			if e.IQN != testIQN {
				return lu, nil
			}
			b.gate.LogicalUnit = lu
			return b.gate, nil
		}
		if change != nil {
			change(c)
		}
	})
	if err := b.client.Put(t.Context(), b.export()); err != nil {
		t.Fatal(err)
	}
	b.grant(Access{Epoch: 1, Initiators: []string{testName}})
	return b
}

func (b *bed) export() Export {
	return Export{IQN: testIQN, Path: b.volume, Serial: "00112233445566778899", Portals: []string{b.portal}}
}

func (b *bed) grant(list ...Access) {
	b.t.Helper()
	if err := b.client.SetAccess(b.t.Context(), testIQN, list); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) args() loginArgs {
	return loginArgs{portal: b.portal, target: testIQN, name: testName, isid: [6]byte{0x80, 1}}
}

func (b *bed) login() *ini {
	b.t.Helper()
	return logIn(b.t, b.args()).ready()
}

// loginAs logs in by another name.
func (b *bed) loginAs(name string) *ini {
	b.t.Helper()
	a := b.args()
	a.name = name
	return logIn(b.t, a).ready()
}

func (b *bed) status() Status {
	b.t.Helper()
	list, err := b.client.List(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range list {
		if s.IQN == testIQN {
			return s
		}
	}
	b.t.Fatalf("%s is not exported", testIQN)
	return Status{}
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i) + byte(i>>9)
	}
	return p
}

func secret(s string) claim.Secret { return claim.NewSecret(s) }

func name(i int) string { return fmt.Sprintf("iqn.2026-11.test:host%d", i) }
