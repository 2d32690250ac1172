package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestBetweenLikeGit compares ranges and merge bases in generated histories with
// what git says of them.
func TestBetweenLikeGit(t *testing.T) {
	u := newUpstream(t)
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 1))
	var in strings.Builder
	const commits = 120
	for i := range commits {
		// Most dates grow; some lie by up to a day.
		when := 1700000000 + i*1000 - rnd.IntN(10)/9*rnd.IntN(86400)
		fmt.Fprintf(&in, "commit refs/heads/c%d\nmark :%d\ncommitter A <a@example.org> %d +0000\ndata 0\n", i, i+1, when)
		for n := range min(1+rnd.IntN(4)/2, i) {
			fmt.Fprintf(&in, "%s :%d\n", []string{"from", "merge"}[n], i-rnd.IntN(min(i, 9)))
		}
		fmt.Fprintf(&in, "M 100644 inline f\ndata 1\nx\n\n")
	}
	fmt.Fprintf(&in, "reset refs/heads/main\nfrom :%d\n\n", commits)
	u.gitIn([]byte(in.String()), "fast-import", "--quiet", "--force")
	r := u.open(func(c *Config) { c.Branch = "main" })
	ctx := context.Background()
	hashes := make([]string, commits)
	for i := range hashes {
		c, err := r.Commit(ctx, fmt.Sprintf("refs/heads/c%d", i))
		if err != nil {
			t.Fatal(err)
		}
		hashes[i] = c.Hash
	}
	for range 60 {
		from, to := rnd.IntN(commits), rnd.IntN(commits)
		for _, firstParent := range []bool{false, true} {
			// A range of rev-list is wrong, too, where dates lie.
			args := []string{"rev-list", hashes[to]}
			if firstParent {
				args = []string{"rev-list", "--first-parent", hashes[to]}
			}
			known := strings.Fields(u.git("rev-list", hashes[from]))
			want := slices.DeleteFunc(strings.Fields(u.git(args...)), func(h string) bool { return slices.Contains(known, h) })
			list, err := r.Between(ctx, hashes[from], hashes[to], firstParent)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range list {
				for _, p := range c.Parents {
					if slices.Contains(got, p) {
						t.Errorf("%s is listed before its child %s", p, c.Hash)
					}
				}
				got = append(got, c.Hash)
			}
			if !sameSet(got, want) {
				t.Errorf("seed %d, c%d..c%d: %v, want %v", seed, from, to, got, want)
			}
		}
		bases, err := r.mergeBases(ctx, hashOf(hashes[from]), hashOf(hashes[to]))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range bases {
			got = append(got, c.Hash)
		}
		out, _ := tryRun(u.dir, nil, "git", "merge-base", "--all", hashes[from], hashes[to])
		if want := strings.Fields(out); !sameSet(got, want) {
			t.Errorf("seed %d, bases of c%d and c%d: %v, want %v", seed, from, to, got, want)
		}
	}
	all, err := r.Between(ctx, "", hashes[0], false)
	if err != nil || len(all) != 1 {
		t.Errorf("all of the first commit: %v, %v", all, err)
	}
	if _, err := r.Between(ctx, hashes[0], strings.Repeat("0", 40), false); err == nil {
		t.Error("a commit that is not there was accepted")
	}
	if _, err := r.Between(ctx, "main", hashes[0], false); !errors.Is(err, ErrRevisionMissing) {
		t.Errorf("a name: %v", err)
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// A commit that claims to be older than its ancestors is found all the same.
func TestBetweenWithFalseDates(t *testing.T) {
	u := newUpstream(t)
	var in strings.Builder
	for i, when := range []int{1000, 2000, 3000, 4000, 500, 4500} {
		fmt.Fprintf(&in, "commit refs/heads/main\nmark :%d\ncommitter A <a@example.org> %d +0000\ndata 0\n", i+1, 1700000000+when*86400)
		switch i {
		case 0:
		case 5: // merges the forged one with a branch from the second
			in.WriteString("from :5\nmerge :2\n")
		default:
			fmt.Fprintf(&in, "from :%d\n", i)
		}
		in.WriteString("M 100644 inline f\ndata 1\nx\n\n")
	}
	u.gitIn([]byte(in.String()), "fast-import", "--quiet", "--force")
	r := u.open()
	tip := mustFetch(t, r).Hash
	forged := u.git("rev-parse", "main^1")
	list, err := r.Between(context.Background(), forged, tip, false)
	if err != nil || len(list) == 0 || list[0].Hash != tip {
		t.Fatalf("%v, %v", list, err)
	}
	list, err = r.Between(context.Background(), u.git("rev-parse", "main~3"), tip, false)
	if want := strings.Fields(u.git("rev-list", "main~3..main")); err != nil || len(list) != len(want) {
		t.Fatalf("%d commits, %v; want %d", len(list), err, len(want))
	}
}
