package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) revertCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "revert KIND/NAME --reason WHY",
		Short: "Correct the drift of an object that is only reported",
		Long: `revert lets the agent put right, once, what somebody changed on an object behind
the repository's back, although its drift mode is Report or Off. What needs a
restart of the machine still waits for it, for an hour. It is written down with
who and why.`,
		Example: `  reconciler plan
  reconciler revert vm/web-1 --reason "the disk was unplugged by mistake"`,
		Args:              oneArg("KIND/NAME"),
		ValidArgsFunction: a.completeObjects(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("--reason must be given")
			}
			o, err := parseObject(args[0])
			if err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if err := client.Revert(cmd.Context(), api.RevertRequest{Object: o.String(), Reason: reason}); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "the drift of %s is being corrected; reconciler events -f shows it\n", clean(o.String()))
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`why`, for the record")
	must(c.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions))
	return c
}
