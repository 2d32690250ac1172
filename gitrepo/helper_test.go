package gitrepo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// upstream is a bare repository made with the git program.
type upstream struct {
	t   testing.TB
	dir string
	n   int
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{t: t, dir: filepath.Join(t.TempDir(), "up.git")}
	run(t, "", nil, "git", "init", "-q", "--bare", "-b", "main", u.dir)
	return u
}

func run(t testing.TB, dir string, stdin []byte, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(dir, stdin, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

func tryRun(dir string, stdin []byte, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Ann", "GIT_AUTHOR_EMAIL=ann@example.org", "GIT_AUTHOR_DATE=1700000000 +0000",
		"GIT_COMMITTER_NAME=Bob", "GIT_COMMITTER_EMAIL=bob@example.org", "GIT_COMMITTER_DATE=1700000000 +0000")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (u *upstream) git(args ...string) string {
	u.t.Helper()
	return run(u.t, u.dir, nil, "git", args...)
}

func (u *upstream) gitIn(stdin []byte, args ...string) string {
	u.t.Helper()
	return run(u.t, u.dir, stdin, "git", args...)
}

// commit writes files (nil removes) on top of main and returns the hash.
func (u *upstream) commit(files map[string]string) string { return u.commitTo("main", files) }

func (u *upstream) commitTo(branch string, files map[string]string) string {
	u.t.Helper()
	u.n++
	var b bytes.Buffer
	fmt.Fprintf(&b, "commit refs/heads/%s\ncommitter Bob <bob@example.org> %d +0000\ndata <<E\nchange %d\nE\n", branch, 1700000000+u.n, u.n)
	if _, err := tryRun(u.dir, nil, "git", "rev-parse", "-q", "--verify", "refs/heads/"+branch); err == nil {
		fmt.Fprintf(&b, "from refs/heads/%s^0\n", branch)
	}
	for p, c := range files {
		if c == "\x00" {
			fmt.Fprintf(&b, "D %s\n", p)
			continue
		}
		fmt.Fprintf(&b, "M 100644 inline %s\ndata %d\n%s\n", p, len(c), c)
	}
	u.gitIn(b.Bytes(), "fast-import", "--quiet", "--force")
	return u.git("rev-parse", "refs/heads/"+branch)
}

func (u *upstream) config(mod ...func(*Config)) Config {
	c := Config{URL: u.dir, Branch: "main", CacheDir: filepath.Join(u.t.TempDir(), "cache"), Timeout: 30 * time.Second}
	for _, m := range mod {
		m(&c)
	}
	return c
}

func (u *upstream) open(mod ...func(*Config)) *Repo {
	u.t.Helper()
	return open(u.t, u.config(mod...))
}

func open(t testing.TB, c Config) *Repo {
	t.Helper()
	r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func mustFetch(t testing.TB, r *Repo) Commit {
	t.Helper()
	c, err := r.Fetch(context.Background())
	if err != nil {
		t.Fatalf("fetch: %v", err)
	}
	return c
}

// contents reads all files of a revision.
func contents(t testing.TB, r *Repo, rev string) map[string]string {
	t.Helper()
	tree, err := r.Files(context.Background(), rev)
	if err != nil {
		t.Fatalf("files of %s: %v", rev, err)
	}
	m := make(map[string]string)
	for _, f := range tree.Files {
		b, err := tree.Read(context.Background(), f)
		if err != nil {
			t.Fatalf("read %s: %v", f.Path, err)
		}
		m[f.Path] = string(b)
	}
	return m
}
