package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
)

type sshRemote struct {
	user, addr, path string
	keyFile, hosts   string
}

func newSSH(o Options) (*Remote, error) {
	if o.SSHKeyFile == "" || o.KnownHosts == "" {
		return nil, errors.New("ssh needs a private key (sshKeyFile) and the server's host keys (knownHostsFile); give both in the credentials")
	}
	s := &sshRemote{user: "git", keyFile: o.SSHKeyFile, hosts: o.KnownHosts}
	host, port := "", "22"
	if strings.HasPrefix(o.URL, "ssh://") {
		u, err := url.Parse(o.URL)
		if err != nil || u.Hostname() == "" {
			return nil, errors.New("malformed repository URL")
		}
		if u.User != nil {
			s.user = u.User.Username()
		}
		host, s.path = u.Hostname(), u.Path
		if u.Port() != "" {
			port = u.Port()
		}
		// ssh://host/~user/repo, as git has it.
		if strings.HasPrefix(s.path, "/~") {
			s.path = s.path[1:]
		}
	} else {
		at, path, ok := strings.Cut(o.URL, ":")
		if !ok {
			return nil, errors.New("malformed repository URL")
		}
		if user, h, ok := strings.Cut(at, "@"); ok {
			s.user, at = user, h
		}
		host, s.path = at, path
	}
	if host == "" || s.path == "" || strings.HasPrefix(s.path, "-") {
		return nil, errors.New("malformed repository URL")
	}
	s.addr = net.JoinHostPort(host, port)
	return &Remote{dial: s.dial}, nil
}

type sshConn struct {
	raw     net.Conn
	client  *ssh.Client
	session *ssh.Session
	stdin   io.WriteCloser
	stdout  io.Reader
	stop    func() bool
	words   *tail
	done    chan struct{} // closed when stderr has ended
}

func (s *sshRemote) dial(ctx context.Context, service Service) (conn, error) {
	config, verdict, err := s.config()
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrUnreachable, clean(err.Error()))
	}
	// The ssh package knows no contexts: the connection is cut from under it.
	c := &sshConn{raw: raw, stop: context.AfterFunc(ctx, func() { raw.Close() }), words: &tail{}, done: make(chan struct{})}
	conn, chans, reqs, err := ssh.NewClientConn(raw, s.addr, config)
	if err != nil {
		c.close()
		return nil, handshakeError(err, verdict())
	}
	c.client = ssh.NewClient(conn, chans, reqs)
	if err := c.start(service, s.path); err != nil {
		c.close()
		return nil, fmt.Errorf("%w: %s", ErrUnreachable, clean(err.Error()))
	}
	return c, nil
}

// config reads key and hosts anew each time, so that both can be rotated.
// verdict is what the host key callback decided.
func (s *sshRemote) config() (config *ssh.ClientConfig, verdict func() error, err error) {
	pem, err := os.ReadFile(s.keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrAuth, err)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		var locked *ssh.PassphraseMissingError
		if errors.As(err, &locked) {
			return nil, nil, fmt.Errorf("%w: %s has a passphrase; a deploy key must not", ErrAuth, s.keyFile)
		}
		return nil, nil, fmt.Errorf("%w: %s is not a private key", ErrAuth, s.keyFile)
	}
	hosts, passedOver, err := readHosts(s.hosts)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: known hosts: %w", ErrHostKey, err)
	}
	var decided error
	check := hosts.HostKeyCallback()
	config = &ssh.ClientConfig{
		User: s.user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: func(host string, addr net.Addr, key ssh.PublicKey) error {
			err := check(host, addr, key)
			fp := ssh.FingerprintSHA256(key)
			switch {
			case knownhosts.IsHostKeyChanged(err):
				decided = fmt.Errorf("%w: the host key of %s changed, it is now %s %s (if that is expected, replace the line in %s; if not, somebody is in between)", ErrHostKey, host, key.Type(), fp, s.hosts)
			case knownhosts.IsHostUnknown(err):
				decided = fmt.Errorf("%w: %s is not in %s (compare %s %s with the server's and add it, see ssh-keyscan)%s", ErrHostKey, host, s.hosts, key.Type(), fp, passedOver)
			case err != nil:
				decided = fmt.Errorf("%w: %s", ErrHostKey, clean(err.Error()))
			}
			return err
		},
		HostKeyAlgorithms: hosts.HostKeyAlgorithms(s.addr),
	}
	return config, func() error { return decided }, nil
}

