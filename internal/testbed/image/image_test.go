package image

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Several callers that find no guest get the same, whole files, and nothing
// else is left in the cache.
func TestEnsureTogether(t *testing.T) {
	// The kernel is downloaded once for a machine, not once for a test run.
	cached, err := Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	kernel := filepath.Dir(cached.Kernel)
	if err := os.CopyFS(filepath.Join(root, filepath.Base(kernel)), os.DirFS(kernel)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RECONCILER_TESTBED", root)
	var group sync.WaitGroup
	got := make([]Files, 3)
	for i := range got {
		group.Go(func() {
			files, err := Ensure(t.Context())
			if err != nil {
				t.Error(err)
			}
			got[i] = files
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	for _, files := range got[1:] {
		if files != got[0] {
			t.Errorf("got %v and %v", got[0], files)
		}
	}
	left, err := filepath.Glob(filepath.Join(root, "*"))
	if err != nil || len(left) != 3 {
		t.Errorf("the cache holds %v, want a kernel, a guest and the lock", left)
	}

	dir := t.TempDir()
	if err := got[0].Export(dir); err != nil {
		t.Fatal(err)
	}
	list := unpack(t, filepath.Join(dir, "i"))
	for _, want := range []string{"init", "bin/sh", "sbin/mke2fs", "lib/modules/order", "lib/modules/virtio_blk.ko", "dev/console"} {
		if !strings.Contains(list, "\n"+want+"\n") {
			t.Errorf("the initramfs has no %s", want)
		}
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	root := t.TempDir()
	t.Setenv("RECONCILER_TESTBED", root)
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ensure(stopped); err == nil {
		t.Fatal("built although it was told to stop")
	}
	left, err := filepath.Glob(filepath.Join(root, "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "lock" {
		t.Errorf("left behind: %v", left)
	}
}

// unpack lists an archive with busybox's cpio, which is not ours.
func unpack(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(busybox, "cpio", "-t")
	cmd.Stdin = f
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("cpio: %v: %s", err, stderr.String())
	}
	return "\n" + out.String()
}
