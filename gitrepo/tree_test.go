package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"
)

func TestTreeFS(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1", "d/b.yml": "22", "d/e/f/c.yaml": "333", "d.yaml": "x", "z/README": "no"})
	r := u.open()
	fsys := must(r.Files(context.Background(), mustFetch(t, r).Hash)).FS(context.Background())
	if err := fstest.TestFS(fsys, "a.yaml", "d/b.yml", "d/e/f/c.yaml", "d.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := fs.Stat(fsys, "z"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory without YAML files: %v", err)
	}
}

func TestLoadStops(t *testing.T) {
	u := newUpstream(t)
	files := make(map[string]string)
	for i := range 1000 {
		files[fmt.Sprintf("f%04d.yaml", i)] = specText(i, 0)
	}
	u.commit(files)
	r := u.open()
	tree := must(r.Files(context.Background(), mustFetch(t, r).Hash))
	var mu sync.Mutex
	got := make(map[string]string)
	if err := tree.Load(context.Background(), tree.Files, func(i int, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		got[tree.Files[i].Path] = string(b)
		return nil
	}); err != nil || !maps.Equal(got, files) {
		t.Fatalf("load: %d files, %v", len(got), err)
	}
	stop := errors.New("enough")
	if err := tree.Load(context.Background(), tree.Files, func(int, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of the callback: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := tree.Load(ctx, tree.Files, func(int, []byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// Changes between any two trees turn one listing into the other, and name
// nothing that is the same.
func TestChangesProperty(t *testing.T) {
	u := newUpstream(t)
	r := u.open()
	ctx := context.Background()
	names := []string{"a", "a.yaml", "a-b.yaml", "b/c.yaml", "b/d/e.yaml", "b/d/f.yml", "b.yaml/x.yaml", "b.yaml", "c/.hid/x.yaml", "c/n.txt", "g/h.yaml"}
	u.commit(map[string]string{"a.yaml": "0"})
	prev := must(r.Files(ctx, mustFetch(t, r).Hash))
	rapid.Check(t, func(rt *rapid.T) {
		edit := make(map[string]string)
		for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 4, rapid.ID).Draw(rt, "names") {
			edit[n] = rapid.SampledFrom([]string{"\x00", "1", "2", "3"}).Draw(rt, "content")
		}
		if edit["b.yaml"] != "" { // a file or a directory, not both
			delete(edit, "b.yaml/x.yaml")
		}
		rev := u.commit(edit)
		mustFetch(t, r)
		tree, changes, err := r.Update(ctx, prev, rev)
		if err != nil {
			rt.Fatal(err)
		}
		full := must(r.Files(ctx, rev))
		if !slices.Equal(tree.Files, full.Files) {
			rt.Fatalf("update gives %v, listing %v", tree.Files, full.Files)
		}
		if !slices.IsSortedFunc(full.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) }) {
			rt.Fatalf("not sorted: %v", full.Files)
		}
		before := make(map[string]BlobHash)
		for _, f := range prev.Files {
			before[f.Path] = f.Blob
		}
		for _, c := range changes {
			if c.Old == c.New || before[c.Path] != c.Old {
				rt.Fatalf("change %+v, before %s", c, before[c.Path])
			}
		}
		prev = full
	})
}
