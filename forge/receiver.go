package forge

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of the receiver.
const (
	maxDelivery   = 1 << 20 // bytes of one webhook
	maxDeliveries = 1024    // remembered, against replays
	maxParallel   = 8       // bodies in memory at a time
	wakeInterval  = time.Second
	// replayTime is how long a body counts as seen. It bounds what a replay costs;
	// who has the forge deliver again, after a fetch that failed, is heard.
	replayTime = 10 * time.Second
)

// ReceiverConfig says which webhooks count.
type ReceiverConfig struct {
	// SecretFile holds the secret shared with the forge; read for every webhook.
	SecretFile string
	Kind       Kind   // empty if it is not known
	Repository string // OWNER/NAME, or the path of its address; any if empty
	Branch     string // the repository's default branch if empty
	// Wake is called for a push to the branch, from any goroutine: at most once
	// a second, however many there are. It must not wait.
	Wake func()
	// Failed is told when the secret cannot be read, once until that changes. It
	// may be nil.
	Failed func(error)
}

// Receiver takes the webhooks of Gitea, Forgejo, GitHub and GitLab, and of
// anything that signs its body as GitHub does. All that one can do is to have
// the agent look at the repository.
type Receiver struct {
	cfg   ReceiverConfig
	slots chan struct{}

	mu     sync.Mutex
	seen   map[[sha256.Size]byte]time.Time
	order  [][sha256.Size]byte // of seen, a ring
	oldest int
	woken  time.Time
	timer  *time.Timer // of a wake-up that is put off; nil if there is none
	failed string      // why the secret could not be read, as it was last told
}

// NewReceiver makes a receiver; it reads nothing yet.
func NewReceiver(c ReceiverConfig) (*Receiver, error) {
	if c.SecretFile == "" || c.Wake == nil {
		return nil, errors.New("forge: a receiver needs a secret and somebody to wake")
	}
	return &Receiver{cfg: c, slots: make(chan struct{}, maxParallel), seen: map[[sha256.Size]byte]time.Time{}}, nil
}

// ServeHTTP answers 202 to a push that counts, 200 to one that was seen
// just now, 204 to everything else that is authentic.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	code, text := r.receive(w, req)
	if code == http.StatusNoContent {
		w.WriteHeader(code)
		return
	}
	http.Error(w, text, code)
}

func (r *Receiver) receive(w http.ResponseWriter, req *http.Request) (code int, text string) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return http.StatusMethodNotAllowed, "webhooks come by POST"
	}
	// Strangers are sent away before anything of theirs is read.
	if !signed(req.Header) {
		return http.StatusUnauthorized, "not signed: X-Hub-Signature-256, X-Gitea-Signature or X-Gitlab-Token is missing"
	}
	if kind, _, err := mime.ParseMediaType(req.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return http.StatusUnsupportedMediaType, "the content type must be application/json"
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		w.Header().Set("Retry-After", "1")
		return http.StatusServiceUnavailable, "too many webhooks at a time"
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxDelivery))
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return http.StatusRequestEntityTooLarge, fmt.Sprintf("longer than %d bytes", maxDelivery)
	case err != nil:
		return http.StatusBadRequest, "the body could not be read"
	}
	secret, err := readSecret(r.cfg.SecretFile)
	if err == nil && secret == "" {
		err = fmt.Errorf("%s is empty", r.cfg.SecretFile)
	}
	r.tell(err)
	if err != nil {
		return http.StatusInternalServerError, "the secret cannot be read on this side"
	}
	if !authentic(req.Header, body, secret) {
		return http.StatusUnauthorized, "the signature is wrong"
	}
	push, err := readPush(body)
	switch {
	case err != nil:
		return http.StatusBadRequest, "the body is not JSON as it is expected"
	case !isPush(req.Header) || !push.concerns(r.cfg):
		return http.StatusNoContent, ""
	case !r.fresh(sha256.Sum256(body)):
		return http.StatusOK, "seen before"
	}
	r.wake()
	return http.StatusAccepted, "thank you"
}

// tell reports that the secret cannot be read, once: strangers call as often as
// they like.
func (r *Receiver) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.mu.Lock()
	news := text != r.failed
	r.failed = text
	r.mu.Unlock()
	if news && err != nil && r.cfg.Failed != nil {
		r.cfg.Failed(fmt.Errorf("read the webhook's secret: %w", err))
	}
}

// signatures are the headers with an HMAC-SHA256 of the body in hexadecimal.
var signatures = []string{"X-Hub-Signature-256", "X-Gitea-Signature", "X-Forgejo-Signature"}

const gitlabToken = "X-Gitlab-Token"

func signed(h http.Header) bool {
	for _, name := range signatures {
		if h.Get(name) != "" {
			return true
		}
	}
	return h.Get(gitlabToken) != ""
}

// authentic says whether the sender knows the secret. GitLab sends the secret
// itself. The time taken tells nothing of what was expected.
func authentic(h http.Header, body []byte, secret string) bool {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	want := mac.Sum(nil)
	for _, name := range signatures {
		got, err := hex.DecodeString(strings.TrimPrefix(h.Get(name), "sha256="))
		if err == nil && hmac.Equal(got, want) {
			return true
		}
	}
	a, b := sha256.Sum256([]byte(h.Get(gitlabToken))), sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// isPush goes by the header that names the event, where there is one. It is
// not signed: the body decides on its own, too.
func isPush(h http.Header) bool {
	for name, push := range map[string][]string{
		"X-GitHub-Event": {"push"}, "X-Gitea-Event": {"push"}, "X-Forgejo-Event": {"push"},
		"X-Gitlab-Event": {"Push Hook", "System Hook"},
	} {
		if event := h.Get(name); event != "" && !slices.Contains(push, event) {
			return false
		}
	}
	return true
}

// fresh says whether a body was not seen lately, and remembers it. It goes by
// the body, because that is signed; the id of a delivery is not.
func (r *Receiver) fresh(body [sha256.Size]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, known := r.seen[body]
	if known && time.Since(at) < replayTime {
		return false
	}
	r.seen[body] = time.Now()
	if known {
		return true
	}
	if len(r.order) < maxDeliveries {
		r.order = append(r.order, body)
		return true
	}
	delete(r.seen, r.order[r.oldest])
	r.order[r.oldest] = body
	r.oldest = (r.oldest + 1) % maxDeliveries
	return true
}

// wake wakes now, or once at the end of the interval since the last time.
func (r *Receiver) wake() {
	r.mu.Lock()
	wait := wakeInterval - time.Since(r.woken)
	switch {
	case r.timer != nil:
		wait = wakeInterval
	case wait <= 0:
		r.woken = time.Now()
	default:
		r.timer = time.AfterFunc(wait, func() {
			r.mu.Lock()
			r.timer, r.woken = nil, time.Now()
			r.mu.Unlock()
			r.cfg.Wake()
		})
	}
	r.mu.Unlock()
	if wait <= 0 {
		r.cfg.Wake()
	}
}
