package gitrepo

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestFetchAndRead(t *testing.T) {
	u := newUpstream(t)
	first := u.commit(map[string]string{
		"a.yaml": "a: 1\n", "dir/b.yml": "b: 1\n", "README.md": "no", ".github/ci.yaml": "no", ".hidden.yaml": "no", "dir/.x/c.yaml": "no",
	})
	r := u.open()
	if tip, err := r.Newest(); tip != "" || err != nil {
		t.Fatalf("newest of an empty cache: %q, %v", tip, err)
	}
	c := mustFetch(t, r)
	if c.Hash != first || c.Subject != "change 1" || c.Committer != "Bob" || c.When.Unix() != 1700000001 {
		t.Errorf("commit = %+v", c)
	}
	want := map[string]string{"a.yaml": "a: 1\n", "dir/b.yml": "b: 1\n"}
	if got := contents(t, r, c.Hash); !maps.Equal(got, want) {
		t.Errorf("files = %v, want %v", got, want)
	}
	second := u.commit(map[string]string{"dir/b.yml": "b: 2\n", "a.yaml": "\x00"})
	if c = mustFetch(t, r); c.Hash != second {
		t.Fatalf("fetched %s, want %s", c.Hash, second)
	}
	if got := contents(t, r, c.Hash); !maps.Equal(got, map[string]string{"dir/b.yml": "b: 2\n"}) {
		t.Errorf("files = %v", got)
	}
	for _, tt := range []struct {
		old, new string
		want     bool
	}{{first, second, true}, {second, first, false}, {first, first, true}} {
		if ok, err := r.IsAncestor(context.Background(), tt.old, tt.new); ok != tt.want || err != nil {
			t.Errorf("IsAncestor(%.6s, %.6s) = %v, %v", tt.old, tt.new, ok, err)
		}
	}
	run(t, r.dir, nil, "git", "--git-dir", ".", "fsck", "--strict", second)
}

func TestPathAndMissing(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"x.yaml": "x", "c/prod/y.yaml": "y"})
	r := u.open(func(c *Config) { c.Path = "c/prod/" })
	c := mustFetch(t, r)
	if got := contents(t, r, c.Hash); !maps.Equal(got, map[string]string{"c/prod/y.yaml": "y"}) {
		t.Errorf("files = %v", got)
	}
	r = u.open(func(c *Config) { c.Path = "c/test" })
	c = mustFetch(t, r)
	var perr *PathError
	if _, err := r.Files(context.Background(), c.Hash); !errors.As(err, &perr) || perr.Reason != NotADir || perr.Path != "c/test" {
		t.Errorf("missing path: %v", err)
	}
	r = u.open(func(c *Config) { c.Branch = "nope" })
	if _, err := r.Fetch(context.Background()); !errors.Is(err, ErrBranchMissing) {
		t.Errorf("missing branch: %v", err)
	}
	r = u.open(func(c *Config) { c.URL = u.dir + ".nope" })
	if _, err := r.Fetch(context.Background()); !errors.Is(err, ErrRepositoryMissing) {
		t.Errorf("missing repository: %v", err)
	}
	if _, err := Open(u.config(func(c *Config) { c.Path = "../x" })); err == nil || !strings.Contains(err.Error(), "is not a directory of the repository") {
		t.Errorf("climbing path: %v", err)
	}
}

