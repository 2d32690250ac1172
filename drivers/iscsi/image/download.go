package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"reconciler/spec"
)

func redirects(req *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return errors.New("more than 5 redirects")
	}
	if s := req.URL.Scheme; s != "http" && s != "https" {
		return fmt.Errorf("redirect to scheme %q", s)
	}
	return nil
}

// download gets the content to the partial file and verifies it. It goes on
// where an earlier attempt ended; if the result is not the content wanted, the
// file may have changed meanwhile, and it begins anew once.
func (s *Store) download(ctx context.Context, url, partial, sha string, progress Progress) error {
	resumed, err := s.get(ctx, url, partial, progress)
	if err != nil {
		return err
	}
	err = verifyPartial(ctx, partial, sha)
	var mismatch *MismatchError
	if !errors.As(err, &mismatch) {
		return err
	}
	if err := removeIfThere(partial); err != nil {
		return err
	}
	if !resumed {
		return mismatch
	}
	progress("what was fetched before does not fit, beginning anew")
	if _, err := s.get(ctx, url, partial, progress); err != nil {
		return err
	}
	if err = verifyPartial(ctx, partial, sha); errors.As(err, &mismatch) {
		return errors.Join(err, removeIfThere(partial))
	}
	return err
}

func verifyPartial(ctx context.Context, partial, sha string) error {
	f, err := os.Open(partial)
	if err != nil {
		return err
	}
	defer f.Close()
	return verify(ctx, f, sha)
}

// get appends to the partial file until the server has no more.
func (s *Store) get(ctx context.Context, url, partial string, progress Progress) (resumed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	// Compressed on the way, the bytes would not be those that were hashed, and
	// ranges would mean nothing.
	req.Header.Set("Accept-Encoding", "identity")
	if have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
	}
	pace := s.watchPace(cancel)
	defer pace.timer.Stop()
	resp, err := s.cfg.Client.Do(req)
	if err != nil {
		return false, causeOf(ctx, err)
	}
	defer resp.Body.Close()
	total := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
		if err := f.Truncate(0); err != nil {
			return false, err
		}
		if have, err = f.Seek(0, io.SeekStart); err != nil {
			return false, err
		}
	case http.StatusPartialContent:
		first, ok := rangeStart(resp.Header.Get("Content-Range"))
		if !ok || first != have {
			return false, fmt.Errorf("the server answers with range %q, asked from byte %d", resp.Header.Get("Content-Range"), have)
		}
		resumed = true
		if total >= 0 {
			total += have
		}
	case http.StatusRequestedRangeNotSatisfiable:
		// All of it is here, or it is another file; the hash tells.
		return true, nil
	default:
		return false, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	if total > s.cfg.MaxBytes {
		return false, fmt.Errorf("the image has %d bytes, more than the %d allowed", total, s.cfg.MaxBytes)
	}
	return resumed, s.receive(ctx, f, resp.Body, have, total, pace, progress)
}

// pace ends an attempt whose server is silent, or trickles.
type pace struct {
	timer *time.Timer
	came  atomic.Int64 // bytes since the window began
}

func (s *Store) watchPace(give func(error)) *pace {
	p := &pace{}
	p.timer = time.AfterFunc(s.cfg.Window, func() {
		switch n := p.came.Swap(0); {
		case n == 0:
			give(fmt.Errorf("nothing came for %s", s.cfg.Window))
		case n < s.cfg.MinBytes:
			give(fmt.Errorf("the server is too slow: %d bytes came within %s, at least %d must", n, s.cfg.Window, s.cfg.MinBytes))
		default:
			p.timer.Reset(s.cfg.Window)
		}
	})
	return p
}

func (s *Store) receive(ctx context.Context, f *os.File, body io.Reader, have, total int64, pace *pace, progress Progress) error {
	pace.timer.Reset(s.cfg.Window) // the answer had a window of its own
	buf := make([]byte, 256<<10)
	var said time.Time
	for {
		n, err := body.Read(buf)
		if n > 0 {
			pace.came.Add(int64(n))
			if have += int64(n); have > s.cfg.MaxBytes {
				return errors.Join(fmt.Errorf("the image has more than the %d bytes allowed", s.cfg.MaxBytes), os.Remove(f.Name()))
			}
			if _, err := f.Write(buf[:n]); err != nil {
				return err
			}
			if now := time.Now(); now.Sub(said) > time.Second {
				said = now
				sayFetched(progress, have, total)
			}
		}
		switch {
		case err == io.EOF && total >= 0 && have != total:
			return fmt.Errorf("%d of %d bytes came: %w", have, total, io.ErrUnexpectedEOF)
		case err == io.EOF:
			return nil
		case err != nil:
			return causeOf(ctx, err)
		}
	}
}

func sayFetched(progress Progress, have, total int64) {
	if total <= 0 {
		progress("fetched %d bytes", have)
		return
	}
	progress("fetched %d%% of %s", have*100/total, spec.Size(total))
}

// causeOf says why a context ended a call, where it did.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// rangeStart reads the first byte of a Content-Range (RFC 9110 §14.4).
func rangeStart(s string) (int64, bool) {
	s, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, false
	}
	first, _, ok := strings.Cut(s, "-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(first, 10, 64)
	return n, err == nil && n >= 0
}
