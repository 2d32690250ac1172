package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// script is a server that greets, then does as the test says with each line it
// gets. Returning false closes the connection.
func script(t *testing.T, answer func(conn *net.UnixConn, line string) bool) string {
	path := socketPath(t)
	serve(t, path, func(conn *net.UnixConn) {
		fmt.Fprintf(conn, "%s\r\n", greeting)
		in := bufio.NewScanner(conn)
		for in.Scan() {
			line := in.Text()
			if strings.Contains(line, "qmp_capabilities") {
				fmt.Fprintf(conn, "{\"return\": {}, \"id\": %s}\r\n", id(line))
			} else if !answer(conn, line) {
				return
			}
		}
	})
	return path
}

// id is that of a command of ours, where it is the last member.
func id(line string) string {
	return strings.TrimSuffix(line[strings.LastIndexByte(line, ':')+1:], "}")
}

func TestFaultsOfAReply(t *testing.T) {
	for name, tt := range map[string]struct {
		reply string // %s is the command's id
		want  error
	}{
		"garbage":               {"\x00\xff{[what\r\n", ErrProtocol},
		"an array":              {"[]\r\n", ErrProtocol},
		"neither reply nor id":  {"{}\r\n", ErrProtocol},
		"an error without id":   {`{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\r\n", ErrProtocol},
		"a second greeting":     {greeting + "\r\n", ErrProtocol},
		"half a message":        {`{"return": {"sta`, ErrClosed},
		"a message cut in half": {`{"return": {}, "id": %s`, ErrClosed},
		"nothing at all":        {"", ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			path := script(t, func(conn *net.UnixConn, line string) bool {
				fmt.Fprint(conn, strings.ReplaceAll(tt.reply, "%s", id(line)))
				return false
			})
			c := dial(t, path)
			err := c.Do(timeout(t), "query-status", nil, nil)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if err := c.Do(timeout(t), "query-status", nil, nil); !errors.Is(err, tt.want) {
				t.Fatalf("then error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFaultsOfTheHandshake(t *testing.T) {
	for name, tt := range map[string]struct {
		say  string
		then string // after qmp_capabilities came
		want error  // nil: it connects
	}{
		"events between": {`{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}` + "\r\n" + greeting + "\r\n",
			`{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}` + "\r\n" + `{"return": {}, "id": 1}` + "\r\n", nil},
		"empty lines":       {"\r\n\r\n" + greeting + "\r\n\r\n", `{"return": {}, "id": 1}` + "\r\n", nil},
		"another protocol":  {"SSH-2.0-OpenSSH_9.2\r\n", "", ErrProtocol},
		"a refusal":         {greeting + "\r\n", `{"id": 1, "error": {"class": "GenericError", "desc": "no"}}` + "\r\n", &Error{}},
		"closed at once":    {"", "", ErrClosed},
		"closed after half": {greeting[:40], "", ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			serve(t, path, func(conn *net.UnixConn) {
				fmt.Fprint(conn, tt.say)
				if in := bufio.NewScanner(conn); tt.then != "" && in.Scan() {
					fmt.Fprint(conn, tt.then)
					in.Scan() // until it is closed
				}
			})
			c, err := Dial(timeout(t), path)
			var refusal *Error
			switch {
			case tt.want == nil && err != nil:
				t.Fatal(err)
			case tt.want == nil:
				c.Close()
			case errors.As(tt.want, &refusal):
				wantClass(t, err, "GenericError")
			case !errors.Is(err, tt.want):
				t.Fatalf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestSilence(t *testing.T) {
	late := make(chan string, 1)
	release := make(chan struct{})
	path := script(t, func(conn *net.UnixConn, line string) bool {
		if strings.Contains(line, "first") {
			late <- id(line)
			return true
		}
		<-release
		// The answer to the first command comes before that to the second.
		fmt.Fprintf(conn, "{\"return\": \"late\", \"id\": %s}\r\n{\"return\": \"right\", \"id\": %s}\r\n", <-late, id(line))
		return true
	})
	c := dial(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := c.Do(ctx, "first", nil, nil)
	var silent *SilentError
	if !errors.As(err, &silent) || silent.Command != "first" {
		t.Fatalf("error %v, want a SilentError", err)
	}
	cancelled, cancel2 := context.WithCancel(t.Context())
	cancel2()
	if err := c.Do(cancelled, "first", nil, nil); !errors.Is(err, context.Canceled) || errors.As(err, &silent) && silent.Command == "" {
		t.Fatalf("error %v, want context.Canceled", err)
	}
	close(release)
	var out string
	if err := c.Do(timeout(t), "second", nil, &out); err != nil || out != "right" {
		t.Fatalf("the answer to the second command is %q, %v", out, err)
	}
}

// A QEMU that reads nothing does not hold up who writes, and half a command
// ends the connection.
func TestWriteToADeafQEMU(t *testing.T) {
	deaf := make(chan struct{})
	path := socketPath(t)
	serve(t, path, func(conn *net.UnixConn) {
		fmt.Fprintf(conn, "%s\r\n", greeting)
		line, _ := bufio.NewReaderSize(conn, 16).ReadString('\n')
		fmt.Fprintf(conn, "{\"return\": {}, \"id\": %s}\r\n", id(strings.TrimSpace(line)))
		<-deaf
	})
	t.Cleanup(func() { close(deaf) })
	c := dial(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // time to begin, on a busy machine
	defer cancel()
	args := map[string]string{"x": strings.Repeat("x", 4<<20)}
	var silent *SilentError
	if err := c.Do(ctx, "big", args, nil); !errors.As(err, &silent) {
		t.Fatalf("error %v, want a SilentError", err)
	}
	if err := c.Do(timeout(t), "small", nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("error %v, want ErrClosed", err)
	}
}

func TestMessageTooLarge(t *testing.T) {
	path := script(t, func(conn *net.UnixConn, _ string) bool {
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for {
			if _, err := conn.Write(chunk); err != nil {
				return false
			}
		}
	})
	if err := dial(t, path).Do(timeout(t), "query-status", nil, nil); !errors.Is(err, ErrProtocol) {
		t.Fatalf("error %v, want ErrProtocol", err)
	}
}

func TestSlowSubscriberLosesOldest(t *testing.T) {
	f := newFake(t)
	c := dial(t, f.path)
	slow, gone := c.Subscribe(4), c.Subscribe(4)
	gone.Close()
	gone.Close()
	if _, ok := <-gone.C(); ok {
		t.Fatal("an event on a closed subscription")
	}
	for i := range 100 {
		f.event(fmt.Sprint("E", i))
	}
	if err := c.Do(timeout(t), "query-status", nil, nil); err != nil { // all events are read now
		t.Fatal(err)
	}
	var names []string
	lost := false
	for range 4 {
		e := <-slow.C()
		names = append(names, e.Name)
		lost = lost || e.Lost
	}
	if got := strings.Join(names, " "); got != "E96 E97 E98 E99" || !lost {
		t.Fatalf("events %s, lost %v", got, lost)
	}
	f.event("NEXT")
	if e := waitEvent(t, slow, "NEXT"); e.Lost {
		t.Fatal("marked as lost after the queue was read")
	}
}

func TestCloseWakesWaiters(t *testing.T) {
	path := script(t, func(*net.UnixConn, string) bool { return true })
	c := dial(t, path)
	failed := make(chan error, 1)
	go func() { failed <- c.Do(timeout(t), "wait", nil, nil) }()
	c.Close()
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Fatalf("error %v, want ErrClosed", err)
	}
}
