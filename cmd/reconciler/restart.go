package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
	"reconciler/spec"
)

func (a *app) restartCmd() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "restart vm/NAME",
		Short: "Restart a machine, and carry out what waits for it",
		Long: `restart stops a machine as its spec says and starts it again as it is declared
now, with every change that waits for a restart. With --force the guest is not
asked first; what it has not written to its disks is lost.`,
		Example: `  reconciler restart vm/web-1
  reconciler restart vm/web-1 --force`,
		Args:              oneArg("vm/NAME"),
		ValidArgsFunction: a.completeObjects(spec.KindVirtualMachine),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := parseOf(spec.KindVirtualMachine, args[0])
			if err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if err := client.Restart(cmd.Context(), api.MachineRequest{Name: name, Force: force}); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "VirtualMachine/%s is being restarted; reconciler events -f shows it\n", clean(name))
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "do not ask the guest to shut down first")
	return c
}
