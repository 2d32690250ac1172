package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/api"
	"reconciler/api/apitest"
	"reconciler/spec"

	"reconciler/internal/testbed"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// running is a command that goes on.
type running struct {
	t      *testing.T
	lines  chan string
	errs   *lockedBuffer
	code   chan int
	cancel context.CancelFunc
}

// begin runs a command in this process.
func begin(t *testing.T, stdin io.Reader, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	r := &running{t: t, lines: make(chan string, 100), errs: &lockedBuffer{}, code: make(chan int, 1), cancel: cancel}
	go func() {
		defer close(r.lines)
		s := bufio.NewScanner(out)
		for s.Scan() {
			r.lines <- s.Text()
		}
	}()
	go func() {
		a := &app{stdin: stdin, stdout: in, stderr: r.errs, now: func() time.Time { return testTime }}
		code := a.run(ctx, args)
		in.Close()
		r.code <- code
	}()
	t.Cleanup(cancel)
	return r
}

// lockedBuffer is read while it is written to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// sees pokes until a line has text in it.
func (r *running) sees(text string, poke func()) {
	r.t.Helper()
	testbed.Await(r.t, patience, "a line with "+text, func() bool {
		poke()
		for {
			select {
			case line := <-r.lines:
				if strings.Contains(line, text) {
					return true
				}
				continue
			default:
			}
			return false
		}
	})
}

// want waits for a line that has text in it.
func (r *running) want(text string) {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-r.lines:
			if !ok {
				r.t.Fatalf("the command ended before it wrote %q", text)
			}
			if strings.Contains(line, text) {
				return
			}
		case <-deadline:
			r.t.Fatalf("no line with %q within %s", text, patience)
		}
	}
}

func (r *running) end(code int) {
	r.t.Helper()
	select {
	case got := <-r.code:
		if got != code {
			r.t.Errorf("exit code %d, want %d: %s", got, code, r.errs)
		}
	case <-time.After(patience):
		r.t.Fatalf("the command did not end within %s", patience)
	}
}

func serveTest(t *testing.T) (*apitest.Agent, string) {
	t.Helper()
	dir := t.TempDir()
	a := newAgent()
	serve(t.Fatalf, t.Cleanup, dir, a)
	return a, dir
}

func TestEventsFollow(t *testing.T) {
	a, dir := serveTest(t)
	r := begin(t, nil, "events", "-f", "--run-dir", dir)
	for _, name := range []string{"one", "two"} {
		a.SetObject(testObject(spec.KindVirtualMachine, name, name, "Synced", "Healthy"))
		r.want("VirtualMachine/" + name)
	}
	r.cancel()
	r.end(exitDone)
}

func TestGetWatch(t *testing.T) {
	a, dir := serveTest(t)
	r := begin(t, nil, "get", "vms", "-w", "--run-dir", dir)
	r.want("OBJECT")
	r.want("VirtualMachine/web-1")
	a.SetObject(testObject(spec.KindDisk, "other", "u", "Synced", "Healthy"))
	a.SetObject(testObject(spec.KindVirtualMachine, "web-2", "u2", "Synced", "Progressing"))
	r.want("Progressing") // and no line of a disk, or of what has not changed
	a.SetObject(testObject(spec.KindVirtualMachine, "web-2", "u2", "Synced", "Degraded"))
	select {
	case line := <-r.lines:
		if !strings.HasPrefix(line, "VirtualMachine/web-2 ") || !strings.Contains(line, "Degraded") {
			t.Errorf("%q", line)
		}
	case <-time.After(patience):
		t.Fatal("no line of the change")
	}
	r.cancel()
	r.end(exitDone)
}

func TestGetWatchJSON(t *testing.T) {
	_, dir := serveTest(t)
	r := begin(t, nil, "get", "vms", "-w", "-o", "json", "--run-dir", dir)
	var o api.Object
	select {
	case line := <-r.lines:
		if err := json.Unmarshal([]byte(line), &o); err != nil || o.Name != "web-1" {
			t.Errorf("%s: %v", line, err)
		}
	case <-time.After(patience):
		t.Fatal("no object")
	}
	r.cancel()
	r.end(exitDone)
}

