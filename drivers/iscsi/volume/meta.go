package volume

import (
	"time"

	"reconciler/deadline"
	"reconciler/reconcile"
	"reconciler/spec"
)

// State of a volume's record.
type State string

// A volume is Ready from the moment all of its content is on stable storage.
// Creating and Purging mark what a crash interrupted: what was never Ready was
// never served and is thrown away, what was being purged is purged.
const (
	Creating State = "Creating"
	Ready    State = "Ready"
	Purging  State = "Purging"
)

// Meta is the durable record of a volume, UID.json beside UID.img.
type Meta struct {
	State State  `json:"state"`
	UID   string `json:"uid"`
	// ID is random and made with the volume. It tells it from another volume of
	// the same disk, such as one that a mounted file system hides. Earlier builds
	// made none.
	ID          string `json:"id,omitempty"`
	Name        string `json:"name"`
	Incarnation int    `json:"incarnation,omitempty"`
	Cluster     string `json:"cluster"`
	Pool        string `json:"pool"`   // UID
	Target      string `json:"target"` // IQN
	Size        int64  `json:"size"`   // bytes, as last asked for; the file's own size decides
	// Source is the SHA-256 of the image the volume was made from; empty for a blank one.
	Source string `json:"source,omitempty"`
	// Fields are the fields of the spec in force, sorted by path: also those of
	// its protection, whatever the tree says meanwhile.
	Fields     []reconcile.Field `json:"fields"`
	Created    time.Time         `json:"created"`
	Written    time.Time         `json:"written"` // when it was made or, in quarantine, last in use
	Quarantine *Quarantine       `json:"quarantine,omitempty"`
}

// Protection is what the fields say becomes of the volume when it is removed.
// Where one says nothing that can be read, it is kept for the default time.
func (m *Meta) Protection() (policy string, retention time.Duration) {
	policy, retention = spec.DeletionRetain, time.Duration(spec.DefaultRetention)
	for _, f := range m.Fields {
		switch f.Path {
		case "spec.deletionPolicy":
			if f.Value == spec.DeletionDelete {
				policy = f.Value
			}
		case "spec.retention":
			var d spec.Duration
			if d.UnmarshalText([]byte(f.Value)) == nil {
				retention = time.Duration(d)
			}
		}
	}
	return policy, retention
}

// Quarantine is how long a removed disk can still be brought back.
type Quarantine struct {
	Since time.Time `json:"since"`
	// Deadline must have passed by both clocks: a wrong one, or a year in storage,
	// must not end a quarantine. Zero keeps the volume; else it is only ever moved
	// later.
	deadline.Deadline
}

// Uptime is the monotonic clock of one boot.
type Uptime struct {
	BootID string
	Up     time.Duration
}

func (u Uptime) at(now time.Time) deadline.Clock {
	return deadline.Clock{Now: now, BootID: u.BootID, Up: u.Up}
}

// NewQuarantine begins a quarantine. With no retention it has passed at once.
func NewQuarantine(now time.Time, retention time.Duration, u Uptime) *Quarantine {
	return &Quarantine{Since: now, Deadline: deadline.In(u.at(now), retention)}
}

// Lengthen moves the deadline to since+retention, if that is later. It reports
// whether anything changed.
func (q *Quarantine) Lengthen(retention time.Duration) bool {
	until := q.Since.Add(retention)
	if q.Until.IsZero() || !until.After(q.Until) {
		return false
	}
	q.Until = until
	q.Needed = max(q.Needed, retention)
	return true
}

// Keep takes the deadline away.
func (q *Quarantine) Keep() { q.Until = time.Time{} }

// Elapsed says whether wall clock and accumulated uptime have both passed. A
// wall clock that is behind delays it for as long as it is: nothing is lost by that.
func (q *Quarantine) Elapsed(now time.Time, u Uptime) bool {
	return !q.Until.IsZero() && !now.Before(q.Until) && q.UpFor(u.at(now)) >= q.Needed
}

// Account brings the uptime forward and reports whether that is worth writing.
func (q *Quarantine) Account(u Uptime) bool { return q.Deadline.Account(u.at(time.Time{})) }
