package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"reconciler/api"
	"reconciler/internal/durable"
	"reconciler/reconcile"
)

// journal keeps the events: the newest in memory, and on disk for audit.
type journal struct {
	path string
	now  func() time.Time

	mu     sync.Mutex
	file   *os.File
	size   int64
	events []api.Event
	seq    uint64
	more   chan struct{} // closed and made anew with every event
}

// Bounds of the journal.
const (
	journalKeep  = 1000    // events in memory, and left on disk when it is cut
	journalBytes = 1 << 20 // on disk, when it is cut
)

func openJournal(path string, now func() time.Time) (*journal, error) {
	j := &journal{path: path, now: now, more: make(chan struct{})}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e api.Event
		// A line torn by a crash is left out.
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			j.events = append(j.events, e)
			j.seq = max(j.seq, e.Seq)
		}
	}
	j.trim()
	j.file, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil && len(data) > 0 && data[len(data)-1] != '\n' {
		_, err = j.file.WriteString("\n")
	}
	j.size = int64(len(data))
	return j, err
}

func (j *journal) trim() {
	if n := len(j.events) - journalKeep; n > 0 {
		j.events = append([]api.Event(nil), j.events[n:]...)
	}
}

func (j *journal) normal(object, reason, message string) {
	j.add(api.Event{Type: "Normal", Object: object, Reason: reason, Message: message})
}

func (j *journal) warn(object, reason, message string) {
	j.add(api.Event{Type: "Warning", Object: object, Reason: reason, Message: message})
}

func (j *journal) audit(object, reason, message, by string) {
	j.add(api.Event{Type: "Audit", Object: object, Reason: reason, Message: message, By: by})
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
// in memory only.
func (j *journal) add(e api.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	e.Seq, e.Time = j.seq, j.now().UTC()
	j.events = append(j.events, e)
	if len(j.events) > 2*journalKeep {
		j.trim()
	}
	line, _ := json.Marshal(e) // of strings, numbers and a time: cannot fail
	n, _ := j.file.Write(append(line, '\n'))
	j.size += int64(n)
	if j.size > journalBytes {
		j.cut()
	}
	close(j.more)
	j.more = make(chan struct{})
}

// cut replaces the file with what is kept in memory.
func (j *journal) cut() {
	j.trim()
	var b bytes.Buffer
	for _, e := range j.events {
		line, _ := json.Marshal(e)
		b.Write(append(line, '\n'))
	}
	tmp := j.path + ".new"
	if os.WriteFile(tmp, b.Bytes(), 0o600) != nil || os.Rename(tmp, j.path) != nil {
		return
	}
	_ = durable.SyncDir(filepath.Dir(j.path)) // the old file is as good after a crash
	if f, err := os.OpenFile(j.path, os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		_ = j.file.Close()
		j.file, j.size = f, int64(b.Len())
	}
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
		for _, e := range j.events {
			if e.Seq > seq {
				list = append(list, e)
			}
		}
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
