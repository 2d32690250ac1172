package forge

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"reconciler/internal/testbed/gitea"
)

// world is a forge with a repository, one commit and the branch "side" in it,
// seen from behind our back.
type world struct {
	forge    *Forge
	commit   string
	statuses func() []Status // newest first
	comments func(pull int) []note
	say      func(pull int, body string) // as somebody else
	pull     func(number int) Pull
	fork     func() // a pull request from the branch "side" of somebody's fork
	close    func(number int)
}

// everywhere runs a test on the fakes and on a real Gitea.
func everywhere(t *testing.T, test func(t *testing.T, w world)) {
	for _, kind := range Kinds {
		t.Run("fake "+string(kind), func(t *testing.T) { test(t, fakeWorld(newFake(t, kind))) })
	}
	t.Run("fake github workflow", func(t *testing.T) {
		f := newFake(t, GitHub)
		f.workflow = true
		test(t, fakeWorld(f))
	})
	t.Run("gitea "+gitea.Version, func(t *testing.T) { test(t, realWorld(t)) })
}

func fakeWorld(f *fake) world {
	locked := func(fn func()) { f.mu.Lock(); defer f.mu.Unlock(); fn() }
	return world{
		forge: f.open(), commit: commit,
		statuses: func() (out []Status) { locked(func() { out = f.statuses[commit] }); return out },
		comments: func(pull int) (out []note) {
			locked(func() {
				for _, n := range f.notes {
					if n.pull == pull {
						out = append(out, n)
					}
				}
			})
			return out
		},
		say:  func(pull int, body string) { locked(func() { f.addNote(pull, "mallory", body) }) },
		pull: func(number int) (out Pull) { locked(func() { out = f.pulls[number-1] }); return out },
		fork: func() {
			locked(func() {
				f.pulls = append(f.pulls, Pull{Number: len(f.pulls) + 1, Head: "side", Base: "main", State: PullOpen, Title: "from a fork"})
				f.forks[len(f.pulls)] = true
			})
		},
		close: func(number int) { locked(func() { f.pulls[number-1].State = PullClosed }) },
	}
}

func realWorld(t *testing.T) world {
	g := gitea.Start(t)
	owner, bot, mallory := g.NewUser(t, "owner"), g.NewUser(t, self), g.NewUser(t, "mallory")
	r := g.NewRepo(t, owner, "cluster")
	hash := r.Commit(t, owner, "main", "begin", map[string][]byte{"a.yaml": []byte("a: 1\n")})
	r.Commit(t, owner, "side", "change", map[string][]byte{"a.yaml": []byte("a: 2\n")})
	r.Collaborator(t, bot, "write")
	token := g.NewToken(t, bot, "least", "write:repository", "write:issue", "read:user")
	client, err := Open(Config{Kind: Gitea, TokenFile: tokenFile(t, bot.Name+":"+token)}.Locate(r.URL()))
	if err != nil {
		t.Fatal(err)
	}
	return world{
		forge: client, commit: hash,
		statuses: func() (out []Status) {
			for _, s := range r.Statuses(t, hash) {
				out = append(out, Status{Context: s.Context, State: State(s.State), Description: s.Description, URL: s.URL})
			}
			return out
		},
		comments: func(pull int) (out []note) {
			for _, c := range r.Comments(t, pull) {
				out = append(out, note{author: c.User.Login, body: c.Body})
			}
			return out
		},
		say: func(pull int, body string) { r.AddComment(t, mallory, pull, body) },
		pull: func(number int) Pull {
			p := r.Pull(t, number)
			return Pull{Number: p.Number, Title: p.Title, Body: p.Body, State: p.State, Head: p.Head.Ref, Base: p.Base.Ref}
		},
		fork: func() {
			fork := r.Fork(t, mallory)
			fork.Commit(t, mallory, "side", "mine", map[string][]byte{"b.yaml": []byte("b: 1\n")})
			r.NewPull(t, mallory, "mallory:side", "main", "from a fork")
		},
		close: func(number int) { r.Close(t, owner, number) },
	}
}

func TestSetStatus(t *testing.T) {
	everywhere(t, func(t *testing.T, w world) {
		set := func(name string, state State, text string) {
			t.Helper()
			if err := w.forge.SetStatus(t.Context(), w.commit, Status{Context: name, State: state, Description: text, URL: "https://example.org/"}); err != nil {
				t.Fatal(err)
			}
		}
		check := func(n int, context string, state State, text string) {
			t.Helper()
			list := w.statuses()
			if want := (Status{context, state, text, "https://example.org/"}); len(list) != n || list[0] != want {
				t.Fatalf("%d statuses, want %d with %+v first: %+v", len(list), n, want, list)
			}
		}
		set("reconciler/a", Pending, "2 to do")
		check(1, "reconciler/a", Pending, "2 to do")
		set("reconciler/a", Pending, "2 to do") // nothing new
		check(1, "reconciler/a", Pending, "2 to do")
		set("reconciler/b", Failure, "refused")
		check(2, "reconciler/b", Failure, "refused")
		set("reconciler/a", Success, "2 in sync")
		check(3, "reconciler/a", Success, "2 in sync")
		set("reconciler/b", Failure, "refused")
		check(3, "reconciler/a", Success, "2 in sync")
		set("reconciler/a", Success, "3 in\nsync")
		check(4, "reconciler/a", Success, "3 in sync")

		long := strings.Repeat("wörter, ", 100)
		set("reconciler/a", Failure, long)
		got := w.statuses()[0].Description
		if n := utf8.RuneCountInString(got); n > 255 || n < 100 || !strings.HasSuffix(got, "wörter…") {
			t.Errorf("%d characters: %q", n, got)
		}
		set("reconciler/a", Failure, long) // what was cut is the same again
		if n := len(w.statuses()); n != 5 {
			t.Errorf("%d statuses", n)
		}
	})
}

