package policy

import (
	"slices"
	"strconv"
	"strings"

	"github.com/robfig/cron/v3"
)

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// parseCrontab reads a schedule as crontab(5) has it in Debian, where the
// library differs: 7 is Sunday, also in a range; and where the day of the month
// or the weekday begins with *, as */2 does, both must hold, else one of them.
func parseCrontab(schedule string) (cron.Schedule, error) {
	const dom, dow, count = 2, 4, 5
	fields := strings.Fields(schedule)
	if len(fields) != count {
		return cronParser.Parse(schedule)
	}
	parts := strings.Split(fields[dow], ",")
	for i, part := range parts {
		parts[i] = sundays(part)
	}
	stars := [count]bool{dom: star(fields[dom]), dow: star(fields[dow])}
	fields[dow] = strings.Join(parts, ",")
	parsed, err := cronParser.Parse(strings.Join(fields, " "))
	if s, ok := parsed.(*cron.SpecSchedule); ok && err == nil {
		mark(&s.Dom, stars[dom])
		mark(&s.Dow, stars[dow])
	}
	return parsed, err
}

func star(field string) bool { return strings.HasPrefix(field, "*") || strings.HasPrefix(field, "?") }

// mark says in a field of the library's whether it began with *.
func mark(bits *uint64, star bool) {
	const starBit = 1 << 63
	*bits &^= starBit
	if star {
		*bits |= starBit
	}
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// sundays writes out a part of the weekdays' field in which Sunday is 7.
func sundays(part string) string {
	span, step, stepped := strings.Cut(part, "/")
	from, to, ranged := strings.Cut(span, "-")
	first, ok := weekday(from)
	last := first
	if ranged && ok {
		last, ok = weekday(to)
	}
	by := 1
	if stepped {
		var err error
		if by, err = strconv.Atoi(step); err != nil || by < 1 || !ranged {
			return part
		}
	}
	if !ok || last != 7 || first > last {
		return part
	}
	var days []string
	for day := first; day <= last; day += by {
		days = append(days, strconv.Itoa(day%7))
	}
	return strings.Join(days, ",")
}

func weekday(s string) (int, bool) {
	if day := slices.Index(weekdays, strings.ToLower(s)); day >= 0 {
		return day, true
	}
	day, err := strconv.Atoi(s)
	return day, err == nil && day >= 0 && day <= 7
}
