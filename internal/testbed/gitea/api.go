// Package gitea runs a real forge for tests: users, repositories, protected
// branches, pull requests, reviews, webhooks. It talks plain HTTP to the API,
// so that what the program's own client does is seen by somebody else.
package gitea

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// Do calls the API as a user; a zero User is nobody. The answer is decoded into
// out, unless that is nil, where the call succeeds.
func (g *Gitea) Do(t testing.TB, u User, method, path string, in, out any) (code int, body string) {
	t.Helper()
	var data io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		data = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, g.URL+"/api/v1"+path, data)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	switch {
	case u.Token != "":
		req.Header.Set("Authorization", "token "+u.Token)
	case u.Name != "":
		req.SetBasicAuth(u.Name, u.Password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if resp.StatusCode/100 == 2 && out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, b)
		}
	}
	return resp.StatusCode, string(b)
}

// must is Do for a call that has to succeed.
func (g *Gitea) must(t testing.TB, u User, method, path string, in, out any) {
	t.Helper()
	if code, body := g.Do(t, u, method, path, in, out); code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, code, body)
	}
}

// object is a JSON object.
type object map[string]any

// NewUser adds one who may sign in.
func (g *Gitea) NewUser(t testing.TB, name string) User {
	t.Helper()
	u := User{Name: name, Password: "password-of-" + name}
	g.must(t, g.Admin, "POST", "/admin/users", object{
		"username": name, "email": name + "@example.org", "password": u.Password, "must_change_password": false,
	}, nil)
	u.Token = g.NewToken(t, u, "all", "all")
	return u
}

// NewToken makes a token of a user with the given scopes only, such as
// write:repository.
func (g *Gitea) NewToken(t testing.TB, u User, name string, scopes ...string) string {
	t.Helper()
	var token struct {
		SHA1 string `json:"sha1"`
	}
	u.Token = "" // Gitea makes tokens for a password only
	g.must(t, u, "POST", "/users/"+u.Name+"/tokens", object{"name": name, "scopes": scopes}, &token)
	return token.SHA1
}

// Revoke takes a token back, by its name.
func (g *Gitea) Revoke(t testing.TB, u User, name string) {
	t.Helper()
	u.Token = ""
	g.must(t, u, "DELETE", "/users/"+u.Name+"/tokens/"+name, nil, nil)
}

// Repo is a repository.
type Repo struct {
	Owner User
	Name  string
	g     *Gitea
}

// NewRepo makes an empty, public repository of a user.
func (g *Gitea) NewRepo(t testing.TB, owner User, name string) Repo {
	t.Helper()
	g.must(t, owner, "POST", "/user/repos", object{"name": name, "default_branch": "main"}, nil)
	return Repo{Owner: owner, Name: name, g: g}
}

func (r Repo) String() string { return r.Owner.Name + "/" + r.Name }

func (r Repo) api(path string) string { return "/repos/" + r.String() + path }

// URL is where it is cloned from, without credentials.
func (r Repo) URL() string { return r.g.URL + "/" + r.String() + ".git" }

// PushURL is URL with a user's credentials.
func (r Repo) PushURL(u User) string {
	return strings.Replace(r.URL(), "://", "://"+url.UserPassword(u.Name, u.Token).String()+"@", 1)
}

// Collaborator lets a user at it: read, write or admin.
func (r Repo) Collaborator(t testing.TB, u User, permission string) {
	t.Helper()
	r.g.must(t, r.Owner, "PUT", r.api("/collaborators/"+u.Name), object{"permission": permission}, nil)
}

// Fork makes a user's own copy.
func (r Repo) Fork(t testing.TB, u User) Repo {
	t.Helper()
	r.g.must(t, u, "POST", r.api("/forks"), object{}, nil)
	return Repo{Owner: u, Name: r.Name, g: r.g}
}

