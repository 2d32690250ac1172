package target

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

// The test's own binary is the server and the supervisor.
const runEnv = "TARGET_TEST_RUN"

func TestMain(m *testing.M) {
	dir := os.Getenv(runEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	if len(os.Args) > 1 && os.Args[len(os.Args)-1] == SuperviseFlag {
		err = Supervise(ctx, processConfig(dir), log)
	} else {
		err = Serve(ctx, Config{StateDir: filepath.Join(dir, "s"), RunDir: filepath.Join(dir, "r"), Logger: log})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func processConfig(dir string) EnsureConfig {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return EnsureConfig{Exe: exe, Args: []string{"-test.run=none"}, StateDir: filepath.Join(dir, "s"), RunDir: filepath.Join(dir, "r")}
}

// ensured is a target in processes of its own.
func ensured(t *testing.T) (dir string, cfg EnsureConfig, c *Client) {
	t.Helper()
	dir = shortDir(t)
	t.Setenv(runEnv, dir)
	cfg = processConfig(dir)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		if err := Stop(ctx, cfg); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	if err := Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	c = NewClient(cfg.RunDir)
	t.Cleanup(c.Close)
	return dir, cfg, c
}

func (cfg EnsureConfig) supervisorPID() int {
	return lockPID(filepath.Join(cfg.StateDir, supervisorLock))
}

func serverPID(t *testing.T, c *Client) int {
	t.Helper()
	pid, err := c.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// newServer waits until another process than old answers.
func newServerPID(t *testing.T, c *Client, old int) (pid int) {
	t.Helper()
	waitFor(t, "another server", func() bool {
		var err error
		pid, err = c.Ping(t.Context())
		return err == nil && pid != old
	})
	return pid
}

func TestSupervisor(t *testing.T) {
	dir, cfg, c := ensured(t)
	first := serverPID(t, c)
	waitFor(t, "the supervisor", func() bool { return cfg.supervisorPID() > 0 })
	supervisor := cfg.supervisorPID()
	if sid, err := syscall.Getpgid(supervisor); err != nil || sid == syscall.Getpgrp() {
		t.Errorf("the supervisor is in our process group: %v", err)
	}

	// Ensure again changes nothing.
	if err := Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if got := serverPID(t, c); got != first || cfg.supervisorPID() != supervisor {
		t.Errorf("server %d and supervisor %d became %d and %d", first, supervisor, got, cfg.supervisorPID())
	}

	// The server is killed: it is there again, with what it served.
	portal, vol := freePortal(t), newVolume(t, dir, "v")
	if err := c.Put(t.Context(), Export{IQN: testIQN, Path: vol, Portals: []string{portal}}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetAccess(t.Context(), testIQN, []Access{{Epoch: 4, Initiators: []string{testName}, User: "u", Password: secret("password")}}); err != nil {
		t.Fatal(err)
	}
	a := loginArgs{portal: portal, target: testIQN, name: testName, user: "u", password: "password"}
	logIn(t, a).ready().write(3, pattern(512, 1))
	killed := time.Now()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := newServerPID(t, c, first)
	t.Logf("a killed server is back after %v", time.Since(killed))
	if got := logIn(t, a).ready().read(3, 1); !bytes.Equal(got, pattern(512, 1)) {
		t.Error("what was written is gone")
	}

	// The supervisor is killed: the server goes on, and the next Ensure starts a
	// supervisor that watches it.
	i := logIn(t, a).ready()
	if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the supervisor's end", func() bool { return syscall.Kill(supervisor, 0) != nil || zombie(supervisor) })
	i.write(4, pattern(512, 2))
	if err := Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "another supervisor", func() bool { p := cfg.supervisorPID(); return p > 0 && p != supervisor })
	if got := serverPID(t, c); got != second {
		t.Errorf("server %d became %d", second, got)
	}
	i.write(5, pattern(512, 3))
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	third := newServerPID(t, c, second)

	// Stop ends both and leaves nothing.
	if err := Stop(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ping(t.Context()); err == nil {
		t.Error("a server answers after stop")
	}
	waitFor(t, "the server's end", func() bool { return syscall.Kill(third, 0) != nil || zombie(third) })
	if err := Stop(t.Context(), cfg); err != nil {
		t.Errorf("stop again: %v", err)
	}
}

// zombie reports a process that has ended and that nobody has waited for: the
// test's machine may have an init that does not.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && bytes.Contains(b, []byte(") Z "))
}

// Many callers at once come to one supervisor and one server.
func TestEnsureAtOnce(t *testing.T) {
	dir := shortDir(t)
	t.Setenv(runEnv, dir)
	cfg := processConfig(dir)
	t.Cleanup(func() {
		if err := Stop(context.Background(), cfg); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := Ensure(t.Context(), cfg); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Those that came second end by themselves.
	waitFor(t, "one supervisor", func() bool {
		return supervisors(t, dir) == 1
	})
	c := NewClient(cfg.RunDir)
	defer c.Close()
	serverPID(t, c)
}

// supervisors counts the supervisors of a test's directory.
func supervisors(t *testing.T, dir string) (n int) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline")) // it may be gone
		environ, _ := os.ReadFile(filepath.Join(p, "environ"))
		if bytes.HasSuffix(cmdline, []byte("\x00"+SuperviseFlag+"\x00")) && bytes.Contains(environ, []byte(runEnv+"="+dir+"\x00")) {
			n++
		}
	}
	return n
}

// The server is killed under a load of synchronised writes: every one that was
// acknowledged is there afterwards. The long form kills a hundred times.
func TestKillUnderLoad(t *testing.T) {
	kills := 5
	if os.Getenv("RECONCILER_SOAK") != "" {
		kills = 100
	}
	dir, _, c := ensured(t)
	portal, vol := freePortal(t), newVolume(t, dir, "v")
	if err := c.Put(t.Context(), Export{IQN: testIQN, Path: vol, Portals: []string{portal}}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetAccess(t.Context(), testIQN, []Access{{Epoch: 4, Initiators: []string{testName}}}); err != nil {
		t.Fatal(err)
	}
	a := loginArgs{portal: portal, target: testIQN, name: testName}
	acked, next := -1, 0
	sync10 := make([]byte, 16)
	sync10[0] = 0x35
	for range kills {
		pid := serverPID(t, c)
		var i *ini
		waitFor(t, "a login", func() bool {
			i = nil
			try, err := dialOnce(t, portal)
			if err != nil {
				return false
			}
			if try.tryLogin(a) != nil {
				try.nc.Close()
				return false
			}
			i = try
			return true
		})
		i.ready()
		stop := time.AfterFunc(30*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		for {
			data := pattern(512, byte(next))
			copy(data, fmt.Sprintf("record %d ", next))
			r, err := i.finish(i.startQuiet(rw10(opWrite10, uint32(next%1000), 1), data), nil)
			if err == nil && r.status == 0 {
				r, err = i.finish(i.startQuiet(sync10, nil), nil)
			}
			if err != nil {
				break
			}
			if r.status != 0 {
				t.Fatalf("record %d: status %d, %x", next, r.status, r.sense)
			}
			acked = next
			next++
		}
		stop.Stop()
		newServerPID(t, c, pid)
		got := logIn(t, a).ready().read(uint32(acked%1000), 1)
		if want := fmt.Sprintf("record %d ", acked); !bytes.HasPrefix(got, []byte(want)) {
			t.Fatalf("%s was acknowledged and is not there: %q", want, got[:20])
		}
	}
	if acked < kills {
		t.Errorf("only %d records were acknowledged", acked)
	}
}

func dialOnce(t *testing.T, portal string) (*ini, error) {
	nc, err := netDial(portal)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { nc.Close() })
	return &ini{t: t, nc: nc, cmdSN: 100, itt: 1, params: map[string]string{}}, nil
}

// startQuiet sends a command on a connection that may be gone.
func (i *ini) startQuiet(cdb, out []byte) uint32 {
	h := i.header(pdu.OpSCSICommand, pdu.Final|pdu.AttrSimple)
	if len(out) > 0 {
		h[1] |= pdu.CommandWrite
	}
	h.PutU32(pdu.OffEDTL, uint32(len(out)))
	copy(h[pdu.OffCDB:], cdb)
	_ = i.send(h, out)
	return h.ITT()
}
