package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestTransports(t *testing.T) {
	transports(t, func(t *testing.T, u *upstream, mod func(*Config)) {
		ctx := context.Background()
		u.git("config", "http.receivepack", "true")
		files := make(map[string]string)
		for i := range 50 {
			files[fmt.Sprintf("d/f%02d.yaml", i)] = specText(i, 0)
		}
		u.commit(files)
		u.git("gc", "-q")
		u.git("tag", "-a", "-m", "one", "v1", "main")
		u.commitTo("other", map[string]string{"o.yaml": "o"})
		r := u.open(mod)
		first := mustFetch(t, r)
		if got := contents(t, r, first.Hash); !maps.Equal(got, files) {
			t.Fatalf("read %d files, want %d, or contents differ", len(got), len(files))
		}
		if r.db.Has(must(r.Commit(ctx, "HEAD")).tree) != true {
			t.Error("tree is not in the cache")
		}
		for i := range 5 {
			files["d/f07.yaml"] = specText(7, i+1)
			tip := u.commit(map[string]string{"d/f07.yaml": files["d/f07.yaml"]})
			if c := mustFetch(t, r); c.Hash != tip {
				t.Fatalf("fetched %s, want %s", c.Hash, tip)
			}
			if got := contents(t, r, tip); !maps.Equal(got, files) {
				t.Fatal("contents differ after an incremental fetch")
			}
		}
		changes, err := r.Changes(ctx, first.Hash, must(r.Newest()))
		if err != nil || len(changes) != 1 || changes[0].Path != "d/f07.yaml" {
			t.Errorf("changes = %v, %v", changes, err)
		}
		for rev, want := range map[string]string{
			"v1": first.Hash, first.Hash[:10]: first.Hash, "main~5": first.Hash, "HEAD^^~3": first.Hash,
			"other": u.git("rev-parse", "other"), "refs/heads/other": u.git("rev-parse", "other"),
		} {
			if c, err := r.Commit(ctx, rev); err != nil || c.Hash != want {
				t.Errorf("revision %s: %.10s, %v, want %.10s", rev, c.Hash, err, want)
			}
		}
		for _, rev := range []string{"nope", "main~99", strings.Repeat("1", 40), "abcd", "HEAD^2", "~", "../x"} {
			if _, err := r.Commit(ctx, rev); rev != "~" && !errors.Is(err, ErrRevisionMissing) {
				t.Errorf("revision %s: %v", rev, err)
			}
		}
		testPush(t, u, r)
		u.git("update-ref", "-d", "refs/heads/main")
		if _, err := r.Fetch(ctx); !errors.Is(err, ErrBranchMissing) {
			t.Errorf("branch removed: %v", err)
		}
		run(t, r.dir, nil, "git", "--git-dir", ".", "fsck", "--strict", first.Hash)
	})
}

// refused checks the kind of an error, and that it carries no secret.
func refused(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
	if err != nil && (strings.Contains(err.Error(), testToken) || strings.ContainsAny(err.Error(), "\n\x1b")) {
		t.Errorf("%s: unfit for a log: %q", what, err)
	}
}

// refLine is the i-th packet of an advertisement.
func refLine(i int) string {
	line := fmt.Sprintf("%040x refs/heads/b%07d", i+1, i)
	if i == 0 {
		line += "\x00ofs-delta"
	}
	return fmt.Sprintf("%04x%s\n", len(line)+5, line)
}

