package config

import (
	"fmt"
	"time"
	_ "time/tzdata" // a minimal host has no time zones of its own

	"reconciler/policy"
	"reconciler/reconcile"
)

// Window is a time in which what interrupts may begin. Where there is none, it
// may begin at any time.
type Window struct {
	Name     string        `yaml:"name" doc:"Name of the window, for messages."`
	Schedule string        `yaml:"schedule" doc:"When it opens: minute, hour, day of month, month and weekday as in crontab(5), or @weekly and the like."`
	Duration time.Duration `yaml:"duration" doc:"How long it is open. 1m to 168h."`
	TimeZone string        `yaml:"timeZone" doc:"Time zone of the schedule, such as Europe/Berlin; UTC if empty."`
	Impact   string        `yaml:"impact" doc:"Least impact that waits for the window: live, migrate, restart, stop, remove or destroy; restart if empty."`
}

// Maintenance is the windows as policy takes them.
func (c *Config) Maintenance() (policy.Schedule, error) {
	var s policy.Schedule
	for i, w := range c.Windows {
		m, p := w.maintenance()
		if p != nil {
			p.Key = fmt.Sprintf("windows[%d]%s", i, p.Key)
			return nil, *p
		}
		s = append(s, m)
	}
	return s, nil
}

func (w Window) maintenance() (policy.Maintenance, *Problem) {
	zone, err := time.LoadLocation(w.TimeZone) // empty is UTC
	if err != nil || w.TimeZone == "Local" {
		return policy.Maintenance{}, &Problem{".timeZone", fmt.Sprintf("%q is not a time zone, such as Europe/Berlin", w.TimeZone)}
	}
	impact := reconcile.ImpactRestart
	if w.Impact != "" {
		if err := impact.UnmarshalText([]byte(w.Impact)); err != nil {
			return policy.Maintenance{}, &Problem{".impact", fmt.Sprintf("%q is none of live, migrate, restart, stop, remove, destroy", w.Impact)}
		}
	}
	m, err := policy.NewMaintenance(w.Name, w.Schedule, w.Duration, zone, impact)
	if err != nil {
		return m, &Problem{"", err.Error()}
	}
	return m, nil
}

func (c *Config) checkWindows() []Problem {
	var list []Problem
	seen := map[string]bool{}
	for i, w := range c.Windows {
		at := fmt.Sprintf("windows[%d]", i)
		switch {
		case !isName(w.Name):
			list = append(list, Problem{at, "it needs a name: lower-case letters, digits and -"})
		case seen[w.Name]:
			list = append(list, Problem{at + ".name", fmt.Sprintf("there is another window %q", w.Name)})
		}
		seen[w.Name] = true
		if _, p := w.maintenance(); p != nil {
			list = append(list, Problem{at + p.Key, p.Msg})
		}
	}
	return list
}
