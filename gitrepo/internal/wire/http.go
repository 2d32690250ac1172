package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const infoRefs = "/info/refs"

type httpRemote struct {
	client    *http.Client
	url       string // without credentials
	user      string
	password  string // from the URL, if there is no token file
	tokenFile string
}

func newHTTP(o Options) (*Remote, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" {
		// url.Parse quotes its input, credentials and all.
		return nil, errors.New("malformed repository URL")
	}
	h := &httpRemote{tokenFile: o.TokenFile}
	if u.User != nil {
		h.user = u.User.Username()
		h.password, _ = u.User.Password()
	}
	h.url = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}).String()
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // packs are compressed; a bomb in gzip is not ours to open
		MaxIdleConns:           2,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if o.CAFile != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("caFile: %s: no PEM certificate", o.CAFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	h.client = &http.Client{Transport: t, CheckRedirect: checkRedirect}
	return &Remote{dial: h.dial}, nil
}

// checkRedirect follows the first request only, on the same host, and never down
// to clear text: credentials go along.
func checkRedirect(req *http.Request, via []*http.Request) error {
	from := via[0].URL
	switch {
	case len(via) > 5:
		return fmt.Errorf("%w: too many redirects", ErrProtocol)
	case req.Method != http.MethodGet || via[0].Method != http.MethodGet:
		return fmt.Errorf("%w: redirect of a %s", ErrProtocol, via[0].Method)
	case from.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("%w: redirect from https to %s", ErrProtocol, clean(req.URL.Scheme))
	case req.URL.Hostname() != from.Hostname(), req.URL.Scheme == from.Scheme && req.URL.Port() != from.Port():
		return fmt.Errorf("%w: redirect to another host, %s (set the repository URL to it)", ErrProtocol, clean(req.URL.Host))
	}
	return nil
}

type httpConn struct {
	remote  *httpRemote
	service Service
	base    string
	first   io.ReadCloser
}

func (h *httpRemote) dial(ctx context.Context, service Service) (conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url+infoRefs+"?service="+string(service), nil)
	if err != nil {
		return nil, errors.New("malformed repository URL")
	}
	resp, err := h.do(req)
	if err != nil {
		return nil, err
	}
	base, ok := strings.CutSuffix(resp.Request.URL.Path, infoRefs)
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")) // a proxy may add a charset
	if want := "application/x-" + string(service) + "-advertisement"; !ok || err != nil || kind != want {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: content type %q, not Git's smart protocol (is the URL that of a repository?)", ErrProtocol, clean(resp.Header.Get("Content-Type")))
	}
	u := url.URL{Scheme: resp.Request.URL.Scheme, Host: resp.Request.URL.Host, Path: base}
	return &httpConn{remote: h, service: service, base: u.String(), first: resp.Body}, nil
}

// do sends a request with credentials and turns every answer but 200 into an error.
func (h *httpRemote) do(req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", "git/2 "+agent)
	user, password := h.user, h.password
	if h.tokenFile != "" {
		b, err := os.ReadFile(h.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrAuth, err)
		}
		password = strings.TrimSpace(string(b))
		if name, token, ok := strings.Cut(password, ":"); ok {
			user, password = name, token
		}
		if password == "" {
			return nil, fmt.Errorf("%w: %s is empty", ErrAuth, h.tokenFile)
		}
	}
	if password != "" || user != "" {
		if user == "" {
			user = "x-access-token"
		}
		req.SetBasicAuth(user, password)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return nil, httpError(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, statusError(resp)
}

func httpError(err error) error {
	// *url.Error repeats the URL; ours names it where it is reported.
	var uerr *url.Error
	if errors.As(err, &uerr) {
		err = uerr.Err
	}
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, ErrProtocol):
		return err
	case errors.As(err, &cert):
		return fmt.Errorf("%w: %s", ErrCertificate, clean(cert.Err.Error()))
	}
	return fmt.Errorf("%w: %s", ErrUnreachable, clean(err.Error()))
}

func statusError(resp *http.Response) error {
	kind, hint := ErrProtocol, ""
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusProxyAuthRequired:
		kind, hint = ErrAuth, "check the token"
	case code == http.StatusForbidden:
		kind, hint = ErrAuth, "the token may not do this"
	case code == http.StatusNotFound, code == http.StatusGone:
		kind, hint = ErrRepositoryMissing, "or the token may not see it"
	case code == http.StatusTooManyRequests, code >= 500:
		kind = ErrUnreachable
		if after := resp.Header.Get("Retry-After"); after != "" {
			hint = "retry after " + clean(after)
		}
	}
	if hint != "" {
		hint = " (" + hint + ")"
	}
	return fmt.Errorf("%w: HTTP %d %s%s", kind, resp.StatusCode, http.StatusText(resp.StatusCode), hint)
}

func (c *httpConn) advertisement() io.Reader { return c.first }
func (c *httpConn) failure() string          { return "" }
func (c *httpConn) close()                   { c.first.Close() }

func (c *httpConn) request(ctx context.Context, body []byte) (io.ReadCloser, error) {
	// Read to its end, so that the connection can be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(c.first, 64<<10))
	c.first.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/"+string(c.service), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: redirected to a malformed URL", ErrProtocol)
	}
	req.Header.Set("Content-Type", "application/x-"+string(c.service)+"-request")
	req.Header.Set("Accept", "application/x-"+string(c.service)+"-result")
	resp, err := c.remote.do(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