func TestHTTPRefusals(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	status := func(code int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(code)
			io.WriteString(w, strings.Repeat(testToken+"\n", 100))
		})
	}
	real := httpHandler(u)
	elsewhere := u.http(real)
	for _, tt := range []struct {
		name string
		h    http.Handler
		want error
	}{
		{"401", status(401), ErrAuth}, {"403", status(403), ErrAuth}, {"404", status(404), ErrRepositoryMissing},
		{"429", status(429), ErrUnreachable}, {"500", status(500), ErrUnreachable}, {"503", status(503), ErrUnreachable},
		{"418", status(418), ErrProtocol}, {"200 of a web page", status(200), ErrProtocol},
		{"redirect to another host", http.RedirectHandler(elsewhere+"/info/refs?service=git-upload-pack", http.StatusFound), ErrProtocol},
		{"garbage refs", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			io.WriteString(w, "zzzz\x1b[31m nonsense")
		}), ErrProtocol},
		{"endless refs", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			io.WriteString(w, "001e# service=git-upload-pack\n0000")
			for i := 0; i < 1_000_000; i++ {
				if _, err := io.WriteString(w, refLine(i)); err != nil {
					return
				}
			}
		}), ErrProtocol},
		{"garbage pack", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				real.ServeHTTP(w, req)
				return
			}
			io.WriteString(w, "0008NAK\n0009\x01PACK0000")
		}), ErrProtocol},
		{"cut off in the pack", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				real.ServeHTTP(w, req)
				return
			}
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "0008NAK\n0009\x01PACK")
		}), ErrUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := strings.Replace(u.http(tt.h), "://", "://user:"+testToken+"@", 1)
			r := u.open(func(c *Config) { c.URL = url })
			_, err := r.Fetch(context.Background())
			refused(t, "fetch", err, tt.want)
			_, _, err = r.PushFiles(context.Background(), "refs/reconciler/status/h", map[string][]byte{"a": nil}, "m", PushOptions{})
			if err == nil {
				t.Error("push succeeded")
			}
			refused(t, "push", err, err)
			if s := r.Stats(); s.Packs != 0 {
				t.Errorf("cache holds %d packs", s.Packs)
			}
		})
	}
	t.Run("wrong certificate", func(t *testing.T) {
		s := httptest.NewUnstartedServer(real)
		s.Config.ErrorLog = nil
		s.StartTLS()
		t.Cleanup(s.Close)
		r := u.open(func(c *Config) { c.URL, c.TokenFile = s.URL+"/up.git", secretFile(t, testToken) })
		_, err := r.Fetch(context.Background())
		refused(t, "fetch", err, ErrCertificate)
	})
	t.Run("refused connection", func(t *testing.T) {
		r := u.open(func(c *Config) { c.URL = "http://u:" + testToken + "@127.0.0.1:1/up.git" })
		_, err := r.Fetch(context.Background())
		refused(t, "fetch", err, ErrUnreachable)
	})
	t.Run("token rotated", func(t *testing.T) {
		token := secretFile(t, "old")
		r := u.open(func(c *Config) { c.URL, c.TokenFile = elsewhere, token })
		_, err := r.Fetch(context.Background())
		refused(t, "fetch", err, ErrAuth)
		if err := writeFile(token, "me:"+testToken); err != nil {
			t.Fatal(err)
		}
		mustFetch(t, r)
	})
}

func TestSSHRefusals(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	s := newSSHServer(t)
	other, otherPEM := newKey(t)
	for _, tt := range []struct {
		name string
		mod  func(*Config)
		want error
		hint string
	}{
		{"unknown host", func(c *Config) { c.KnownHostsFile = secretFile(t, "") }, ErrHostKey, "is not in"},
		{"changed host key", func(c *Config) { c.KnownHostsFile = s.knownHosts(other.PublicKey()) }, ErrHostKey, "changed"},
		{"foreign key", func(c *Config) { c.SSHKeyFile = secretFile(t, otherPEM) }, ErrAuth, "does not accept"},
		{"no key", func(c *Config) { c.SSHKeyFile = secretFile(t, testToken) }, ErrAuth, "not a private key"},
		{"no repository", func(c *Config) { c.URL += ".nope" }, ErrRepositoryMissing, "nope"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := u.open(s.configure(u), tt.mod)
			_, err := r.Fetch(context.Background())
			refused(t, "fetch", err, tt.want)
			if err != nil && !strings.Contains(err.Error(), tt.hint) {
				t.Errorf("no hint %q in %q", tt.hint, err)
			}
		})
	}
}

