package forge

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reconciler/internal/testbed/gitea"
)

const secret = "the webhook's secret"

// receiver makes one for the branch main of owner/cluster and counts its
// wake-ups.
func receiver(t testing.TB, change func(*ReceiverConfig)) (*Receiver, *atomic.Int64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var woken atomic.Int64
	c := ReceiverConfig{SecretFile: path, Repository: "owner/cluster", Branch: "main", Wake: func() { woken.Add(1) }}
	if change != nil {
		change(&c)
	}
	r, err := NewReceiver(c)
	if err != nil {
		t.Fatal(err)
	}
	return r, &woken
}

func sign(body, secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))
}

func deliver(h http.Handler, body string, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

const (
	giteaPush  = `{"ref":"refs/heads/main","before":"1","after":"2","repository":{"full_name":"owner/cluster","default_branch":"main"}}`
	gitlabPush = `{"object_kind":"push","ref":"refs/heads/main","project":{"path_with_namespace":"owner/cluster","default_branch":"main"},"repository":{"name":"cluster"}}`
)

func TestReceiver(t *testing.T) {
	signed := func(body string) string { return "sha256=" + sign(body, secret) }
	with := func(old, new string) string { return strings.Replace(giteaPush, old, new, 1) }
	for name, c := range map[string]struct {
		body    string
		headers []string
		code    int
	}{
		"gitea":          {giteaPush, []string{"X-Gitea-Event", "push", "X-Gitea-Signature", sign(giteaPush, secret)}, 202},
		"forgejo":        {giteaPush, []string{"X-Forgejo-Event", "push", "X-Forgejo-Signature", sign(giteaPush, secret)}, 202},
		"github":         {giteaPush, []string{"X-GitHub-Event", "push", "X-Hub-Signature-256", signed(giteaPush)}, 202},
		"gitlab":         {gitlabPush, []string{"X-Gitlab-Event", "Push Hook", "X-Gitlab-Token", secret}, 202},
		"generic":        {`{"ref":"refs/heads/main"}`, []string{"X-Hub-Signature-256", signed(`{"ref":"refs/heads/main"}`)}, 202},
		"generic, named": {`{"ref":"refs/heads/main","repository":"Owner/Cluster"}`, []string{"X-Hub-Signature-256", signed(`{"ref":"refs/heads/main","repository":"Owner/Cluster"}`)}, 202},
		"charset":        {giteaPush, []string{"X-Gitea-Signature", sign(giteaPush, secret), "Content-Type", "application/json; charset=utf-8"}, 202},

		"other branch":     {with("heads/main", "heads/side"), []string{"X-Hub-Signature-256", signed(with("heads/main", "heads/side"))}, 204},
		"tag":              {with("heads/main", "tags/main"), []string{"X-Hub-Signature-256", signed(with("heads/main", "tags/main"))}, 204},
		"our own ref":      {with("heads/main", "reconciler/status/main"), []string{"X-Hub-Signature-256", signed(with("heads/main", "reconciler/status/main"))}, 204},
		"other repository": {with("owner/cluster", "owner/other"), []string{"X-Hub-Signature-256", signed(with("owner/cluster", "owner/other"))}, 204},
		"other project":    {strings.Replace(gitlabPush, "owner/cluster", "owner/other", 1), []string{"X-Gitlab-Token", secret}, 204},
		"ping":             {`{"zen":"…","hook_id":1}`, []string{"X-GitHub-Event", "ping", "X-Hub-Signature-256", signed(`{"zen":"…","hook_id":1}`)}, 204},
		"pull request":     {giteaPush, []string{"X-Gitea-Event", "pull_request", "X-Gitea-Signature", sign(giteaPush, secret)}, 204},
		"odd ref":          {`{"ref":{"a":1}}`, []string{"X-Hub-Signature-256", signed(`{"ref":{"a":1}}`)}, 204},
		"null":             {`null`, []string{"X-Hub-Signature-256", signed(`null`)}, 204},

		"unsigned":         {giteaPush, nil, 401},
		"other secret":     {giteaPush, []string{"X-Hub-Signature-256", "sha256=" + sign(giteaPush, "guess")}, 401},
		"other body":       {with("2", "3"), []string{"X-Hub-Signature-256", signed(giteaPush)}, 401},
		"short signature":  {giteaPush, []string{"X-Gitea-Signature", sign(giteaPush, secret)[:62]}, 401},
		"no hex":           {giteaPush, []string{"X-Gitea-Signature", "zz"}, 401},
		"prefix only":      {giteaPush, []string{"X-Hub-Signature-256", "sha256="}, 401},
		"SHA-1":            {giteaPush, []string{"X-Hub-Signature", "sha1=00"}, 401},
		"other token":      {gitlabPush, []string{"X-Gitlab-Token", secret + "x"}, 401},
		"empty secret's":   {giteaPush, []string{"X-Gitea-Signature", sign(giteaPush, "")}, 401},
		"form":             {"payload=" + giteaPush, []string{"X-Hub-Signature-256", signed("payload=" + giteaPush), "Content-Type", "application/x-www-form-urlencoded"}, 415},
		"no type":          {giteaPush, []string{"X-Hub-Signature-256", signed(giteaPush), "Content-Type", ""}, 415},
		"no JSON":          {"ref=main", []string{"X-Hub-Signature-256", signed("ref=main")}, 400},
		"an empty body":    {"", []string{"X-Hub-Signature-256", signed("")}, 400},
		"a list":           {"[]", []string{"X-Hub-Signature-256", signed("[]")}, 400},
		"too long a body":  {strings.Repeat(" ", maxDelivery) + giteaPush, []string{"X-Gitea-Signature", sign(strings.Repeat(" ", maxDelivery)+giteaPush, secret)}, 413},
		"the longest body": {strings.Repeat(" ", maxDelivery-len(giteaPush)) + giteaPush, []string{"X-Gitea-Signature", sign(strings.Repeat(" ", maxDelivery-len(giteaPush))+giteaPush, secret)}, 202},
	} {
		t.Run(name, func(t *testing.T) {
			r, woken := receiver(t, nil)
			w := deliver(r, c.body, c.headers...)
			want := int64(0)
			if c.code == 202 {
				want = 1
			}
			if w.Code != c.code || woken.Load() != want {
				t.Errorf("code %d, %d wake-ups, want %d: %s", w.Code, woken.Load(), c.code, w.Body)
			}
			if strings.Contains(w.Body.String(), secret) {
				t.Errorf("the secret is in the answer: %s", w.Body)
			}
			if c.code == 204 && w.Body.Len() > 0 {
				t.Errorf("a body where there must be none: %s", w.Body)
			}
		})
	}
	r, _ := receiver(t, nil)
	for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS"} {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(method, "/", strings.NewReader(giteaPush)))
		if w.Code != 405 || w.Header().Get("Allow") != "POST" {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}

// A repository is told by its whole path, which follows from its address alone
// where no forge is configured.
func TestReceiverRepository(t *testing.T) {
	gitlab := func(path string) string {
		return fmt.Sprintf(`{"object_kind":"push","ref":"refs/heads/main","project":{"path_with_namespace":%[1]q,"default_branch":"main",
			"web_url":"https://gitlab.x/%[1]s","git_http_url":"https://gitlab.x/%[1]s.git","git_ssh_url":"git@gitlab.x:%[1]s.git"}}`, path)
	}
	below := func(path string) string { return strings.ReplaceAll(gitlab(path), "gitlab.x/", "x/gitlab/") }
	gitea := func(address, name string) string {
		return fmt.Sprintf(`{"ref":"refs/heads/main","repository":{"full_name":%[2]q,"html_url":"%[1]s/%[2]s","clone_url":"%[1]s/%[2]s.git","ssh_url":"git@x:%[2]s.git"}}`, address, name)
	}
	system := func(path, event string) string {
		return strings.Replace(gitlab(path), `"object_kind":"push","ref":"refs/heads/main"`,
			`"event_name":"`+event+`","refs":["refs/tags/v1","refs/heads/main"],"changes":[{"ref":"refs/heads/main"}]`, 1)
	}
	for _, c := range []struct {
		repo, kind, body string
		code             int
	}{
		{"https://gitlab.x/group/sub/cluster.git", "", gitlab("group/sub/cluster"), 202},
		{"https://gitlab.x/group/sub/cluster.git", "", gitlab("sub/cluster"), 204},
		{"https://gitlab.x/group/sub/cluster.git", "gitlab", gitlab("group/sub/cluster"), 202},
		{"https://gitlab.x/group/sub/cluster.git", "gitlab", gitlab("sub/cluster"), 204},
		{"git@gitlab.x:group/sub/cluster.git", "", gitlab("Group/Sub/Cluster"), 202},
		{"git@gitlab.x:group/sub/cluster.git", "", gitlab("sub/cluster"), 204},
		{"https://gitlab.x/sub/cluster.git", "", gitlab("group/sub/cluster"), 204},
		{"https://gitlab.x/sub/cluster.git", "gitlab", gitlab("group/sub/cluster"), 204},
		{"https://gitlab.x/sub/cluster", "", gitlab("sub/cluster"), 202},
		{"https://x/gitlab/group/cluster.git", "", below("group/cluster"), 202},
		{"https://x/gitlab/group/cluster.git", "gitlab", below("group/cluster"), 202},
		{"https://x/gitlab/group/cluster.git", "", below("other/cluster"), 204},
		{"git@x:group/cluster.git", "", below("group/cluster"), 202},

		{"https://x/git/ops/cluster.git", "", gitea("https://x/git", "ops/cluster"), 202},
		{"https://x/git/ops/cluster.git", "gitea", gitea("https://x/git", "ops/cluster"), 202},
		{"https://x/git/ops/cluster.git", "", gitea("https://x/git", "ops/other"), 204},
		{"ssh://git@x:2222/ops/cluster.git", "", gitea("https://x/git", "ops/cluster"), 202},
		{"https://x/git/ops/cluster.git", "", `{"ref":"refs/heads/main","repository":"ops/cluster"}`, 202},
		{"https://x/git/ops/cluster.git", "", `{"ref":"refs/heads/main","repository":"cluster"}`, 204},
		{"https://x/git/ops/cluster.git", "", `{"ref":"refs/heads/main","repository":"it/ops/cluster"}`, 204},
		{"https://gitlab.x/group/sub/cluster.git", "gitlab", `{"ref":"refs/heads/main","repository":"sub/cluster"}`, 204},

		{"https://gitlab.x/group/sub/cluster.git", "", system("group/sub/cluster", "repository_update"), 202},
		{"https://gitlab.x/group/sub/cluster.git", "", system("sub/cluster", "repository_update"), 204},
		{"https://gitlab.x/group/sub/cluster.git", "", system("group/sub/cluster", "project_update"), 204},
		{"https://gitlab.x/group/sub/cluster.git", "", strings.Replace(system("group/sub/cluster", "repository_update"), "heads/main\"]", "heads/side\"]", 1), 204},
	} {
		r, _ := receiver(t, func(rc *ReceiverConfig) {
			at := Config{Kind: Kind(c.kind)}.Locate(c.repo)
			rc.Kind, rc.Repository = at.Kind, at.Repository
		})
		if w := deliver(r, c.body, "X-Hub-Signature-256", sign(c.body, secret)); w.Code != c.code {
			t.Errorf("%s (%s): %s: %d, want %d", c.repo, c.kind, c.body, w.Code, c.code)
		}
	}
	// A system hook may tell of a push in a project hook's words, too.
	r, _ := receiver(t, nil)
	for event, code := range map[string]int{"Merge Request Hook": 204, "System Hook": 202} {
		if w := deliver(r, gitlabPush, "X-Gitlab-Event", event, "X-Gitlab-Token", secret); w.Code != code {
			t.Errorf("%s: %d, want %d", event, w.Code, code)
		}
	}
}

// Where no branch is configured it is the repository's own default branch.
func TestReceiverDefaultBranch(t *testing.T) {
	r, woken := receiver(t, func(c *ReceiverConfig) { c.Branch, c.Repository = "", "" })
	for body, code := range map[string]int{
		giteaPush: 202,
		strings.ReplaceAll(giteaPush, "refs/heads/main", "refs/heads/side"):             204,
		strings.ReplaceAll(gitlabPush, "refs/heads/main", "refs/heads/side"):            204,
		`{"ref":"refs/heads/anything"}`:                                                 202,
		`{"ref":"refs/heads/"}`:                                                         204,
		strings.ReplaceAll(giteaPush, `"default_branch":"main"`, `"default_branch":""`): 202,
	} {
		before := woken.Load()
		w := deliver(r, body, "X-Gitea-Signature", sign(body, secret))
		if w.Code != code {
			t.Errorf("%s: %d, want %d", body, w.Code, code)
		}
		if code == 204 && woken.Load() != before {
			t.Errorf("%s: woken", body)
		}
	}
}

// The secret is read anew, and without one nobody is believed.
func TestReceiverSecret(t *testing.T) {
	var failed []error
	path := filepath.Join(t.TempDir(), "secret")
	r, woken := receiver(t, func(c *ReceiverConfig) {
		c.SecretFile, c.Failed = path, func(err error) { failed = append(failed, err) }
	})
	body := func(i int) string { return strings.Replace(giteaPush, `"2"`, fmt.Sprintf("%q", fmt.Sprint(i)), 1) }
	for i, c := range []struct {
		file, with string
		code       int
	}{{"-", secret, 500}, {"", "", 500}, {" \n", "", 500}, {"first", "first", 202}, {"second", "first", 401}, {"second", "second", 202}} {
		if c.file != "-" {
			if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if w := deliver(r, body(i), "X-Gitea-Signature", sign(body(i), c.with)); w.Code != c.code {
			t.Errorf("secret %q, signed with %q: %d, want %d", c.file, c.with, w.Code, c.code)
		}
	}
	// No file, and then an empty one: said once each, however often strangers call.
	if len(failed) != 2 || woken.Load() == 0 {
		t.Errorf("%v, %d wake-ups", failed, woken.Load())
	}
}

// What was delivered before wakes nobody again, also with another delivery id,
// and what is remembered is bounded.
func TestReceiverReplay(t *testing.T) {
	r, woken := receiver(t, nil)
	push := func(i int) int {
		body := strings.Replace(giteaPush, `"2"`, fmt.Sprintf("%q", fmt.Sprint(i)), 1)
		return deliver(r, body, "X-Gitea-Signature", sign(body, secret), "X-Gitea-Delivery", fmt.Sprint(time.Now())).Code
	}
	if code := push(0); code != 202 {
		t.Fatal(code)
	}
	for range 3 {
		if code := push(0); code != 200 {
			t.Errorf("the replay is answered %d", code)
		}
	}
	if woken.Load() != 1 {
		t.Errorf("%d wake-ups", woken.Load())
	}
	for i := range 3 * maxDeliveries {
		if code := push(i + 1); code != 202 {
			t.Fatalf("push %d is answered %d", i+1, code)
		}
	}
	if code := push(3 * maxDeliveries); code != 200 {
		t.Errorf("the newest is forgotten: %d", code)
	}
	if len(r.seen) != maxDeliveries || len(r.order) != maxDeliveries {
		t.Errorf("%d and %d remembered", len(r.seen), len(r.order))
	}
}

// What is delivered again some time later, because the first fetch failed, counts.
func TestReceiverRedelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, woken := receiver(t, nil)
		for i, wait := range []time.Duration{0, replayTime - time.Millisecond, time.Millisecond, replayTime} {
			<-time.After(wait)
			code, want := deliver(r, giteaPush, "X-Gitea-Signature", sign(giteaPush, secret)).Code, []int{202, 200, 202, 202}[i]
			if code != want {
				t.Errorf("delivery %d is answered %d, want %d", i, code, want)
			}
		}
		if woken.Load() != 3 || len(r.order) != 1 {
			t.Errorf("%d wake-ups, %d remembered", woken.Load(), len(r.order))
		}
	})
}

