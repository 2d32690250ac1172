package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) acceptCmd() *cobra.Command {
	var reason string
	var machine bool
	c := &cobra.Command{
		Use:   "accept (REV | --machine) --reason WHY",
		Short: "Accept a rewritten history, or this machine as the host",
		Long: `accept lets a revision come into force that does not descend from the one in
force: after the branch was rewritten or moved back. Such a revision is otherwise
refused, since it may lack objects that are in use. It is written down with who
and why.

With --machine it says that this machine is the host, where the state directory
is that of another machine, or another one reports as this host. Until then
nothing is done here: the other one may run the same machines. Make sure that it
does not any more. Where it still runs an agent, that one stops to act when it
finds out.`,
		Example: `  reconciler accept 9c1185a5c5e9 --reason "history rewritten to remove a leaked key"
  reconciler accept --machine --reason "the mainboard was replaced"`,
		Args: func(c *cobra.Command, args []string) error {
			if machine {
				return noArgs(c, args)
			}
			return oneArg("REV")(c, args)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("--reason must be given")
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			r := api.AcceptRequest{Machine: machine, Reason: reason}
			if !machine {
				r.Rev = args[0]
			}
			if err := client.Accept(cmd.Context(), r); err != nil {
				return err
			}
			if machine {
				fmt.Fprintln(a.stdout, "this machine is the host; reconciler plan shows what it does")
				return nil
			}
			fmt.Fprintf(a.stdout, "%s is accepted; reconciler plan shows what it changes\n", clean(args[0]))
			return nil
		},
	}
	c.Flags().BoolVar(&machine, "machine", false, "this machine is the host, and no other")
	c.Flags().StringVar(&reason, "reason", "", "`why`, for the record")
	must(c.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions))
	return c
}
