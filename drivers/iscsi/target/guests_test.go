package target

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/internal/testbed"
)

// inside runs do on a thread of its own in a network namespace, as a user. The thread
// ends with it.
func inside(t *testing.T, ns testbed.Netns, uid int, do func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		done <- func() error {
			f, err := os.Open(filepath.Join("/run/netns", ns.Name))
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			if _, _, errno := syscall.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0); errno != 0 {
				return errno
			}
			return do()
		}()
	}()
	return <-done
}

// The rule that docs/operating.md has for hosts with user mode networks does what is
// said there of it: QEMU's user reaches the portals, at a bounded rate, and nothing
// else on the host.
func TestRuleForUserNetworks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace and nftables")
	}
	doc, err := os.ReadFile(filepath.FromSlash("../../../docs/operating.md"))
	if err != nil {
		t.Fatal(err)
	}
	rule := regexp.MustCompile("(?s)```nft\n(.*?)```").FindSubmatch(doc)
	if rule == nil {
		t.Fatal("docs/operating.md has no rule")
	}
	file := filepath.Join(t.TempDir(), "rule")
	if err := os.WriteFile(file, rule[1], 0o600); err != nil {
		t.Fatal(err)
	}
	ns := testbed.NewNetns(t)
	args := ns.Args("nft", "-f", file)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	const root, nobody = 0, 65534
	listen := func(address string) {
		err := inside(t, ns, root, func() error {
			ln, err := net.Listen("tcp", address)
			if err == nil {
				t.Cleanup(func() { ln.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	listen("127.0.0.1:3260")
	listen("127.0.0.1:22")
	dial := func(uid int, network, address string, timeout time.Duration) error {
		return inside(t, ns, uid, func() error {
			c, err := net.DialTimeout(network, address, timeout)
			if err != nil {
				return err
			}
			defer c.Close()
			if network == "tcp" {
				return nil
			}
			_ = c.SetDeadline(time.Now().Add(timeout))
			_, err = c.Write([]byte("x"))
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			return err
		})
	}
	for _, c := range []struct {
		uid              int
		network, address string
		want             error
	}{
		{nobody, "tcp", "127.0.0.1:3260", nil},
		{nobody, "tcp", "127.0.0.1:22", syscall.ECONNREFUSED},
		{nobody, "udp", "127.0.0.1:161", syscall.EPERM},
		{root, "tcp", "127.0.0.1:3260", nil},
		{root, "tcp", "127.0.0.1:22", nil},
		{root, "udp", "127.0.0.1:161", syscall.ECONNREFUSED},
	} {
		if err := dial(c.uid, c.network, c.address, 5*time.Second); !errors.Is(err, c.want) {
			t.Errorf("%s to %s as user %d: %v, expected %v", c.network, c.address, c.uid, err, c.want)
		}
	}
	// A flood is held up; others are not.
	held := false
	err = inside(t, ns, nobody, func() error {
		for range 2000 {
			c, err := net.DialTimeout("tcp", "127.0.0.1:3260", 200*time.Millisecond)
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				held = true
				return nil
			}
			if err != nil {
				return err
			}
			c.Close()
		}
		return nil
	})
	if err != nil || !held {
		t.Errorf("2000 connections at once: held up %v, %v", held, err)
	}
	if err := dial(root, "tcp", "127.0.0.1:3260", 5*time.Second); err != nil {
		t.Error(err)
	}
}