// Any number of pushes is one wake-up a second, and the last is never lost.
func TestReceiverPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Duration
		began := time.Now()
		r, _ := receiver(t, func(c *ReceiverConfig) {
			c.Wake = func() {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(began))
			}
		})
		for i := range 50 {
			body := strings.Replace(giteaPush, `"2"`, fmt.Sprintf("%q", fmt.Sprint(i)), 1)
			if code := deliver(r, body, "X-Gitea-Signature", sign(body, secret)).Code; code != 202 {
				t.Fatal(code)
			}
			<-time.After(50 * time.Millisecond)
		}
		<-time.After(time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if want := "[0s 1s 2s 3s]"; fmt.Sprint(at) != want {
			t.Errorf("woken at %v, want %s", at, want)
		}
	})
}

// No more bodies are in memory at a time than there are slots; the others are
// told to come again.
func TestReceiverCrowd(t *testing.T) {
	r, _ := receiver(t, nil)
	ends := make([]*io.PipeWriter, 0, maxParallel)
	answers := make(chan int, maxParallel)
	for range maxParallel {
		body, end := io.Pipe()
		ends = append(ends, end)
		req := httptest.NewRequest(http.MethodPost, "/", body)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Gitlab-Token", secret)
		go func() {
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			answers <- w.Code
		}()
		if _, err := end.Write([]byte("{")); err != nil { // it is being read
			t.Fatal(err)
		}
	}
	if w := deliver(r, gitlabPush, "X-Gitlab-Token", secret); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d", w.Code)
	}
	for _, end := range ends {
		_ = end.CloseWithError(errors.New("gone"))
	}
	for range ends {
		if code := <-answers; code != 400 {
			t.Errorf("%d", code)
		}
	}
	if w := deliver(r, gitlabPush, "X-Gitlab-Token", secret); w.Code != 202 {
		t.Errorf("%d after they are gone", w.Code)
	}
}

