package diff3

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// applied rebuilds b from a and the changes, and checks that what is not
// changed is equal.
func applied(t interface{ Fatalf(string, ...any) }, a, b []int32, hunks []hunk) {
	var out []int32
	at := 0
	for _, h := range hunks {
		if h.a < at || h.na+h.nb == 0 {
			t.Fatalf("hunks %v out of order", hunks)
		}
		out = append(append(out, a[at:h.a]...), b[h.b:h.b+h.nb]...)
		at = h.a + h.na
	}
	if out = append(out, a[at:]...); !slices.Equal(out, b) {
		t.Fatalf("%v and %v give %v, want %v", a, hunks, out, b)
	}
}

func TestDiffRebuilds(t *testing.T) {
	line := rapid.Int32Range(0, 5)
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOf(line).Draw(t, "a"), rapid.SliceOf(line).Draw(t, "b")
		applied(t, a, b, diff(a, b, 6))
	})
}

// Lines that all occur too often are compared by the shortest path.
func TestDiffOfFrequentLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		line := rapid.Int32Range(0, 1)
		a := rapid.SliceOfN(line, 150, 300).Draw(t, "a")
		b := slices.Clone(a)
		for range rapid.IntRange(0, 5).Draw(t, "edits") {
			i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
			if rapid.Bool().Draw(t, "insert") {
				b = slices.Insert(b, i, line.Draw(t, "line"))
			} else {
				b = slices.Delete(b, i, i+1)
			}
		}
		hunks := diff(a, b, 2)
		applied(t, a, b, hunks)
		x, y := newMarks(a), newMarks(b)
		myers(x, y, 0, len(a), 0, len(b))
		applied(t, a, b, script(x, y))
		edits := 0
		for _, h := range script(x, y) {
			edits += h.na + h.nb
		}
		if edits > 5 {
			t.Fatalf("%d lines differ after at most 5 edits", edits)
		}
	})
	a, b := make([]int32, 40000), make([]int32, 40000)
	for i := range a {
		a[i], b[i] = int32(i%2), int32(i%3%2)
	}
	applied(t, a, b, diff(a, b, 2))
}

// mergeCase is a text and two edits of it.
type mergeCase struct{ base, ours, theirs []byte }

var vocabulary = []string{"a", "b", "c", "d: 1", "d: 2", "  e", "", "---", "f", "g", "h", "i"}

func newCase(r *rand.Rand) mergeCase {
	words := vocabulary[:2+r.IntN(len(vocabulary)-1)]
	draw := func(n int) (lines []string) {
		for range r.IntN(n + 1) {
			lines = append(lines, words[r.IntN(len(words))])
		}
		return lines
	}
	lines := draw(30)
	if r.IntN(20) == 0 {
		lines = slices.Repeat(lines, 10)
	}
	edit := func() []string {
		out := slices.Clone(lines)
		for range r.IntN(4) {
			i := r.IntN(len(out) + 1)
			out = slices.Replace(out, i, i+r.IntN(min(3, len(out)-i)+1), draw(3)...)
		}
		return out
	}
	c := mergeCase{join(lines, r.IntN(10) == 0), join(edit(), r.IntN(10) == 0), join(edit(), r.IntN(10) == 0)}
	if r.IntN(30) == 0 {
		c.ours = bytes.ReplaceAll(c.ours, []byte("\n"), []byte("\r\n"))
	}
	return c
}

func join(lines []string, cut bool) []byte {
	s := strings.Join(lines, "\n")
	if len(lines) > 0 && !cut {
		s += "\n"
	}
	return []byte(s)
}

// TestMergeLikeGit merges thousands of files at once with the git program, and
// expects the same result of each, or a conflict in the same.
func TestMergeLikeGit(t *testing.T) {
	r := rand.New(rand.NewPCG(4, uint64(time.Now().UnixNano())))
	cases := make([]mergeCase, 2000)
	for i := range cases {
		cases[i] = newCase(r)
	}
	dir := t.TempDir()
	git := func(stdin []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "merge.renames=false"}, args...)...)
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
			t.Fatalf("git %v: %v", args, err)
		}
		return out
	}
	git(nil, "init", "-q", "--bare")
	var in bytes.Buffer
	for n, pick := range []func(mergeCase) []byte{
		func(c mergeCase) []byte { return c.base }, func(c mergeCase) []byte { return c.ours }, func(c mergeCase) []byte { return c.theirs },
	} {
		fmt.Fprintf(&in, "commit refs/heads/%c\nmark :%d\ncommitter A <a@example.org> 1700000000 +0000\ndata 0\n", "oab"[n], n+1)
		if n > 0 {
			in.WriteString("from :1\n")
		}
		for i, c := range cases {
			fmt.Fprintf(&in, "M 100644 inline %d\ndata %d\n%s\n", i, len(pick(c)), pick(c))
		}
	}
	git(in.Bytes(), "fast-import", "--quiet")
	out := bytes.Split(git(nil, "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", "a", "b"), []byte{0})
	conflicted := map[string]bool{}
	for _, name := range out[1:] {
		conflicted[string(name)] = len(name) > 0
	}
	var names bytes.Buffer
	for i := range cases {
		fmt.Fprintf(&names, "%s:%d\n", out[0], i)
	}
	blobs := git(names.Bytes(), "cat-file", "--batch")
	conflicts := 0
	for i, c := range cases {
		head, rest, _ := bytes.Cut(blobs, []byte("\n"))
		var size int
		if _, err := fmt.Sscanf(string(head), "%40s blob %d", new(string), &size); err != nil {
			t.Fatalf("%q: %v", head, err)
		}
		want := rest[:size]
		blobs = rest[size+1:]
		got, ok := Merge(c.base, c.ours, c.theirs)
		if ok != !conflicted[fmt.Sprint(i)] || ok && !bytes.Equal(got, want) {
			t.Errorf("base %q\nours %q\ntheirs %q\nmerged %q %t\ngit %q", c.base, c.ours, c.theirs, got, ok, want)
		}
		if !ok {
			conflicts++
		}
	}
	if conflicts < len(cases)/20 || conflicts > len(cases)/2 {
		t.Errorf("%d of %d conflict: that shows little", conflicts, len(cases))
	}
}

func BenchmarkMerge(b *testing.B) {
	var lines []string
	for i := range 20000 {
		lines = append(lines, fmt.Sprintf("line %d", i%5000))
	}
	base := join(lines, false)
	ours, theirs := slices.Clone(lines), slices.Clone(lines)
	for i := 50; i < len(lines); i += 100 {
		ours[i], theirs[i-25] = "ours", "theirs"
	}
	a, c := join(ours, false), join(theirs, false)
	for b.Loop() {
		if _, ok := Merge(base, a, c); !ok {
			b.Fatal("conflict")
		}
	}
}
