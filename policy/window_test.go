package policy

import (
	"fmt"
	"math/bits"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the same answers wherever the test runs

	"pgregory.net/rapid"

	"reconciler/deadline"
	"reconciler/reconcile"
	"reconciler/spec"
)

func zone(t rapid.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func window(t rapid.TB, schedule string, d time.Duration, loc *time.Location, impact reconcile.Impact) Maintenance {
	t.Helper()
	m, err := NewMaintenance("w", schedule, d, loc, impact)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNewMaintenance(t *testing.T) {
	for _, c := range []struct {
		schedule string
		duration time.Duration
		impact   reconcile.Impact
		want     string
	}{
		{"0 2 * * 0", 4 * time.Hour, reconcile.ImpactRestart, ""},
		{"@weekly", MinWindow, reconcile.ImpactLive, ""},
		{"0 2 29 2 *", MaxWindow, reconcile.ImpactDestroy, ""},
		{"0 2 * *", time.Hour, reconcile.ImpactRestart, "expected exactly 5 fields"},
		{"0 0 2 * * 0", time.Hour, reconcile.ImpactRestart, "expected exactly 5 fields"},
		{"0 25 * * *", time.Hour, reconcile.ImpactRestart, "25"},
		{"", time.Hour, reconcile.ImpactRestart, "empty"},
		{"@every 1h", time.Hour, reconcile.ImpactRestart, "how often, not when"},
		{"@sometimes", time.Hour, reconcile.ImpactRestart, "@sometimes"},
		{"TZ=UTC", time.Hour, reconcile.ImpactRestart, "timeZone"},
		{"CRON_TZ=UTC 0 2 * * *", time.Hour, reconcile.ImpactRestart, "timeZone"},
		{"0 0 30 2 *", time.Hour, reconcile.ImpactRestart, "never comes"},
		{"0 2 * * 0", 59 * time.Second, reconcile.ImpactRestart, "not within"},
		{"0 2 * * 0", MaxWindow + 1, reconcile.ImpactRestart, "not within"},
		{"0 2 * * 0", time.Hour, reconcile.ImpactNone, "never waits"},
	} {
		_, err := NewMaintenance("w", c.schedule, c.duration, time.UTC, c.impact)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%q: %v", c.schedule, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q: %v, want %q", c.schedule, err, c.want)
		}
	}
}

// The clocks of Berlin skip 02:00 to 03:00 on 2026-03-29, and show it twice on
// 2026-10-25. On Lord Howe they move by half an hour, and Samoa skipped a day.
func TestClockChanges(t *testing.T) {
	for _, c := range []struct {
		name, zone, schedule string
		after                string
		want                 []string // openings in a row
	}{
		{"an hour that is skipped opens when it would have ended", "Europe/Berlin", "30 2 * * 0", "2026-03-22T12:00:00Z",
			[]string{"2026-03-29T03:00:00+02:00", "2026-04-05T02:30:00+02:00"}},
		{"the skipped hour's first minute", "Europe/Berlin", "0 2 * * 0", "2026-03-22T12:00:00Z", []string{"2026-03-29T03:00:00+02:00"}},
		{"and its end", "Europe/Berlin", "0 2,3 * * 0", "2026-03-28T12:00:00Z", []string{"2026-03-29T03:00:00+02:00", "2026-04-05T02:00:00+02:00"}},
		{"an hour that comes twice opens once", "Europe/Berlin", "30 2 * * *", "2026-10-24T12:00:00Z",
			[]string{"2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"}},
		{"before the hour that comes twice", "Europe/Berlin", "59 1 * * *", "2026-10-24T12:00:00Z", []string{"2026-10-25T01:59:00+02:00"}},
		{"after it", "Europe/Berlin", "0 3 * * *", "2026-10-24T12:00:00Z", []string{"2026-10-25T03:00:00+01:00"}},
		{"asked for in the second of the two hours", "Europe/Berlin", "30 2 * * *", "2026-10-25T01:10:00Z", []string{"2026-10-26T02:30:00+01:00"}},
		{"half an hour is skipped", "Australia/Lord_Howe", "15 2 * * *", "2026-10-03T00:00:00Z", []string{"2026-10-04T02:30:00+11:00"}},
		{"half an hour comes twice", "Australia/Lord_Howe", "45 1 * * *", "2026-04-03T18:00:00Z",
			[]string{"2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"}},
		{"a day is skipped", "Pacific/Apia", "0 12 30 12 *", "2011-12-01T00:00:00Z", []string{"2011-12-31T00:00:00+14:00", "2012-12-30T12:00:00+14:00"}},
		{"midnight is skipped", "America/Havana", "0 0 * * 0", "2026-03-07T12:00:00Z", []string{"2026-03-08T01:00:00-04:00"}},
		{"without clocks that change", "UTC", "@weekly", "2026-03-28T12:00:00Z", []string{"2026-03-29T00:00:00Z"}},
		{"a leap day", "UTC", "0 0 29 2 *", "2026-03-28T12:00:00Z", []string{"2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"}},
	} {
		m := window(t, c.schedule, time.Hour, zone(t, c.zone), reconcile.ImpactRestart)
		at, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			at = m.Next(at)
			if got := at.Format(time.RFC3339); got != want {
				t.Errorf("%s: opens %s, want %s", c.name, got, want)
			}
		}
	}
	// The length is elapsed time.
	m := window(t, "0 1 * * *", 4*time.Hour, zone(t, "Europe/Berlin"), reconcile.ImpactRestart)
	until, open := m.Open(time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC))
	if want := "Sun 2026-10-25 04:00 CET"; !open || m.Clock(until) != want {
		t.Errorf("open %t until %s, want %s", open, m.Clock(until), want)
	}
}

