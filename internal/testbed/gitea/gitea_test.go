package gitea

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A pull request's life on the real forge, as the tests of others rely on it.
func TestPullRequest(t *testing.T) {
	g := Start(t)
	owner, other := g.NewUser(t, "owner"), g.NewUser(t, "other")
	r := g.NewRepo(t, owner, "cluster")
	first := r.Commit(t, owner, "main", "begin", map[string][]byte{"a.yaml": []byte("a: 1\n")})
	r.Collaborator(t, other, "write")

	type delivery struct {
		event, signature string
		body             []byte
	}
	hooks := make(chan delivery, 16)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		hooks <- delivery{req.Header.Get("X-Gitea-Event"), req.Header.Get("X-Gitea-Signature"), b}
	}))
	t.Cleanup(sink.Close)
	r.Hook(t, sink.URL, "secret")
	r.Protect(t, "main", Protection{Statuses: []string{"plan"}, Approvals: 1})

	head := r.Commit(t, owner, "change", "two", map[string][]byte{"a.yaml": []byte("a: 2\n"), "b.yaml": []byte("b: 1\n")})
	if head == first {
		t.Fatal("no new commit")
	}
	p := r.NewPull(t, owner, "change", "main", "Two")
	if ok, why := r.TryMerge(t, owner, p.Number); ok {
		t.Fatal("merged without a status and a review")
	} else if !strings.Contains(why, "status") && !strings.Contains(why, "approvals") {
		t.Errorf("refused: %s", why)
	}
	r.SetStatus(t, owner, head, "plan", "success", "fine")
	if ok, _ := r.TryMerge(t, owner, p.Number); ok {
		t.Fatal("merged without a review")
	}
	r.Review(t, other, p.Number, "APPROVED")
	merged := r.Merge(t, owner, p.Number)
	if got := r.Pull(t, p.Number); !got.Merged || merged == "" {
		t.Errorf("%+v", got)
	}
	if s := r.Status(t, head, "plan"); s.State != "success" || s.Description != "fine" {
		t.Errorf("%+v", s)
	}
	r.AddComment(t, other, p.Number, "hello")
	if c := r.Comments(t, p.Number); len(c) != 1 || c[0].User.Login != "other" {
		t.Errorf("%+v", c)
	}

	deadline := time.After(30 * time.Second)
	for found := false; !found; {
		select {
		case d := <-hooks:
			mac := hmac.New(sha256.New, []byte("secret"))
			mac.Write(d.body)
			if hex.EncodeToString(mac.Sum(nil)) != d.signature {
				t.Errorf("signature %s of a %s", d.signature, d.event)
			}
			found = d.event == "push" && strings.Contains(string(d.body), merged)
		case <-deadline:
			t.Fatal("no webhook of the merge after 30s")
		}
	}
}

// What it stored survives a kill, and a paused server answers nothing.
func TestDownAndSlow(t *testing.T) {
	g := Start(t)
	r := g.NewRepo(t, g.Admin, "r")
	r.Commit(t, g.Admin, "main", "begin", map[string][]byte{"a": []byte("a")})
	g.Kill()
	if g.answers(t.Context()) {
		t.Error("it answers after its end")
	}
	g.Restart(t)
	r.Commit(t, g.Admin, "main", "go on", map[string][]byte{"a": []byte("b")})
	resume := g.Pause(t)
	client := http.Client{Timeout: 100 * time.Millisecond}
	if resp, err := client.Get(g.URL); err == nil {
		resp.Body.Close()
		t.Error("it answers while it is paused")
	}
	resume()
	r.Commit(t, g.Admin, "main", "go on", map[string][]byte{"a": nil})
}
