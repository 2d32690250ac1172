package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) suspendCmd() *cobra.Command {
	var reason, until string
	c := &cobra.Command{
		Use:   "suspend [KIND/NAME] --reason WHY",
		Short: "Keep the agent from acting on an object, or on everything",
		Long: `suspend keeps the agent from acting: on one object and what depends on it, or on
everything where none is named. The agent goes on observing and reporting. It is
written down with who, why and until when.

--until is a time (2026-11-22T18:00:00Z) or a span from now (2h); without it the
suspension lasts until it is resumed.`,
		Example: `  reconciler suspend vm/web-1 --reason "kernel debugging" --until 2h
  reconciler suspend --reason "storage maintenance"`,
		Args:              upToOneArg,
		ValidArgsFunction: a.completeObjects(),
		RunE: func(cmd *cobra.Command, args []string) error {
			end, err := parseUntil(until, a.now())
			if err != nil {
				return err
			}
			if reason == "" {
				return usagef("--reason must be given")
			}
			target, err := optionalObject(args)
			if err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if err := client.Suspend(cmd.Context(), api.SuspendRequest{Object: target, Reason: reason, Until: end}); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s is suspended%s\n", orEverything(target), untilText(end))
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`why`, for the record")
	c.Flags().StringVar(&until, "until", "", "end as a `time` or a span from now")
	must(c.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions))
	must(c.RegisterFlagCompletionFunc("until", cobra.NoFileCompletions))
	return c
}

// parseUntil reads a time or a span from now; zero where nothing is given.
func parseUntil(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		d, spanErr := time.ParseDuration(s)
		if spanErr != nil {
			return time.Time{}, usagef("--until %q is neither a time like 2026-11-22T18:00:00Z nor a span like 2h", s)
		}
		t = now.Add(d)
	}
	if !t.After(now) {
		return time.Time{}, usagef("--until %s is in the past", s)
	}
	return t, nil
}

func optionalObject(args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	o, err := parseObject(args[0])
	return o.String(), err
}

func orEverything(object string) string {
	if object == "" {
		return "Everything"
	}
	return object
}

func untilText(t time.Time) string {
	if t.IsZero() {
		return " until it is resumed"
	}
	return " until " + when(t)
}
