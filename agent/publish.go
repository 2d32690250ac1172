package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"sync"
	"time"

	"reconciler/status"
)

func processID() int { return os.Getpid() }

// published is what the status ref was last known to hold.
type published struct {
	digest [sha256.Size]byte
	at     time.Time
}

// report is one that is on its way to the status ref.
type report struct {
	published
	ref     string
	message string
	files   map[string][]byte
}

// publishTimeout bounds the push of a report: the host goes on without it.
const publishTimeout = 30 * time.Second

// offerReport hands over the report when it differs from the last, and as a
// heartbeat. It waits for nobody.
func (a *Agent) offerReport() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	// The report that is there may be all that tells what was in force.
	// Nor does a machine report that may not be the host.
	if a.host.Host == "" || a.mem.Good == "" && !a.witnessed || a.double() != "" {
		return
	}
	recorded := status.Record(a.name(), a.mem.Cluster, cmp.Or(a.mem.Good, a.mem.Witnessed), a.have, a.base, now)
	recorded.Machine, recorded.Instance = a.cfg.Machine, a.instance
	digest, err := status.Digest(a.host, a.objects, recorded)
	if err == nil && digest == a.published.digest && now.Sub(a.published.at) < a.cfg.Heartbeat {
		a.outbox = nil
		return
	}
	files, ferr := status.Files(a.host, a.objects, recorded)
	if err := errors.Join(err, ferr); err != nil {
		a.log.Error("the status cannot be written down", "error", err)
		return
	}
	a.outbox = &report{published{digest, now}, a.cfg.StatusRef + a.name(), "status of " + a.name() + " at " + short(a.host.LastAppliedRevision), files}
	if a.contact { // the repository answers: what failed may do now
		a.publisher.next = time.Time{}
	}
	a.publisher.wake()
}

// publisher writes reports to the status ref: the newest replaces what was not
// written yet.
type publisher struct {
	courier // guarded by a.mu, but for its channel
	a       *Agent
	busy    sync.Mutex // held while one is written
}

func (p *publisher) due(now time.Time) (wait time.Duration, ok bool) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	return max(p.next.Sub(now), 0), p.a.outbox != nil
}

func (p *publisher) carryOut(ctx context.Context) bool {
	p.busy.Lock()
	defer p.busy.Unlock()
	a := p.a
	a.mu.Lock()
	r := a.outbox
	if a.double() != "" {
		a.outbox, r = nil, nil
	}
	a.mu.Unlock()
	if r == nil {
		return true
	}
	opts := a.pushOptions()
	opts.Replaces, opts.Intend = a.foreignTip, a.intend
	push, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	err := a.cfg.Source.Publish(push, r.ref, r.message, r.files, opts)
	if err != nil && ctx.Err() != nil {
		return false
	}
	if errors.Is(err, errDouble) {
		a.wake(trigger{why: "another machine reports as this host"})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.pushed = true
		err = a.usedKey()
	}
	if err == nil && a.mem.Takeover {
		err = a.keep(func(m *memory) { m.Takeover = false })
	}
	if err != nil {
		if p.pause(time.Now(), err) {
			a.log.Warn("the status could not be written to the repository; tried again", "error", err)
			a.events.warn("", "StatusNotWritten", err.Error())
		}
		return false
	}
	p.resume()
	a.published = r.published
	if a.outbox == r {
		a.outbox = nil
	}
	return true
}