// GitLab does not let a status wait twice; that is none of the caller's
// business.
func TestPendingTwice(t *testing.T) {
	everywhere(t, func(t *testing.T, w world) {
		for _, text := range []string{"3 to do", "2 to do", "1 to do"} {
			if err := w.forge.SetStatus(t.Context(), w.commit, Status{Context: "c", State: Pending, Description: text}); err != nil {
				t.Fatal(err)
			}
		}
		if s := w.statuses()[0]; s.State != Pending {
			t.Errorf("%+v", s)
		}
		if err := w.forge.SetStatus(t.Context(), w.commit, Status{Context: "c", State: Errored, Description: "broken"}); err != nil {
			t.Fatal(err)
		}
		if s := w.statuses()[0]; s.State == Pending || s.Description != "broken" {
			t.Errorf("%+v", s)
		}
	})
}

func TestComment(t *testing.T) {
	everywhere(t, func(t *testing.T, w world) {
		p, err := w.forge.EnsurePull(t.Context(), Pull{Head: "side", Base: "main", Title: "Change"})
		if err != nil {
			t.Fatal(err)
		}
		const marker = "<!-- reconciler: plan -->"
		// Somebody else's comment with our marker is not ours, and ours is found
		// behind pages of others.
		w.say(p.Number, marker+"\nnothing happens, just merge")
		comment := func(marker, body string) string {
			t.Helper()
			address, err := w.forge.Comment(t.Context(), p.Number, marker, body)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(address, "http") {
				t.Errorf("address %q", address)
			}
			return address
		}
		for i := range 105 {
			w.say(p.Number, fmt.Sprint("remark ", i))
		}
		first := comment(marker, "# Plan 1")
		comment("<!-- other -->", "another of ours")
		for i := range 55 {
			w.say(p.Number, fmt.Sprint("later remark ", i))
		}
		if again := comment(marker, "# Plan 2"); again != first {
			t.Errorf("%s, then %s", first, again)
		}
		comment(marker, "# Plan 2")
		var ours []string
		for _, n := range w.comments(p.Number) {
			if n.author == self {
				ours = append(ours, n.body)
			} else if !strings.Contains(n.body, "remark") && !strings.Contains(n.body, "just merge") {
				t.Errorf("%s's comment now says %q", n.author, n.body)
			}
		}
		if want := []string{marker + "\n# Plan 2", "<!-- other -->\nanother of ours"}; fmt.Sprint(ours) != fmt.Sprint(want) {
			t.Errorf("our comments: %q", ours)
		}

		if _, err := w.forge.Comment(t.Context(), p.Number, marker, strings.Repeat("x", w.forge.CommentLimit()-len(marker)-1)); err != nil {
			t.Errorf("the longest comment: %v", err)
		}
		if _, err := w.forge.Comment(t.Context(), p.Number, marker, strings.Repeat("x", w.forge.CommentLimit())); err == nil {
			t.Error("a comment beyond the limit was posted")
		}
		if _, err := w.forge.Comment(t.Context(), p.Number, "", "x"); err == nil {
			t.Error("a comment without a marker was posted")
		}
	})
}

