package forge

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"reconciler/internal/testbed/gitea"
)

// operations are all that is done at a forge.
var operations = map[string]func(ctx context.Context, f *Forge) error{
	"status": func(ctx context.Context, f *Forge) error {
		return f.SetStatus(ctx, commit, Status{Context: "reconciler/host1", State: Success, Description: "3 in sync"})
	},
	"comment": func(ctx context.Context, f *Forge) error {
		_, err := f.Comment(ctx, 1, "<!-- m -->", "text")
		return err
	},
	"find": func(ctx context.Context, f *Forge) error {
		_, err := f.FindPull(ctx, "side", "main")
		return err
	},
	"open": func(ctx context.Context, f *Forge) error {
		_, err := f.EnsurePull(ctx, Pull{Head: "side", Base: "main", Title: "t"})
		return err
	},
	"close": func(ctx context.Context, f *Forge) error { return f.ClosePull(ctx, 1, "why") },
}

// red is one way in which a forge fails, and what is to be seen of it.
type red struct {
	fault      func(http.ResponseWriter, *http.Request) bool
	code       int
	temporary  bool
	retryAfter time.Duration
	is         error
	text       string
}

func reds() map[string]red {
	message := `{"message":"no, and your token was ` + canary + `"}`
	h := func(pairs ...string) http.Header {
		out := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			out.Set(pairs[i], pairs[i+1])
		}
		return out
	}
	forever := func(code int, chunk string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(code)
			b := []byte(strings.Repeat(chunk, 64<<10/len(chunk)))
			_, _ = w.Write([]byte("["))
			for r.Context().Err() == nil {
				if _, err := w.Write(b); err != nil {
					break
				}
			}
			return true
		}
	}
	return map[string]red{
		"401":                {fault: sends(401, nil, message), code: 401, text: "the token is not accepted"},
		"403":                {fault: sends(403, nil, message), code: 403, text: "the token may not do this"},
		"404":                {fault: sends(404, nil, message), code: 404, text: "or the token may not see it"},
		"409":                {fault: sends(409, nil, message), code: 409},
		"422":                {fault: sends(422, nil, `{"message":"Validation Failed","errors":[{"message":"too long"}]}`), code: 422, text: "Validation Failed: too long"},
		"400 of GitLab":      {fault: sends(400, nil, `{"message":{"description":["is too long"]}}`), code: 400, text: `{"description":["is too long"]}`},
		"500":                {fault: sends(500, nil, message), code: 500, temporary: true},
		"502 with a page":    {fault: sends(502, nil, "<html>bad gateway</html>"), code: 502, temporary: true},
		"503":                {fault: sends(503, h("Retry-After", "90"), ""), code: 503, temporary: true, retryAfter: 90 * time.Second},
		"503 until a date":   {fault: sends(503, h("Date", "Mon, 02 Jan 2006 15:04:05 GMT", "Retry-After", "Mon, 02 Jan 2006 15:06:05 GMT"), ""), code: 503, temporary: true, retryAfter: 2 * time.Minute},
		"429":                {fault: sends(429, h("Retry-After", "7"), message), code: 429, temporary: true, retryAfter: 7 * time.Second},
		"429 without a time": {fault: sends(429, nil, message), code: 429, temporary: true, retryAfter: time.Minute},
		"429 for ever":       {fault: sends(429, h("Retry-After", "999999999"), message), code: 429, temporary: true, retryAfter: time.Hour},
		"429 in the past":    {fault: sends(429, h("Retry-After", "Mon, 02 Jan 2006 15:04:05 GMT"), message), code: 429, temporary: true, retryAfter: time.Minute},
		"429 of GitLab":      {fault: sends(429, h("RateLimit-Remaining", "0", "RateLimit-Reset", inSeconds(50)), ""), code: 429, temporary: true, retryAfter: 50 * time.Second},
		"403 of a limit":     {fault: sends(403, h("X-RateLimit-Remaining", "0", "X-RateLimit-Reset", inSeconds(90)), message), code: 403, temporary: true, retryAfter: 90 * time.Second},
		"403 of a burst":     {fault: sends(403, nil, `{"message":"You have exceeded a secondary rate limit"}`), code: 403, temporary: true, retryAfter: time.Minute},
		"a page":             {fault: sends(200, nil, "<html>please sign in, "+canary+"</html>"), code: 200, text: "not one of its API"},
		"nothing but a list": {fault: sends(200, nil, `"`+canary+`"`), code: 200, text: "not one of its API"},
		"endless":            {fault: forever(200, " "), code: 200, is: errTooLong},
		"endless error":      {fault: forever(500, "x"), code: 500, temporary: true},
		"an endless header": {fault: func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("X-Long", strings.Repeat("x", 2*maxHeader))
			return true
		}, temporary: true},
		"slow": {fault: func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, temporary: true, is: context.DeadlineExceeded, text: "no answer within"},
		"slow body": {fault: func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = w.Write([]byte("["))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, code: 200, temporary: true, is: context.DeadlineExceeded},
		"hangs up": {fault: func(w http.ResponseWriter, _ *http.Request) bool {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = c.Close()
			}
			return true
		}, temporary: true},
		"half an answer": {fault: func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("["))
			return true
		}, code: 200, temporary: true},
	}
}

