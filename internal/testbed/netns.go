package testbed

import (
	"crypto/rand"
	"fmt"
	"os/exec"
	"testing"
)

// Netns is a network namespace of a test's own; only lo is in it, and up.
type Netns struct{ Name string }

// NewNetns makes one and removes it when the test ends. It needs root.
func NewNetns(t testing.TB) Netns {
	t.Helper()
	ns := Netns{Name: "rt-" + rand.Text()[:10]}
	ip := func(args ...string) error {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	}
	if err := ip("netns", "add", ns.Name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ip("netns", "del", ns.Name); err != nil {
			t.Error(err)
		}
	})
	if err := ip("-n", ns.Name, "link", "set", "lo", "up"); err != nil {
		t.Fatal(err)
	}
	return ns
}

// Args is the command line that runs args inside the namespace.
func (ns Netns) Args(args ...string) []string {
	return append([]string{"ip", "netns", "exec", ns.Name}, args...)
}