// matches reads the bits of a cron field; dom and dow are joined by or where
// both are restricted, as crontab(5) has it.
func matches(m Maintenance, year int, month time.Month, day, hour, minute int) bool {
	s := m.schedule
	has := func(set uint64, n int) bool { return set&(1<<uint(n)) != 0 }
	const star = 1 << 63
	dom, dow := has(s.Dom, day), has(s.Dow, int(time.Date(year, month, day, 0, 0, 0, 0, time.UTC).Weekday()))
	days := dom && dow
	if s.Dom&star == 0 && s.Dow&star == 0 {
		days = dom || dow
	}
	return has(s.Month, int(month)) && days && has(s.Hour, hour) && has(s.Minute, minute)
}

// bruteForce walks minute by minute and looks at the clock.
func bruteForce(m Maintenance, from time.Time, minutes int) (openings []time.Time) {
	wall := func(t time.Time) time.Time {
		y, mo, d := t.Date()
		return time.Date(y, mo, d, t.Hour(), t.Minute(), 0, 0, time.UTC)
	}
	const before = 3 * 60 // what clocks showed before matters, too
	t := from.In(m.zone).Truncate(time.Minute).Add(-before * time.Minute)
	shown := wall(t) // the latest that clocks have shown
	for range minutes + before {
		t = t.Add(time.Minute)
		now := wall(t)
		opens := false
		for shown.Before(now) { // what was skipped, and what is shown for the first time
			shown = shown.Add(time.Minute)
			opens = opens || matches(m, shown.Year(), shown.Month(), shown.Day(), shown.Hour(), shown.Minute())
		}
		if opens && t.After(from) {
			openings = append(openings, t)
		}
	}
	return openings
}

var zones = []string{"UTC", "Europe/Berlin", "America/New_York", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Chatham", "Africa/Casablanca"}

func drawWindow(t *rapid.T, least reconcile.Impact) Maintenance {
	field := func(name string, from, to int) string {
		switch rapid.IntRange(0, 3).Draw(t, name+" form") {
		case 0:
			return "*"
		case 1:
			return fmt.Sprintf("*/%d", rapid.IntRange(2, 7).Draw(t, name+" step"))
		case 2:
			return fmt.Sprintf("%d,%d", rapid.IntRange(from, to).Draw(t, name), rapid.IntRange(from, to).Draw(t, name))
		}
		return fmt.Sprint(rapid.IntRange(from, to).Draw(t, name))
	}
	schedule := strings.Join([]string{
		fmt.Sprint(rapid.IntRange(0, 59).Draw(t, "minute")), field("hour", 0, 23), field("day", 1, 28), "*", field("weekday", 0, 6),
	}, " ")
	d := time.Duration(rapid.IntRange(1, 600).Draw(t, "duration")) * time.Minute
	impact := reconcile.Impact(rapid.IntRange(int(least), int(reconcile.ImpactDestroy)).Draw(t, "impact"))
	m := window(t, schedule, d, zone(t, rapid.SampledFrom(zones).Draw(t, "zone")), impact)
	m.Name = schedule
	return m
}

// near draws a moment, more often than not close to a change of the clocks.
func near(t *rapid.T) time.Time {
	base := rapid.SampledFrom([]time.Time{
		time.Date(2026, 3, 8, 4, 0, 0, 0, time.UTC), time.Date(2026, 3, 29, 0, 0, 0, 0, time.UTC),
		time.Date(2026, 4, 4, 14, 0, 0, 0, time.UTC), time.Date(2026, 10, 3, 14, 0, 0, 0, time.UTC),
		time.Date(2026, 10, 25, 0, 0, 0, 0, time.UTC), time.Date(2026, 11, 1, 4, 0, 0, 0, time.UTC),
		time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC),
	}).Draw(t, "around")
	return base.Add(time.Duration(rapid.IntRange(-72*60, 72*60).Draw(t, "minutes")) * time.Minute)
}

