package volume

import (
	"time"

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
	State       State  `json:"state"`
	UID         string `json:"uid"`
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
	// Until is the deadline; zero keeps the volume without one. It is only ever
	// moved later.
	Until time.Time `json:"until,omitzero"`
	// Needed is the time the host must have been up since then: a wrong clock or
	// a year in storage must not end a quarantine.
	Needed time.Duration `json:"needed"`
	// Up is the time it has been up until this boot was first seen at Mark.
	Up     time.Duration `json:"up"`
	BootID string        `json:"bootId"`
	Mark   time.Duration `json:"mark"` // on the monotonic clock of BootID
}

// Uptime is the monotonic clock of one boot.
type Uptime struct {
	BootID string
	Up     time.Duration
}

// NewQuarantine begins a quarantine. With no retention it has passed at once.
func NewQuarantine(now time.Time, retention time.Duration, u Uptime) *Quarantine {
	return &Quarantine{Since: now, Until: now.Add(retention), Needed: retention, BootID: u.BootID, Mark: u.Up}
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

func (q *Quarantine) up(u Uptime) time.Duration {
	if u.BootID != q.BootID || u.Up < q.Mark {
		return q.Up
	}
	return q.Up + u.Up - q.Mark
}

// Elapsed says whether wall clock and accumulated uptime have both passed.
func (q *Quarantine) Elapsed(now time.Time, u Uptime) bool {
	return !q.Until.IsZero() && !now.Before(q.Until) && q.up(u) >= q.Needed
}

// Account brings the uptime forward and reports whether the record is worth
// writing: at a new boot, and whenever a fiftieth of what is needed has been
// gained, at most an hour. What was not written is lost at the next boot, so a
// quarantine can last longer than asked for, never shorter.
func (q *Quarantine) Account(u Uptime) bool {
	gained := q.up(u) - q.Up
	if u.BootID == q.BootID && (gained < min(q.Needed/50+1, time.Hour) || q.Up >= q.Needed) {
		return false
	}
	q.Up += gained
	q.BootID, q.Mark = u.BootID, u.Up
	return true
}
