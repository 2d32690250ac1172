package agent

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
)

// journal keeps the events: the newest in memory, and on disk for audit. What
// operators asked for has a file of its own, which nothing that repeats by itself
// can crowd out of it.
type journal struct {
	now func() time.Time

	mu     sync.Mutex
	events *eventFile
	audits *eventFile
	seq    uint64
	more   chan struct{} // closed and made anew with every event
}

// Names of the journal's files.
const (
	eventsFile = "events.jsonl"
	auditFile  = "audit.jsonl"
)

// openJournal reads the journal in a directory. The first builds kept audits
// among the events: they are moved.
func openJournal(dir string, now func() time.Time) (*journal, error) {
	j := &journal{now: now, more: make(chan struct{})}
	var err error
	if j.audits, err = openEvents(dir, auditFile, 8<<20); err != nil {
		return nil, err
	}
	j.audits.careful = true
	if j.events, err = openEvents(dir, eventsFile, 4<<20); err != nil {
		return nil, err
	}
	last := j.audits.last()
	isAudit := func(e api.Event) bool { return e.Type == typeAudit }
	if old := slices.DeleteFunc(slices.Clone(j.events.list), func(e api.Event) bool { return !isAudit(e) }); len(old) > 0 {
		// Those that a crash kept from being taken out of the events are here already.
		old = slices.DeleteFunc(old, func(e api.Event) bool { return e.Seq <= last })
		if err := j.audits.replace(append(j.audits.list, old...)); err != nil {
			return nil, err
		}
		if err := j.events.replace(slices.DeleteFunc(j.events.list, isAudit)); err != nil {
			return nil, err
		}
	}
	j.seq = max(j.audits.last(), j.events.last())
	return j, nil
}

const typeAudit = "Audit"

func (j *journal) normal(object, reason, message string) {
	j.add(api.Event{Type: "Normal", Object: object, Reason: reason, Message: message})
}

func (j *journal) warn(object, reason, message string) {
	j.add(api.Event{Type: "Warning", Object: object, Reason: reason, Message: message})
}

func (j *journal) audit(object, reason, message, by string) {
	j.add(api.Event{Type: typeAudit, Object: object, Reason: reason, Message: message, By: by})
}

// did is normal for an action that was carried out.
func (j *journal) did(act *reconcile.Action, revision, reason, message string) {
	j.add(api.Event{Type: "Normal", Object: objectName(act), Reason: reason, Message: message, Action: eventAction(act, revision)})
}

// failed is warn for an action.
func (j *journal) failed(act *reconcile.Action, revision, message string) {
	j.add(api.Event{Type: "Warning", Object: objectName(act), Reason: "Failed", Message: message, Action: eventAction(act, revision)})
}

// eventAction counts the impact of what is carried out, not of what waits.
func eventAction(act *reconcile.Action, revision string) *api.EventAction {
	impact := act.Impact
	if act.Op == reconcile.OpUpdate {
		impact = reconcile.ImpactNone
		for _, c := range act.Changes {
			if c.Waits == "" {
				impact = max(impact, c.Impact)
			}
		}
	}
	return &api.EventAction{ID: act.ID, Op: act.Op, Cause: act.Cause, Impact: impact, Revision: revision}
}

// add writes an event. A full disk must not stop the agent: the event is then
// in memory, and written with a later one.
func (j *journal) add(e api.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	e.Seq, e.Time, e.Message = j.seq, j.now().UTC(), bounded(e.Message)
	if e.Type == typeAudit {
		j.audits.add(e)
	} else {
		j.events.add(e)
	}
	close(j.more)
	j.more = make(chan struct{})
}

// after returns the events after a sequence number; it waits for one where
// there is none and follow is set. A number that is still to come is of a
// journal that was lost: all events are after it.
func (j *journal) after(ctx context.Context, seq uint64, follow bool) ([]api.Event, error) {
	for {
		j.mu.Lock()
		if seq > j.seq {
			seq = 0
		}
		var list []api.Event
		for _, f := range []*eventFile{j.events, j.audits} {
			for _, e := range f.list {
				if e.Seq > seq {
					list = append(list, e)
				}
			}
		}
		slices.SortFunc(list, func(a, b api.Event) int { return cmp.Compare(a.Seq, b.Seq) })
		more := j.more
		j.mu.Unlock()
		if len(list) > 0 || !follow {
			return list, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
