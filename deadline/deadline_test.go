package deadline

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func at(wall, up time.Duration, boot string) Clock {
	return Clock{Now: noon.Add(wall), BootID: boot, Up: up}
}

func TestClocksThatWereWrong(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	start := at(0, 5*time.Minute, "a")
	hour := In(start, time.Hour)
	future := In(at(years, 5*time.Minute, "a"), time.Hour) // set while the clock was ahead
	old := Deadline{Until: noon.Add(years)}
	old.Adopt(start, time.Hour)
	for name, c := range map[string]struct {
		d            Deadline
		now          Clock
		surely, over bool
	}{
		"a moment before":                         {hour, at(time.Hour-1, 65*time.Minute-1, "a"), false, false},
		"on time":                                 {hour, at(time.Hour, 65*time.Minute, "a"), true, true},
		"the clock jumps forward":                 {hour, at(years, 6*time.Minute, "a"), false, true},
		"the clock goes back":                     {hour, at(-years, 65*time.Minute, "a"), true, true},
		"and a little":                            {hour, at(30*time.Minute, 65*time.Minute, "a"), false, true},
		"it was ahead":                            {future, at(0, 65*time.Minute, "a"), true, true},
		"it was ahead, and it is early":           {future, at(0, 64*time.Minute, "a"), false, false},
		"another boot, off meanwhile":             {hour, at(2*time.Hour, time.Minute, "b"), false, true},
		"another boot, in time":                   {hour, at(30*time.Minute, time.Minute, "b"), false, false},
		"another boot, it was ahead":              {future, at(0, time.Minute, "b"), false, true},
		"an old record, in time":                  {Deadline{Until: noon.Add(time.Hour)}, start, false, false},
		"an old record, passed":                   {Deadline{Until: noon}, start, true, true},
		"an old record of the future, and time":   {old, at(0, 65*time.Minute, "a"), true, true},
		"an old record of the future, and little": {old, at(0, 6*time.Minute, "a"), false, false},
		"none": {Deadline{}, at(years, years, "a"), false, false},
	} {
		if got := c.d.Surely(c.now); got != c.surely {
			t.Errorf("%s: surely %t", name, got)
		}
		if got := c.d.Over(c.now); got != c.over {
			t.Errorf("%s: over %t", name, got)
		}
	}
}

// However the wall clock jumps and the host reboots: what must not end early has
// been up for as long as was asked, what must not last does not outlast it within
// a boot, and both end.
func TestDeadlines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		needed := time.Duration(rapid.IntRange(1, 48*60).Draw(t, "needed")) * time.Minute
		wall := time.Duration(rapid.IntRange(-1e6, 1e6).Draw(t, "wall")) * time.Minute
		boot, up, total, inBoot := 0, time.Duration(0), time.Duration(0), time.Duration(0)
		clock := func() Clock { return at(wall, up, string(rune('a'+boot))) }
		d := In(clock(), needed)
		for range 200 {
			step := time.Duration(rapid.IntRange(0, 60).Draw(t, "step")) * time.Minute
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				wall += time.Duration(rapid.IntRange(-1e5, 1e5).Draw(t, "jump")) * time.Minute
			case 1:
				boot, up, inBoot = boot+1, 0, 0
				wall += step
			default:
				wall, up, total, inBoot = wall+step, up+step, total+step, inBoot+step
			}
			d.Account(clock())
			data, err := json.Marshal(d)
			var again Deadline
			if err == nil {
				err = json.Unmarshal(data, &again)
			}
			if err != nil || again.Needed != d.Needed || !again.Until.Equal(d.Until) || again.UpFor(clock()) != d.UpFor(clock()) {
				t.Fatalf("%s: %+v, %v", data, again, err)
			}
			if again.Surely(clock()) && total < needed {
				t.Fatalf("after %s of %s it has surely passed", total, needed)
			}
			if boot == 0 && inBoot >= needed && !again.Over(clock()) {
				t.Fatalf("after %s of %s it is not over", inBoot, needed)
			}
		}
		// It comes, at the latest when both clocks have gone on for as long as is left.
		wait := needed + max(d.Until.Sub(clock().Now), 0)
		if wait > 2*needed {
			wait = needed
		}
		wall, up = wall+wait, up+wait
		if !d.Surely(clock()) || !d.Over(clock()) {
			t.Fatalf("it does not come: %+v at %+v", d, clock())
		}
	})
}
