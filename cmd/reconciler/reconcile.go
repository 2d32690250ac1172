package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) reconcileCmd() *cobra.Command {
	var wait, detailed bool
	c := &cobra.Command{
		Use:   "reconcile",
		Short: "Ask the agent for a pass over the newest revision now",
		Long: `reconcile asks the agent to fetch the newest revision and to carry it out now,
not only at its next interval. With --wait it returns when nothing is ready any
more, and shows what then waits, is held or is blocked.`,
		Example: `  reconciler reconcile
  reconciler reconcile --wait --detailed-exitcode`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json", detailedKey: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if detailed && !wait {
				return usagef("--detailed-exitcode needs --wait")
			}
			if a.flags.output != "text" && !wait {
				return usagef("-o %s needs --wait", a.flags.output)
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			p, err := client.Reconcile(cmd.Context(), api.ReconcileRequest{Wait: wait}, progressTo(a.progressWriter()))
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
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "with --wait: tell by the exit code what is left to do")
	return c
}
