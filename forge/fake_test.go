package forge

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// fake is a forge at the level of HTTP: it keeps what it is told and fails the
// test on a call it does not know.
type fake struct {
	t        testing.TB
	kind     Kind
	server   *httptest.Server
	workflow bool // GitHub's token of a workflow, which may not ask who it is

	mu       sync.Mutex
	token    string
	id       int
	statuses map[string][]Status // by commit, newest first
	notes    []note
	pulls    []Pull
	forks    map[int]bool // numbers of pulls from a fork
	calls    []string
	fault    func(w http.ResponseWriter, r *http.Request) (done bool)
}

type note struct {
	id, pull     int
	author, body string
}

const (
	canary = "canary-5f1d0c9b7e"
	self   = "reconciler-bot"
	commit = "0123456789abcdef0123456789abcdef01234567"
)

func newFake(t testing.TB, kind Kind) *fake {
	f := &fake{t: t, kind: kind, token: canary, statuses: map[string][]Status{}, forks: map[int]bool{}}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

// open returns a client of it.
func (f *fake) open(change ...func(*Config)) *Forge {
	f.t.Helper()
	c := Config{Kind: f.kind, URL: f.server.URL, Repository: "owner/cluster", TokenFile: tokenFile(f.t, canary)}
	for _, fn := range change {
		fn(&c)
	}
	client, err := Open(c)
	if err != nil {
		f.t.Fatal(err)
	}
	return client
}

func tokenFile(t testing.TB, token string) string {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.calls = append(f.calls, r.Method+" "+r.URL.Path)
	fault := f.fault
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	want := map[Kind][2]string{Gitea: {"Authorization", "token "}, GitHub: {"Authorization", "Bearer "}, GitLab: {"PRIVATE-TOKEN", ""}}[f.kind]
	if r.Header.Get(want[0]) != want[1]+f.token {
		f.fail(w, http.StatusUnauthorized, "bad credentials")
		return
	}
	f.mux().ServeHTTP(w, r)
}

func (f *fake) count(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

func (f *fake) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.t.Errorf("a call that the fake does not know: %s %s", r.Method, r.URL)
		f.fail(w, http.StatusNotImplemented, "unknown call")
	})
	switch f.kind {
	case Gitea:
		f.likeGitHub(mux, "/api/v1/repos/owner/cluster", "limit")
		mux.HandleFunc("GET /api/v1/user", func(w http.ResponseWriter, _ *http.Request) { f.send(w, 200, m{"login": self}) })
		mux.HandleFunc("GET /api/v1/repos/owner/cluster/commits/{sha}/statuses", func(w http.ResponseWriter, r *http.Request) {
			list := []m{}
			for i, s := range f.statuses[r.PathValue("sha")] {
				list = append(list, m{"id": 1000 - i, "status": s.State, "context": s.Context, "description": s.Description, "target_url": s.URL})
			}
			f.send(w, 200, paged(r, "limit", list))
		})
	case GitHub:
		f.likeGitHub(mux, "/api/v3/repos/owner/cluster", "per_page")
		mux.HandleFunc("GET /api/v3/user", func(w http.ResponseWriter, _ *http.Request) {
			if f.workflow {
				f.fail(w, http.StatusForbidden, "Resource not accessible by integration")
				return
			}
			f.send(w, 200, m{"login": self})
		})
		mux.HandleFunc("POST /api/graphql", func(w http.ResponseWriter, r *http.Request) {
			if in := f.read(r); in["query"] != "query{viewer{login}}" {
				f.t.Errorf("query %v", in["query"])
			}
			f.send(w, 200, m{"data": m{"viewer": m{"login": self}}})
		})
		mux.HandleFunc("GET /api/v3/repos/owner/cluster/commits/{sha}/status", func(w http.ResponseWriter, r *http.Request) {
			list, seen := []m{}, map[string]bool{}
			for _, s := range f.statuses[r.PathValue("sha")] {
				if !seen[s.Context] {
					list = append(list, m{"state": s.State, "context": s.Context, "description": s.Description, "target_url": s.URL})
				}
				seen[s.Context] = true
			}
			f.send(w, 200, m{"state": "pending", "statuses": paged(r, "per_page", list)})
		})
	case GitLab:
		f.likeGitLab(mux)
	}
	return mux
}

