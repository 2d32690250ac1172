package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"reconciler/api"
	"reconciler/internal/testbed"
)

// fakeGuest writes what it hears to its log, as QEMU's pipe and log do, until it
// hears poweroff.
func fakeGuest(t *testing.T) (at api.Console, log *os.File) {
	t.Helper()
	dir := t.TempDir()
	at = api.Console{Input: filepath.Join(dir, "console.in"), Log: filepath.Join(dir, "log")}
	if err := unix.Mkfifo(at.Input, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.OpenFile(at.Input, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if log, err = os.OpenFile(at.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(log, "written before")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer in.Close()
		for s := bufio.NewScanner(in); s.Scan() && s.Text() != "poweroff"; {
			fmt.Fprintf(log, "heard %s\n", s.Text())
		}
	}()
	t.Cleanup(func() {
		if w, err := os.OpenFile(at.Input, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			fmt.Fprintln(w, "\npoweroff")
			w.Close()
		}
		<-done
		log.Close()
	})
	return at, log
}

// Several clients see what the guest writes, one types, and it ends with the
// machine.
func TestConsoleClients(t *testing.T) {
	a, dir := serveTest(t)
	at, log := fakeGuest(t)
	a.SetConsole("web-1", at)
	in, keys := io.Pipe()
	one := begin(t, in, "console", "web-1", "--run-dir", dir)
	one.sees("tick", func() { fmt.Fprintln(log, "tick") })
	two := begin(t, strings.NewReader(""), "console", "web-1", "--run-dir", dir)
	fmt.Fprintln(keys, "hello")
	one.want("heard hello")
	two.sees("tick", func() { fmt.Fprintln(log, "tick") })
	fmt.Fprintln(keys, "again")
	one.want("heard again")
	two.want("heard again")

	// The keyboard is taken; when its client leaves it is free.
	three := begin(t, strings.NewReader("mine\n"), "console", "web-1", "--run-dir", dir)
	three.end(exitError)
	if want := fmt.Sprintf("(process %d) has the keyboard", os.Getpid()); !strings.Contains(three.errs.String(), want) {
		t.Errorf("a second one that types: %s", three.errs.String())
	}
	one.cancel()
	one.end(exitDone)
	keys.Close()
	four := begin(t, strings.NewReader("now\npoweroff\n"), "console", "web-1", "--run-dir", dir)
	four.want("heard now")
	four.end(exitDone)
	two.want("heard now")
	two.end(exitDone)
	// The machine is off.
	five := begin(t, nil, "console", "web-1", "--run-dir", dir)
	five.end(exitError)
}

// On a terminal a second client is told that it only watches.
func TestConsoleWatches(t *testing.T) {
	a, dir := serveTest(t)
	at, log := fakeGuest(t)
	a.SetConsole("web-1", at)
	holder, err := openKeyboard(at.Input)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(holder, "mine")
	keys, tty := terminal(t)
	r := begin(t, tty, "console", "web-1", "--run-dir", dir)
	r.sees("tick", func() { fmt.Fprintln(log, "tick") })
	fmt.Fprint(keys, "a\n")
	testbed.Await(t, patience, "it to be told", func() bool { return strings.Contains(r.errs.String(), "this one only watches") })
	fmt.Fprint(keys, "b\n")
	holder.close()
	r.sees("heard c", func() { fmt.Fprint(keys, "c\n") })
	if heard, err := os.ReadFile(at.Log); err != nil || strings.Contains(string(heard), "heard a") {
		t.Errorf("what was typed in vain was sent: %s, %v", heard, err)
	}
	fmt.Fprint(keys, "\x1d")
	r.end(exitDone)
}

// What was not taken before the log was turned over is counted, also when it has
// grown beyond that place since.
func TestConsoleLogTurnsOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprint(f, text)
	}
	var lost int64
	l := &consoleLog{path: path, dropped: func(n int64) { lost += n }}
	defer l.close()
	var out bytes.Buffer
	look := func(want string, dropped int64) {
		t.Helper()
		out.Reset()
		if err := l.copy(&out); err != nil {
			t.Fatal(err)
		}
		if out.String() != want || lost != dropped {
			t.Errorf("%q and %d dropped, want %q and %d", out.String(), lost, want, dropped)
		}
	}
	look("", 0) // it is not there yet
	write("one\n")
	look("one\n", 0)
	write("two\n")
	look("two\n", 0)
	look("", 0)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	write("three\n")
	look("three\n", 0)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	write("four and more than there was\n")
	look("four and more than there was\n", 0)

	// A reader that stands still in the midst of much.
	write(strings.Repeat("x", 3*logChunk))
	slow := writerFunc(func(b []byte) (int, error) {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		write("new\n")
		return 0, io.ErrShortWrite // it takes no more now
	})
	if err := l.copy(slow); err != io.ErrShortWrite {
		t.Fatal(err)
	}
	look("new\n", 2*logChunk)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// A client of an old machine reads on whoever takes what it reads.
func TestDrainNeverStops(t *testing.T) {
	r, w := io.Pipe()
	taken := make(chan []byte)
	var lost int64
	result := make(chan error, 1)
	go func() {
		result <- drain(r, writerFunc(func(b []byte) (int, error) { taken <- b; return len(b), nil }), func(n int64) { lost = n })
	}()
	line := []byte("line\n")
	for range 2 * drainRoom { // returns only because it is read
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	n := 0
	for {
		select {
		case b := <-taken:
			n += len(b)
			continue
		case err := <-result:
			if err != nil || lost == 0 || int64(n)+lost != 2*drainRoom*int64(len(line)) {
				t.Errorf("%d bytes taken, %d dropped, %v", n, lost, err)
			}
		}
		return
	}
}

func TestPlainText(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\r\n":                               "plain\ttext\n",
		"\x1b[31mred\x1b[0m":                            "red",
		"\x1b]0;title\x07after":                         "after",
		"\x1b]52;c;Y29weQ==\x1b\\after":                 "after",
		"\x1bPq#0\x1b[A\x1b\\after":                     "after",
		"\x1b]0;never ends\nnext line":                  "\nnext line",
		"\x1b(B\x1b=\x1b7x":                             "x",
		"\u009b31mred \u009d0;t\u009cend":               "red end",
		"a\x00\x08\x7f\u0085b":                          "ab",
		"\u202egnp.exe ä 日本":                            "gnp.exe ä 日本",
		"\xff\x9b31m":                                   "\ufffd\ufffd31m",
		"reads \x1b[2J\x1b[Hover it":                    "reads over it",
		"\x1b[200~\x1b[6n\x1b[c\x1b[>0;276;0c\x1b#8end": "end",
	} {
		for _, size := range []int{1, 3, len(in)} { // sequences and characters are cut anywhere
			var out bytes.Buffer
			p := &plainText{w: &out}
			for i := 0; i < len(in); i += size {
				if _, err := p.Write([]byte(in[i:min(i+size, len(in))])); err != nil {
					t.Fatal(err)
				}
			}
			if out.String() != want {
				t.Errorf("%q in pieces of %d: %q, want %q", in, size, out.String(), want)
			}
		}
	}
}

// A guest that takes no more input does not keep a person from leaving.
func TestConsoleLeavesADeafGuest(t *testing.T) {
	a, dir := serveTest(t)
	at := api.Console{Input: filepath.Join(t.TempDir(), "console.in"), Log: filepath.Join(t.TempDir(), "log")}
	if err := unix.Mkfifo(at.Input, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.OpenFile(at.Input, os.O_RDWR|unix.O_NONBLOCK, 0) // it reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for err == nil {
		_, err = unix.Write(int(in.Fd()), bytes.Repeat([]byte("x"), 4096))
	}
	a.SetConsole("web-1", at)
	keys, tty := terminal(t)
	r := begin(t, tty, "console", "web-1", "--run-dir", dir)
	testbed.Await(t, patience, "it to attach", func() bool { return strings.Contains(r.errs.String(), "Attached") })
	fmt.Fprint(keys, "hello\n")
	fmt.Fprint(keys, "\x1d")
	r.end(exitDone)
}
