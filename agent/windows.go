package agent

import (
	"time"

	"reconciler/policy"
	"reconciler/status"
)

// windows are the maintenance windows as a report shows them.
func windows(s policy.Schedule, now time.Time) []status.Window {
	var list []status.Window
	for _, m := range s {
		w := status.Window{Name: m.Name, Impact: m.Impact.String(), TimeZone: m.Zone().String()}
		if until, open := m.Open(now); open {
			w.Open, w.Closes = true, until
		} else {
			w.Opens = m.Next(now)
		}
		list = append(list, w)
	}
	return list
}
