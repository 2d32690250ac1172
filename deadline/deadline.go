// Package deadline says whether a time has passed that is kept over restarts. A
// wall clock may have been wrong when it was written down, or be wrong now; so
// what the host was up since then is counted as well.
package deadline

import "time"

// Clock is both clocks at one moment.
type Clock struct {
	Now    time.Time
	BootID string
	Up     time.Duration // on the monotonic clock of the boot
}

// Deadline is a moment. The zero value never comes. One without a BootID was
// written by a build that knew of wall clocks only, see Adopt.
type Deadline struct {
	Until time.Time `json:"until,omitzero"`
	// Needed is how long the host must have been up since it was set.
	Needed time.Duration `json:"needed,omitempty"`
	// Up is the time it has been up until this boot was first seen at Mark.
	Up     time.Duration `json:"up,omitempty"`
	BootID string        `json:"bootId,omitempty"`
	Mark   time.Duration `json:"mark,omitempty"` // on the monotonic clock of BootID
}

// In is the deadline that comes after a time.
func In(c Clock, d time.Duration) Deadline { return At(c, c.Now.Add(d)) }

// At is the deadline of a moment.
func At(c Clock, until time.Time) Deadline {
	return Deadline{Until: until, Needed: max(until.Sub(c.Now), 0), BootID: c.BootID, Mark: c.Up}
}

// IsZero says that there is none.
func (d Deadline) IsZero() bool { return d.Until.IsZero() }

// Adopt counts from now what an earlier build wrote, which lasts as long as most.
func (d *Deadline) Adopt(c Clock, most time.Duration) (changed bool) {
	if d.IsZero() || d.BootID != "" {
		return false
	}
	until := d.Until
	*d = At(c, until)
	d.Needed = min(d.Needed, most)
	return true
}

// UpFor is how long the host has been up since the deadline was set, as far as
// it is known.
func (d Deadline) UpFor(c Clock) time.Duration {
	if c.BootID != d.BootID || c.Up < d.Mark {
		return d.Up
	}
	return d.Up + c.Up - d.Mark
}

// implausible says that the wall clock shows a time before the deadline was set:
// it was wrong then, or is now.
func (d Deadline) implausible(c Clock) bool { return d.BootID != "" && d.Until.Sub(c.Now) > d.Needed }

// Surely says that the time has passed whichever of the clocks was wrong: for
// what must not end early.
func (d Deadline) Surely(c Clock) bool {
	switch {
	case d.IsZero():
		return false
	case d.BootID == "":
		return !c.Now.Before(d.Until)
	}
	return d.UpFor(c) >= d.Needed && (!c.Now.Before(d.Until) || d.implausible(c))
}

// Over says that the time has passed by one of the clocks: for what must not last.
func (d Deadline) Over(c Clock) bool {
	switch {
	case d.IsZero():
		return false
	case d.BootID == "":
		return !c.Now.Before(d.Until)
	case !c.Now.Before(d.Until) || d.UpFor(c) >= d.Needed:
		return true
	}
	// After a reboot nobody knows how long the host was off.
	return d.BootID != c.BootID && d.implausible(c)
}

// When is the first moment, on the present wall clock, at which the time may
// surely have passed: at the time itself unless a clock was wrong.
func (d Deadline) When(c Clock) time.Time {
	if d.IsZero() || d.BootID == "" {
		return d.Until
	}
	up := c.Now.Add(d.Needed - d.UpFor(c))
	if d.implausible(c) || up.Sub(d.Until) > skew {
		return up
	}
	return d.Until
}

// skew is how far the clocks may be apart without anybody being told.
const skew = time.Second

// Account brings the uptime forward and reports whether that is worth writing
// down: at a new boot, and whenever a fiftieth of what is needed has been gained,
// at most an hour. What was not written is lost at the next boot, so a deadline
// can come later than asked for, never earlier.
func (d *Deadline) Account(c Clock) bool {
	if d.IsZero() || d.BootID == "" {
		return false
	}
	gained := d.UpFor(c) - d.Up
	if c.BootID == d.BootID && (gained < min(d.Needed/50+1, time.Hour) || d.Up >= d.Needed) {
		return false
	}
	d.Up += gained
	d.BootID, d.Mark = c.BootID, c.Up
	return true
}
