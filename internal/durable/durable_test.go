package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type rec struct {
	N    int
	Text string
}

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes every byte that is left, and keeps trying as a guest does.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "guest"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(bytes.Repeat([]byte{1}, 4096)); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteReadRemove(t *testing.T) {
	d, err := Open(filepath.Join(t.TempDir(), "a", "b"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := d.WriteJSON("x.json", 1, rec{N: n}); err != nil {
			t.Fatal(err)
		}
	}
	var r rec
	if err := d.ReadJSON("x.json", 1, &r); err != nil || r.N != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if st, err := os.Stat(filepath.Join(d.Path(), "x.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if names, err := d.Names(".json"); err != nil || len(names) != 1 || names[0] != "x" {
		t.Errorf("%v, %v", names, err)
	}
	for range 2 {
		if err := d.Remove("x.json"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.ReadJSON("x.json", 1, &r); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after removal: %v", err)
	}
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, tempPrefix+"x.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, 0o600); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) != 0 {
		t.Errorf("%v", left)
	}
}

func TestRecordsAreWrittenOnAFullFileSystem(t *testing.T) {
	dir := tmpfs(t, "2M")
	d, err := Open(filepath.Join(dir, "records"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteJSON("old.json", 1, rec{Text: strings.Repeat("a", 9000)}); err != nil {
		t.Fatal(err)
	}
	fill(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "plain"), []byte("x"), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	// Replacing goes on for ever, whatever the guest takes in between.
	for n := range 10 * reserveFiles {
		text := strings.Repeat("b", []int{10, 3000, 5000, 12000}[n%4])
		if err := d.WriteJSON("old.json", 1, rec{n, text}); err != nil {
			t.Fatalf("write %d: %v", n, err)
		}
		fill(t, dir)
		var r rec
		if err := d.ReadJSON("old.json", 1, &r); err != nil || r.N != n || r.Text != text {
			t.Fatalf("write %d: read %d, %d bytes, %v", n, r.N, len(r.Text), err)
		}
	}
	// New records use the reserve up; then the error says so, and nothing is lost.
	written := 0
	for ; ; written++ {
		err := d.WriteJSON(fmt.Sprintf("new-%d.json", written), 1, rec{N: written})
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fill(t, dir)
	}
	if written < reserveFiles/2 {
		t.Errorf("only %d new records fit into the reserve", written)
	}
	for n := range written {
		var r rec
		if err := d.ReadJSON(fmt.Sprintf("new-%d.json", n), 1, &r); err != nil || r.N != n {
			t.Errorf("record %d: %+v, %v", n, r, err)
		}
	}
	// With room again the reserve fills by itself.
	if err := os.Remove(filepath.Join(dir, "guest")); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteJSON("room.json", 1, rec{}); err != nil {
		t.Fatal(err)
	}
	for i := range reserveFiles {
		if got := allocated(d.spare.file(i)); got < reserveBytes {
			t.Errorf("reserve file %d has %d bytes", i, got)
		}
	}
}

func TestAWriteThatFailsLeavesTheOldRecord(t *testing.T) {
	dir := tmpfs(t, "1M")
	d, err := Open(dir, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteJSON("x.json", 1, rec{N: 1}); err != nil {
		t.Fatal(err)
	}
	fill(t, dir)
	if err := d.WriteJSON("x.json", 1, rec{Text: strings.Repeat("c", 2*reserveBytes)}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a record larger than the reserve: %v", err)
	}
	var r rec
	if err := d.ReadJSON("x.json", 1, &r); err != nil || r.N != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// The reserve follows the records: one that grew to many times the first size is
// replaced, too, and does not grow by it.
func TestLargeRecordsAreReplacedOnAFullFileSystem(t *testing.T) {
	dir := tmpfs(t, "4M")
	d, err := Open(filepath.Join(dir, "records"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	text := func(n int) string { return strings.Repeat("d", n) }
	if err := d.Write("base.json", []byte(text(300_000))); err != nil {
		t.Fatal(err)
	}
	fill(t, dir)
	for round := range 3 {
		for n, size := range []int{300_000, 301_000, 200_000, 310_000, 390_000} {
			if err := d.Write("base.json", []byte(text(size))); err != nil {
				t.Fatalf("round %d, %d bytes: %v", round, size, err)
			}
			if err := d.Write("small.json", []byte(text(100*n))); err != nil {
				t.Fatal(err)
			}
			fill(t, dir)
			data, err := os.ReadFile(filepath.Join(d.Path(), "base.json"))
			if err != nil || strings.TrimSpace(string(data)) != text(size) || len(data) > 390_000 {
				t.Fatalf("round %d, %d bytes: read %d, %v", round, size, len(data), err)
			}
		}
	}
	// Who opens it again on a full disk writes as well.
	if d, err = Open(d.Path(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("base.json", []byte(text(390_000))); err != nil {
		t.Fatal(err)
	}
}