// guest is a console that answers every line with "heard LINE".
func guest(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "console")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s := bufio.NewScanner(c)
				for s.Scan() {
					if s.Text() == "poweroff" {
						return
					}
					fmt.Fprintf(c, "heard %s\n", s.Text())
				}
			}()
		}
	}()
	return path
}

// With pipes: what is sent is answered after the end of the input, and the
// machine's end is the command's.
func TestConsolePipe(t *testing.T) {
	a, dir := serveTest(t)
	a.SetConsole("web-1", api.Console{Socket: guest(t)})
	r := begin(t, strings.NewReader("hello\n"), "console", "web-1", "--run-dir", dir)
	r.want("heard hello")
	r.cancel()
	r.end(exitDone)
	r = begin(t, strings.NewReader("one\npoweroff\n"), "console", "vm/web-1", "--run-dir", dir)
	r.want("heard one")
	r.end(exitDone)
}

// On a terminal every key is the guest's, but for Ctrl-].
func TestConsoleTerminal(t *testing.T) {
	a, dir := serveTest(t)
	a.SetConsole("web-1", api.Console{Socket: guest(t)})
	keys, tty := terminal(t)
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	r := begin(t, tty, "console", "web-1", "--run-dir", dir)
	// Ctrl-C among them: it must not end this process. A key that is typed
	// before the terminal is raw would be seen by the line discipline.
	testbed.Await(t, patience, "a raw terminal", func() bool {
		now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return now.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0
	})
	fmt.Fprint(keys, "a\x03b\n")
	r.want("heard a\x03b")
	fmt.Fprint(keys, "\x1d")
	r.end(exitDone)
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *after != *before {
		t.Error("the terminal is not as it was")
	}
}

// terminal makes a pseudo-terminal (pty(7)).
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestConsoleLog(t *testing.T) {
	a, dir := serveTest(t)
	log := filepath.Join(t.TempDir(), "console.log")
	a.SetConsole("web-1", api.Console{Log: log})
	// Nothing was written yet.
	r := begin(t, nil, "console", "web-1", "--log", "--run-dir", dir)
	r.end(exitDone)

	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r = begin(t, nil, "console", "web-1", "--log", "-f", "--run-dir", dir)
	write(log, "first\n")
	r.want("first")
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintln(f, "second")
	r.want("second")
	// It is turned over: emptied, and gone on with.
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "new")
	r.want("new")
	r.cancel()
	r.end(exitDone)

	write(log+".1", "older\n")
	r = begin(t, nil, "console", "web-1", "--log", "--run-dir", dir)
	r.want("older")
	r.want("new")
	r.end(exitDone)
}

// A plan for a revision that does not come into force says so.
func TestPlanOfARefusedRevision(t *testing.T) {
	a, dir := serveTest(t)
	plan := func() string {
		t.Helper()
		var out, errs bytes.Buffer
		cmd := &app{stdout: &out, stderr: &errs, now: func() time.Time { return testTime }}
		if code := cmd.run(t.Context(), []string{"plan", "--run-dir", dir}); code != exitDone {
			t.Fatalf("exit code %d: %s", code, &errs)
		}
		return errs.String()
	}
	if got := plan(); got != "" {
		t.Errorf("of a revision in force: %q", got)
	}
	a.SetStatus(func(s *api.Status) {
		s.LastAppliedRevision = "another"
		s.Conditions = append(s.Conditions, api.Condition{Type: "Stalled", Status: "True", Reason: "Unsigned", Message: "it is not signed"})
	})
	if got := plan(); got != "reconciler: 0123456789ab is refused, and this is what it would do: it is not signed\n" {
		t.Errorf("of a refused one: %q", got)
	}
}