// Commit writes files, by their paths, as a user would in the browser, and
// returns the commit. A branch that is not there is made from main; nil
// removes a file.
func (r Repo) Commit(t testing.TB, u User, branch, message string, files map[string][]byte) string {
	t.Helper()
	from := branch
	if code, _ := r.g.Do(t, u, "GET", r.api("/branches/"+url.PathEscape(branch)), nil, nil); code == http.StatusNotFound && branch != "main" {
		from = "main"
	}
	var list []object
	for path, data := range files {
		change := object{"path": path, "content": base64.StdEncoding.EncodeToString(data), "operation": "create"}
		var old struct {
			SHA string `json:"sha"`
		}
		if code, _ := r.g.Do(t, u, "GET", r.api("/contents/"+path+"?ref="+url.QueryEscape(from)), nil, &old); code == http.StatusOK {
			change["sha"], change["operation"] = old.SHA, "update"
			if data == nil {
				change["operation"] = "delete"
			}
		}
		list = append(list, change)
	}
	in := object{"branch": from, "message": message, "files": list}
	if from != branch {
		in["new_branch"] = branch
	}
	var out struct {
		Commit struct {
			SHA string `json:"sha"`
		} `json:"commit"`
	}
	r.g.must(t, u, "POST", r.api("/contents"), in, &out)
	return out.Commit.SHA
}

// Protection is what a branch asks for before a merge.
type Protection struct {
	Statuses  []string // contexts that must be success
	Approvals int
}

// Protect protects a branch: nobody pushes to it.
func (r Repo) Protect(t testing.TB, branch string, p Protection) {
	t.Helper()
	r.g.must(t, r.Owner, "POST", r.api("/branch_protections"), object{
		"rule_name": branch, "enable_push": false, "required_approvals": p.Approvals, "block_admin_merge_override": true,
		"enable_status_check": len(p.Statuses) > 0, "status_check_contexts": p.Statuses,
	}, nil)
}

// Secret stores what workflows read as secrets.NAME.
func (r Repo) Secret(t testing.TB, name, value string) {
	t.Helper()
	r.g.must(t, r.Owner, "PUT", r.api("/actions/secrets/"+name), object{"data": value}, nil)
}

// Hook has pushes and pull requests told to an address.
func (r Repo) Hook(t testing.TB, address, secret string) {
	t.Helper()
	r.g.must(t, r.Owner, "POST", r.api("/hooks"), object{
		"type": "gitea", "active": true, "events": []string{"push", "pull_request"},
		"config": object{"url": address, "content_type": "json", "secret": secret},
	}, nil)
}

// Pull is a pull request as the forge has it.
type Pull struct {
	Number    int    `json:"number"`
	Title     string `json:"title"`
	Body      string `json:"body"`
	State     string `json:"state"` // open, closed
	Merged    bool   `json:"merged"`
	Mergeable bool   `json:"mergeable"`
	MergedAs  string `json:"merge_commit_sha"`
	User      struct {
		Login string `json:"login"`
	} `json:"user"`
	Head Ref `json:"head"`
	Base Ref `json:"base"`
}

// Ref is one end of a pull request.
type Ref struct {
	Ref string `json:"ref"`
	SHA string `json:"sha"`
}

// NewPull opens a pull request. Just after a push Gitea may not know the
// branch yet.
func (r Repo) NewPull(t testing.TB, u User, head, base, title string) Pull {
	t.Helper()
	var p Pull
	var code int
	var body string
	await(t, "the branch "+head+" in a new pull request", func() bool {
		code, body = r.g.Do(t, u, "POST", r.api("/pulls"), object{"head": head, "base": base, "title": title}, &p)
		return code != http.StatusNotFound
	})
	if code != http.StatusCreated {
		t.Fatalf("open a pull request of %s: %d %s", head, code, body)
	}
	return p
}

// Pull reads a pull request.
func (r Repo) Pull(t testing.TB, number int) Pull {
	t.Helper()
	var p Pull
	r.g.must(t, r.Owner, "GET", r.api(fmt.Sprintf("/pulls/%d", number)), nil, &p)
	return p
}