// m is a JSON object.
type m = map[string]any

// likeGitHub is what Gitea took over from GitHub.
func (f *fake) likeGitHub(mux *http.ServeMux, repo, size string) {
	mux.HandleFunc("POST "+repo+"/statuses/{sha}", func(w http.ResponseWriter, r *http.Request) {
		in := f.read(r)
		f.setStatus(w, r, Status{Context: str(in["context"]), State: State(str(in["state"])), Description: str(in["description"]), URL: str(in["target_url"])})
	})
	show := func(n note) m {
		return m{"id": n.id, "body": n.body, "user": m{"login": n.author}, "html_url": fmt.Sprintf("%s/pulls/%d#%d", f.server.URL, n.pull, n.id)}
	}
	mux.HandleFunc("GET "+repo+"/issues/{n}/comments", func(w http.ResponseWriter, r *http.Request) {
		list := []m{}
		for _, n := range f.notes {
			if strconv.Itoa(n.pull) == r.PathValue("n") {
				list = append(list, show(n))
			}
		}
		f.send(w, 200, paged(r, size, list))
	})
	mux.HandleFunc("POST "+repo+"/issues/{n}/comments", func(w http.ResponseWriter, r *http.Request) {
		f.send(w, 201, show(f.addNote(number(r), self, str(f.read(r)["body"]))))
	})
	mux.HandleFunc("PATCH "+repo+"/issues/comments/{id}", func(w http.ResponseWriter, r *http.Request) {
		if n := f.editNote(w, r); n != nil {
			f.send(w, 200, show(*n))
		}
	})
	showPull := func(p Pull) m {
		state := "open"
		if p.State != PullOpen {
			state = "closed"
		}
		head := 1
		if f.forks[p.Number] {
			head = 2
		}
		return m{
			"number": p.Number, "title": p.Title, "body": p.Body, "state": state, "merged": p.State == PullMerged, "html_url": p.URL,
			"head": m{"ref": p.Head, "sha": p.HeadCommit, "repo_id": head, "repo": m{"id": head}}, "base": m{"ref": p.Base, "repo_id": 1, "repo": m{"id": 1}},
		}
	}
	mux.HandleFunc("GET "+repo+"/pulls", func(w http.ResponseWriter, r *http.Request) {
		list := []m{}
		for _, p := range f.pulls {
			head := r.URL.Query().Get("head")
			if p.State == PullOpen && (head == "" || head == "owner:"+p.Head) {
				list = append(list, showPull(p))
			}
		}
		f.send(w, 200, paged(r, size, list))
	})
	mux.HandleFunc("POST "+repo+"/pulls", func(w http.ResponseWriter, r *http.Request) {
		in := f.read(r)
		if p := f.openPull(w, Pull{Head: str(in["head"]), Base: str(in["base"]), Title: str(in["title"]), Body: str(in["body"])}); p != nil {
			f.send(w, 201, showPull(*p))
		}
	})
	mux.HandleFunc("GET "+repo+"/pulls/{n}", func(w http.ResponseWriter, r *http.Request) {
		if p := f.findPull(w, r); p != nil {
			f.send(w, 200, showPull(*p))
		}
	})
	mux.HandleFunc("PATCH "+repo+"/pulls/{n}", func(w http.ResponseWriter, r *http.Request) {
		if p := f.findPull(w, r); p != nil {
			in := f.read(r)
			if in["state"] == "closed" {
				p.State = PullClosed
			}
			set(&p.Title, in["title"])
			set(&p.Body, in["body"])
			f.send(w, 200, showPull(*p))
		}
	})
}