func FuzzReceiver(f *testing.F) {
	f.Add([]byte(giteaPush), "", "push", true)
	f.Add([]byte(gitlabPush), secret, "Push Hook", false)
	f.Add([]byte(`{"ref":["refs/heads/main"],"repository":"x"}`), "", "", true)
	f.Add([]byte("\xff{"), "sha256=00", "ping", false)
	path := filepath.Join(f.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte, given, event string, right bool) {
		woken := false
		r, err := NewReceiver(ReceiverConfig{SecretFile: path, Repository: "owner/cluster", Branch: "main", Wake: func() { woken = true }})
		if err != nil {
			t.Fatal(err)
		}
		if right {
			given = sign(string(body), secret)
		}
		w := deliver(r, string(body), "X-Gitea-Signature", given, "X-Gitlab-Token", given, "X-Gitea-Event", event)
		known := right || given == secret || strings.EqualFold(strings.TrimPrefix(given, "sha256="), sign(string(body), secret))
		switch w.Code {
		case 202:
			if !known || !bytes.Contains(bytes.ToLower(body), []byte("ref")) {
				t.Errorf("%q of a stranger woke the agent", body)
			}
		case 204, 400:
			if !known {
				t.Errorf("a stranger is answered %d", w.Code)
			}
		case 401, 413:
		default:
			t.Errorf("answered %d", w.Code)
		}
		if woken != (w.Code == 202) {
			t.Errorf("answered %d, woken %t", w.Code, woken)
		}
	})
}