// readHosts reads a known_hosts file. As for OpenSSH, a line that is malformed
// or of a key type from another time costs nothing but itself; passedOver says
// so of the first, for messages. But a malformed @revoked could be the one that
// matters.
func readHosts(path string) (db *knownhosts.HostKeyDB, passedOver string, err error) {
	db, broken := knownhosts.NewDB(path)
	if broken == nil {
		return db, "", nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	// What reads them reads files only.
	dir, err := os.MkdirTemp("", "known_hosts")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(dir)
	one, all := filepath.Join(dir, "one"), filepath.Join(dir, "all")
	var good strings.Builder
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		if err := os.WriteFile(one, []byte(line), 0o600); err != nil {
			return nil, "", err
		}
		if _, err := knownhosts.NewDB(one); err != nil {
			if strings.HasPrefix(strings.TrimSpace(line), "@revoked") {
				return nil, "", broken
			}
			if passedOver == "" {
				passedOver = fmt.Sprintf("; line %d of it cannot be read: %s", number, clean(strings.TrimPrefix(err.Error(), "knownhosts: "+one+":1: ")))
			}
			line = "\n"
		}
		good.WriteString(line)
	}
	if err := os.WriteFile(all, []byte(good.String()), 0o600); err != nil {
		return nil, "", err
	}
	db, err = knownhosts.NewDB(all)
	return db, passedOver, err
}

func handshakeError(err, verdict error) error {
	msg := err.Error()
	switch {
	case verdict != nil:
		return verdict
	case strings.Contains(msg, "unable to authenticate"):
		return fmt.Errorf("%w: the server does not accept the key", ErrAuth)
	case strings.Contains(msg, "no common algorithm for host key"):
		return fmt.Errorf("%w: the server has no host key of a type that known_hosts lists", ErrHostKey)
	}
	return fmt.Errorf("%w: %s", ErrUnreachable, clean(msg))
}

func (c *sshConn) start(service Service, path string) (err error) {
	if c.session, err = c.client.NewSession(); err != nil {
		return err
	}
	if c.stdin, err = c.session.StdinPipe(); err != nil {
		return err
	}
	if c.stdout, err = c.session.StdoutPipe(); err != nil {
		return err
	}
	stderr, err := c.session.StderrPipe()
	if err != nil {
		return err
	}
	if err := c.session.Start(string(service) + " " + quote(path)); err != nil {
		return err
	}
	go func() {
		defer close(c.done)
		_, _ = io.Copy(c.words, stderr)
	}()
	return nil
}

// quote makes one shell word, as git's sq_quote does.
func quote(s string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(s) + "'"
}

func (c *sshConn) advertisement() io.Reader { return c.stdout }

func (c *sshConn) request(_ context.Context, body []byte) (io.ReadCloser, error) {
	if _, err := c.stdin.Write(body); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrUnreachable, clean(err.Error()))
	}
	if err := c.stdin.Close(); err != nil && err != io.EOF {
		return nil, fmt.Errorf("%w: %s", ErrUnreachable, clean(err.Error()))
	}
	return io.NopCloser(c.stdout), nil
}

// failure waits a little for the end of stderr, which may come after that of stdout.
func (c *sshConn) failure() string {
	select {
	case <-c.done:
	case <-time.After(2 * time.Second):
	}
	return c.words.String()
}

func (c *sshConn) close() {
	c.stop()
	if c.client != nil {
		c.client.Close()
	}
	c.raw.Close()
}

// tail keeps the first few kilobytes of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[:min(len(p), 4096-len(t.b))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
