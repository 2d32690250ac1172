package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const childEnv = "GITREPO_TEST_CHILD"

// child fetches, pins and repacks until it is killed. What it has pinned it says
// on stdout, first, so that the parent knows what must not be lost.
func child() int {
	ctx := context.Background()
	r, err := Open(Config{URL: os.Getenv(childEnv), Branch: "main", CacheDir: os.Getenv(childEnv + "_CACHE")})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		c, err := r.Fetch(ctx)
		if err == nil {
			err = r.Pin(c.Hash)
		}
		if err == nil {
			fmt.Println(c.Hash)
			err = r.repack(ctx, must(r.roots()))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

func TestKilledAtRandom(t *testing.T) {
	u := newUpstream(t)
	want := make(map[string]string) // commit → content
	files := make(map[string]string)
	for i := range 200 {
		files[fmt.Sprintf("d%d/f.yaml", i)] = specText(i, 0)
	}
	u.commit(files)
	change := func() {
		content := fmt.Sprint("v", u.n)
		want[u.commit(map[string]string{"v.yaml": content})] = content
	}
	change()
	cfg := u.config()
	for round := range 10 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+u.dir, childEnv+"_CACHE="+cfg.CacheDir)
		var out, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(20+rand.IntN(120))*time.Millisecond, func() { cmd.Process.Kill() })
		change()
		change()
		cmd.Wait()
		kill.Stop()
		if stderr.Len() > 0 {
			t.Fatalf("round %d: %s", round, &stderr)
		}
		r, err := Open(cfg)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if r.damaged() {
			t.Errorf("round %d: the cache was damaged by a kill", round)
		}
		said := strings.Fields(out.String())
		pin := must(r.Pinned())
		if len(said) > 0 && pin == "" {
			t.Errorf("round %d: the pinned commit %s is forgotten", round, said[len(said)-1])
		}
		if pin != "" {
			if got := contents(t, r, pin); got["v.yaml"] != want[pin] || len(got) != 201 {
				t.Errorf("round %d: %s reads %q (%d files), want %q", round, pin, got["v.yaml"], len(got), want[pin])
			}
		}
		left, err := filepath.Glob(filepath.Join(cfg.CacheDir, "objects/pack/tmp_*"))
		if err != nil || len(left) > 0 {
			t.Errorf("round %d: left behind: %v, %v", round, left, err)
		}
		r.Close()
	}
	r := open(t, cfg)
	tip := mustFetch(t, r).Hash
	if got := contents(t, r, tip); got["v.yaml"] != want[tip] {
		t.Errorf("newest reads %q", got["v.yaml"])
	}
}

func TestOneProcess(t *testing.T) {
	u := newUpstream(t)
	cfg := u.config()
	open(t, cfg)
	if _, err := Open(cfg); !errors.Is(err, ErrCacheInUse) {
		t.Errorf("second open: %v", err)
	}
}

// Damage that no crash of ours can do (a disk, a person) is noticed and healed
// by the next fetch.
func TestDamagedCache(t *testing.T) {
	for name, hurt := range map[string]func(t *testing.T, pack string){
		"cut short": func(t *testing.T, pack string) {
			if err := os.Truncate(pack, 40); err != nil {
				t.Fatal(err)
			}
		},
		"index gone": func(t *testing.T, pack string) {
			if err := os.Remove(strings.TrimSuffix(pack, "pack") + "idx"); err != nil {
				t.Fatal(err)
			}
		},
		"bits flipped": func(t *testing.T, pack string) {
			b := must(os.ReadFile(pack))
			for i := 12; i < len(b)-20; i++ {
				b[i] ^= 0x5a
			}
			if err := errors.Join(os.Chmod(pack, 0o600), os.WriteFile(pack, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t)
			tip := u.commit(map[string]string{"a.yaml": "1", "d/b.yaml": "2"})
			cfg := u.config()
			r := open(t, cfg)
			mustFetch(t, r)
			if err := r.Pin(tip); err != nil {
				t.Fatal(err)
			}
			r.Close()
			packs := must(filepath.Glob(filepath.Join(cfg.CacheDir, "objects/pack/*.pack")))
			hurt(t, packs[0])
			r = open(t, cfg)
			if _, err := r.Files(context.Background(), tip); err == nil {
				t.Error("a damaged cache was read")
			}
			if pin := must(r.Pinned()); pin != tip {
				t.Errorf("pinned %q", pin)
			}
			mustFetch(t, r)
			if got := contents(t, r, tip); got["a.yaml"] != "1" || got["d/b.yaml"] != "2" {
				t.Errorf("healed cache reads %v", got)
			}
			if r.damaged() {
				t.Error("still marked as damaged")
			}
		})
	}
}

// Many fetches (BenchmarkFetch does thousands) leave a cache of bounded size in few packs.
func TestCacheStaysSmall(t *testing.T) {
	u := newUpstream(t)
	files := make(map[string]string)
	for i := range 2000 {
		files[fmt.Sprintf("hosts/h%02d/d%05d.yaml", i%8, i)] = specText(i, 0)
	}
	u.commit(files)
	u.git("gc", "-q")
	url := u.http(httpHandler(u))
	for _, tt := range []struct {
		name    string
		fetches int
		mod     func(*Config)
	}{
		{"path", hardLimits.packs + 20, func(*Config) {}},
		{"http", 20, func(c *Config) { c.URL, c.TokenFile = url, secretFile(t, testToken) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fetches := tt.fetches
			r := u.open(tt.mod)
			mustFetch(t, r)
			first := r.Stats()
			peak := first
			for i := range fetches {
				u.commit(map[string]string{fmt.Sprintf("hosts/h%02d/d%05d.yaml", i%8, i): specText(i, i)})
				mustFetch(t, r)
				if s := r.Stats(); s.Bytes > peak.Bytes {
					peak = s
				}
				if s := r.Stats(); s.Packs > hardLimits.packs+1 {
					t.Fatalf("%d packs after %d fetches", s.Packs, i)
				}
			}
			tip := must(r.Newest())
			before := contents(t, r, tip)
			if err := r.repack(context.Background(), must(r.roots())); err != nil {
				t.Fatal(err)
			}
			last := r.Stats()
			t.Logf("after 1 fetch %+v, peak %+v, after %d and a repack %+v", first, peak, fetches, last)
			if last.Packs != 1 || last.Bytes > first.Bytes+int64(fetches)*4096 {
				t.Errorf("cache grew from %d to %d bytes in %d packs", first.Bytes, last.Bytes, last.Packs)
			}
			if after := contents(t, r, tip); len(after) != len(before) || after["hosts/h07/d00007.yaml"] != before["hosts/h07/d00007.yaml"] {
				t.Error("contents differ after a repack")
			}
			run(t, r.dir, nil, "git", "--git-dir", ".", "fsck", "--strict", tip)
		})
	}
}
