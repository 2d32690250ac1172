package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// state is a tree as a generator has it: path → mode and content.
type state map[string]string

func (s state) paths() []string { return slices.Sorted(maps.Keys(s)) }

// history writes generated commits for fast-import.
type history struct {
	r   *rand.Rand
	buf bytes.Buffer
	n   int
	// renames allows to move files and directories.
	renames bool
}

func (h *history) commit(branch string, s state, parents ...int) int {
	h.n++
	fmt.Fprintf(&h.buf, "commit refs/heads/%s\nmark :%d\ncommitter A <a@example.org> %d +0000\ndata 0\n", branch, h.n, 1700000000+h.n)
	for i, p := range parents {
		fmt.Fprintf(&h.buf, "%s :%d\n", []string{"from", "merge"}[i], p)
	}
	h.buf.WriteString("deleteall\n")
	for _, p := range s.paths() {
		mode, content, _ := strings.Cut(s[p], " ")
		fmt.Fprintf(&h.buf, "M %s inline %s\ndata %d\n%s\n", mode, p, len(content), content)
	}
	h.buf.WriteString("\n")
	return h.n
}

func (h *history) content() string {
	var b strings.Builder
	for range h.r.IntN(12) {
		fmt.Fprintf(&b, "line %d\n", h.r.IntN(30))
	}
	return b.String()
}

func (h *history) path() string {
	dirs := []string{"", "a/", "b/", "a/c/", "b/c/d/", "f/"}
	return dirs[h.r.IntN(len(dirs))] + fmt.Sprintf("f%d", h.r.IntN(4))
}

func (h *history) start() state {
	s := state{}
	for range 1 + h.r.IntN(10) {
		s.put(h.path(), "100644 "+h.content())
	}
	return s
}

// put adds a file and removes what cannot be beside it.
func (s state) put(path, file string) {
	for p := range s {
		if strings.HasPrefix(p, path+"/") || strings.HasPrefix(path, p+"/") {
			delete(s, p)
		}
	}
	s[path] = file
}

// change makes a few edits.
func (h *history) change(s state) state {
	s = maps.Clone(s)
	for range h.r.IntN(4) {
		paths := s.paths()
		pick := h.path()
		if len(paths) > 0 && h.r.IntN(4) > 0 {
			pick = paths[h.r.IntN(len(paths))]
		}
		old, exists := s[pick]
		mode, content, _ := strings.Cut(old, " ")
		switch what := h.r.IntN(12); {
		case !exists:
			s.put(pick, "100644 "+h.content())
		case what < 6:
			lines := strings.SplitAfter(content, "\n")
			i := h.r.IntN(len(lines))
			lines[i] = fmt.Sprintf("edit %d\n", h.r.IntN(5)) + lines[i][:min(len(lines[i]), h.r.IntN(2)*len(lines[i]))]
			s[pick] = mode + " " + strings.Join(lines, "")
		case what == 6:
			s[pick] = "100755 " + content
		case what == 7:
			s[pick] = "120000 " + fmt.Sprintf("target%d", h.r.IntN(2))
		case what == 8:
			s[pick] = mode + " " + "\x00" + fmt.Sprint(h.r.IntN(3)) + content
		case what == 9 && h.renames:
			delete(s, pick)
			s.put(h.path(), old)
		case what == 10 && h.renames:
			dir, _, _ := strings.Cut(pick, "/")
			for _, p := range paths {
				if rest, ok := strings.CutPrefix(p, dir+"/"); ok {
					file := s[p]
					delete(s, p)
					s.put("moved/"+rest, file)
				}
			}
		case what == 11:
			s.put(pick+"/x", "100644 "+h.content())
		default:
			delete(s, pick)
		}
	}
	return s
}

// TestMergeLikeGit merges generated histories with the git program, and expects
// the same tree or a conflict of both. We may refuse what git merges where files
// were, or seem to have been, renamed, and in criss-cross histories.
func TestMergeLikeGit(t *testing.T) {
	u := newUpstream(t)
	seed := uint64(time.Now().UnixNano())
	h := &history{r: rand.New(rand.NewPCG(seed, 1))}
	const cases = 250
	crossed := map[int]bool{}
	for i := range cases {
		h.renames = i%2 == 1
		base := h.start()
		o := h.commit("o", base)
		left, right := h.change(base), h.change(base)
		a, b := h.commit(fmt.Sprintf("left%d", i), left, o), h.commit(fmt.Sprintf("right%d", i), right, o)
		if h.r.IntN(4) == 0 {
			// Each merges the other's commit, in a way of its own.
			crossed[i] = true
			left, right = h.change(left), h.change(left)
			h.commit(fmt.Sprintf("left%d", i), left, a, b)
			h.commit(fmt.Sprintf("right%d", i), right, b, a)
		}
	}
	h.commit("main", state{"all.yaml": "100644 x"})
	u.gitIn(h.buf.Bytes(), "fast-import", "--quiet", "--force")
	r := u.open()
	mustFetch(t, r)
	var clean, conflicts, careful, seeming int
	for i := range cases {
		a, b := fmt.Sprintf("left%d", i), fmt.Sprintf("right%d", i)
		out, gitErr := tryRun(u.dir, nil, "git", "merge-tree", "--write-tree", "--name-only", a, b)
		want := strings.Fields(out)[0]
		got, err := r.Merge(context.Background(), a, b)
		_, isConflict := errors.AsType[*ConflictError](err)
		switch {
		case err != nil && !isConflict:
			t.Fatalf("seed %d, case %d: %v", seed, i, err)
		case isConflict && gitErr != nil:
			conflicts++
		case isConflict && (i%2 == 1 || crossed[i]):
			careful++
		case isConflict && (strings.Contains(err.Error(), "renamed") || u.conflictsWithoutRenames(a, b)):
			seeming++ // as like as a renamed file by chance
		case isConflict || gitErr != nil || got.Tree != want:
			t.Errorf("seed %d, case %d: merged %s, %v\ngit: %s\n%s", seed, i, got.Tree, err, out, u.trees(a, b))
		default:
			clean++
			if !slices.Equal(got.Parents, []string{u.git("rev-parse", a), u.git("rev-parse", b)}) {
				t.Errorf("parents %v", got.Parents)
			}
			if _, err := r.Files(context.Background(), got.Hash); err != nil {
				if _, ok := errors.AsType[*PathError](err); !ok {
					t.Errorf("the merge cannot be read: %v", err)
				}
			}
		}
	}
	t.Logf("%d clean, %d conflict, %d only ours, of %d criss-cross", clean, conflicts, careful, len(crossed))
	if clean < cases/4 || conflicts < cases/10 || careful > cases/5 || seeming > cases/50 {
		t.Errorf("that shows little, or refuses much")
	}
}

func (u *upstream) conflictsWithoutRenames(a, b string) bool {
	_, err := tryRun(u.dir, nil, "git", "-c", "merge.renames=false", "merge-tree", "--write-tree", a, b)
	return err != nil
}

// trees lists what was merged.
func (u *upstream) trees(a, b string) (s string) {
	for _, rev := range append(strings.Fields(u.git("merge-base", "--all", a, b)), a, b) {
		s += rev + ":\n" + u.git("ls-tree", "-r", rev) + "\n"
	}
	return s
}