// A line of known_hosts that cannot be read costs nothing but itself.
func TestKnownHostsLines(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	s := newSSHServer(t)
	good, err := os.ReadFile(s.knownHosts(s.host.PublicKey()))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"git.example.org ssh-ed25519 AAAA!!!\n", "git.example.org\n", "<<<<<<< HEAD\n", "@unknown h ssh-rsa AAAA\n", "|1|x ssh-rsa AAAA\n",
		"h ssh-dss AAAAB3NzaC1kc3MAAAAA\n", strings.Repeat("x", 70_000) + "\n",
	} {
		for name, text := range map[string]string{"before": bad + string(good), "after": string(good) + bad} {
			r := u.open(s.configure(u), func(c *Config) { c.KnownHostsFile = secretFile(t, text) })
			if _, err := r.Fetch(t.Context()); err != nil {
				t.Errorf("%.30q %s: %v", bad, name, err)
			}
		}
		r := u.open(s.configure(u), func(c *Config) { c.KnownHostsFile = secretFile(t, "# hosts\n"+bad) })
		_, err := r.Fetch(t.Context())
		refused(t, bad[:4], err, ErrHostKey)
		if err == nil || !strings.Contains(err.Error(), "line 2 of it cannot be read: ") || strings.Contains(err.Error(), os.TempDir()+"/known_hosts") {
			t.Errorf("%.30q alone: %v", bad, err)
		}
	}
	r := u.open(s.configure(u), func(c *Config) { c.KnownHostsFile = secretFile(t, string(good)+"@revoked * ssh-ed25519 AAAA!!!\n") })
	_, err = r.Fetch(t.Context())
	refused(t, "revoked", err, ErrHostKey)
}

// Proxies add a charset to what they pass on.
func TestAdvertisementType(t *testing.T) {
	u := newUpstream(t)
	want := u.commit(map[string]string{"a.yaml": "1"})
	real := httpHandler(u)
	for _, suffix := range []string{"", "; charset=utf-8", ";charset=UTF-8"} {
		url := u.http(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			real.ServeHTTP(&typed{w, suffix}, req)
		}))
		r := u.open(func(c *Config) { c.URL, c.TokenFile = url, secretFile(t, testToken) })
		if c, err := r.Fetch(t.Context()); err != nil || c.Hash != want {
			t.Errorf("%q: %v", suffix, err)
		}
	}
}

// typed adds to the content type.
type typed struct {
	http.ResponseWriter
	suffix string
}

func (w *typed) WriteHeader(code int) {
	w.Header().Set("Content-Type", w.Header().Get("Content-Type")+w.suffix)
	w.ResponseWriter.WriteHeader(code)
}

func (w *typed) Write(p []byte) (int, error) {
	if w.suffix != "" && !strings.HasSuffix(w.Header().Get("Content-Type"), w.suffix) {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// A server that accepts and says nothing, or too little, is cut off.
func TestSilentServers(t *testing.T) {
	u := newUpstream(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	drip := u.http(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		io.WriteString(w, "001e# service=git-upload-pack\n0000")
		for i := range 600 {
			select {
			case <-req.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
			io.WriteString(w, refLine(i))
			w.(http.Flusher).Flush()
		}
	}))
	s := newSSHServer(t)
	for name, mod := range map[string]func(*Config){
		"silent http": func(c *Config) { c.URL = "http://" + l.Addr().String() + "/x" },
		"silent ssh": func(c *Config) {
			s.configure(u)(c)
			c.URL = "ssh://" + l.Addr().String() + "/x"
		},
		"slow http": func(c *Config) { c.URL = drip },
	} {
		t.Run(name, func(t *testing.T) {
			r := u.open(mod, func(c *Config) { c.Timeout, c.CloneTimeout = 300*time.Millisecond, 300*time.Millisecond })
			start := time.Now()
			_, err := r.Fetch(context.Background())
			refused(t, "fetch", err, ErrUnreachable)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %s", d)
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if _, err := r.Fetch(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("canceled: %v", err)
			}
		})
	}
}