// serve runs Serve on the loopback and returns its address and its end.
func serve(t *testing.T, h http.Handler, certFile, keyFile string) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, certFile, keyFile) }()
	stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server does not end")
		}
		done <- nil
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// A real Gitea wakes the agent for a push to the branch, and for nothing else.
func TestReceiverGitea(t *testing.T) {
	g := gitea.Start(t)
	owner := g.NewUser(t, "owner")
	r := g.NewRepo(t, owner, "cluster")
	pushed, answers := make(chan struct{}, 16), make(chan int, 16)
	hook, _ := receiver(t, func(c *ReceiverConfig) { c.Wake = func() { pushed <- struct{}{} } })
	address, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		record := httptest.NewRecorder()
		hook.ServeHTTP(record, req)
		w.WriteHeader(record.Code)
		answers <- record.Code
	}), "", "")
	r.Hook(t, "http://"+address+"/", secret)
	next := func() int {
		t.Helper()
		select {
		case code := <-answers:
			return code
		case <-time.After(30 * time.Second):
			t.Fatal("no webhook after 30s")
			return 0
		}
	}
	r.Commit(t, owner, "main", "begin", map[string][]byte{"a.yaml": []byte("a: 1\n")})
	if code := next(); code != 202 {
		t.Errorf("a push to the branch: %d", code)
	}
	<-pushed
	r.Commit(t, owner, "side", "change", map[string][]byte{"a.yaml": []byte("a: 2\n")})
	if code := next(); code != 204 {
		t.Errorf("a push to another branch: %d", code)
	}
	p := r.NewPull(t, owner, "side", "main", "Side")
	if code := next(); code != 204 {
		t.Errorf("a pull request: %d", code)
	}
	if len(pushed) > 0 {
		t.Error("woken by what is no push to the branch")
	}
	r.Merge(t, owner, p.Number)
	select {
	case <-pushed:
	case <-time.After(30 * time.Second):
		t.Error("not woken by the merge after 30s")
	}
}