// Every operation at every forge fails as it should, and never tells the token.
func TestRed(t *testing.T) {
	for name, c := range reds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, kind := range Kinds {
				f := newFake(t, kind)
				f.pulls = []Pull{{Number: 1, Head: "side", Base: "main", State: PullOpen}}
				f.fault = c.fault
				client := f.open(func(c *Config) { c.Timeout = time.Minute })
				if strings.HasPrefix(name, "slow") {
					client = f.open(func(c *Config) { c.Timeout = 150 * time.Millisecond })
				}
				client.net.limit = 1 << 20
				for op, run := range operations {
					c.check(t, fmt.Sprintf("%s, %s", kind, op), run(t.Context(), client))
				}
			}
		})
	}
}

func (c red) check(t *testing.T, what string, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %v is no *Error", what, err)
		return
	}
	if e.Code != c.code || e.Temporary() != c.temporary || (e.RetryAfter-c.retryAfter).Abs() > 3*time.Second {
		t.Errorf("%s: code %d, temporary %t, retry after %s: %v", what, e.Code, e.Temporary(), e.RetryAfter, err)
	}
	if c.is != nil && !errors.Is(err, c.is) {
		t.Errorf("%s: %v is not %v", what, err, c.is)
	}
	if !strings.Contains(err.Error(), c.text) {
		t.Errorf("%s: %q does not say %q", what, err, c.text)
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err), fmt.Sprint(errors.Unwrap(err)), fmt.Sprintf("%#v", errors.Unwrap(err))} {
		if strings.Contains(text, canary) {
			t.Errorf("%s: the token is in %s", what, text)
		}
	}
	if len(err.Error()) > messageLimit+300 || strings.ContainsAny(err.Error(), "\n\x00") {
		t.Errorf("%s: %d bytes: %q", what, len(err.Error()), err)
	}
}

// Odd answers end in an error or in a result that makes sense, never in a panic.
func TestOddAnswers(t *testing.T) {
	for _, body := range []string{"", "null", "[null]", "{}", "[]", "[{}]", "[[]]", `{"statuses":[null]}`, `{"user":null,"head":null}`, `[{"user":null,"author":null,"head":{},"base":null}]`, "1", "true"} {
		for _, kind := range Kinds {
			f := newFake(t, kind)
			f.fault = sends(200, nil, body)
			client := f.open()
			for op, run := range operations {
				err := run(t.Context(), client)
				var e *Error
				if err != nil && !errors.As(err, &e) {
					t.Errorf("%s, %s, %q: %v", kind, op, body, err)
				}
				if op == "comment" && err == nil {
					t.Errorf("%s: %q is taken for a comment that was posted", kind, body)
				}
			}
		}
	}
}

func TestForgeDown(t *testing.T) {
	for _, kind := range Kinds {
		f := newFake(t, kind)
		client := f.open()
		f.server.Close()
		for op, run := range operations {
			red{temporary: true, text: "connection refused"}.check(t, string(kind)+", "+op, run(t.Context(), client))
		}
	}
}

