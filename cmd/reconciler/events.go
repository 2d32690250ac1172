package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happened on this host",
		Long: `events shows what the agent did and found, and what operators asked of it (type
Audit), oldest first. With -f it goes on and shows every event as it happens, also
when the agent is started again; -o json then writes one event a line.`,
		Example: `  reconciler events
  reconciler events -f`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json, yaml"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow && a.flags.output == "yaml" {
				return usagef("-f writes text or json")
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if follow {
				return a.followEvents(cmd.Context(), client)
			}
			events, err := client.Events(cmd.Context(), 0, false)
			if err != nil {
				return err
			}
			if a.flags.output != "text" {
				return printData(a.stdout, a.flags.output, events)
			}
			for _, e := range events {
				printEvent(a.stdout, "", e)
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on and show events as they happen")
	return c
}

// followEvents prints events until ctx ends, over restarts of the agent.
func (a *app) followEvents(ctx context.Context, client api.Agent) error {
	var seen uint64
	told := false
	for {
		events, err := client.Events(ctx, seen, true)
		if away(err) && ctx.Err() == nil {
			if !told {
				fmt.Fprintln(a.stderr, "reconciler: the agent ended; its events go on when it is back")
			}
			told = true
			err = pause(ctx, watchPause)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return ended(ctx, err)
		}
		told = false
		for _, e := range events {
			seen = e.Seq
			if a.flags.output == "text" {
				printEvent(a.stdout, "", e)
			} else if err := printJSON(a.stdout, e, ""); err != nil {
				return err
			}
		}
	}
}

// away says whether an error means that no agent is there at the moment.
func away(err error) bool {
	return err != nil && (errors.Is(err, api.ErrNoAgent) || api.CodeOf(err) == api.Unavailable)
}

func printEvent(w io.Writer, indent string, e api.Event) {
	text := strings.TrimSpace(e.Object + "  " + e.Message)
	if e.By != "" {
		text = strings.TrimSpace(text + " (by " + e.By + ")")
	}
	fmt.Fprintln(w, clean(fmt.Sprintf("%s%s  %-7s  %-12s  %s", indent, when(e.Time), e.Type, e.Reason, text)))
}
