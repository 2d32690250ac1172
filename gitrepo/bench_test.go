package gitrepo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

const benchFiles = 100_000

// bigUpstream is a repository of 100,000 specs in 200 directories, of two
// commits that differ in one file, packed as a server would have it.
var bigUpstream = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "gitrepo-bench"); err != nil {
		return "", err
	}
	bigDir = dir
	var b bytes.Buffer
	b.WriteString("commit refs/heads/main\ncommitter B <b@example.org> 1700000000 +0000\ndata 1\nx\n")
	for i := range benchFiles {
		c := specText(i, 0)
		fmt.Fprintf(&b, "M 100644 inline hosts/h%03d/disks/d%06d.yaml\ndata %d\n%s\n", i%200, i, len(c), c)
	}
	b.WriteString("commit refs/heads/next\ncommitter B <b@example.org> 1700000001 +0000\ndata 1\ny\nfrom refs/heads/main\n")
	c := specText(77, 1)
	fmt.Fprintf(&b, "M 100644 inline hosts/h077/disks/d000077.yaml\ndata %d\n%s\n", len(c), c)
	for _, cmd := range []struct {
		in   []byte
		args []string
	}{{nil, []string{"init", "-q", "--bare", "-b", "main", "."}}, {b.Bytes(), []string{"fast-import", "--quiet"}}, {nil, []string{"repack", "-q", "-a", "-d", "-f"}}} {
		if out, err := tryRun(dir, cmd.in, "git", cmd.args...); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
	}
	return dir, nil
})

func specText(i, rev int) string {
	return fmt.Sprintf(`apiVersion: reconciler/v1alpha1
kind: Disk
metadata:
  name: vm-%06d-root
  labels: {tier: web, customer: c%04d}
spec:
  pool: fast-%d
  size: %dGi
  source: {image: debian-12}
  deletionPolicy: Retain
  retention: 168h
`, i, i*7919%10000, i%17, 10+i%50+rev)
}

// bigDir is set once bigUpstream was built.
var bigDir string

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	code := m.Run()
	if bigDir != "" {
		os.RemoveAll(bigDir)
	}
	os.Exit(code)
}

func benchRepo(b *testing.B, cache string) *Repo {
	b.Helper()
	dir, err := bigUpstream()
	if err != nil {
		b.Fatal(err)
	}
	r, err := Open(Config{URL: dir, Branch: "main", CacheDir: cache})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

// BenchmarkClone is the first fetch of 100,000 files from a local repository.
func BenchmarkClone(b *testing.B) {
	benchRepo(b, b.TempDir())
	for b.Loop() {
		r := benchRepo(b, b.TempDir())
		mustFetch(b, r)
	}
}

// BenchmarkColdRead lists and reads 100,000 files of a cache just opened.
func BenchmarkColdRead(b *testing.B) {
	cache := b.TempDir()
	r := benchRepo(b, cache)
	head := mustFetch(b, r).Hash
	r.Close()
	for b.Loop() {
		r := benchRepo(b, cache)
		tree, err := r.Files(context.Background(), head)
		if err != nil || len(tree.Files) != benchFiles {
			b.Fatalf("%d files, %v", len(tree.Files), err)
		}
		if err := tree.Load(context.Background(), tree.Files, func(int, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// BenchmarkWarm lists 100,000 files and finds each in the blob cache, which is
// read from disk, as a plan with a warm cache does.
func BenchmarkWarm(b *testing.B) {
	cache := b.TempDir()
	r := benchRepo(b, cache)
	head := mustFetch(b, r).Hash
	path := filepath.Join(cache, "parsed")
	bc := must(OpenBlobCache(path, "1"))
	for _, f := range must(r.Files(context.Background(), head)).Files {
		bc.Put(f.Blob, make([]byte, 400))
	}
	if err := bc.Close(); err != nil {
		b.Fatal(err)
	}
	r.Close()
	for b.Loop() {
		r := benchRepo(b, cache)
		bc := must(OpenBlobCache(path, "1"))
		for _, f := range must(r.Files(context.Background(), head)).Files {
			if _, ok := bc.Get(f.Blob); !ok {
				b.Fatalf("%s is not cached", f.Path)
			}
		}
		r.Close()
	}
}

// BenchmarkWalk lists 100,000 files.
func BenchmarkWalk(b *testing.B) {
	r := benchRepo(b, b.TempDir())
	head := mustFetch(b, r).Hash
	for b.Loop() {
		if tree, err := r.Files(context.Background(), head); err != nil || len(tree.Files) != benchFiles {
			b.Fatal(err)
		}
	}
}

// BenchmarkOneFileCommit finds and reads the one file that a commit changed.
func BenchmarkOneFileCommit(b *testing.B) {
	r := benchRepo(b, b.TempDir())
	ctx := context.Background()
	prev := must(r.Files(ctx, mustFetch(b, r).Hash))
	next := must(r.Commit(ctx, "next")).Hash
	for b.Loop() {
		tree, changes, err := r.Update(ctx, prev, next)
		if err != nil || len(changes) != 1 || len(tree.Files) != benchFiles {
			b.Fatalf("%d changes, %v", len(changes), err)
		}
		if _, err := tree.Read(ctx, File{changes[0].Path, changes[0].New}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFetch is a fetch of a one-file commit from a local repository of
// 20,000 files, repacks included; it reports the size of the cache at the end
// (run it with -benchtime 500x and more to see that it stays bounded).
func BenchmarkFetch(b *testing.B) {
	u := newUpstream(b)
	files := make(map[string]string)
	for i := range 20_000 {
		files[fmt.Sprintf("hosts/h%03d/d%06d.yaml", i%100, i)] = specText(i, 0)
	}
	u.commit(files)
	u.git("gc", "-q")
	r := u.open()
	mustFetch(b, r)
	first, most := r.Stats(), r.Stats()
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		u.commit(map[string]string{fmt.Sprintf("hosts/h%03d/d%06d.yaml", i%100, i%20_000): specText(i, i+1)})
		b.StartTimer()
		mustFetch(b, r)
		if s := r.Stats(); s.Bytes > most.Bytes {
			most = s
		}
	}
	b.ReportMetric(float64(first.Bytes), "first-B")
	b.ReportMetric(float64(most.Bytes), "peak-B")
	b.ReportMetric(float64(r.Stats().Bytes), "cache-B")
	b.ReportMetric(float64(r.Stats().Packs), "packs")
}
