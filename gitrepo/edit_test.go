package gitrepo

import (
	"context"
	"errors"
	"strings"
	"testing"
)

const driftRef = "refs/heads/reconciler-drift/h1"

func (u *upstream) files(rev string) map[string]string {
	u.t.Helper()
	m := map[string]string{}
	for line := range strings.Lines(u.git("ls-tree", "-r", rev)) {
		head, path, _ := strings.Cut(strings.TrimSpace(line), "\t")
		f := strings.Fields(head)
		m[path] = f[0] + " " + u.git("cat-file", "blob", f[2])
	}
	return m
}

func equal(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %s is %q, want %q", what, k, got[k], v)
		}
	}
}

func TestPushEdit(t *testing.T) {
	transports(t, func(t *testing.T, u *upstream, mod func(*Config)) {
		ctx := context.Background()
		u.git("config", "receive.fsckObjects", "true")
		u.commit(map[string]string{"a.yaml": "1", "d/b.yaml": "2", "d/e/c.yaml": "3", "z/only": "x", "run.sh": "#!"})
		tree := u.gitIn([]byte(strings.ReplaceAll(u.git("ls-tree", "main"), "100644 blob "+u.git("rev-parse", "main:run.sh"), "100755 blob "+u.git("rev-parse", "main:run.sh"))+"\n"), "mktree")
		u.git("update-ref", "refs/heads/main", u.git("commit-tree", "-p", "main", "-m", "executable", tree))
		r := u.open(mod)
		base := mustFetch(t, r)
		edit := func(base string, edits map[string][]byte) (string, bool) {
			t.Helper()
			commit, pushed, err := r.PushEdit(ctx, driftRef, base, edits, "drift\n\nof h1", PushOptions{OwnOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			return commit, pushed
		}
		edits := map[string][]byte{"a.yaml": []byte("11"), "d/e/new.yaml": []byte("n"), "z/only": nil, "run.sh": []byte("#!!"), "absent/x": nil}
		commit, pushed := edit(base.Hash, edits)
		if !pushed || u.git("rev-parse", driftRef) != commit || u.git("rev-parse", driftRef+"^@") != base.Hash {
			t.Fatalf("pushed %s %t", commit, pushed)
		}
		equal(t, "edited", u.files(driftRef), map[string]string{
			"a.yaml": "100644 11", "d/b.yaml": "100644 2", "d/e/c.yaml": "100644 3", "d/e/new.yaml": "100644 n", "run.sh": "100755 #!!",
		})
		if again, pushed := edit(base.Hash, edits); pushed || again != commit {
			t.Errorf("the same edit again: %s %t", again, pushed)
		}
		// The branch moved on: the ref is made anew on top of it.
		u.commit(map[string]string{"d/b.yaml": "22"})
		next := mustFetch(t, r)
		if _, pushed := edit(next.Hash, edits); !pushed || u.git("rev-parse", driftRef+"^@") != next.Hash || u.files(driftRef)["d/b.yaml"] != "100644 22" {
			t.Error("the edit was not made on top of the new base")
		}
		if tip, pushed := edit(next.Hash, map[string][]byte{"a.yaml": []byte("1")}); pushed || tip != next.Hash {
			t.Errorf("an edit that changes nothing: %s %t", tip, pushed)
		}
		// Somebody's own commit on it is kept.
		theirs := u.git("commit-tree", "-p", driftRef, "-m", "mine", driftRef+"^{tree}")
		u.git("update-ref", driftRef, theirs)
		fresh := u.open(mod) // one that never saw it
		mustFetch(t, fresh)
		for _, r := range []*Repo{r, fresh} {
			if _, _, err := r.PushEdit(ctx, driftRef, next.Hash, map[string][]byte{"a.yaml": []byte("12")}, "m", PushOptions{OwnOnly: true}); !errors.Is(err, ErrForeignTip) {
				t.Errorf("push over another's commit: %v", err)
			}
			if err := r.DeleteRef(ctx, driftRef, PushOptions{OwnOnly: true}); !errors.Is(err, ErrForeignTip) {
				t.Errorf("removal of another's commit: %v", err)
			}
		}
		u.git("update-ref", driftRef, commit)
		u.git("pack-refs", "--all")
		if err := r.DeleteRef(ctx, driftRef, PushOptions{OwnOnly: true}); err != nil {
			t.Errorf("remove: %v", err)
		}
		if err := fresh.DeleteRef(ctx, driftRef, PushOptions{OwnOnly: true}); err != nil {
			t.Errorf("remove what is gone: %v", err)
		}
		if refs := u.git("for-each-ref"); strings.Contains(refs, "drift") || !strings.Contains(refs, "refs/heads/main") {
			t.Errorf("refs left: %s", refs)
		}
		if err := r.DeleteRef(ctx, "refs/heads/main", PushOptions{}); err == nil {
			t.Error("the followed branch was removed")
		}
		u.git("fsck", "--strict")
	})
}

func TestPushEditRefuses(t *testing.T) {
	u := newUpstream(t)
	blob := u.gitIn([]byte("a.yaml"), "hash-object", "-w", "--stdin")
	u.commit(map[string]string{"a.yaml": "1", "d/b.yaml": "2"})
	u.rawTree("100644 "+u.git("rev-parse", "main:a.yaml")+"\ta.yaml", "40000 "+u.git("rev-parse", "main:d")+"\td", "120000 "+blob+"\tlink.yaml")
	r := u.open()
	base := mustFetch(t, r).Hash
	for path, want := range map[string]Reason{
		"../x": BadName, ".git/config": BadName, "": BadName, "a//b": BadName, "link.yaml": Symlink, "d": BadTree, "a.yaml/x": NotADir, "link.yaml/x": NotADir,
	} {
		_, _, err := r.PushEdit(context.Background(), driftRef, base, map[string][]byte{path: []byte("x")}, "m", PushOptions{})
		perr, ok := errors.AsType[*PathError](err)
		if !ok || perr.Reason != want {
			t.Errorf("%q: %v, want %s", path, err, want)
		}
	}
	if _, _, err := r.PushEdit(context.Background(), "refs/heads/main", base, nil, "m", PushOptions{}); err == nil {
		t.Error("the followed branch was written")
	}
	if _, _, err := r.PushEdit(context.Background(), driftRef, strings.Repeat("1", 40), nil, "m", PushOptions{}); err == nil {
		t.Error("an unknown base was accepted")
	}
}

// Pushes use credentials of their own where there are some.
func TestWriteCredentials(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	url := u.http(httpHandler(u))
	good, bad := secretFile(t, testToken), secretFile(t, "wrong")
	ctx := context.Background()
	for _, tt := range []struct {
		read, write string
		fetch, push error
	}{
		{good, "", nil, nil},
		{bad, good, ErrAuth, nil},
		{good, bad, nil, ErrAuth},
	} {
		r := u.open(func(c *Config) { c.URL, c.TokenFile, c.Write.TokenFile = url, tt.read, tt.write })
		if _, err := r.Fetch(ctx); !errors.Is(err, tt.fetch) {
			t.Errorf("fetch: %v, want %v", err, tt.fetch)
		}
		if _, _, err := r.PushFiles(ctx, "refs/reconciler/status/"+t.Name(), map[string][]byte{"s": []byte("1")}, "m", PushOptions{}); !errors.Is(err, tt.push) {
			t.Errorf("push: %v, want %v", err, tt.push)
		}
		u.git("update-ref", "-d", "refs/reconciler/status/"+t.Name())
	}
}

func TestReadFiles(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	r := u.open()
	mustFetch(t, r)
	ctx := context.Background()
	const ref = "refs/reconciler/approvals"
	if _, _, err := r.ReadFiles(ctx, ref, 10); !errors.Is(err, ErrRevisionMissing) {
		t.Errorf("absent ref: %v", err)
	}
	files := map[string][]byte{"approvals/t1/h1.json": []byte("1"), "approvals/t1/h1.json.sig": []byte("2"), "overrides/h1/x.json": {}}
	commit, _, err := r.PushFiles(ctx, ref, files, "m", PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, c, err := u.open().ReadFiles(ctx, ref, 3)
	if err != nil || c.Hash != commit || len(got) != 3 || string(got["approvals/t1/h1.json.sig"]) != "2" {
		t.Errorf("read %q at %s: %v", got, c.Hash, err)
	}
	if _, _, err := r.ReadFiles(ctx, ref, 2); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more files than wanted: %v", err)
	}
	u.rawTree("100644 " + u.git("rev-parse", ref+":approvals/t1/h1.json") + "\t..")
	u.git("update-ref", ref, "main")
	if _, _, err := r.ReadFiles(ctx, ref, 10); err == nil {
		t.Error("a path out of the tree was read")
	}
}
