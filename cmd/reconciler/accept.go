package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) acceptCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "accept REV --reason WHY",
		Short: "Accept a rewritten history",
		Long: `accept lets a revision come into force that does not descend from the one in
force: after the branch was rewritten or moved back. Such a revision is otherwise
refused, since it may lack objects that are in use. It is written down with who
and why.`,
		Example:           `  reconciler accept 9c1185a5c5e9 --reason "history rewritten to remove a leaked key"`,
		Args:              oneArg("REV"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("--reason must be given")
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if err := client.Accept(cmd.Context(), api.AcceptRequest{Rev: args[0], Reason: reason}); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s is accepted; reconciler plan shows what it changes\n", clean(args[0]))
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`why`, for the record")
	must(c.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions))
	return c
}
