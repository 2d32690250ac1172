package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
	"reconciler/status"
)

var errTimeout = errors.New("timeout")

// underWay is the error of somebody who does not wait any longer: it says for what.
func (a *app) underWay(ctx context.Context, client api.Agent, waited time.Duration) error {
	objects, err := client.Objects(ctx)
	if err != nil {
		return fmt.Errorf("not done within %s, and %w", waited, err)
	}
	var names []string
	for i := range objects {
		for _, c := range objects[i].Conditions {
			if c.Type == status.Reconciling && c.Status == status.True {
				names = append(names, objectName(&objects[i])+" ("+c.Message+")")
			}
		}
	}
	what := "the pass is under way"
	if len(names) > 0 {
		more := ""
		if len(names) > 10 {
			names, more = names[:10], fmt.Sprintf(" and %d more", len(names)-10)
		}
		what = "under way: " + strings.Join(names, ", ") + more
	}
	return &hinted{fmt.Errorf("not done within %s; %s", waited, what), "the agent goes on; reconciler events -f shows it"}
}

func (a *app) reconcileCmd() *cobra.Command {
	var wait, detailed bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "reconcile",
		Short: "Ask the agent for a pass over the newest revision now",
		Long: `reconcile asks the agent to fetch the newest revision and to carry it out now,
not only at its next interval. With --wait it returns when nothing is ready any
more: the newest revision is applied as far as it can be now. It shows what then
waits, is held or is blocked, and until when. A revision that is refused, an
object that keeps failing and the end of --timeout are errors; the agent goes on.`,
		Example: `  reconciler reconcile
  reconciler reconcile --wait --timeout 10m --detailed-exitcode`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json", detailedKey: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if detailed && !wait {
				return usagef("--detailed-exitcode needs --wait")
			}
			if a.flags.output != "text" && !wait {
				return usagef("-o %s needs --wait", a.flags.output)
			}
			if timeout != 0 && !wait {
				return usagef("--timeout needs --wait")
			}
			if timeout < 0 {
				return usagef("--timeout %s is less than 0", timeout)
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel func()
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
				defer cancel()
			}
			p, err := client.Reconcile(ctx, api.ReconcileRequest{Wait: wait}, progressTo(a.progressWriter()))
			if errors.Is(err, errTimeout) {
				return a.underWay(cmd.Context(), client, timeout)
			}
			if err != nil {
				return err
			}
			if !wait {
				fmt.Fprintln(a.stdout, "A pass is under way; reconciler events -f shows it.")
				return nil
			}
			return a.settled(p, detailed)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "return when nothing is ready any more")
	c.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: return with an error after this `time`, as in 10m (default never)")
	must(c.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions))
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "with --wait: tell by the exit code what is left to do")
	return c
}