func TestRewrittenBranch(t *testing.T) {
	u := newUpstream(t)
	first := u.commit(map[string]string{"a.yaml": "1"})
	good := u.commit(map[string]string{"a.yaml": "2"})
	cfg := u.config()
	r := open(t, cfg)
	mustFetch(t, r)
	if err := r.Pin(good); err != nil {
		t.Fatal(err)
	}
	u.git("update-ref", "refs/heads/main", first)
	other := u.commit(map[string]string{"a.yaml": "3"})
	u.git("reflog", "expire", "--expire=now", "--all")
	u.git("gc", "-q", "--prune=now")
	var nff *NonFastForwardError
	for range 2 { // reported until another commit is pinned
		c, err := r.Fetch(context.Background())
		if !errors.As(err, &nff) || nff.Old != good || nff.New != other || c.Hash != other {
			t.Fatalf("fetch of a rewritten branch: %+v, %v", c, err)
		}
	}
	if err := r.repack(context.Background(), must(r.roots())); err != nil {
		t.Fatal(err)
	}
	r.Close()
	// Restart without the remote: the pinned commit is still whole.
	cfg.URL = "/nonexistent"
	r = open(t, cfg)
	if pin, err := r.Pinned(); pin != good || err != nil {
		t.Fatalf("pinned %q, %v", pin, err)
	}
	if got := contents(t, r, good); got["a.yaml"] != "2" {
		t.Errorf("last good revision reads %v", got)
	}
	r.Close()
	cfg.URL = u.dir
	r = open(t, cfg)
	if _, err := r.Fetch(context.Background()); !errors.As(err, &nff) {
		t.Fatalf("after a restart: %v", err)
	}
	if err := r.Pin(other); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, r)
	u.git("update-ref", "refs/heads/main", first)
	if _, err := r.Fetch(context.Background()); !errors.As(err, &nff) {
		t.Errorf("a branch moved back: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestPushFiles(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	testPush(t, u, u.open())
}

// testPush is run over every transport.
func testPush(t *testing.T, u *upstream, r *Repo) {
	t.Helper()
	ctx := context.Background()
	const ref = "refs/reconciler/status/host1"
	opts := PushOptions{History: 3}
	push := func(content string, wantPushed bool) string {
		t.Helper()
		h, pushed, err := r.PushFiles(ctx, ref, map[string][]byte{"status.yaml": []byte(content), "sub/state.json": []byte("{}")}, "status", opts)
		if err != nil || pushed != wantPushed {
			t.Fatalf("push %q: %v, %v", content, pushed, err)
		}
		if tip := u.git("rev-parse", ref); tip != h {
			t.Fatalf("ref is at %s, pushed %s", tip, h)
		}
		return h
	}
	one := push("1", true)
	if again := push("1", false); again != one {
		t.Errorf("unchanged tree: %s, was %s", again, one)
	}
	for i, depth := range []string{"2", "3", "1", "2"} {
		push(strings.Repeat("x", i+2), true)
		if n := u.git("rev-list", "--count", ref); n != depth {
			t.Errorf("push %d: history of %s commits, want %s", i, n, depth)
		}
	}
	if got := u.git("ls-tree", "-r", "--name-only", ref); got != "status.yaml\nsub/state.json" {
		t.Errorf("tree:\n%s", got)
	}
	u.git("fsck", "--strict", "--no-dangling")

	// Somebody else moves the ref: seen, and our push goes on top of nothing.
	blob := u.gitIn([]byte("foreign"), "hash-object", "-w", "--stdin")
	tree := u.gitIn([]byte("100644 blob "+blob+"\tx\n"), "mktree")
	foreign := u.git("commit-tree", "-m", "foreign", tree)
	u.git("update-ref", ref, foreign)
	own := opts
	own.OwnOnly = true
	if _, _, err := r.PushFiles(ctx, ref, map[string][]byte{"a": nil}, "m", own); !errors.Is(err, ErrForeignTip) {
		t.Errorf("foreign tip: %v", err)
	}
	push("after", true)
	if n := u.git("rev-list", "--count", ref); n != "1" {
		t.Errorf("history of %s commits on a foreign tip", n)
	}
	// A lost memory of what was pushed is fetched back.
	clear(r.pushed)
	if err := writeFile(r.pushedFile(ref), "torn"); err != nil {
		t.Fatal(err)
	}
	push("after", false)
	push("more", true)
	if n := u.git("rev-list", "--count", ref); n != "2" {
		t.Errorf("history of %s commits after memory loss", n)
	}
	main := u.git("rev-parse", "main")
	for _, bad := range []string{"refs/heads/main", "main", "refs/../x", "refs/heads/x.lock"} {
		if _, _, err := r.PushFiles(ctx, bad, nil, "m", opts); err == nil {
			t.Errorf("push to %s was accepted", bad)
		}
	}
	if u.git("rev-parse", "main") != main {
		t.Error("the followed branch moved")
	}
	if _, _, err := r.PushFiles(ctx, ref, map[string][]byte{"../x": nil}, "m", opts); err == nil {
		t.Error("climbing path was pushed")
	}
}

// A server that accepts and never answers keeps nobody from what the cache has.
func TestSilentServerHoldsUpNoReader(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": specText(1, 0)})
	serve := httpHandler(u)
	var silent atomic.Bool
	asked, over := make(chan struct{}, 4), make(chan struct{})
	url := u.http(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if silent.Load() {
			asked <- struct{}{}
			<-over
		}
		serve.ServeHTTP(w, req)
	}))
	defer close(over)
	r := u.open(func(c *Config) { c.URL, c.TokenFile = url, secretFile(t, testToken) })
	first := mustFetch(t, r)
	silent.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := r.Fetch(ctx); ended <- err }()
	select {
	case <-asked:
	case <-time.After(20 * time.Second):
		t.Fatal("the server was not asked within 20 s")
	}
	read := make(chan error, 1)
	go func() {
		_, err := r.Files(t.Context(), first.Hash)
		_, cerr := r.Commit(t.Context(), first.Hash)
		_, aerr := r.IsAncestor(t.Context(), first.Hash, first.Hash)
		_, berr := r.Between(t.Context(), "", first.Hash, true)
		read <- errors.Join(err, cerr, aerr, berr, r.Pin(first.Hash))
	}()
	select {
	case err := <-read:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("reading the cache waits for the server")
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the fetch ended well")
	}
}