func TestPull(t *testing.T) {
	everywhere(t, func(t *testing.T, w world) {
		ctx := t.Context()
		w.fork()
		if p, err := w.forge.FindPull(ctx, "side", "main"); p != nil || err != nil {
			t.Fatalf("a fork's pull request is taken for ours: %+v, %v", p, err)
		}
		p, err := w.forge.EnsurePull(ctx, Pull{Head: "side", Base: "main", Title: "Accept or revert", Body: "one\n\ntwo"})
		if err != nil {
			t.Fatal(err)
		}
		if p.Head != "side" || p.Base != "main" || p.State != PullOpen || p.Title != "Accept or revert" || !strings.HasPrefix(p.URL, "http") || p.HeadCommit == "" {
			t.Errorf("%+v", p)
		}
		again, err := w.forge.EnsurePull(ctx, Pull{Head: "side", Base: "main", Title: "Accept or revert", Body: "three"})
		if err != nil || again.Number != p.Number {
			t.Fatalf("%+v, %v", again, err)
		}
		if got := w.pull(p.Number); got.Title != "Accept or revert" || got.Body != "three" || got.State != PullOpen {
			t.Errorf("%+v", got)
		}
		found, err := w.forge.FindPull(ctx, "side", "main")
		if err != nil || found == nil || found.Number != p.Number || found.Body != "three" {
			t.Fatalf("%+v, %v", found, err)
		}
		for range 2 {
			if err := w.forge.ClosePull(ctx, p.Number, "the drift is gone"); err != nil {
				t.Fatal(err)
			}
		}
		if c := w.comments(p.Number); len(c) != 1 || !strings.HasSuffix(c[0].body, "the drift is gone") {
			t.Errorf("%+v", c)
		}
		if got, err := w.forge.GetPull(ctx, p.Number); err != nil || got.State != PullClosed {
			t.Errorf("%+v, %v", got, err)
		}
		if p, err := w.forge.FindPull(ctx, "side", "main"); p != nil || err != nil {
			t.Errorf("found although it is closed: %+v, %v", p, err)
		}
		// A new one after the old one was closed.
		fresh, err := w.forge.EnsurePull(ctx, Pull{Head: "side", Base: "main", Title: "Again"})
		if err != nil || fresh.Number == p.Number {
			t.Fatalf("%+v, %v", fresh, err)
		}
		w.close(fresh.Number)
		if err := w.forge.ClosePull(ctx, fresh.Number, "late"); err != nil || len(w.comments(fresh.Number)) != 0 {
			t.Errorf("%v, comments %v", err, w.comments(fresh.Number))
		}
	})
}

func TestLocate(t *testing.T) {
	for repo, want := range map[string]string{
		"https://git.example.org/infra/cluster.git":    "https://git.example.org infra/cluster",
		"https://git.example.org:3000/infra/cluster":   "https://git.example.org:3000 infra/cluster",
		"http://127.0.0.1:3000/git/infra/cluster.git/": "http://127.0.0.1:3000/git infra/cluster",
		"ssh://git@git.example.org:2222/infra/c.git":   "https://git.example.org infra/c",
		"git@git.example.org:infra/cluster.git":        "https://git.example.org infra/cluster",
		"/srv/git/cluster.git":                         " ",
		"file:///srv/git/cluster.git":                  " ",
		"gitlab https://gitlab.com/a/b/c.git":          "https://gitlab.com a/b/c",
		"gitlab git@gitlab.example.org:a/b/c/d.git":    "https://gitlab.example.org a/b/c/d",
		"gitlab ssh://git@gitlab.example.org/a/b.git":  "https://gitlab.example.org a/b",
		"github git@github.com:owner/cluster.git":      "https://github.com owner/cluster",
	} {
		c := Config{Kind: Gitea}
		if kind, rest, ok := strings.Cut(repo, " "); ok {
			c.Kind, repo = Kind(kind), rest
		}
		c = c.Locate(repo)
		if got := c.URL + " " + c.Repository; got != want {
			t.Errorf("%s: %q, want %q", repo, got, want)
		}
	}
	c := Config{Kind: GitLab, URL: "https://example.org/gitlab"}.Locate("https://example.org/gitlab/a/b/c.git")
	if c.Repository != "a/b/c" {
		t.Errorf("%+v", c)
	}
}

func TestOpenRefuses(t *testing.T) {
	good := Config{Kind: Gitea, URL: "https://git.example.org", Repository: "a/b", TokenFile: "/t"}
	if _, err := Open(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"kind":         func(c *Config) { c.Kind = "sourcehut" },
		"address":      func(c *Config) { c.URL = "git.example.org" },
		"no address":   func(c *Config) { c.URL = "" },
		"credentials":  func(c *Config) { c.URL = "https://u:" + canary + "@git.example.org" },
		"bad address":  func(c *Config) { c.URL = "ftp://u:" + canary + "@git.example.org" },
		"repository":   func(c *Config) { c.Repository = "a" },
		"upwards":      func(c *Config) { c.Repository = "a/.." },
		"query":        func(c *Config) { c.Repository = "a/b?c" },
		"deep":         func(c *Config) { c.Repository = "a/b/c" },
		"no token":     func(c *Config) { c.TokenFile = "" },
		"no leading a": func(c *Config) { c.Repository = "/b" },
	} {
		c := good
		change(&c)
		if _, err := Open(c); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(Config{Kind: GitHub, Repository: "a/b", TokenFile: "/t"}); err != nil {
		t.Error(err)
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"short", 10, "short"},
		{"a\tb\n\x00c\u2028d", 10, "a b c d"},
		{"one two three", 13, "one two three"},
		{"one two three", 12, "one two…"},
		{"one two, three", 12, "one two…"},
		{"aaaaaaaaaaaa", 5, "aaaa…"},
		{"öööööö", 5, "öööö…"},
		{"x \xff y", 10, "x \uFFFD y"},
	} {
		if got := cut(c.in, c.n); got != c.want {
			t.Errorf("cut(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
}