func TestNextIsBruteForce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, from := drawWindow(t, reconcile.ImpactLive), near(t)
		const minutes = 5 * 24 * 60
		at := from
		for _, want := range bruteForce(m, from, minutes) {
			if got := m.Next(at); !got.Equal(want) {
				t.Fatalf("%s in %s after %s: opens %s, want %s", m.Name, m.zone, at.In(m.zone), got, want)
			}
			at = want
		}
		if got, end := m.Next(at), from.Add(minutes*time.Minute); !got.IsZero() && got.Before(end) {
			t.Fatalf("%s in %s after %s: opens %s, but clocks never show it before %s", m.Name, m.zone, at, got, end)
		}
	})
}

// An interruption begins only within a window for it; what is held says when
// the next one opens, and is released then; nothing else ever waits.
func TestWindowsHoldInterruptions(t *testing.T) {
	ops := []reconcile.Op{reconcile.OpCreate, reconcile.OpUpdate, reconcile.OpStart, reconcile.OpStop, reconcile.OpRestart,
		reconcile.OpMigrate, reconcile.OpDelete, reconcile.OpQuarantine, reconcile.OpRestore, reconcile.OpPurge, reconcile.OpAdopt}
	rapid.Check(t, func(t *rapid.T) {
		var windows Schedule
		for range rapid.IntRange(0, 3).Draw(t, "windows") {
			windows = append(windows, drawWindow(t, reconcile.ImpactLive))
		}
		from := near(t)
		open := map[int]map[time.Time]bool{}
		for i, m := range windows {
			open[i] = map[time.Time]bool{}
			for _, at := range bruteForce(m, from.Add(-m.Duration-time.Minute), int(m.Duration/time.Minute)+2) {
				if !at.After(from) && from.Before(at.Add(m.Duration)) {
					open[i][from] = true
				}
			}
		}
		a := reconcile.Action{Kind: spec.KindVirtualMachine, Name: "v", UID: "u", State: reconcile.Ready, ID: strings.Repeat("a", 64),
			Op:     rapid.SampledFrom(ops).Draw(t, "op"),
			Impact: reconcile.Impact(rapid.IntRange(0, int(reconcile.ImpactDestroy)).Draw(t, "action's impact"))}
		if a.Op == reconcile.OpUpdate {
			a.Changes = []reconcile.Change{{Field: "a", To: "1", Impact: a.Impact}}
		}
		interrupts := a.Op != reconcile.OpCreate && a.Op != reconcile.OpStart && a.Op != reconcile.OpRestore && a.Op != reconcile.OpAdopt

		// Which windows count, said another way: bits of the impacts at which one begins.
		var begins uint
		for _, m := range windows {
			if m.Impact <= a.Impact {
				begins |= 1 << uint(m.Impact)
			}
		}
		mayBegin := !interrupts || begins == 0
		for i, m := range windows {
			mayBegin = mayBegin || int(m.Impact) >= bits.Len(begins)-1 && open[i][from]
		}
		p := &reconcile.Plan{Actions: []reconcile.Action{a}}
		in := Input{Have: reconcile.NewState(), Limits: Limits{Count: 100}, Windows: windows, Now: from}
		in.Have.Complete[spec.KindVirtualMachine] = true
		Apply(p, in)
		got := &p.Actions[0]
		if (got.State == reconcile.Ready) != mayBegin {
			t.Fatalf("%s of impact %s at %s: %s (%s), may begin: %t", a.Op, a.Impact, from, got.State, got.Reason, mayBegin)
		}
		if mayBegin {
			return
		}
		if got.State != reconcile.Held || !strings.HasPrefix(got.Reason, "held until ") || !strings.Contains(got.Reason, "reconciler allow aaaaaaaaaaaa") {
			t.Fatalf("%s: %s", got.State, got.Reason)
		}
		_, m, at := windows.Admits(a.Impact, from)
		if !strings.Contains(got.Reason, m.Clock(at)+", window "+m.Name) {
			t.Fatalf("%q does not say %s", got.Reason, m.Clock(at))
		}
		if wake := Wake(p, in); wake.IsZero() || wake.After(at) {
			t.Fatalf("wakes at %s, and the window opens at %s", wake, at)
		}
		// Not a minute before, but then.
		for _, c := range []struct {
			at    time.Time
			state reconcile.ActionState
		}{{at.Add(-time.Nanosecond), reconcile.Held}, {at, reconcile.Ready}} {
			q := &reconcile.Plan{Actions: []reconcile.Action{a}}
			in.Now = c.at
			Apply(q, in)
			if q.Actions[0].State != c.state {
				t.Fatalf("at %s it is %s, want %s", c.at, q.Actions[0].State, c.state)
			}
		}
		// A person may.
		q := &reconcile.Plan{Actions: []reconcile.Action{a}}
		in.Now = from
		in.Allowances = []Allowance{{ID: a.ID, Deadline: deadline.Deadline{Until: from.Add(time.Minute)}}}
		if Apply(q, in); q.Actions[0].State != reconcile.Ready {
			t.Fatalf("allowed and still %s: %s", q.Actions[0].State, q.Actions[0].Reason)
		}
	})
}

