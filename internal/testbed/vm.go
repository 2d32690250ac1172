package testbed

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// VM is a guest started by hand, without the driver under test.
type VM struct {
	*Serial
	SerialPath string
	QMPPath    string
	Dir        string // part of its command line: a marker for Processes

	cmd     *exec.Cmd
	exited  chan struct{} // closed when QEMU has ended
	console net.Conn      // of the serial console, once somebody typed
	qmp     net.Conn
	dec     *json.Decoder
	events  []string // seen while waiting for a reply
}

// Boot starts a q35 guest with TCG and two empty PCIe root ports, rp0 and rp1.
// cmdline is added to the kernel's, args to QEMU's. It is killed when the test
// ends.
func Boot(t testing.TB, cmdline string, args ...string) *VM {
	t.Helper()
	files := Guest(t)
	dir, err := os.MkdirTemp("", "testbed-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	vm := &VM{
		SerialPath: filepath.Join(dir, "serial"),
		QMPPath:    filepath.Join(dir, "qmp"),
		Dir:        dir,
		exited:     make(chan struct{}),
	}
	vm.Serial = NewSerial(vm.SerialPath)
	argv := append([]string{
		"-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-m", fmt.Sprint(Memory),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-kernel", files.Kernel, "-initrd", files.Initrd, "-append", Cmdline + " " + cmdline,
		"-chardev", "socket,id=serial,server=on,wait=off,path=" + vm.consolePath() + ",logfile=" + vm.SerialPath,
		"-serial", "chardev:serial",
		"-qmp", "unix:" + vm.QMPPath + ",server=on,wait=off",
		"-device", "pcie-root-port,id=rp0,chassis=1,slot=1",
		"-device", "pcie-root-port,id=rp1,chassis=2,slot=2",
	}, args...)
	vm.cmd = exec.Command("qemu-system-x86_64", argv...)
	var stderr strings.Builder
	vm.cmd.Stderr = &stderr
	if err := vm.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = vm.cmd.Wait() // how it ended is told by what it wrote
		close(vm.exited)
	}()
	t.Cleanup(func() {
		vm.Kill()
		if t.Failed() {
			t.Logf("QEMU's messages: %s\nserial console:\n%s", stderr.String(), Tail(vm.SerialPath, 40))
		}
		for _, conn := range []net.Conn{vm.qmp, vm.console} {
			if conn != nil {
				conn.Close()
			}
		}
		os.RemoveAll(dir)
	})
	vm.connect(t)
	return vm
}

func (vm *VM) consolePath() string { return filepath.Join(vm.Dir, "console") }

// Type types a line on the guest's console, which its log answers.
func (vm *VM) Type(t testing.TB, line string) {
	t.Helper()
	if vm.console == nil {
		conn, err := net.Dial("unix", vm.consolePath())
		if err != nil {
			t.Fatal(err)
		}
		// It stays open: what QEMU has not passed on yet is lost when the
		// connection ends. And it is drained, or the guest would block.
		vm.console = conn
		go io.Copy(io.Discard, conn)
	}
	if _, err := fmt.Fprintln(vm.console, line); err != nil {
		t.Fatal(err)
	}
}

// Kill ends QEMU the hard way and waits for its end.
func (vm *VM) Kill() {
	_ = vm.cmd.Process.Kill() // fails where it has ended already
	<-vm.exited
}

// WaitExit waits for QEMU to end by itself.
func (vm *VM) WaitExit(t testing.TB, timeout time.Duration) {
	t.Helper()
	select {
	case <-vm.exited:
	case <-time.After(timeout):
		t.Fatalf("QEMU still runs after %v; the console's last lines:\n%s", timeout, Tail(vm.SerialPath, 20))
	}
}

// connect dials the monitor as soon as QEMU listens.
func (vm *VM) connect(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", vm.QMPPath)
		if err == nil {
			vm.qmp, vm.dec = conn, json.NewDecoder(bufio.NewReader(conn))
			break
		}
		select {
		case <-vm.exited:
			t.Fatal("QEMU ended at its start")
		case <-ctx.Done():
			t.Fatalf("QMP of the test guest: %v", err)
		case <-tick.C:
		}
	}
	var greeting map[string]any
	if err := vm.dec.Decode(&greeting); err != nil {
		t.Fatalf("QMP greeting: %v", err)
	}
	vm.Do(t, "qmp_capabilities", nil)
}

// Do runs a QMP command and fails the test if QEMU refuses it.
func (vm *VM) Do(t testing.TB, command string, args map[string]any) json.RawMessage {
	t.Helper()
	if err := vm.qmp.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(vm.qmp).Encode(request); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Class, Desc string }
			Event  string
		}
		if err := vm.dec.Decode(&reply); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		switch {
		case reply.Event != "":
			vm.events = append(vm.events, reply.Event)
		case reply.Error != nil:
			t.Fatalf("%s: %s: %s", command, reply.Error.Class, reply.Error.Desc)
		default:
			return reply.Return
		}
	}
}

// WaitEvent reads on from the last event waited for until QEMU tells of this
// one, and fails the test after timeout.
func (vm *VM) WaitEvent(t testing.TB, event string, timeout time.Duration) {
	t.Helper()
	for i, seen := range vm.events {
		if seen == event {
			vm.events = vm.events[i+1:]
			return
		}
	}
	vm.events = nil
	if err := vm.qmp.SetDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	for {
		var message struct{ Event string }
		if err := vm.dec.Decode(&message); err != nil {
			t.Fatalf("wait %v for QMP event %s: %v", timeout, event, err)
		}
		if message.Event == event {
			return
		}
	}
}