func (f *fake) likeGitLab(mux *http.ServeMux) {
	const project = "/api/v4/projects/{project}"
	mux.HandleFunc("GET /api/v4/user", func(w http.ResponseWriter, _ *http.Request) { f.send(w, 200, m{"username": self}) })
	words := map[State]string{Pending: "pending", Success: "success", Failure: "failed"}
	mux.HandleFunc("GET "+project+"/repository/commits/{sha}/statuses", func(w http.ResponseWriter, r *http.Request) {
		list := []m{}
		for i, s := range f.statuses[r.PathValue("sha")] {
			if len(list) == 0 && s.Context == r.URL.Query().Get("name") {
				list = append(list, m{"id": 1000 - i, "status": words[s.State], "name": s.Context, "description": s.Description, "target_url": s.URL})
			}
		}
		f.send(w, 200, list)
	})
	mux.HandleFunc("POST "+project+"/statuses/{sha}", func(w http.ResponseWriter, r *http.Request) {
		in := f.read(r)
		s := Status{Context: str(in["name"]), Description: str(in["description"]), URL: str(in["target_url"])}
		for state, word := range words {
			if word == in["state"] {
				s.State = state
			}
		}
		for _, old := range f.statuses[r.PathValue("sha")] {
			if old.Context == s.Context {
				if old.State == Pending && s.State == Pending {
					f.fail(w, http.StatusBadRequest, `Cannot transition status via :enqueue from :pending (Reason(s): Status cannot transition via "enqueue")`)
					return
				}
				break
			}
		}
		f.setStatus(w, r, s)
	})
	show := func(n note) m { return m{"id": n.id, "body": n.body, "author": m{"username": n.author}} }
	mux.HandleFunc("GET "+project+"/merge_requests/{n}/notes", func(w http.ResponseWriter, r *http.Request) {
		list := []m{}
		for _, n := range f.notes {
			if strconv.Itoa(n.pull) == r.PathValue("n") {
				list = append(list, show(n))
			}
		}
		f.send(w, 200, paged(r, "per_page", list))
	})
	mux.HandleFunc("POST "+project+"/merge_requests/{n}/notes", func(w http.ResponseWriter, r *http.Request) {
		f.send(w, 201, show(f.addNote(number(r), self, str(f.read(r)["body"]))))
	})
	mux.HandleFunc("PUT "+project+"/merge_requests/{n}/notes/{id}", func(w http.ResponseWriter, r *http.Request) {
		if n := f.editNote(w, r); n != nil {
			f.send(w, 200, show(*n))
		}
	})
	showPull := func(p Pull) m {
		source := 1
		if f.forks[p.Number] {
			source = 2
		}
		state := map[string]string{PullOpen: "opened", PullClosed: "closed", PullMerged: "merged"}[p.State]
		return m{
			"iid": p.Number, "title": p.Title, "description": p.Body, "state": state, "web_url": p.URL, "sha": p.HeadCommit,
			"source_branch": p.Head, "target_branch": p.Base, "source_project_id": source, "target_project_id": 1,
		}
	}
	mux.HandleFunc("GET "+project+"/merge_requests", func(w http.ResponseWriter, r *http.Request) {
		list, q := []m{}, r.URL.Query()
		for _, p := range f.pulls {
			if q.Get("state") == "opened" && p.State == PullOpen && p.Head == q.Get("source_branch") && p.Base == q.Get("target_branch") {
				list = append(list, showPull(p))
			}
		}
		f.send(w, 200, list)
	})
	mux.HandleFunc("POST "+project+"/merge_requests", func(w http.ResponseWriter, r *http.Request) {
		in := f.read(r)
		if p := f.openPull(w, Pull{Head: str(in["source_branch"]), Base: str(in["target_branch"]), Title: str(in["title"]), Body: str(in["description"])}); p != nil {
			f.send(w, 201, showPull(*p))
		}
	})
	mux.HandleFunc("GET "+project+"/merge_requests/{n}", func(w http.ResponseWriter, r *http.Request) {
		if p := f.findPull(w, r); p != nil {
			f.send(w, 200, showPull(*p))
		}
	})
	mux.HandleFunc("PUT "+project+"/merge_requests/{n}", func(w http.ResponseWriter, r *http.Request) {
		if p := f.findPull(w, r); p != nil {
			in := f.read(r)
			if in["state_event"] == "close" {
				p.State = PullClosed
			}
			set(&p.Title, in["title"])
			set(&p.Body, in["description"])
			f.send(w, 200, showPull(*p))
		}
	})
}

