package gitrepo

import (
	"strings"
	"testing"
)

// A commit is what git, and so a forge's page for reviewers, takes it for: a
// second tree, or a parent in the wrong place, is not looked at.
func TestCommitIsReadAsGitReadsIt(t *testing.T) {
	u := newUpstream(t)
	first := u.commit(map[string]string{"a.yaml": "hidden"})
	hidden := u.git("rev-parse", first+"^{tree}")
	second := u.commit(map[string]string{"a.yaml": "shown"})
	shown := u.git("rev-parse", second+"^{tree}")
	who := "A <a@example.org> 1700000000 +0000"
	for name, more := range map[string]string{
		"tree":   "tree " + hidden + "\n",
		"parent": "parent " + first + "\n",
	} {
		text := "tree " + shown + "\nparent " + second + "\nauthor " + who + "\ncommitter " + who + "\n" + more + "\nsubject\n"
		made := strings.TrimSpace(run(t, u.dir, []byte(text), "git", "hash-object", "-t", "commit", "-w", "--stdin", "--literally"))
		u.git("update-ref", "refs/heads/main", made)
		r := u.open()
		c := mustFetch(t, r)
		if c.Tree != shown || len(c.Parents) != 1 || c.Parents[0] != second {
			t.Errorf("a second %s: %+v", name, c)
		}
		if got := u.git("log", "-1", "--format=%T %P", "main"); got != shown+" "+second {
			t.Errorf("a second %s: git reads %s", name, got)
		}
		if got := contents(t, r, c.Hash); got["a.yaml"] != "shown" {
			t.Errorf("a second %s: %v", name, got)
		}
	}
}
