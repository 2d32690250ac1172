package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"os"
	"time"

	"reconciler/status"
)

func processID() int { return os.Getpid() }

// published is what the status ref was last known to hold.
type published struct {
	digest [sha256.Size]byte
	at     time.Time
	failed bool // said once, not with every pass
}

// publishTimeout bounds the push of a report: the host goes on without it.
const publishTimeout = 30 * time.Second

// publish writes the status ref when the report differs from the last, and as
// a heartbeat.
func (a *Agent) publish(ctx context.Context) {
	a.mu.Lock()
	now := a.cfg.Now()
	host, objects := a.host, a.objects
	recorded := status.Record(a.name(), a.mem.Cluster, cmp.Or(a.mem.Good, a.mem.Witnessed), a.have, a.base, now)
	last := a.published
	// The report that is there may be all that tells what was in force.
	unread := a.mem.Good == "" && !a.witnessed
	a.mu.Unlock()

	digest, err := status.Digest(host, objects, recorded)
	nothing := host.Host == "" || err == nil && digest == last.digest && now.Sub(last.at) < a.cfg.Heartbeat
	if nothing || unread || ctx.Err() != nil {
		return
	}
	files, ferr := status.Files(host, objects, recorded)
	if err == nil {
		err = ferr
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, publishTimeout)
		defer cancel()
		opts := a.pushOptions()
		opts.Replaces = a.foreignTip
		err = a.cfg.Source.Publish(ctx, a.cfg.StatusRef+a.name(), "status of "+a.name()+" at "+short(host.LastAppliedRevision), files, opts)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		err = a.usedKey()
	}
	if err != nil {
		if !last.failed {
			a.log.Warn("the status could not be written to the repository; tried again with every pass", "error", err)
			a.events.warn("", "StatusNotWritten", err.Error())
		}
		a.published.failed = true
		return
	}
	a.published = published{digest: digest, at: now}
}
