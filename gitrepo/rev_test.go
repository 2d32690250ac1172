package gitrepo

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// Revisions are written as git takes them, also of a repository that nothing was
// fetched from yet, and of what came to it since.
func TestRevisions(t *testing.T) {
	up := newUpstream(t)
	first := up.commit(map[string]string{"a.yaml": "1"})
	up.commit(map[string]string{"a.yaml": "2"})
	clone := filepath.Join(t.TempDir(), "clone")
	run(t, "", nil, "git", "clone", "-q", up.dir, clone)
	newer := up.commit(map[string]string{"a.yaml": "3"}) // which the clone has not
	git := func(args ...string) string { return run(t, clone, nil, "git", args...) }
	git("config", "user.name", "ada")
	git("config", "user.email", "ada@example.org")
	git("tag", "-a", "-m", "one", "v1", first)
	git("tag", "light", first)
	git("checkout", "-q", "-b", "team/side")
	git("commit", "-q", "--allow-empty", "-m", "side")
	git("checkout", "-q", "-b", "merged", "main")
	git("merge", "-q", "--no-ff", "-m", "merge", "team/side")
	git("checkout", "-q", "main")
	git("commit", "-q", "--allow-empty", "-m", "ours")

	revisions := []string{
		"HEAD", "@", "HEAD~1", "HEAD^", "@~2", "main", "main^", "main~1^", "heads/main", "refs/heads/main", "HEAD^{}", "HEAD^{commit}", "HEAD^0", "HEAD~0",
		"v1", "v1^{}", "v1^{commit}", "v1~0", "tags/v1", "refs/tags/v1", "light", "light^{}",
		"team/side", "team/side~1", "heads/team/side", "merged^2", "merged^2~1", "merged^1", "merged^2^{}~1",
		"origin/main", "origin/main~1", "remotes/origin/main", "refs/remotes/origin/main", "origin/HEAD", "origin",
	}
	for _, name := range []string{"HEAD", "team/side", "merged", "main~1"} {
		full := git("rev-parse", name)
		revisions = append(revisions, full, full[:8], full[:12]+"^")
	}
	for _, branch := range []string{"", "main"} {
		for _, rev := range revisions {
			// Each is the first that is asked of a cache.
			r := up.open(func(c *Config) { c.URL, c.Branch = clone, branch })
			want := git("rev-parse", rev+"^{commit}")
			if c, err := r.Commit(t.Context(), rev); err != nil || c.Hash != want {
				t.Errorf("branch %q: %s is %.8s, %v, want %.8s", branch, rev, c.Hash, err, want)
			}
		}
	}
	r := up.open(func(c *Config) { c.URL = clone })
	mustFetch(t, r)
	git("commit", "-q", "--allow-empty", "-m", "since then")
	if c, err := r.Commit(t.Context(), "HEAD"); err != nil || c.Hash != git("rev-parse", "HEAD") {
		t.Errorf("HEAD is %.8s, %v: not the newest", c.Hash, err)
	}
	for rev, want := range map[string]string{
		"nope":      "its branches are main, merged, team/side",
		"HEAD^3":    "has 1 parents",
		"HEAD~99":   "has 0 parents",
		"v1^{tree}": "^{tree} is not a commit", "HEAD@{1}": "is not known", "v1..main": "a range is not one revision",
		newer: "revision not found", newer[:9]: "revision not found", "refs/reconciler/none": "revision not found",
	} {
		if c, err := r.Commit(t.Context(), rev); !errors.Is(err, ErrRevisionMissing) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %.8s, %v, want %s", rev, c.Hash, err, want)
		}
	}

	// Of a server, the clone's origin is the server itself.
	s := newUpstream(t)
	s.commit(map[string]string{"a.yaml": "1"})
	tip := s.commit(map[string]string{"a.yaml": "2"})
	r = s.open(func(c *Config) { c.URL, c.TokenFile = s.http(httpHandler(s)), secretFile(t, testToken) })
	for rev, want := range map[string]string{"origin/main": tip, "HEAD~1": s.git("rev-parse", "main~1"), tip[:7]: tip, "origin/HEAD": tip} {
		if c, err := r.Commit(t.Context(), rev); err != nil || c.Hash != want {
			t.Errorf("of a server: %s is %.8s, %v, want %.8s", rev, c.Hash, err, want)
		}
	}
}

// Where the branch is missing, the message says what is there.
func TestBranchMissing(t *testing.T) {
	empty := newUpstream(t)
	unborn := newUpstream(t)
	unborn.commitTo("trunk", map[string]string{"a.yaml": "1"})
	tagged := newUpstream(t)
	tagged.commit(map[string]string{"a.yaml": "1"})
	tagged.git("tag", "v1", "main")
	many := newUpstream(t)
	many.commit(map[string]string{"a.yaml": "1"})
	for i := range 12 {
		many.git("update-ref", fmt.Sprintf("refs/heads/b%02d", i), "main")
	}
	many.git("pack-refs", "--all")
	many.git("update-ref", "refs/heads/b00", "main")
	for _, tt := range []struct {
		u      *upstream
		branch string
		want   string
	}{
		{empty, "main", "branch not found: refs/heads/main (it has no branch: nothing was pushed yet)"},
		{empty, "", "branch not found: HEAD is on a branch without a commit; name the branch to follow (it has no branch: nothing was pushed yet)"},
		{unborn, "", "branch not found: HEAD is on a branch without a commit; name the branch to follow (its only branch is trunk)"},
		{unborn, "main", "branch not found: refs/heads/main (its only branch is trunk)"},
		{tagged, "v1", "branch not found: refs/heads/v1 (v1 is a tag; its only branch is main)"},
		{many, "nope", "branch not found: refs/heads/nope (its branches are b00, b01, b02, b03, b04, b05, b06, b07, b08, b09 and 3 more)"},
	} {
		for name, mod := range map[string]func(*Config){
			"here":   func(c *Config) {},
			"server": func(c *Config) { c.URL, c.TokenFile = tt.u.http(httpHandler(tt.u)), secretFile(t, testToken) },
		} {
			r := tt.u.open(mod, func(c *Config) { c.Branch = tt.branch })
			if _, err := r.Fetch(t.Context()); !errors.Is(err, ErrBranchMissing) || !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("%s: branch %q: %v, want %s", name, tt.branch, err, tt.want)
			}
		}
	}
}