// Serve speaks TLS with the certificate that is in the files now.
func TestServeTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	first, second := certificate(t, certFile, keyFile), (*x509.Certificate)(nil)
	r, woken := receiver(t, nil)
	address, stop := serve(t, r, certFile, keyFile)
	post := func(ca *x509.Certificate, body string) (int, error) {
		pool := x509.NewCertPool()
		pool.AddCert(ca)
		client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
		req, err := http.NewRequest(http.MethodPost, "https://"+address, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Gitea-Signature", sign(body, secret))
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		return resp.StatusCode, nil
	}
	if code, err := post(first, giteaPush); err != nil || code != 202 || woken.Load() != 1 {
		t.Errorf("%d, %v", code, err)
	}
	second = certificate(t, certFile, keyFile)
	if _, err := post(first, giteaPush); err == nil {
		t.Error("the old certificate is still used")
	}
	if code, err := post(second, giteaPush); err != nil || code != 200 {
		t.Errorf("%d, %v", code, err)
	}
	stop()
	if _, err := post(second, giteaPush); err == nil {
		t.Error("it answers after its end")
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), l, r, certFile, keyFile); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}
}

// certificate writes a new one for 127.0.0.1 with its key.
func certificate(t *testing.T, certFile, keyFile string) *x509.Certificate {
	t.Helper()
	c, certPEM, keyPEM := selfSigned(t)
	for path, data := range map[string][]byte{certFile: certPEM, keyFile: keyPEM} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Strangers who connect and send nothing do not take more than their share, and
// their end makes room.
func TestServeCrowd(t *testing.T) {
	r, _ := receiver(t, nil)
	address, stop := serve(t, r, "", "")
	var idle []net.Conn
	for range maxConnections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	answered := make(chan int, 1)
	go func() {
		resp, err := http.Post("http://"+address, "application/json", strings.NewReader("{}"))
		if err != nil {
			answered <- 0
			return
		}
		_ = resp.Body.Close()
		answered <- resp.StatusCode
	}()
	select {
	case code := <-answered:
		t.Errorf("answered %d beyond the limit", code)
	case <-time.After(100 * time.Millisecond):
	}
	for _, c := range idle {
		_ = c.Close()
	}
	select {
	case code := <-answered:
		if code != 401 {
			t.Errorf("answered %d", code)
		}
	case <-time.After(30 * time.Second):
		t.Error("no answer although there is room again")
	}
	stop()
}
