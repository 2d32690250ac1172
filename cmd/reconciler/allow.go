package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) allowCmd() *cobra.Command {
	var reason string
	var span time.Duration
	c := &cobra.Command{
		Use:   "allow ID|DIGEST|KIND/NAME --for SPAN --reason WHY",
		Short: "Release what is held",
		Long: `allow releases, for a while, an action that is held by budget or policy: by its
id (8 digits of it or more), as plan shows it; by KIND/NAME where no commit asked
for it; or all held actions of a plan by its digest. What the plan does not show
now is not released by it. It is written down with who and why.`,
		Example: `  reconciler allow 3f2a91c04b7d --for 1h --reason "decommissioning rack 7"
  reconciler allow sha256:5be1… --for 30m --reason "reviewed in #118"`,
		Args:              oneArg("ID or DIGEST"),
		ValidArgsFunction: a.completeHeld,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("--reason must be given")
			}
			if span <= 0 {
				return usagef("--for must be given, as in --for 1h")
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if err := client.Allow(cmd.Context(), api.AllowRequest{ID: args[0], For: span, Reason: reason}); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s is allowed until %s\n", clean(args[0]), when(a.now().Add(span)))
			return nil
		},
	}
	c.Flags().DurationVar(&span, "for", 0, "how long, as in `1h`")
	c.Flags().StringVar(&reason, "reason", "", "`why`, for the record")
	must(c.RegisterFlagCompletionFunc("for", cobra.NoFileCompletions))
	must(c.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions))
	return c
}
