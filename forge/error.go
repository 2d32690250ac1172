package forge

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Error is a call to the forge that failed. Its text holds no token, also
// where the forge sends ours back.
type Error struct {
	Kind       Kind
	Op         string        // what was to be done, in words
	Code       int           // HTTP status of the last answer; 0 if there was none
	RetryAfter time.Duration // how long the forge asks us to stay away; 0 if it does not. An hour at most
	Message    string        // of the forge, one line; or why there is no answer
	Err        error         // why there is no usable answer; nil where the forge refused

	temporary bool
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %s", e.Kind, e.Op)
	if e.Err != nil {
		return s + ": " + e.Message
	}
	s += fmt.Sprintf(": %d %s", e.Code, http.StatusText(e.Code))
	if e.Message != "" {
		s += ": " + e.Message
	}
	switch {
	case e.RetryAfter > 0:
		s += fmt.Sprintf(" (again after %s)", e.RetryAfter.Round(time.Second))
	case e.Code == http.StatusUnauthorized:
		s += " (the token is not accepted)"
	case e.Code == http.StatusForbidden:
		s += " (the token may not do this)"
	case e.Code == http.StatusNotFound:
		s += " (it is not there, or the token may not see it)"
	}
	return s
}

// Unwrap returns why there is no usable answer.
func (e *Error) Unwrap() error { return e.Err }

// Temporary says that the same call may succeed later on without anybody's
// doing: no answer, a rate limit, an error of the server's own.
func (e *Error) Temporary() bool { return e.temporary }

// do runs one operation: with the token and the certificates as they are now,
// within the timeout.
func (f *Forge) do(ctx context.Context, op string, call func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	token, err := readToken(f.cfg)
	if err == nil {
		err = f.net.trust(f.cfg.CAFile)
	}
	if err != nil {
		return &Error{Kind: f.cfg.Kind, Op: op, Message: err.Error(), Err: err}
	}
	last := &answer{token: token}
	defer func() {
		// A library that trips over an odd answer must not end the agent.
		if r := recover(); r != nil {
			err = f.explain(op, last, fmt.Errorf("%v", r))
		}
	}()
	if err := call(context.WithValue(ctx, answerKey{}, last)); err != nil {
		return f.explain(op, last, err)
	}
	return nil
}

// explain makes an Error of what a client library returned, going by what the
// transport saw.
func (f *Forge) explain(op string, last *answer, err error) *Error {
	e := &Error{Kind: f.cfg.Kind, Op: op, Code: last.code, RetryAfter: last.retryAfter}
	if last.code >= 400 {
		e.Message = last.message
		e.temporary = last.code >= 500 || last.code == http.StatusTooManyRequests || last.code == http.StatusRequestTimeout || e.RetryAfter > 0
		return e
	}
	// *url.Error repeats the address, and has a text of its own for a deadline.
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	e.Message, e.Err = oneLine(last.redact(err.Error())), safe(err)
	var certificate *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		e.Message, e.temporary = fmt.Sprintf("no answer within %s", f.cfg.Timeout), true
	case errors.As(err, &certificate):
		e.Message += " (are its certificates in the CA file?)"
	case errors.Is(err, errElsewhere), errors.Is(err, context.Canceled):
	case last.code == 0, errors.Is(err, io.ErrUnexpectedEOF):
		e.temporary = true
	default:
		e.Message = "the answer is not one of its API: " + e.Message
	}
	return e
}

// safe keeps of an error what callers branch on, and nothing that a server may
// have put into it.
func safe(err error) error {
	var certificate *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, errElsewhere):
		return errElsewhere
	case errors.Is(err, errTooLong):
		return errTooLong
	case errors.As(err, &certificate):
		return certificate
	case errors.As(err, &op):
		return op
	}
	return errUnusable
}

// What else may be wrong with an answer.
var (
	errElsewhere = errors.New("redirected to another address")
	errTooLong   = errors.New("the answer is too long")
	errUnusable  = errors.New("no usable answer")
)

const messageLimit = 500

func oneLine(s string) string { return cut(s, messageLimit) }

// messageOf finds what an API says in the body of an error: {"message": …} or
// {"error": …}, in GitHub's case with a list of errors, in GitLab's with a
// message of any shape.
func messageOf(body []byte) string {
	var in struct {
		Message json.RawMessage `json:"message"`
		Error   json.RawMessage `json:"error"`
		Errors  []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &in) != nil && len(in.Message) == 0 {
		return ""
	}
	raw := in.Message
	if len(raw) == 0 {
		raw = in.Error
	}
	var message string
	if json.Unmarshal(raw, &message) != nil {
		message = string(raw)
	}
	for _, e := range in.Errors {
		if e.Message != "" {
			message += ": " + e.Message
		}
	}
	return message
}

// maxRetryAfter bounds how long a forge can keep us away.
const maxRetryAfter = time.Hour

// retryAfter is how long an answer asks to stay away: Retry-After (RFC 9110,
// section 10.2.3), or the time at which a used-up limit is filled again.
func retryAfter(code int, h http.Header, message string) time.Duration {
	if code != http.StatusForbidden && code != http.StatusTooManyRequests && code != http.StatusServiceUnavailable {
		return 0
	}
	now := time.Now()
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		now = at // the forge's clock is the one its limits go by
	}
	wait := time.Duration(0)
	if v := h.Get("Retry-After"); v != "" {
		if at, err := http.ParseTime(v); err == nil {
			wait = at.Sub(now)
		} else if n, err := strconv.ParseUint(v, 10, 31); err == nil {
			wait = time.Duration(n) * time.Second
		}
	}
	for _, prefix := range []string{"X-RateLimit-", "RateLimit-"} { // GitHub's, GitLab's
		n, err := strconv.ParseInt(h.Get(prefix+"Reset"), 10, 64)
		if wait == 0 && err == nil && h.Get(prefix+"Remaining") == "0" {
			wait = time.Unix(n, 0).Sub(now)
		}
	}
	// GitHub's limit on bursts may come without a time; it asks for a minute.
	if wait <= 0 && (code == http.StatusTooManyRequests || strings.Contains(message, "rate limit")) {
		wait = time.Minute
	}
	return min(max(wait, 0), maxRetryAfter)
}
