package gitrepo

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

func blobName(i int) BlobHash {
	return plumbing.ComputeHash(plumbing.BlobObject, fmt.Append(nil, i))
}

func blobData(i int) []byte { return bytes.Repeat(fmt.Append(nil, i, " "), i%7) }

func openBlobs(t *testing.T, path, version string) *BlobCache {
	t.Helper()
	c, err := OpenBlobCache(path, version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestBlobCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "parsed")
	for round := range 3 {
		c := openBlobs(t, path, "v1")
		if c.Len() != 100*round {
			t.Fatalf("round %d: %d entries", round, c.Len())
		}
		for i := range 100 * round {
			if got, ok := c.Get(blobName(i)); !ok || !bytes.Equal(got, blobData(i)) {
				t.Fatalf("round %d: entry %d is %q, %v", round, i, got, ok)
			}
		}
		for i := 100 * round; i < 100*(round+1); i++ {
			c.Put(blobName(i), blobData(i))
			if i%30 == 0 {
				if err := c.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if c := openBlobs(t, path, "v2"); c.Len() != 0 {
		t.Errorf("another version sees %d entries", c.Len())
	}
	c := openBlobs(t, path, "v1")
	keep := map[BlobHash]bool{blobName(1): true, blobName(2): true}
	for i := range 300 {
		c.Put(blobName(i), make([]byte, 2000)) // outgrow what is not worth a rewrite
	}
	if err := c.Retain(func(h BlobHash) bool { return keep[h] }); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 8000 {
		t.Errorf("file of 2 entries: %v, %v", st.Size(), err)
	}
	c.Put(blobName(3), blobData(3))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c := openBlobs(t, path, "v1"); c.Len() != 3 {
		t.Errorf("%d entries after Retain and Put, want 3", c.Len())
	}
}

// Whatever happens to the file, an entry that is returned is the one put, and
// appending goes on behind what was good.
func TestBlobCacheTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "parsed")
	c := openBlobs(t, path, "v1")
	for i := range 50 {
		c.Put(blobName(i), blobData(i))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		b := bytes.Clone(whole[:rand.IntN(len(whole)+1)])
		if len(b) > 0 && rand.IntN(2) == 0 {
			b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c, err := OpenBlobCache(path, "v1")
			if err != nil {
				t.Fatal(err)
			}
			for i := range 50 {
				if got, ok := c.Get(blobName(i)); ok && !bytes.Equal(got, blobData(i)) {
					t.Fatalf("entry %d is %q", i, got)
				}
			}
			n := c.Len()
			c.Put(blobName(1000), []byte("new"))
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if c, err = OpenBlobCache(path, "v1"); err != nil || c.Len() < n {
				t.Fatalf("%d entries after an append to %d, %v", c.Len(), n, err)
			}
			if got, _ := c.Get(blobName(1000)); string(got) != "new" {
				t.Fatalf("appended entry reads %q", got)
			}
		}
	}
}
