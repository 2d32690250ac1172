package qmp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fake is a QEMU at the level of the protocol: a real socket, one client at a
// time, a state that commands change. A command it does not know fails the
// test, but for the one that QEMU does not know either.
type fake struct {
	t    *testing.T
	path string

	mu      sync.Mutex
	conn    *net.UnixConn
	status  string
	objects map[string]string // type by id
	files   map[string]bool   // names given with getfd
	got     []string          // descriptors received with the last message
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"}, "capabilities": ["oob"]}}`

// socketPath is short enough for every test's name.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// serve runs a server for one client after the other.
func serve(t *testing.T, path string, client func(*net.UnixConn)) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			client(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, path: socketPath(t), status: "prelaunch", objects: map[string]string{}, files: map[string]bool{}}
	serve(t, f.path, f.client)
	return f
}

// String is the state, sorted.
func (f *fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "status %s\n", f.status)
	for _, id := range slices.Sorted(maps.Keys(f.objects)) {
		fmt.Fprintf(&b, "object %s %s\n", id, f.objects[id])
	}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		fmt.Fprintf(&b, "file %s\n", name)
	}
	return b.String()
}

func (f *fake) client(conn *net.UnixConn) {
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	fmt.Fprintf(conn, "%s\r\n", greeting)
	in := bufio.NewReader(&receiver{f, conn})
	negotiated := false
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var cmd struct {
			Execute   string
			Arguments map[string]any
			ID        any
		}
		if err := json.Unmarshal(line, &cmd); err != nil {
			f.t.Errorf("not JSON: %s", line)
			return
		}
		if !negotiated && cmd.Execute != "qmp_capabilities" {
			f.t.Errorf("%s before qmp_capabilities", cmd.Execute)
		}
		negotiated = true
		reply := map[string]any{"id": cmd.ID}
		ret, class, desc := f.run(cmd.Execute, cmd.Arguments)
		if class != "" {
			reply["error"] = map[string]string{"class": class, "desc": desc}
		} else {
			reply["return"] = ret
		}
		f.send(reply)
		if cmd.Execute == "quit" && class == "" {
			return
		}
	}
}

func (f *fake) send(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Error(err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _ = f.conn.Write(append(b, '\r', '\n')) // the client may be gone
}

func (f *fake) event(name string) {
	f.send(map[string]any{"event": name, "data": map[string]any{}, "timestamp": map[string]int{"seconds": 1, "microseconds": 2}})
}

// receiver notes the descriptors that come along.
type receiver struct {
	f    *fake
	conn *net.UnixConn
}

func (r *receiver) Read(b []byte) (int, error) {
	oob := make([]byte, 64)
	n, oobn, _, _, err := r.conn.ReadMsgUnix(b, oob)
	if oobn > 0 {
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				unix.Close(fd)
				r.f.mu.Lock()
				r.f.got = append(r.f.got, "fd")
				r.f.mu.Unlock()
			}
		}
	}
	return n, err
}

func (f *fake) run(command string, args map[string]any) (ret any, class, desc string) {
	none := map[string]any{}
	str := func(name string) string { s, _ := args[name].(string); return s }
	switch command {
	case "qmp_capabilities":
		return none, "", ""
	case "query-status":
		f.mu.Lock()
		defer f.mu.Unlock()
		return map[string]any{"status": f.status, "running": f.status == "running", "singlestep": false}, "", ""
	case "cont", "stop":
		f.mu.Lock()
		event := "RESUME"
		f.status = "running"
		if command == "stop" {
			event, f.status = "STOP", "paused"
		}
		f.mu.Unlock()
		f.event(event)
		return none, "", ""
	case "quit":
		return none, "", ""
	case "query-qmp-schema":
		return []string{strings.Repeat("x", 300<<10)}, "", ""
	case "object-add":
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, ok := f.objects[str("id")]; ok {
			return nil, "GenericError", "attempt to add duplicate property '" + str("id") + "' to object (type 'container')"
		}
		f.objects[str("id")] = str("qom-type")
		return none, "", ""
	case "object-del":
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, ok := f.objects[str("id")]; !ok {
			return nil, "GenericError", "object '" + str("id") + "' not found"
		}
		delete(f.objects, str("id"))
		return none, "", ""
	case "device_del":
		return nil, "DeviceNotFound", "Device '" + str("id") + "' not found"
	case "getfd":
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.got) == 0 {
			return nil, "GenericError", "No file descriptor supplied via SCM_RIGHTS"
		}
		f.got = f.got[1:]
		f.files[str("fdname")] = true
		return none, "", ""
	case "closefd":
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.files[str("fdname")] {
			return nil, "GenericError", "File descriptor named '" + str("fdname") + "' not found"
		}
		delete(f.files, str("fdname"))
		return none, "", ""
	case unknownCommand:
	default:
		f.t.Errorf("the fake does not know %s", command)
	}
	return nil, "CommandNotFound", "The command " + command + " has not been found"
}

const unknownCommand = "no-such-command"
