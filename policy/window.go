package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"reconciler/reconcile"
)

// Maintenance is one maintenance window: a span of time that comes again, in
// which interruptions may begin.
type Maintenance struct {
	Name     string
	Duration time.Duration // of elapsed time, also over a change of the clocks
	// Impact is the least that waits for the window.
	Impact reconcile.Impact

	schedule *cron.SpecSchedule // in wall clock time, which UTC stands for
	zone     *time.Location
}

// Bounds of the length of a window.
const (
	MinWindow = time.Minute
	MaxWindow = 7 * 24 * time.Hour
)

// NewMaintenance makes a window of a cron schedule: five fields, as in
// crontab(5), or @hourly, @daily, @weekly, @monthly, @yearly. It is read in
// the time of the zone.
func NewMaintenance(name, schedule string, duration time.Duration, zone *time.Location, impact reconcile.Impact) (Maintenance, error) {
	m := Maintenance{Name: name, Duration: duration, Impact: impact, zone: zone}
	if strings.Contains(schedule, "=") {
		return m, fmt.Errorf("schedule %q: the time zone stands in timeZone", schedule)
	}
	s, err := parseCrontab(schedule)
	if err != nil {
		return m, fmt.Errorf("schedule %q: %w", schedule, err)
	}
	var ok bool
	if m.schedule, ok = s.(*cron.SpecSchedule); !ok {
		return m, fmt.Errorf("schedule %q: it says how often, not when", schedule)
	}
	m.schedule.Location = time.UTC
	switch {
	case m.schedule.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero():
		return m, fmt.Errorf("schedule %q: it never comes", schedule)
	case duration < MinWindow || duration > MaxWindow:
		return m, fmt.Errorf("duration %s is not within %s and %s", duration, MinWindow, MaxWindow)
	case impact < reconcile.ImpactLive:
		return m, fmt.Errorf("impact %s interrupts nothing and never waits", impact)
	}
	return m, nil
}

// Zone is where the schedule's times are read.
func (m Maintenance) Zone() *time.Location { return m.zone }

// Next is when the window opens next after a moment; zero if that is years away.
func (m Maintenance) Next(after time.Time) time.Time {
	t := after.In(m.zone)
	wall := time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
	for {
		if wall = m.schedule.Next(wall); wall.IsZero() {
			return wall
		}
		// The second time that clocks show an hour, its openings are past.
		if at := instant(wall, m.zone); at.After(after) {
			return at
		}
	}
}

// instant is when clocks of a zone show a time: the first time, if they show it
// twice; the moment they are put forward, if they skip it.
func instant(wall time.Time, zone *time.Location) time.Time {
	// No zone changes its clocks twice within four days.
	const near = 48 * time.Hour
	_, before := wall.Add(-near).In(zone).Zone()
	_, after := wall.Add(near).In(zone).Zone()
	early := wall.Add(-time.Duration(before) * time.Second).In(zone)
	late := wall.Add(-time.Duration(after) * time.Second).In(zone)
	switch {
	case shows(early, wall):
		return early
	case shows(late, wall):
		return late
	}
	start, _ := early.ZoneBounds()
	return start.In(zone)
}

// shows says whether clocks show a wall clock time at a moment of their zone.
func shows(at, wall time.Time) bool {
	_, offset := at.Zone()
	return at.Unix()+int64(offset) == wall.Unix()
}

// Open says whether the window is open, and until when; zero if it opens again
// for as far as one can see before it would close.
func (m Maintenance) Open(now time.Time) (until time.Time, open bool) {
	at := m.Next(now.Add(-m.Duration))
	if at.IsZero() || at.After(now) {
		return time.Time{}, false
	}
	const far = 1000
	for range far {
		until = at.Add(m.Duration)
		if at = m.Next(at); at.IsZero() || at.After(until) {
			return until, true
		}
	}
	return time.Time{}, true
}

// Clock writes a moment as the clocks of the window's zone show it.
func (m Maintenance) Clock(t time.Time) string { return t.In(m.zone).Format(clockFormat) }

const clockFormat = "Mon 2006-01-02 15:04 MST"

// Schedule is all windows of a host.
type Schedule []Maintenance

// For are the windows in which an action of this impact may begin; none if it
// never waits. Among windows for greater and for lesser impacts, an action
// waits for those made for its own, or for greater ones.
func (s Schedule) For(impact reconcile.Impact) Schedule {
	least := reconcile.ImpactNone
	for _, m := range s {
		if m.Impact <= impact {
			least = max(least, m.Impact)
		}
	}
	if least == reconcile.ImpactNone {
		return nil
	}
	var list Schedule
	for _, m := range s {
		if m.Impact >= least {
			list = append(list, m)
		}
	}
	return list
}

// Admits says whether an action of this impact may begin; if not, which window
// opens next, and when.
func (s Schedule) Admits(impact reconcile.Impact, now time.Time) (ok bool, next Maintenance, at time.Time) {
	windows := s.For(impact)
	if len(windows) == 0 {
		return true, next, at
	}
	for _, m := range windows {
		if at := m.Next(now.Add(-m.Duration)); !at.IsZero() && !at.After(now) {
			return true, m, at
		}
	}
	next, at = windows.next(now)
	return false, next, at
}

// next is the window that opens first.
func (s Schedule) next(now time.Time) (next Maintenance, at time.Time) {
	for _, m := range s {
		if t := m.Next(now); !t.IsZero() && (at.IsZero() || t.Before(at)) {
			next, at = m, t
		}
	}
	return next, at
}

// Interrupts is the impact for which an action waits for a window: of what it
// would do now, not of what waits for something else. What brings something
// back is no interruption, whatever it does to a guest.
func Interrupts(a *reconcile.Action) reconcile.Impact {
	switch a.Op {
	case reconcile.OpUnchanged, reconcile.OpCreate, reconcile.OpStart, reconcile.OpRestore, reconcile.OpAdopt:
		return reconcile.ImpactNone
	case reconcile.OpUpdate:
		impact := reconcile.ImpactNone
		for i := range a.Changes {
			if c := &a.Changes[i]; c.Waits == "" {
				impact = max(impact, c.Impact)
			}
		}
		return impact
	}
	return a.Impact
}

// keepOut holds what may not begin now: the action, or those changes of it that
// have to wait where others need not.
func (s Schedule) keepOut(a *reconcile.Action, now time.Time) (held bool) {
	ok, m, at := s.Admits(Interrupts(a), now)
	if ok {
		return false
	}
	if a.Op == reconcile.OpUpdate && s.partly(a, now) {
		return false
	}
	hold(a, heldUntil(m, at), allowCommand(a))
	return true
}

// partly makes changes wait for a window, if others may be carried out now.
func (s Schedule) partly(a *reconcile.Action, now time.Time) bool {
	var wait []*reconcile.Change
	able := 0
	for i := range a.Changes {
		c := &a.Changes[i]
		if c.Waits != "" {
			continue
		}
		if ok, _, _ := s.Admits(c.Impact, now); ok {
			able++
		} else {
			wait = append(wait, c)
		}
	}
	if able == 0 {
		return false
	}
	for _, c := range wait {
		_, m, at := s.Admits(c.Impact, now)
		c.Waits = heldUntil(m, at)
	}
	return true
}

func heldUntil(m Maintenance, at time.Time) string {
	if at.IsZero() {
		return "held: no maintenance window opens"
	}
	return fmt.Sprintf("held until %s, window %s", m.Clock(at), m.Name)
}