// A token does not follow a redirection to another host, and a POST does not
// turn into a GET.
func TestRedirect(t *testing.T) {
	var strangers atomic.Int64
	stranger := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		strangers.Add(1)
		t.Errorf("the stranger was asked: %v", r.Header)
	}))
	t.Cleanup(stranger.Close)
	for _, kind := range Kinds {
		for _, code := range []int{301, 302, 307, 308} {
			f := newFake(t, kind)
			f.pulls = []Pull{{Number: 1, Head: "side", Base: "main", State: PullOpen}}
			client := f.open()
			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, stranger.URL+r.URL.Path, code)
				return true
			}
			for op, run := range operations {
				red{code: code, is: errElsewhere, text: "not followed"}.check(t, fmt.Sprint(kind, op, code), run(t.Context(), client))
			}

			// At the same host: GETs follow, POSTs only where they stay POSTs.
			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Has("moved") {
					return false
				}
				u := *r.URL
				q := u.Query()
				q.Set("moved", "1")
				u.RawQuery = q.Encode()
				http.Redirect(w, r, u.String(), code)
				return true
			}
			if _, err := client.FindPull(t.Context(), "side", "main"); err != nil {
				t.Errorf("%s, %d: %v", kind, code, err)
			}
			err := operations["status"](t.Context(), client)
			if code >= 307 && err != nil {
				t.Errorf("%s, %d: %v", kind, code, err)
			}
			if code < 307 {
				red{code: code, is: errElsewhere, text: "has the repository another name now?"}.check(t, fmt.Sprint(kind, code), err)
			}

			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, r.URL.String(), code)
				return true
			}
			red{code: code, is: errElsewhere, text: "more than"}.check(t, fmt.Sprint(kind, " loop"), operations["find"](t.Context(), client))
		}
	}
}

// Comments that go on for ever are given up on.
func TestEndlessComments(t *testing.T) {
	for _, kind := range Kinds {
		f := newFake(t, kind)
		for i := range 100*maxPages + 1 {
			f.addNote(1, "mallory", fmt.Sprint(i))
		}
		_, err := f.open().Comment(t.Context(), 1, "<!-- m -->", "text")
		if kind == GitLab && f.count("GET") > maxPages+1 {
			t.Errorf("%d calls", f.count("GET"))
		}
		if err == nil || !strings.Contains(err.Error(), "pages of comments") {
			t.Errorf("%s: %v", kind, err)
		}
	}
	// Without pages, Gitea always answers with all.
	f := newFake(t, Gitea)
	for i := range 200 {
		f.addNote(1, "mallory", fmt.Sprint(i))
	}
	f.fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/comments") {
			r.URL.RawQuery = "limit=1000"
		}
		return false
	}
	if _, err := f.open().Comment(t.Context(), 1, "<!-- m -->", "text"); err != nil || f.count("GET /api/v1/repos/owner/cluster/issues") > 2 {
		t.Errorf("%v after %d pages", err, f.count("GET /api/v1/repos"))
	}
}

