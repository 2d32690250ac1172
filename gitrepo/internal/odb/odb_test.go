package odb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

var limits = Limits{Bytes: 64 << 20, Objects: 100_000}

func newCache(t testing.TB) *DB {
	t.Helper()
	db, _, err := OpenCache(filepath.Join(t.TempDir(), "objects"))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// gitPack packs files that resemble each other with git, and returns the pack
// and its objects by name.
func gitPack(t testing.TB, n int) ([]byte, map[Hash][]byte) {
	t.Helper()
	dir := t.TempDir()
	git := func(stdin string, args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v", args, err)
		}
		return string(out)
	}
	git("", "init", "-q", "--bare", ".")
	objects := make(map[Hash][]byte)
	var names strings.Builder
	for i := range n {
		b := []byte(strings.Repeat("a line that all of them have\n", 50) + fmt.Sprint(i))
		h := plumbing.ComputeHash(plumbing.BlobObject, b)
		objects[h] = b
		fmt.Fprintln(&names, strings.TrimSpace(git(string(b), "hash-object", "-w", "--stdin")))
	}
	return []byte(git(names.String(), "pack-objects", "--stdout", "-q", "--delta-base-offset")), objects
}

func check(t *testing.T, db *DB, objects map[Hash][]byte) {
	t.Helper()
	c := db.NewCursor()
	for h, want := range objects {
		o, err := c.Get(h, MaxObject)
		if err != nil || !bytes.Equal(o.Data, want) {
			t.Fatalf("%s: %d bytes, %v", h, len(o.Data), err)
		}
		if n, err := c.Size(h); err != nil || n != int64(len(want)) {
			t.Fatalf("%s: size %d, %v", h, n, err)
		}
		if _, err := c.Get(h, int64(len(want))-1); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("%s over the limit: %v", h, err)
		}
	}
}

func TestReceive(t *testing.T) {
	pack, objects := gitPack(t, 40)
	db := newCache(t)
	s, err := db.Receive(context.Background(), bytes.NewReader(pack), limits)
	if err != nil {
		t.Fatal(err)
	}
	check(t, s.View(), objects)
	for h := range objects {
		if db.Has(h) {
			t.Fatal("a staged object is visible")
		}
	}
	if err := s.Publish(); err != nil {
		t.Fatal(err)
	}
	check(t, db, objects)
	again, removed, err := OpenCache(db.objects)
	if err != nil || len(removed) > 0 {
		t.Fatalf("reopened: removed %v, %v", removed, err)
	}
	check(t, again, objects)
	idx, err := filepath.Glob(filepath.Join(db.objects, "pack", "*.idx"))
	if err != nil || len(idx) != 1 {
		t.Fatal(idx, err)
	}
	if out, err := exec.Command("git", "verify-pack", idx[0]).CombinedOutput(); err != nil {
		t.Errorf("git verify-pack: %v\n%s", err, out)
	}
}

// A thin pack's missing bases are appended, so that what is stored is whole.
func TestReceiveThin(t *testing.T) {
	db := newCache(t)
	w, err := db.NewWriter(limits)
	if err != nil {
		t.Fatal(err)
	}
	base := bytes.Repeat([]byte("base "), 1000)
	h, err := w.Add(plumbing.BlobObject, base)
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(); err != nil {
		t.Fatal(err)
	}
	next := append(bytes.Clone(base), "next"...)
	thin := func(base Hash) []byte {
		b, err := Encode([]Object{{plumbing.REFDeltaObject, packfile.DiffDelta(bytes.Repeat([]byte("base "), 1000), next)}})
		if err != nil {
			t.Fatal(err)
		}
		// Encode knows no deltas: put the base's name behind the entry's header.
		n := 12 + len(entryHeader(plumbing.REFDeltaObject, int64(len(packfile.DiffDelta(bytes.Repeat([]byte("base "), 1000), next)))))
		return resum(append(append(bytes.Clone(b[:n]), base[:]...), b[n:]...))
	}
	if s, err = db.Receive(context.Background(), bytes.NewReader(thin(h)), limits); err != nil {
		t.Fatal(err)
	}
	want := map[Hash][]byte{h: base, plumbing.ComputeHash(plumbing.BlobObject, next): next}
	check(t, s.Alone(), want)
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Receive(context.Background(), bytes.NewReader(thin(Hash{1})), limits); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown base: %v", err)
	}
}

