package gitrepo

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rawTree writes a tree object that git itself might refuse, and points main at it.
func (u *upstream) rawTree(entries ...string) {
	u.t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		head, name, _ := strings.Cut(e, "\t")
		mode, h, _ := strings.Cut(head, " ")
		raw, err := hex.DecodeString(h)
		if err != nil {
			u.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\x00%s", mode, name, raw)
	}
	tree := u.gitIn(b.Bytes(), "hash-object", "-t", "tree", "--literally", "-w", "--stdin")
	u.git("update-ref", "refs/heads/main", u.git("commit-tree", "-m", "raw", tree))
}

func TestRefusedTrees(t *testing.T) {
	u := newUpstream(t)
	blob := u.gitIn([]byte("a: 1\n"), "hash-object", "-w", "--stdin")
	sub := u.gitIn([]byte("100644 blob "+blob+"\tx.yaml\n"), "mktree")
	commit := u.git("commit-tree", "-m", "x", sub)
	file := "100644 " + blob + "\t"
	link := func(target string) string { return u.gitIn([]byte(target), "hash-object", "-w", "--stdin") }
	for _, tt := range []struct {
		name    string
		entries []string
		path    string
		reason  Reason
	}{
		{"dotdot", []string{"40000 " + sub + "\t.."}, "..", BadName},
		{"dot", []string{"40000 " + sub + "\t."}, ".", BadName},
		{"git", []string{"40000 " + sub + "\t.GIT"}, ".GIT", BadName},
		{"slash", []string{file + "/etc/x.yaml"}, "etc/x.yaml", BadName},
		{"backslash", []string{file + `a\x.yaml`}, `a\\x.yaml`, BadName},
		{"empty", []string{file}, "", BadName},
		{"newline", []string{file + "a\nb.yaml"}, `a\nb.yaml`, BadName},
		{"bidi", []string{file + "a\u202e.yaml"}, `\u202e`, BadName},
		{"not UTF-8", []string{file + "\xff.yaml"}, `\xff.yaml`, NotUTF8},
		{"symlink", []string{"120000 " + blob + "\tl.yaml"}, "l.yaml", Symlink},
		{"link out of the tree", []string{"120000 " + link("../secret") + "\tshared"}, "shared", Symlink},
		{"absolute link", []string{"120000 " + link("/etc/passwd") + "\tshared"}, "shared", Symlink},
		{"endless link", []string{"120000 " + link(strings.Repeat("x/", 3000)) + "\tshared"}, "shared", Symlink},
		{"odd directory", []string{"40000 " + sub + "\ta\\b"}, `a\\b`, BadName},
		{"submodule like a spec", []string{"160000 " + commit + "\tmod.yaml"}, "mod.yaml", Submodule},
		{"twice", []string{file + "a.yaml", file + "a.yaml"}, ".", BadTree},
		{"unordered", []string{file + "b.yaml", file + "a.yaml"}, ".", BadTree},
		{"device", []string{"20644 " + blob + "\td.yaml"}, "d.yaml", BadTree},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u.rawTree(tt.entries...)
			r := u.open()
			c := mustFetch(t, r)
			_, err := r.Files(context.Background(), c.Hash)
			var perr *PathError
			if !errors.As(err, &perr) || perr.Reason != tt.reason || !strings.Contains(perr.Path, tt.path) {
				t.Errorf("files: %v, want %s: %s", err, tt.path, tt.reason)
			}
			if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return r == 0xfffd || r == 0x202e || r < 0x20 }) {
				t.Errorf("unfit for a log: %q", err)
			}
			if r.damaged() {
				t.Error("a bad tree was taken for a damaged cache")
			}
		})
	}
	// What is no spec and climbs nowhere is harmless.
	t.Run("harmless", func(t *testing.T) {
		in := u.gitIn([]byte("120000 blob "+link("../a.yaml")+"\tREADME\n100644 blob "+blob+"\tx.yaml\n"), "mktree")
		u.rawTree("120000 "+link("README.md")+"\tAGENTS.md", "120000 "+link("vms")+"\tmachines", "160000 "+commit+"\tmod",
			file+`n\otes.txt`, file+"notes\xff.txt", "40000 "+in+"\tvms")
		r := u.open()
		c := mustFetch(t, r)
		if got := contents(t, r, c.Hash); len(got) != 1 || got["vms/x.yaml"] == "" {
			t.Errorf("files = %v", got)
		}
		r = u.open(func(c *Config) { c.Path = "vms" })
		if got := contents(t, r, mustFetch(t, r).Hash); len(got) != 1 {
			t.Errorf("below vms: files = %v", got)
		}
	})
	t.Run("hidden", func(t *testing.T) {
		u.rawTree("120000 "+blob+"\t.l", "40000 "+sub+"\t.x", file+"a.yaml")
		r := u.open()
		if got := contents(t, r, mustFetch(t, r).Hash); len(got) != 1 || got["a.yaml"] == "" {
			t.Errorf("files = %v", got)
		}
	})
	t.Run("emptied", func(t *testing.T) {
		u.rawTree()
		r := u.open()
		if got := contents(t, r, mustFetch(t, r).Hash); len(got) != 0 {
			t.Errorf("files = %v", got)
		}
	})
}