func (f *fake) setStatus(w http.ResponseWriter, r *http.Request, s Status) {
	if n := utf8.RuneCountInString(s.Description); n > descriptionLimit[f.kind] {
		f.fail(w, http.StatusUnprocessableEntity, "description is too long")
		return
	}
	sha := r.PathValue("sha")
	f.statuses[sha] = slices.Insert(f.statuses[sha], 0, s)
	f.send(w, 201, m{})
}

func (f *fake) addNote(pull int, author, body string) note {
	f.id++
	n := note{id: f.id, pull: pull, author: author, body: body}
	f.notes = append(f.notes, n)
	return n
}

func (f *fake) editNote(w http.ResponseWriter, r *http.Request) *note {
	for i := range f.notes {
		n := &f.notes[i]
		if strconv.Itoa(n.id) != r.PathValue("id") {
			continue
		}
		if n.author != self {
			f.fail(w, http.StatusForbidden, "not yours")
			return nil
		}
		n.body = str(f.read(r)["body"])
		return n
	}
	f.fail(w, http.StatusNotFound, "no such comment")
	return nil
}

func (f *fake) openPull(w http.ResponseWriter, p Pull) *Pull {
	for _, old := range f.pulls {
		if old.State == PullOpen && old.Head == p.Head && old.Base == p.Base && !f.forks[old.Number] {
			f.fail(w, http.StatusUnprocessableEntity, "a pull request already exists")
			return nil
		}
	}
	p.Number, p.State, p.HeadCommit = len(f.pulls)+1, PullOpen, commit
	p.URL = fmt.Sprintf("%s/pulls/%d", f.server.URL, p.Number)
	f.pulls = append(f.pulls, p)
	return &f.pulls[len(f.pulls)-1]
}

func (f *fake) findPull(w http.ResponseWriter, r *http.Request) *Pull {
	if n := number(r); n > 0 && n <= len(f.pulls) {
		return &f.pulls[n-1]
	}
	f.fail(w, http.StatusNotFound, "not found")
	return nil
}

func (f *fake) send(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Error(err)
	}
}

func (f *fake) fail(w http.ResponseWriter, code int, message string) {
	f.send(w, code, m{"message": message})
}

func (f *fake) read(r *http.Request) m {
	var in m
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		f.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	return in
}

func str(v any) string { s, _ := v.(string); return s }

func set(to *string, v any) {
	if s, ok := v.(string); ok {
		*to = s
	}
}

func number(r *http.Request) int { n, _ := strconv.Atoi(r.PathValue("n")); return n }

func paged(r *http.Request, size string, list []m) []m {
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	n, err := strconv.Atoi(r.URL.Query().Get(size))
	if err != nil {
		n = 30
	}
	from := min(max(page-1, 0)*n, len(list))
	return list[from:min(from+n, len(list))]
}

// sends answers every call with the same.
func sends(code int, header http.Header, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for k, v := range header {
			w.Header()[k] = v
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
		return true
	}
}

func inSeconds(n int) string {
	return strconv.FormatInt(time.Now().Add(time.Duration(n)*time.Second).Unix(), 10)
}