// The token and the certificates are read anew: what was replaced counts.
func TestReplacedFiles(t *testing.T) {
	for _, kind := range Kinds {
		f := newFake(t, kind)
		path := tokenFile(t, "old")
		client := f.open(func(c *Config) { c.TokenFile = path })
		red{code: 401}.check(t, string(kind), operations["status"](t.Context(), client))
		for _, text := range []string{"", "two words", "tökén", "a\x00b", strings.Repeat("x", maxSecret+1)} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := operations["status"](t.Context(), client); err == nil || !strings.Contains(err.Error(), "token") {
				t.Errorf("%s: with the token %.20q: %v", kind, text, err)
			}
		}
		if err := os.WriteFile(path, []byte("  user:"+canary+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := operations["status"](t.Context(), client); err != nil {
			t.Error(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := operations["status"](t.Context(), client); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without the file: %v", err)
		}
		asked := f.open(func(c *Config) { c.TokenFile, c.Token = "", func() (string, error) { return canary, nil } })
		if err := operations["status"](t.Context(), asked); err != nil {
			t.Error(err)
		}
	}
}

func TestCertificate(t *testing.T) {
	for _, kind := range Kinds {
		f := newFake(t, kind)
		secure := httptest.NewUnstartedServer(f)
		secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that must fail
		secure.StartTLS()
		t.Cleanup(secure.Close)
		client := f.open(func(c *Config) { c.URL = secure.URL })
		err := operations["status"](t.Context(), client)
		red{text: "are its certificates in the CA file?"}.check(t, string(kind), err)
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			t.Errorf("%s: %v", kind, err)
		}

		ca := filepath.Join(t.TempDir(), "ca.pem")
		client = f.open(func(c *Config) { c.URL, c.CAFile = secure.URL, ca })
		if err := operations["status"](t.Context(), client); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: without the file: %v", kind, err)
		}
		for text, want := range map[string]string{"nonsense": "holds no PEM certificate"} {
			if err := os.WriteFile(ca, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := operations["status"](t.Context(), client); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", kind, err)
			}
		}
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := operations["status"](t.Context(), client); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		// Another name than the certificate's.
		_, port, err := net.SplitHostPort(secure.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		client = f.open(func(c *Config) { c.URL, c.CAFile = "https://localhost:"+port, ca })
		if err := operations["status"](t.Context(), client); err == nil || !strings.Contains(err.Error(), "localhost") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestCanceled(t *testing.T) {
	f := newFake(t, Gitea)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := operations["status"](ctx, f.open())
	var e *Error
	if !errors.Is(err, context.Canceled) || !errors.As(err, &e) || e.Temporary() {
		t.Errorf("%v", err)
	}
}

// The same of a real Gitea, where it can be brought about.
func TestRedGitea(t *testing.T) {
	g := gitea.Start(t)
	owner, reader := g.NewUser(t, "owner"), g.NewUser(t, "reader")
	r := g.NewRepo(t, owner, "cluster")
	hash := r.Commit(t, owner, "main", "begin", map[string][]byte{"a.yaml": []byte("a: 1\n")})
	r.Commit(t, owner, "side", "change", map[string][]byte{"a.yaml": []byte("a: 2\n")})
	p := r.NewPull(t, owner, "side", "main", "Side")
	r.Collaborator(t, reader, "read")
	path := tokenFile(t, owner.Token)
	config := Config{Kind: Gitea, URL: g.URL, Repository: "owner/cluster", TokenFile: path, Timeout: 5 * time.Second}
	status := func(c Config, commit string) error {
		t.Helper()
		client, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		return client.SetStatus(t.Context(), commit, Status{Context: "c", State: Success, Description: "fine"})
	}
	expect := func(what string, err error, c red) { t.Helper(); c.check(t, what, err) }

	expect("an unknown commit", status(config, strings.Repeat("1", 40)), red{code: 404})
	other := config
	other.Repository = "owner/nothing"
	expect("an unknown repository", status(other, hash), red{code: 404, text: "or the token may not see it"})
	other = config
	other.TokenFile = tokenFile(t, reader.Token)
	expect("a reader", status(other, hash), red{code: 403, text: "the token may not do this"})
	other.TokenFile = tokenFile(t, g.NewToken(t, owner, "narrow", "read:repository"))
	expect("a narrow token", status(other, hash), red{code: 403})
	other.TokenFile = tokenFile(t, g.NewToken(t, owner, "nameless", "write:issue", "write:repository"))
	client, err := Open(other)
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Comment(t.Context(), p.Number, "<!-- m -->", "text")
	expect("a token that may not ask who it is", err, red{code: 403, text: "read:user"})
	g.Revoke(t, owner, "all")
	expect("a revoked token", status(config, hash), red{code: 401, text: "the token is not accepted"})
	fresh := g.NewToken(t, owner, "fresh", "write:repository")
	if err := os.WriteFile(path, []byte(fresh), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := status(config, hash); err != nil {
		t.Errorf("after the token was replaced: %v", err)
	}

	slow := config
	slow.Timeout = 200 * time.Millisecond
	resume := g.Pause(t)
	expect("paused", status(slow, hash), red{temporary: true, is: context.DeadlineExceeded})
	resume()

	// A proxy in front of it that has had enough, and one with a certificate of
	// its own.
	target, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorLog = log.New(io.Discard, "", 0) // of the time when Gitea is down
	var limit atomic.Bool
	limit.Store(true)
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if limit.Load() {
			sends(429, http.Header{"Retry-After": {"3"}}, "")(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	front.Config.ErrorLog = log.New(io.Discard, "", 0)
	front.StartTLS()
	t.Cleanup(front.Close)
	config.URL = front.URL
	expect("a strange certificate", status(config, hash), red{text: "CA file"})
	config.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(config.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	expect("a limit", status(config, hash), red{code: 429, temporary: true, retryAfter: 3 * time.Second})
	limit.Store(false)
	if err := status(config, hash); err != nil {
		t.Error(err)
	}
	g.Kill()
	expect("down behind a proxy", status(config, hash), red{code: 502, temporary: true})
	config.URL = g.URL
	expect("down", status(config, hash), red{temporary: true, text: "connection refused"})
	g.Restart(t)
	if err := status(config, hash); err != nil {
		t.Error(err)
	}
}
