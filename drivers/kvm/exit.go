package kvm

import (
	"os"
	"strings"
	"sync"
	"time"

	"reconciler/deadline"
	"reconciler/internal/uptime"
	"reconciler/reconcile"
)

// reasonOf says how a guest in PowerEnded ended.
func reasonOf(status string) exit {
	switch status {
	case "guest-panicked":
		return exit{Reason: "the guest panicked", Failed: true}
	case "internal-error":
		return exit{Reason: "QEMU stopped the guest after an internal error", Failed: true}
	}
	return exit{Reason: "the guest shut down"}
}

// The back-off of restarts after an end that nobody asked for: doubled from
// first to last, and forgotten after a run of calm.
const (
	backoffFirst = time.Second
	backoffLast  = 5 * time.Minute
	backoffCalm  = 10 * time.Minute
)

// askedFor is how long after its deadline an end still counts as our own.
const askedFor = time.Minute

// end notes how a launch ended, once. An end that was asked for leaves no trace.
func (r *record) end(how exit) bool {
	if r.Exit != nil || r.Intent != "" && how.At.Sub(r.IntentAt) < r.shutdownTimeout()+askedFor {
		return false
	}
	if how.At.Sub(r.Launch.At) >= backoffCalm {
		r.Failures = 0
	}
	wait := backoffLast
	if r.Failures < 9 {
		wait = min(backoffFirst<<r.Failures, backoffLast)
	}
	r.Failures++
	r.Exit, r.Intent = &how, ""
	r.Backoff = deadline.In(clockAt(how.At), wait)
	r.RetryAt = r.Backoff.Until
	return true
}

// settle notes that the process of the recorded launch is gone.
func (d *Driver) settle(m *machine, boot string) error {
	if !m.snapshot().live() {
		return nil
	}
	m.mu.Lock()
	l := m.link
	if l != nil {
		d.awaitEnd(l.proc.pid)
	}
	m.mu.Unlock()
	if l != nil {
		l.lastWords()
	}
	reason := "QEMU ended"
	asked := m.askedFor(m.snapshot().Launch.ID)
	if asked != "" {
		reason = asked
	} else if line := d.lastMessage(m.uid); line != "" {
		reason += ": " + line
	}
	return d.recordIf(m, func(r *record) bool {
		switch {
		case !r.live():
			return false
		case r.Launch.BootID != boot: // the host went down, not the guest
			r.calm()
		case r.Launch.Started:
			r.end(exit{At: time.Now(), Reason: reason, Failed: true, Asked: asked != ""})
		}
		r.Launch.Over = true
		if r.Intent == intentStop {
			r.Intent = ""
		}
		return true
	})
}

// lastMessage is the last line QEMU wrote to stderr, cut to a readable length.
func (d *Driver) lastMessage(uid string) string {
	f, err := os.Open(d.messageLog(uid))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 4096)
	if info, err := f.Stat(); err == nil {
		n, _ := f.ReadAt(b, max(0, info.Size()-int64(len(b)))) // ends with io.EOF
		b = b[:n]
	}
	s := strings.TrimSpace(string(b))
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return s[:min(len(s), 300)]
}

func (r *record) ending(vm *reconcile.LiveVM) {
	if r.Exit != nil {
		vm.Exit, vm.Failed, vm.Asked, vm.RetryAt = r.Exit.Reason, r.Exit.Failed, r.Exit.Asked, r.retryAt(clockAt(time.Now()))
	}
}

// retryAt is when the back-off is over, on the present wall clock; zero if it is.
func (r *record) retryAt(now deadline.Clock) time.Time {
	switch at := r.Backoff; {
	case !at.IsZero() && at.Over(now):
		return time.Time{}
	case !at.IsZero():
		return at.When(now)
	case r.RetryAt.Sub(now.Now) > backoffLast: // written while the clock was ahead
		return time.Time{}
	}
	return r.RetryAt
}

// thisBoot does not change while the process lives.
var thisBoot = sync.OnceValue(func() string {
	id, _ := uptime.Boot() // without one a back-off goes by the wall clock
	return id
})

func clockAt(now time.Time) deadline.Clock {
	return deadline.Clock{Now: now, BootID: thisBoot(), Up: uptime.Up()}
}

// calm forgets how launches ended.
func (r *record) calm() {
	r.Exit, r.Failures, r.RetryAt, r.Backoff = nil, 0, time.Time{}, deadline.Deadline{}
}