// Whatever a peer sends, receiving ends with an error or a pack whose objects
// have their names, and leaves nothing behind on error.
func FuzzReceive(f *testing.F) {
	pack, _ := gitPack(f, 6)
	f.Add(pack[:len(pack)-hashSize])
	f.Add(pack[:60])
	f.Fuzz(func(t *testing.T, body []byte) {
		db := newCache(t)
		s, err := db.Receive(context.Background(), bytes.NewReader(resum(append(bytes.Clone(body), make([]byte, hashSize)...))), Limits{Bytes: 1 << 20, Objects: 1000})
		if err != nil {
			left, _ := os.ReadDir(filepath.Join(db.objects, "pack"))
			if len(left) > 0 {
				t.Errorf("left behind: %v (%v)", left, err)
			}
			return
		}
		c := s.View().NewCursor()
		for i := range s.p.n {
			h := Hash(s.p.hashAt(i))
			if o, err := c.Get(h, MaxObject); err != nil || plumbing.ComputeHash(o.Type, o.Data) != h {
				t.Errorf("%s: %v", h, err)
			}
		}
	})
}

func TestMutatedPacks(t *testing.T) {
	pack, _ := gitPack(t, 30)
	for range 500 {
		b := bytes.Clone(pack)
		for range 1 + rand.IntN(3) {
			b[rand.IntN(len(b)-hashSize)] ^= 1 << rand.IntN(8)
		}
		db := newCache(t)
		s, err := db.Receive(context.Background(), bytes.NewReader(resum(b)), limits)
		if err != nil {
			continue
		}
		c := s.View().NewCursor()
		for i := range s.p.n {
			h := Hash(s.p.hashAt(i))
			if o, err := c.Get(h, MaxObject); err != nil || plumbing.ComputeHash(o.Type, o.Data) != h {
				t.Fatalf("%s: %v", h, err)
			}
		}
		if err := s.Discard(); err != nil {
			t.Fatal(err)
		}
	}
}

// An object that declares little and inflates to much, or a delta that asks for
// a giant, is refused before it is built.
func TestBombs(t *testing.T) {
	zeros := make([]byte, 8<<20)
	b, err := Encode([]Object{{plumbing.BlobObject, zeros}})
	if err != nil {
		t.Fatal(err)
	}
	n := len(entryHeader(plumbing.BlobObject, int64(len(zeros))))
	lie := append(bytes.Clone(b[:12]), entryHeader(plumbing.BlobObject, 10)...)
	lie = resum(append(lie, b[12+n:]...))
	if _, err := newCache(t).Receive(context.Background(), bytes.NewReader(lie), limits); !errors.Is(err, ErrCorrupt) {
		t.Errorf("object longer than declared: %v", err)
	}
	giant := []byte{0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10} // base of 0, result of 512 GiB
	if _, err := applyDelta(nil, giant, MaxObject); !errors.Is(err, ErrTooLarge) {
		t.Errorf("giant delta: %v", err)
	}
	count := bytes.Clone(b)
	copy(count[8:], "\xff\xff\xff\xff")
	if _, err := newCache(t).Receive(context.Background(), bytes.NewReader(resum(count)), limits); !errors.Is(err, ErrTooLarge) {
		t.Errorf("four billion objects: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := newCache(t).Receive(ctx, bytes.NewReader(b), limits); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func FuzzApplyDelta(f *testing.F) {
	base := []byte("a base that deltas copy from")
	f.Add(packfile.DiffDelta(base, []byte("a base that deltas insert into")))
	f.Fuzz(func(t *testing.T, d []byte) {
		out, err := applyDelta(base, d, 1<<16)
		if err == nil && len(out) > 1<<16 {
			t.Errorf("%d bytes", len(out))
		}
	})
}
