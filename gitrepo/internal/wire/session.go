package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
)

// Service is the program at the other end.
type Service string

const (
	UploadPack  Service = "git-upload-pack"
	ReceivePack Service = "git-receive-pack"
)

const (
	agent = "reconciler"
	// maxAdvertisement bounds the list of refs: a quarter of a million of them.
	maxAdvertisement = 16 << 20
	maxReport        = 1 << 20
)

// Options say how to reach a remote.
type Options struct {
	URL        string
	TokenFile  string
	SSHKeyFile string
	KnownHosts string
	CAFile     string
}

// Remote is a repository on a server.
type Remote struct {
	dial func(context.Context, Service) (conn, error)
}

// conn is one conversation with a service.
type conn interface {
	// advertisement is what the service says first.
	advertisement() io.Reader
	// request sends a whole request and returns the answer.
	request(ctx context.Context, body []byte) (io.ReadCloser, error)
	// failure is what the service complained of outside of the protocol, if anything.
	failure() string
	close()
}

// New checks the options and prepares a remote; it does not connect.
func New(o Options) (*Remote, error) {
	switch {
	case strings.HasPrefix(o.URL, "http://"), strings.HasPrefix(o.URL, "https://"):
		return newHTTP(o)
	case strings.HasPrefix(o.URL, "ssh://"), !strings.Contains(o.URL, "://"):
		return newSSH(o)
	}
	scheme, _, _ := strings.Cut(o.URL, "://")
	return nil, fmt.Errorf("scheme %q is not supported (file, http, https, ssh)", scheme)
}

// Session is a conversation after the advertisement.
type Session struct {
	c    conn
	refs *packp.AdvRefs
}

// Open connects and reads the advertisement. ctx bounds the whole session.
func (r *Remote) Open(ctx context.Context, service Service) (*Session, error) {
	c, err := r.dial(ctx, service)
	if err != nil {
		return nil, err
	}
	s := &Session{c: c, refs: packp.NewAdvRefs()}
	if err := s.advertised(); err != nil {
		c.close()
		return nil, err
	}
	return s, nil
}

func (s *Session) advertised() error {
	in := &bounded{r: s.c.advertisement(), left: maxAdvertisement}
	err := s.refs.Decode(in)
	var line *pktline.ErrorLine
	switch {
	case err == nil, errors.Is(err, packp.ErrEmptyAdvRefs):
	case in.err != nil:
		return in.err
	case errors.As(err, &line):
		return fmt.Errorf("%w: %s", refusal(line.Text), clean(line.Text))
	default:
		if said := s.c.failure(); said != "" {
			return fmt.Errorf("%w: %s", refusal(said), clean(said))
		}
		return fmt.Errorf("%w: no list of refs: %s", ErrProtocol, clean(err.Error()))
	}
	for _, format := range s.refs.Capabilities.Get(capability.Capability("object-format")) {
		if format != "sha1" {
			return fmt.Errorf("%w: object format %s is not supported", ErrProtocol, clean(format))
		}
	}
	return nil
}

// Ref looks up a full ref name, or HEAD.
func (s *Session) Ref(name string) (plumbing.Hash, bool) {
	if name == "HEAD" {
		if s.refs.Head != nil {
			return *s.refs.Head, true
		}
		return plumbing.Hash{}, false
	}
	h, ok := s.refs.References[name]
	return h, ok
}

// Names are the full names of the refs.
func (s *Session) Names() []string { return slices.Collect(maps.Keys(s.refs.References)) }

// Peeled is the commit an annotated tag points to.
func (s *Session) Peeled(name string) (plumbing.Hash, bool) {
	h, ok := s.refs.Peeled[name]
	return h, ok
}

// Close ends the conversation.
func (s *Session) Close() { s.c.close() }

// Fetch asks for a commit with all it needs, less what the haves need, and gives
// the pack to receive as it comes. Deltas may be against objects of the haves.
func (s *Session) Fetch(ctx context.Context, want plumbing.Hash, haves []plumbing.Hash, receive func(io.Reader) error) error {
	var body bytes.Buffer
	e := pktline.NewEncoder(&body)
	caps := []string{}
	for _, c := range []capability.Capability{capability.OFSDelta, capability.ThinPack, capability.NoProgress, capability.Sideband64k} {
		if s.refs.Capabilities.Supports(c) {
			caps = append(caps, string(c))
		}
	}
	if s.refs.Capabilities.Supports(capability.Agent) {
		caps = append(caps, "agent="+agent)
	}
	err := e.Encodef("want %s %s\n", want, strings.Join(caps, " "))
	err = errors.Join(err, e.Flush())
	for _, h := range haves {
		err = errors.Join(err, e.Encodef("have %s\n", h))
	}
	if err = errors.Join(err, e.Encodef("done\n")); err != nil {
		return err
	}
	answer, err := s.c.request(ctx, body.Bytes())
	if err != nil {
		return err
	}
	defer answer.Close()
	in := &bounded{r: answer, left: 1 << 62}
	br := bufio.NewReaderSize(in, 64<<10)
	if err := acknowledged(br); err != nil {
		return s.explain(in, err)
	}
	var pack io.Reader = br
	if s.refs.Capabilities.Supports(capability.Sideband64k) {
		pack = sideband.NewDemuxer(sideband.Sideband64k, br)
	}
	return s.explain(in, receive(pack))
}

