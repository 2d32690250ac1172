package gitrepo

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

func TestWorkTrees(t *testing.T) {
	u := newUpstream(t)
	first := u.commit(map[string]string{"a.yaml": "1"})
	clone := filepath.Join(t.TempDir(), "clone")
	run(t, "", nil, "git", "clone", "-q", u.dir, clone)
	linked := filepath.Join(t.TempDir(), "linked")
	run(t, clone, nil, "git", "worktree", "add", "-q", "-b", "side", linked)
	shared := filepath.Join(t.TempDir(), "shared")
	run(t, "", nil, "git", "clone", "-q", "--shared", u.dir, shared)
	for _, dir := range []string{clone, linked, shared} {
		for _, branch := range []string{"main", ""} {
			r := u.open(func(c *Config) { c.URL, c.Branch = dir, branch })
			if c := mustFetch(t, r); c.Hash != first || contents(t, r, c.Hash)["a.yaml"] != "1" {
				t.Errorf("%s, branch %q: %+v", dir, branch, c)
			}
		}
	}
	u.commit(map[string]string{"a.yaml": "2"})
	shallow := filepath.Join(t.TempDir(), "shallow")
	run(t, "", nil, "git", "clone", "-q", "--depth", "1", "file://"+u.dir, shallow)
	r := u.open(func(c *Config) { c.URL = shallow })
	if _, err := r.Fetch(context.Background()); !errors.Is(err, ErrIncomplete) {
		t.Errorf("shallow clone: %v", err)
	}
}

// Only what git goes by makes a repository one of another format.
func TestObjectFormat(t *testing.T) {
	const head = "[core]\n\trepositoryformatversion = 0\n"
	for text, refused := range map[string]bool{
		head + "[extensions]\n\tobjectFormat = sha256\n":                                            true,
		head + "[Extensions] ; of v1\n\tOBJECTFORMAT=\"SHA256\" # so\n":                             true,
		head + "[extensions] objectformat = sha256":                                                 true,
		head + "[extensions]\n\tobjectFormat = sha1\n":                                              false,
		head + "[extensions]\n\tworktreeConfig = true\n":                                            false,
		head + "[extensions \"sha256\"]\n\tobjectFormat = sha256\n":                                 false,
		head + "[branch \"bump-debian-sha256\"]\n\tremote = origin\n":                               false,
		head + "# we want sha256 one day\n[remote \"o\"]\n\turl = https://x/image-sha256.git\n":     false,
		head + "[extensions]\n# objectFormat = sha256\n[core]\n\tobjectFormat = sha256\n":           false,
		head + "[alias]\n\tx = !echo \\\n[extensions]\\\nobjectFormat = sha256\n\ty = objectFormat": false,
	} {
		u := newUpstream(t)
		hash := u.commit(map[string]string{"a.yaml": "1"})
		r := u.open()
		if err := os.WriteFile(filepath.Join(u.dir, "config"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		switch c, err := r.Fetch(context.Background()); {
		case refused && !errors.Is(err, errObjectFormat):
			t.Errorf("%q: %v", text, err)
		case !refused && (err != nil || c.Hash != hash):
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "new")
	run(t, "", nil, "git", "init", "-q", "--bare", "--object-format=sha256", dir)
	r := newUpstream(t).open(func(c *Config) { c.URL = dir })
	if _, err := r.Fetch(context.Background()); !errors.Is(err, errObjectFormat) {
		t.Errorf("git's own: %v", err)
	}
}

// Every way git moves a branch shows in the watched directories.
func TestWatchPaths(t *testing.T) {
	u := newUpstream(t)
	first := u.commitTo("team/prod", map[string]string{"a.yaml": "1"})
	second := u.commitTo("team/prod", map[string]string{"a.yaml": "2"})
	r := u.open(func(c *Config) { c.Branch = "team/prod" })
	clone := filepath.Join(t.TempDir(), "clone")
	run(t, "", nil, "git", "clone", "-q", "-b", "team/prod", u.dir, clone)
	for _, tt := range []struct {
		name string
		move func()
	}{
		{"update-ref", func() { u.git("update-ref", "refs/heads/team/prod", first) }},
		{"push", func() { run(t, clone, nil, "git", "push", "-q", "origin", second+":refs/heads/team/prod") }},
		{"packed", func() { u.git("pack-refs", "--all", "--prune") }},
		{"after packing", func() { u.git("update-ref", "refs/heads/team/prod", first) }},
	} {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			t.Fatal(err)
		}
		paths := r.WatchPaths()
		for _, p := range paths {
			if err := w.Add(p); err != nil {
				t.Fatal(err)
			}
		}
		tt.move()
		select {
		case <-w.Events:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: no event within 5 s in %v", tt.name, paths)
		}
		w.Close()
	}
}

func TestLocalPushSafety(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	const uid = 12345
	if err := filepath.WalkDir(u.dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, uid, uid))
	}); err != nil {
		t.Fatal(err)
	}
	r := u.open()
	ctx := context.Background()
	push := func(content string) error {
		_, _, err := r.PushFiles(ctx, "refs/reconciler/status/h", map[string][]byte{"s": []byte(content)}, "m", PushOptions{})
		return err
	}
	if err := push("1"); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(u.dir, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(p, &st)); err != nil {
			return err
		}
		if st.Uid != uid {
			t.Errorf("%s belongs to %d", p, st.Uid)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Another writer holds git's lock.
	ref := filepath.Join(u.dir, "refs/reconciler/status/h")
	if err := os.WriteFile(ref+".lock", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := push("2"); !errors.Is(err, ErrRefChanged) {
		t.Errorf("locked ref: %v", err)
	}
	if err := os.Remove(ref + ".lock"); err != nil {
		t.Fatal(err)
	}
	// A planted link must not lead the agent, which is root, elsewhere.
	outside := t.TempDir()
	if err := errors.Join(os.RemoveAll(filepath.Join(u.dir, "refs/reconciler")), os.Symlink(outside, filepath.Join(u.dir, "refs/reconciler"))); err != nil {
		t.Fatal(err)
	}
	if err := push("3"); err == nil {
		t.Error("push through a link out of the repository succeeded")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("written outside: %v, %v", left, err)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://u:p@h/x.git?private_token=t#f": "https://h/x.git",
		"ssh://git:p@h:22/x":                    "ssh://git@h:22/x",
		"git@h:x.git":                           "git@h:x.git",
		"/srv/x.git":                            "/srv/x.git",
		"https://u:p%zz@h/x":                    "https://h/x",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
	_, err := Open(Config{URL: "https://u:" + testToken + "@h:bad/x", CacheDir: t.TempDir()})
	if err == nil {
		t.Fatal("a malformed URL was accepted")
	}
	refused(t, "malformed URL", err, err)
}