// Pulls lists them: state is open, closed or all.
func (r Repo) Pulls(t testing.TB, state string) []Pull {
	t.Helper()
	var list []Pull
	r.g.must(t, r.Owner, "GET", r.api("/pulls?limit=50&state="+state), nil, &list)
	return list
}

// Review gives a verdict: APPROVED, REQUEST_CHANGES or COMMENT.
func (r Repo) Review(t testing.TB, u User, number int, verdict string) {
	t.Helper()
	r.g.must(t, u, "POST", r.api(fmt.Sprintf("/pulls/%d/reviews", number)), object{"event": verdict, "body": verdict}, nil)
}

// TryMerge merges a pull request with a merge commit, or says why Gitea
// refuses to.
func (r Repo) TryMerge(t testing.TB, u User, number int) (ok bool, why string) {
	t.Helper()
	var code int
	await(t, "whether the pull request can be merged", func() bool {
		code, why = r.g.Do(t, u, "POST", r.api(fmt.Sprintf("/pulls/%d/merge", number)), object{"Do": "merge"}, nil)
		return !strings.Contains(why, "try again later")
	})
	return code == http.StatusOK, why
}

// Merge merges a pull request and returns the merge commit.
func (r Repo) Merge(t testing.TB, u User, number int) string {
	t.Helper()
	if ok, why := r.TryMerge(t, u, number); !ok {
		t.Fatalf("merge pull request %d: %s", number, why)
	}
	return r.Pull(t, number).MergedAs
}

// Close closes a pull request without merging it.
func (r Repo) Close(t testing.TB, u User, number int) {
	t.Helper()
	r.g.must(t, u, "PATCH", r.api(fmt.Sprintf("/pulls/%d", number)), object{"state": "closed"}, nil)
}

// Status is one commit status.
type Status struct {
	ID          int    `json:"id"`
	Context     string `json:"context"`
	State       string `json:"status"`
	Description string `json:"description"`
	URL         string `json:"target_url"`
	Creator     struct {
		Login string `json:"login"`
	} `json:"creator"`
}

// Statuses lists all that were ever set on a commit, the newest first.
func (r Repo) Statuses(t testing.TB, commit string) []Status {
	t.Helper()
	var list []Status
	for page := 1; len(list) == 50*(page-1); page++ {
		var more []Status
		r.g.must(t, r.Owner, "GET", r.api(fmt.Sprintf("/commits/%s/statuses?limit=50&page=%d", commit, page)), nil, &more)
		list = append(list, more...)
	}
	// Gitea sorts by the second in which they were set.
	slices.SortFunc(list, func(a, b Status) int { return b.ID - a.ID })
	return list
}

// Status is the one in force for a context; a zero Status if there is none.
func (r Repo) Status(t testing.TB, commit, context string) Status {
	t.Helper()
	for _, s := range r.Statuses(t, commit) {
		if s.Context == context {
			return s
		}
	}
	return Status{}
}

// SetStatus sets one as somebody else's program would.
func (r Repo) SetStatus(t testing.TB, u User, commit, context, state, description string) {
	t.Helper()
	r.g.must(t, u, "POST", r.api("/statuses/"+commit), object{"context": context, "state": state, "description": description}, nil)
}

// Comment is one on a pull request.
type Comment struct {
	ID   int    `json:"id"`
	Body string `json:"body"`
	User struct {
		Login string `json:"login"`
	} `json:"user"`
}

// Comments lists those of a pull request.
func (r Repo) Comments(t testing.TB, number int) []Comment {
	t.Helper()
	var list []Comment
	r.g.must(t, r.Owner, "GET", r.api(fmt.Sprintf("/issues/%d/comments", number)), nil, &list)
	return list
}

// AddComment comments as a user.
func (r Repo) AddComment(t testing.TB, u User, number int, body string) {
	t.Helper()
	r.g.must(t, u, "POST", r.api(fmt.Sprintf("/issues/%d/comments", number)), object{"body": body}, nil)
}
