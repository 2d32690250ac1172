// Package testbed is what tests on real QEMU stand on: a tiny guest that says
// on its serial console what it does, and helpers that wait for its lines,
// check what it wrote, and leave no process behind.
//
// What the guest does is asked for on its kernel command line, see the command
// guestd. It boots in about 2.5 s without hardware acceleration and needs 128
// MiB of memory.
package testbed

import (
	"context"
	"testing"
	"time"

	"reconciler/internal/testbed/image"
)

// Cmdline is the start of a kernel command line for the guest.
const Cmdline = "console=ttyS0 quiet panic=-1"

// Memory is what the guest needs at least, in MiB.
const Memory = 128

// Guest returns the guest's kernel and initramfs. They are built at first use
// on a machine, by one process while the others wait.
func Guest(t testing.TB) image.Files {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	files, err := image.Ensure(ctx)
	if err != nil {
		t.Fatalf("build the test guest: %v", err)
	}
	return files
}