// acknowledged reads what precedes the pack: without multi_ack that is a NAK, or
// an ACK for the first common commit and another after "done"
// (gitprotocol-pack(5)).
func acknowledged(br *bufio.Reader) error {
	for n := 0; ; n++ {
		if next, err := br.Peek(8); n > 0 && (err != nil || string(next[4:7]) != "ACK" && string(next[4:7]) != "NAK") {
			return nil
		}
		line, err := packetLine(br)
		if err != nil {
			return err
		}
		switch word, rest, _ := strings.Cut(line, " "); word {
		case "ACK", "NAK":
		case "ERR":
			return fmt.Errorf("%w: %s", refusal(rest), clean(rest))
		default:
			return fmt.Errorf("%w: %q instead of ACK", ErrProtocol, clean(line))
		}
	}
}

// explain prefers the connection's own failure, and then the server's words, to
// the error that followed from them.
func (s *Session) explain(in *bounded, err error) error {
	if err == nil {
		return nil
	}
	if in.err != nil {
		return in.err
	}
	if said := s.c.failure(); said != "" {
		return fmt.Errorf("%w (remote: %s)", err, clean(said))
	}
	return err
}

// packetLine reads one packet byte-exactly.
func packetLine(r io.Reader) (string, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", fmt.Errorf("%w: the answer ends early", ErrProtocol)
	}
	n := 0
	if _, err := fmt.Sscanf(string(head[:]), "%04x", &n); err != nil || n < 4 || n > 65520 {
		return "", fmt.Errorf("%w: malformed packet", ErrProtocol)
	}
	b := make([]byte, n-4)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", fmt.Errorf("%w: the answer ends early", ErrProtocol)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// Push sends a pack and moves a ref from old (zero: create) to new; the server
// compares old.
func (s *Session) Push(ctx context.Context, name string, old, new plumbing.Hash, pack []byte) error {
	return s.update(ctx, &packp.Command{Name: plumbing.ReferenceName(name), Old: old, New: new}, pack)
}

// Delete removes a ref that is at old; the server compares that.
func (s *Session) Delete(ctx context.Context, name string, old plumbing.Hash) error {
	if !s.refs.Capabilities.Supports(capability.DeleteRefs) {
		return fmt.Errorf("%w: the server does not let refs be removed", ErrRejected)
	}
	return s.update(ctx, &packp.Command{Name: plumbing.ReferenceName(name), Old: old}, nil)
}

func (s *Session) update(ctx context.Context, command *packp.Command, pack []byte) error {
	if !s.refs.Capabilities.Supports(capability.ReportStatus) {
		return fmt.Errorf("%w: the server does not report what became of a push", ErrProtocol)
	}
	req := packp.NewReferenceUpdateRequest()
	for c, v := range map[capability.Capability][]string{capability.ReportStatus: nil, capability.Agent: {agent}} {
		if !s.refs.Capabilities.Supports(c) {
			continue
		}
		if err := req.Capabilities.Set(c, v...); err != nil {
			return err
		}
	}
	req.Commands = []*packp.Command{command}
	if pack != nil {
		req.Packfile = io.NopCloser(bytes.NewReader(pack))
	}
	var body bytes.Buffer
	if err := req.Encode(&body); err != nil {
		return err
	}
	answer, err := s.c.request(ctx, body.Bytes())
	if err != nil {
		return err
	}
	defer answer.Close()
	in := &bounded{r: answer, left: maxReport}
	report := packp.NewReportStatus()
	if err := report.Decode(in); err != nil {
		return s.explain(in, fmt.Errorf("%w: no report on the push: %s", ErrProtocol, clean(err.Error())))
	}
	if report.UnpackStatus != "ok" {
		return fmt.Errorf("%w: %s", ErrRejected, clean(report.UnpackStatus))
	}
	for _, st := range report.CommandStatuses {
		if st.Status != "ok" {
			return fmt.Errorf("%w: %s", refused(st.Status), clean(st.Status))
		}
	}
	return nil
}

// refused tells a lost race from a rule of the server. The words are
// receive-pack's.
func refused(status string) error {
	for _, race := range []string{"stale info", "fetch first", "failed to update ref", "cannot lock ref", "failed to lock", "reference already exists", "is at ", "incorrect old value"} {
		if strings.Contains(status, race) {
			return ErrStale
		}
	}
	return ErrRejected
}

// bounded fails, and remembers why, when the peer sends too much or breaks off.
type bounded struct {
	r    io.Reader
	left int64
	err  error
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.err = fmt.Errorf("%w: too long", ErrProtocol)
		return 0, b.err
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		b.err = fmt.Errorf("%w: %s", ErrUnreachable, clean(err.Error()))
		return n, b.err
	}
	return n, err
}
