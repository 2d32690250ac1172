package gitrepo

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

const testToken = "s3cr3t-t0k3n"

// httpHandler serves a repository with git's own http-backend behind a token.
func httpHandler(u *upstream) http.Handler {
	core := run(u.t, "", nil, "git", "--exec-path")
	backend := &cgi.Handler{
		Path: filepath.Join(core, "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + filepath.Dir(u.dir), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x",
			"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, password, ok := req.BasicAuth(); !ok || password != testToken {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, req)
	})
}

func (u *upstream) http(h http.Handler) (url string) {
	s := httptest.NewServer(h)
	u.t.Cleanup(s.Close)
	return s.URL + "/" + filepath.Base(u.dir)
}

func secretFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sshServer runs git's own programs for clients that hold a key.
type sshServer struct {
	t      testing.TB
	l      net.Listener
	config *ssh.ServerConfig
	keyPEM string // the client's
	host   ssh.Signer
	wg     sync.WaitGroup
}

func newKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return signer, string(pem.EncodeToMemory(block))
}

func newSSHServer(t testing.TB) *sshServer {
	t.Helper()
	s := &sshServer{t: t}
	client, pem := newKey(t)
	s.keyPEM = pem
	s.host, _ = newKey(t)
	s.config = &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(client.PublicKey().Marshal()) {
			return nil, os.ErrPermission
		}
		return nil, nil
	}}
	s.config.AddHostKey(s.host)
	var err error
	if s.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		s.l.Close()
		s.wg.Wait()
	})
	s.wg.Go(func() {
		for {
			c, err := s.l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(ctx, c) })
		}
	})
	return s
}

func (s *sshServer) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_, chans, reqs, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	for nc := range chans {
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		for req := range reqs {
			if req.Type != "exec" {
				req.Reply(false, nil)
				continue
			}
			var line struct{ Command string }
			if err := ssh.Unmarshal(req.Payload, &line); err != nil {
				return
			}
			req.Reply(true, nil)
			cmd := exec.CommandContext(ctx, "sh", "-c", line.Command)
			cmd.Env = append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
			cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
			stdin, err := cmd.StdinPipe() // cmd.Stdin would keep Run until the client hangs up
			if err != nil {
				return
			}
			go func() {
				io.Copy(stdin, ch)
				stdin.Close()
			}()
			status := struct{ Code uint32 }{}
			if cmd.Run() != nil {
				status.Code = 1
			}
			ch.SendRequest("exit-status", false, ssh.Marshal(status))
			ch.Close()
		}
	}
}

func (s *sshServer) url(u *upstream) string { return "ssh://git@" + s.l.Addr().String() + u.dir }

func (s *sshServer) knownHosts(key ssh.PublicKey) string {
	return secretFile(s.t, knownhosts.Line([]string{s.l.Addr().String()}, key)+"\n")
}

func (s *sshServer) configure(u *upstream) func(*Config) {
	return func(c *Config) {
		c.URL = s.url(u)
		c.SSHKeyFile = secretFile(s.t, s.keyPEM)
		c.KnownHostsFile = s.knownHosts(s.host.PublicKey())
	}
}

// transports are the ways to one repository.
func transports(t *testing.T, run func(t *testing.T, u *upstream, mod func(*Config))) {
	t.Run("path", func(t *testing.T) { run(t, newUpstream(t), func(*Config) {}) })
	t.Run("file", func(t *testing.T) {
		u := newUpstream(t)
		run(t, u, func(c *Config) { c.URL = "file://" + strings.ReplaceAll(u.dir, " ", "%20") })
	})
	t.Run("http", func(t *testing.T) {
		u := newUpstream(t)
		url := u.http(httpHandler(u))
		run(t, u, func(c *Config) { c.URL, c.TokenFile = url, secretFile(t, testToken+"\n") })
	})
	t.Run("ssh", func(t *testing.T) {
		u := newUpstream(t)
		run(t, u, newSSHServer(t).configure(u))
	})
}