// What an action does in passing goes on while the rest waits.
func TestWindowHoldsChanges(t *testing.T) {
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	windows := Schedule{window(t, "0 2 * * 0", 4*time.Hour, zone(t, "Europe/Berlin"), reconcile.ImpactRestart)}
	p := &reconcile.Plan{Actions: []reconcile.Action{{Kind: spec.KindDisk, Name: "d", UID: "u", Op: reconcile.OpUpdate, State: reconcile.Ready,
		Impact: reconcile.ImpactDestroy, Changes: []reconcile.Change{
			{Field: "claim", From: "l"},
			{Field: "spec.size", From: "1Gi", To: "2Gi", Impact: reconcile.ImpactLive},
			{Field: "spec.deletionPolicy", From: "Retain", To: "Delete", Impact: reconcile.ImpactDestroy},
		}}}}
	Apply(p, Input{Have: reconcile.NewState(), Limits: DefaultLimits, Windows: windows, Now: at})
	a := &p.Actions[0]
	if a.State != reconcile.Ready || a.Changes[0].Waits != "" || a.Changes[1].Waits != "" {
		t.Errorf("%s: %+v", a.State, a.Changes)
	}
	if want := "held until Sun 2026-11-29 02:00 CET, window w"; a.Changes[2].Waits != want {
		t.Errorf("the policy changes: %q, want %q", a.Changes[2].Waits, want)
	}
	if ok, _, _ := windows.Admits(Interrupts(a), at); !ok {
		t.Error("what is left of the action still interrupts")
	}
}

func TestAskedRestart(t *testing.T) {
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	a := reconcile.Action{Kind: spec.KindVirtualMachine, Name: "v", UID: "u", Op: reconcile.OpRestart, State: reconcile.Ready, Impact: reconcile.ImpactRestart}
	in := Input{Have: reconcile.NewState(), Limits: DefaultLimits, Now: at,
		Windows: Schedule{window(t, "0 2 * * 0", 4*time.Hour, time.UTC, reconcile.ImpactRestart)}}
	for asked, want := range map[bool]reconcile.ActionState{false: reconcile.Held, true: reconcile.Ready} {
		p := &reconcile.Plan{Actions: []reconcile.Action{a}}
		in.Asked = map[reconcile.Key]bool{a.Key(): asked}
		if Apply(p, in); p.Actions[0].State != want {
			t.Errorf("asked for on the host %t: %s", asked, p.Actions[0].State)
		}
	}
	// Suspended is suspended.
	p := &reconcile.Plan{Actions: []reconcile.Action{a}}
	in.Suspensions = []Suspension{{Reason: "backup", By: "ada"}}
	if Apply(p, in); p.Actions[0].State != reconcile.Held {
		t.Errorf("suspended: %s", p.Actions[0].State)
	}
}
