package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the state of the agent",
		Long: `status shows the agent of this host: the repository it follows, the revision it
has seen and the one it has applied, its conditions, how many objects are as
declared, its maintenance windows, and what is suspended.`,
		Example: `  reconciler status
  reconciler status -o json`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json, yaml"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.dial()
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.flags.output != "text" {
				return printData(a.stdout, a.flags.output, st)
			}
			return printStatus(a.stdout, st, a.now())
		},
	}
}

// windowText says when a window opens or closes, as clocks of its zone show it.
func windowText(w api.Window) string {
	zone, err := time.LoadLocation(w.TimeZone)
	if err != nil {
		zone = time.UTC
	}
	clock := func(t time.Time) string { return t.In(zone).Format("Mon 2006-01-02 15:04 MST") }
	switch {
	case w.Open && w.Closes.IsZero():
		return w.Name + " is open"
	case w.Open:
		return fmt.Sprintf("%s is open until %s", w.Name, clock(w.Closes))
	case w.Opens.IsZero():
		return w.Name + " does not open for years"
	}
	return fmt.Sprintf("%s opens %s (for impact %s and more)", w.Name, clock(w.Opens), w.Impact)
}

func observedAt(at, now time.Time) string {
	if at.IsZero() {
		return ""
	}
	return when(at) + " (" + age(at, now) + " ago)"
}

func printStatus(w io.Writer, st api.Status, now time.Time) error {
	branch := st.Branch
	if branch != "" {
		branch = ", branch " + branch
	}
	for _, l := range [][2]string{
		{"host", st.Host},
		{"repository", st.Repo + branch},
		{"attempted", st.LastAttemptedRevision},
		{"applied", st.LastAppliedRevision},
		{"agent", fmt.Sprintf("version %s, pid %d", st.Version, st.PID)},
		{"observed", observedAt(st.ObservedAt, now)},
		{"objects", fmt.Sprintf("%d synced, %d out of sync (%d waiting, %d held, %d blocked), %d unmanaged",
			st.Summary.Synced, st.Summary.OutOfSync, st.Summary.Waiting, st.Summary.Held, st.Summary.Blocked, st.Summary.Unmanaged)},
	} {
		if l[1] == "" {
			l[1] = "-"
		}
		fmt.Fprintf(w, "%-11s %s\n", l[0], clean(l[1]))
	}
	for _, win := range st.Windows {
		fmt.Fprintf(w, "%-11s %s\n", "window", clean(windowText(win)))
	}
	if len(st.Conditions) > 0 {
		fmt.Fprintln(w, "\nConditions")
		if err := printConditions(w, st.Conditions, now); err != nil {
			return err
		}
	}
	if len(st.Suspended) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nSuspended")
	t := newTable(w, "  ", "OBJECT", "BY", "SINCE", "UNTIL", "REASON")
	for _, s := range st.Suspended {
		object, until := s.Object, when(s.Until)
		if object == "" {
			object = "everything"
		}
		if until == "" {
			until = "resumed"
		}
		t.row(object, s.By, when(s.Since), until, s.Reason)
	}
	return t.flush()
}
