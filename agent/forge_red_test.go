package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"reconciler/forge"
)

// redForge is a forge that something is wrong with until it is healed.
type redForge struct {
	server *httptest.Server
	fault  atomic.Pointer[http.HandlerFunc]
	calls  atomic.Int64
	token  string

	mu   sync.Mutex
	told []map[string]string
}

func (f *redForge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.calls.Add(1)
	if fault := f.fault.Load(); fault != nil {
		(*fault)(w, r)
		return
	}
	if r.Header.Get("Authorization") != "token "+f.token {
		http.Error(w, `{"message":"bad token"}`, http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodGet {
		_, _ = w.Write([]byte("[]"))
		return
	}
	var in map[string]string
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.told = append(f.told, in)
	f.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write([]byte("{}"))
}

func (f *redForge) heard() []map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.told
}

// countingSource counts passes by their fetches.
type countingSource struct {
	Source
	n *atomic.Int64
}

func (c countingSource) Fetch(ctx context.Context) (Revision, error) {
	c.n.Add(1)
	return c.Source.Fetch(ctx)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for tick := time.Tick(5 * time.Millisecond); !ok(); {
		select {
		case <-tick:
		case <-deadline:
			t.Fatalf("no sign of %s after 30s", what)
		}
	}
}

// Whatever is wrong with the forge, passes go on at their speed, the failure is
// said once, and in the end the forge is told what it missed, and that is said
// once, too.
func TestForgeTrouble(t *testing.T) {
	answers := func(code int, header ...string) func(*testing.T, *redForge, *forge.Config) func() {
		return func(_ *testing.T, f *redForge, _ *forge.Config) func() {
			h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for i := 0; i < len(header); i += 2 {
					w.Header().Set(header[i], header[i+1])
				}
				http.Error(w, `{"message":"no, `+f.token+`"}`, code)
			})
			f.fault.Store(&h)
			return func() { f.fault.Store(nil) }
		}
	}
	for name, begin := range map[string]func(t *testing.T, f *redForge, c *forge.Config) (heal func()){
		"down": func(t *testing.T, f *redForge, _ *forge.Config) func() {
			address := f.server.Listener.Addr().String()
			f.server.Close()
			return func() {
				l, err := net.Listen("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				f.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
				f.server.Start()
				t.Cleanup(f.server.Close)
			}
		},
		"401": func(t *testing.T, _ *redForge, c *forge.Config) func() {
			write(t, c.TokenFile, "an-old-token")
			return func() { write(t, c.TokenFile, "canary-token") }
		},
		"no token": func(t *testing.T, _ *redForge, c *forge.Config) func() {
			write(t, c.TokenFile, "")
			return func() { write(t, c.TokenFile, "canary-token") }
		},
		"403":     answers(403),
		"404":     answers(404),
		"429":     answers(429, "Retry-After", "1"),
		"500":     answers(500),
		"502":     answers(502),
		"garbage": answers(200),
		"slow": func(_ *testing.T, f *redForge, _ *forge.Config) func() {
			h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			f.fault.Store(&h)
			return func() { f.fault.Store(nil) }
		},
		"wrong certificate": func(t *testing.T, f *redForge, c *forge.Config) func() {
			f.server.Close()
			f.server = httptest.NewUnstartedServer(f)
			f.server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that must fail
			f.server.StartTLS()
			t.Cleanup(f.server.Close)
			c.URL, c.CAFile = f.server.URL, filepath.Join(t.TempDir(), "ca.pem")
			writePEM(t, c.CAFile, otherCertificate(t))
			return func() { writePEM(t, c.CAFile, f.server.Certificate().Raw) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &redForge{token: "canary-token"}
			f.server = httptest.NewServer(f)
			t.Cleanup(f.server.Close)
			c := forge.Config{
				Kind: forge.Gitea, URL: f.server.URL, Repository: "o/r", TokenFile: filepath.Join(t.TempDir(), "token"),
				Timeout: 300 * time.Millisecond,
			}
			write(t, c.TokenFile, "canary-token")
			heal := begin(t, f, &c)
			client, err := forge.Open(c)
			if err != nil {
				t.Fatal(err)
			}
			runDir, err := os.MkdirTemp("", "red") // short, for the socket in it
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(runDir) })
			var passes atomic.Int64
			s := newSim(t, func(c *Config) {
				c.Forge, c.RunDir, c.Interval = client, runDir, 10*time.Millisecond
				c.Source = countingSource{c.Source, &passes}
			})
			s.agent.teller.first = 100 * time.Millisecond
			s.commit(map[string]string{"a.yaml": smallVM("a")})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.agent.Run(ctx) }()
			stop := sync.OnceFunc(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			t.Cleanup(stop)

			reasons := func() (all []string, text string) {
				list, err := s.agent.events.after(t.Context(), 0, false)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range list {
					if strings.HasPrefix(e.Reason, "Status") {
						all = append(all, e.Reason)
					}
					text += e.Message + "\n"
				}
				return all, text
			}
			eventually(t, "the failure", func() bool { all, _ := reasons(); return len(all) > 0 })
			from := passes.Load()
			eventually(t, "twenty passes meanwhile", func() bool { return passes.Load() > from+20 })
			if len(f.heard()) > 0 {
				t.Fatalf("told while it could not be: %v", f.heard())
			}
			s.commit(map[string]string{"a.yaml": smallVM("a") + smallVM("b")})
			from = passes.Load()
			eventually(t, "a pass over the second commit", func() bool { return passes.Load() > from+2 })
			heal()
			eventually(t, "the status of the newest commit", func() bool { return len(f.heard()) > 0 })
			if told := f.heard()[0]; told["state"] != "success" || told["context"] != "reconciler/host1" || told["description"] != "5 in sync" {
				t.Errorf("%v", told)
			}
			eventually(t, "the catching up", func() bool { all, _ := reasons(); return len(all) > 1 })
			stop()
			all, text := reasons()
			if strings.Join(all, " ") != "StatusNotTold StatusTold" {
				t.Errorf("events %v", all)
			}
			if strings.Contains(text, "canary-token") || strings.Contains(s.log.String(), "canary-token") {
				t.Errorf("the token is in an event or in the log:\n%s\n%s", text, s.log)
			}
			if n := strings.Count(s.log.String(), "the forge could not be told"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, s.log)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func writePEM(t *testing.T, path string, der []byte) {
	t.Helper()
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

// otherCertificate is one that no server of the test has.
func otherCertificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