func TestLimits(t *testing.T) {
	u := newUpstream(t)
	files := map[string]string{"big.yaml": strings.Repeat("x", 2000), "big2.yaml": strings.Repeat("y", 3000), "small.yaml": "1"}
	u.commit(files)
	// 2^40 entries from 40 tree objects.
	tree := u.gitIn([]byte("100644 blob "+u.gitIn([]byte("x"), "hash-object", "-w", "--stdin")+"\tx.yaml\n"), "mktree")
	for range 40 {
		tree = u.gitIn([]byte("040000 tree "+tree+"\ta\n040000 tree "+tree+"\tb\n"), "mktree")
	}
	u.git("update-ref", "refs/heads/bomb", u.git("commit-tree", "-m", "x", tree))
	ctx := context.Background()
	for _, tt := range []struct {
		name, branch string
		limits       Limits
		want         Reason
		paths        string
	}{
		{"file", "main", Limits{FileBytes: 1999}, OverSize, "big.yaml big2.yaml"},
		{"total", "main", Limits{TotalBytes: 4000}, OverTotal, ""},
		{"files", "main", Limits{Files: 2}, TooManyFiles, "small.yaml"},
		{"bomb", "bomb", Limits{}, TooManyFiles, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := u.open(func(c *Config) { c.Limits, c.Branch = tt.limits, tt.branch })
			tree, err := r.Files(ctx, mustFetch(t, r).Hash)
			if err == nil {
				err = tree.Load(ctx, tree.Files, func(int, []byte) error { return nil })
			}
			var perr *PathError
			if !errors.As(err, &perr) || perr.Reason != tt.want {
				t.Fatalf("%v, want %s", err, tt.want)
			}
			for _, p := range strings.Fields(tt.paths) {
				if !strings.Contains(err.Error(), p+": ") {
					t.Errorf("%q does not name %s", err, p)
				}
			}
		})
	}
	t.Run("fetch", func(t *testing.T) {
		url := u.http(httpHandler(u))
		for _, mod := range []func(*Config){func(*Config) {}, func(c *Config) { c.URL, c.TokenFile = url, secretFile(t, testToken) }} {
			r := u.open(mod, func(c *Config) { c.Limits.FetchBytes = 300 })
			if _, err := r.Fetch(ctx); !errors.Is(err, ErrTooLarge) {
				t.Errorf("fetch over the limit: %v", err)
			}
			left, err := filepath.Glob(filepath.Join(r.dir, "objects/pack/*"))
			if err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	})
}

// A 100 MB file beside the specs costs nothing, as a spec it is refused unread.
func TestHugeBlob(t *testing.T) {
	for _, tt := range []struct {
		name string
		size int
		mod  func(*upstream, *Config)
	}{
		{"path", 20 << 20, func(*upstream, *Config) {}},
		{"http", 100 << 20, func(u *upstream, c *Config) {
			c.URL, c.TokenFile = u.http(httpHandler(u)), secretFile(t, testToken)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t)
			big := strings.Repeat("0123456789abcdef", tt.size/16)
			tip := u.commit(map[string]string{"a.yaml": "1", "image.bin": big, "huge.yaml": big})
			r := u.open(func(c *Config) { tt.mod(u, c) })
			mustFetch(t, r)
			tree := must(r.Files(context.Background(), tip))
			read := 0
			err := tree.Load(context.Background(), tree.Files, func(_ int, b []byte) error { read += len(b); return nil })
			var perr *PathError
			if !errors.As(err, &perr) || perr.Path != "huge.yaml" || perr.Reason != OverSize || read != 1 {
				t.Errorf("load: %v, %d bytes read", err, read)
			}
		})
	}
}

func TestHalfPushed(t *testing.T) {
	transports(t, func(t *testing.T, u *upstream, mod func(*Config)) {
		good := u.commit(map[string]string{"a.yaml": "1", "d/b.yaml": "1"})
		r := u.open(mod)
		mustFetch(t, r)
		if err := r.Pin(good); err != nil {
			t.Fatal(err)
		}
		bad := u.commit(map[string]string{"d/b.yaml": "2"})
		for _, victim := range []string{u.git("rev-parse", bad+":d/b.yaml"), u.git("rev-parse", bad+":d"), bad} {
			restore := u.hide(victim)
			if c, err := r.Fetch(context.Background()); err == nil {
				t.Errorf("fetched %s without %s", c.Hash, victim)
			}
			restore()
			if tip := must(r.Newest()); tip != good {
				t.Errorf("newest is %s", tip)
			}
			if got := contents(t, r, good); got["d/b.yaml"] != "1" {
				t.Errorf("last good revision reads %v", got)
			}
		}
		if c := mustFetch(t, r); c.Hash != bad {
			t.Errorf("healed upstream: fetched %s", c.Hash)
		}
	})
}

// hide takes a loose object away.
func (u *upstream) hide(h string) (restore func()) {
	u.t.Helper()
	path := filepath.Join(u.dir, "objects", h[:2], h[2:])
	if err := os.Rename(path, path+".hidden"); err != nil {
		u.t.Fatal(err)
	}
	return func() {
		if err := os.Rename(path+".hidden", path); err != nil {
			u.t.Fatal(err)
		}
	}
}

func TestThousandsOfRefs(t *testing.T) {
	transports(t, func(t *testing.T, u *upstream, mod func(*Config)) {
		tip := u.commit(map[string]string{"a.yaml": "1"})
		other := u.commitTo("other", map[string]string{"o.yaml": "other"})
		b := "# pack-refs with: peeled fully-peeled sorted \n"
		for i := range 5000 {
			b += fmt.Sprintf("%s refs/pull/%05d/head\n", other, i)
		}
		if err := os.WriteFile(filepath.Join(u.dir, "packed-refs"), []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
		r := u.open(mod)
		start := time.Now()
		if c := mustFetch(t, r); c.Hash != tip {
			t.Errorf("fetched %s", c.Hash)
		}
		if r.Stats().Objects != 3 {
			t.Errorf("cache holds %d objects, want 3", r.Stats().Objects)
		}
		t.Logf("fetch among 5,000 refs: %s", time.Since(start))
	})
}
