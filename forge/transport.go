package forge

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Bounds of one answer. A page of comments is the longest there is.
const (
	maxAnswer      = 32 << 20
	maxErrorAnswer = 64 << 10
	maxHeader      = 64 << 10
	maxRedirects   = 5
)

// transport carries the calls of every client library alike. The token is put
// on here, so that no library has it, and only for the forge itself.
type transport struct {
	origin       string // scheme://host of the API
	header, word string // how the API takes the token
	client       *http.Client
	limit        int64 // of an answer; maxAnswer but in tests

	mu  sync.Mutex
	ca  []byte // what base trusts beside the system's certificates
	rt  *http.Transport
	set bool
}

func newTransport(api *url.URL, c Config, header, word string) *transport {
	t := &transport{origin: api.Scheme + "://" + api.Host, header: header, word: word, limit: maxAnswer}
	t.client = &http.Client{Transport: t, CheckRedirect: t.follow}
	return t
}

// answer is the last one to an operation, as the transport saw it.
type answer struct {
	token      string
	code       int
	retryAfter time.Duration
	message    string
}

type answerKey struct{}

func (a *answer) redact(s string) string { return strings.ReplaceAll(s, a.token, "[token]") }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	last, ok := req.Context().Value(answerKey{}).(*answer)
	if !ok || req.URL.Scheme+"://"+req.URL.Host != t.origin {
		return nil, errElsewhere
	}
	req = req.Clone(req.Context())
	req.Header.Set(t.header, t.word+last.token)
	req.Header.Set("User-Agent", "reconciler")
	*last = answer{token: last.token}
	t.mu.Lock()
	base := t.rt
	t.mu.Unlock()
	resp, err := base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	last.code = resp.StatusCode
	if resp.StatusCode < 400 {
		resp.Body = &bounded{ReadCloser: resp.Body, left: t.limit}
		return resp, nil
	}
	// The libraries do not bound what they read of an error.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorAnswer))
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	message := messageOf(body)
	last.message = oneLine(last.redact(message))
	last.retryAfter = retryAfter(resp.StatusCode, resp.Header, message)
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return resp, nil
}

// follow decides on a redirection. A forge that has moved is for a person to
// look at: the token does not go along, and a POST that turned into a GET would
// look as if it had worked.
func (t *transport) follow(req *http.Request, via []*http.Request) error {
	to := req.URL.Scheme + "://" + req.URL.Host
	switch {
	case to != t.origin:
		return fmt.Errorf("%w: %s; it is not followed", errElsewhere, to)
	case req.Method != via[0].Method:
		return fmt.Errorf("%w: %s; it is not followed for a %s (has the repository another name now?)", errElsewhere, req.URL.Redacted(), via[0].Method)
	case len(via) >= maxRedirects:
		return fmt.Errorf("%w: more than %d times", errElsewhere, maxRedirects)
	}
	return nil
}

// bounded ends a body that is too long with an error.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// trust goes by the certificates that are in the file now.
func (t *transport) trust(caFile string) error {
	var ca []byte
	if caFile != "" {
		var err error
		if ca, err = os.ReadFile(caFile); err != nil {
			return fmt.Errorf("read the CA file: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set && bytes.Equal(ca, t.ca) {
		return nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return fmt.Errorf("read the system's certificates: %w", err)
	}
	if caFile != "" && !pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s holds no PEM certificate", caFile)
	}
	if t.rt != nil {
		t.rt.CloseIdleConnections()
	}
	t.rt = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: pool},
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        time.Minute,
	}
	t.ca, t.set = ca, true
	return nil
}

// maxSecret bounds a file that holds a token or a secret.
const maxSecret = 64 << 10

// readToken reads the token as it is now.
func readToken(c Config) (string, error) {
	var token string
	var err error
	if c.TokenFile != "" {
		token, err = readSecret(c.TokenFile)
	} else {
		token, err = c.Token()
	}
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	// Tokens of the three forges have no colon; a file for Git may name a user.
	if _, after, ok := strings.Cut(token, ":"); ok {
		token = after
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r > unicode.MaxASCII || unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "", errors.New("read the token: it is empty, or not one word of ASCII")
	}
	return token, nil
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("%s: longer than %d bytes", path, maxSecret)
	}
	return strings.TrimSpace(string(b)), err
}
