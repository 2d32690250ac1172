package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/internal/testbed"
)

// viewer is a console client that goes on. Its output is read by the test, or
// by nobody.
type viewer struct {
	cmd  *exec.Cmd
	keys io.WriteCloser
	out  *os.File
}

func (w *world) view(name string) *viewer {
	w.t.Helper()
	v := &viewer{cmd: exec.Command(binary, "console", name, "--run-dir", filepath.Join(w.dir, "run"))}
	out, in, err := os.Pipe()
	w.must(err)
	v.out, v.cmd.Stdout, v.cmd.Stderr = out, in, w.log
	v.keys, err = v.cmd.StdinPipe()
	w.must(err)
	w.must(v.cmd.Start())
	in.Close()
	w.t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait() // "signal: killed"
		out.Close()
	})
	return v
}

// Clients of a console that do not read, or are stopped, hold nothing up, also
// while the agent is stopped; those that read see everything.
func TestConsoleHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	w.write("vm.yaml", vm("web", "rt.mode=idle", "nics: []"))
	w.commit("a machine")
	w.start()
	w.reconcile()
	log := w.serial("web")
	log.Wait(t, `^GUEST up`, bootTime)

	deaf, stopped, reading, typing := w.view("web"), w.view("web"), w.view("web"), w.view("web")
	seen := filepath.Join(w.dir, "seen")
	f, err := os.Create(seen)
	w.must(err)
	go func() {
		_, _ = io.Copy(f, reading.out) // until the client ends
		f.Close()
	}()
	shown := testbed.NewSerial(seen)
	go io.Copy(io.Discard, typing.out)
	flood := func(name string) string {
		t.Helper()
		fmt.Fprintf(typing.keys, "i=0; while [ $i -lt 3000 ]; do echo line $i of %s, which is longer than a short one; i=$((i+1)); done; echo end of $((1+1)) %[1]s\n", name)
		return `^end of 2 ` + name
	}
	// Every client is attached before one is stopped.
	for _, v := range []*viewer{deaf, stopped} {
		buf := make([]byte, 1)
		done := make(chan error, 1)
		go func() { _, err := v.out.Read(buf); done <- err }()
		w.await(20*time.Second, "a client to show something", func() bool {
			fmt.Fprintln(typing.keys, "echo tick")
			select {
			case err := <-done:
				w.must(err)
				return true
			default:
				return false
			}
		})
	}
	w.must(stopped.cmd.Process.Signal(unix.SIGSTOP))
	defer func() { _ = stopped.cmd.Process.Signal(unix.SIGCONT) }()

	end := flood("one")
	log.Wait(t, end, 60*time.Second)
	shown.Wait(t, end, 20*time.Second)
	w.must(w.agent.Process.Signal(unix.SIGSTOP))
	end = flood("two")
	log.Wait(t, end, 60*time.Second)
	shown.Wait(t, end, 20*time.Second)
	w.must(w.agent.Process.Signal(unix.SIGCONT))
	w.settled()
}
