package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
	"reconciler/spec"
)

func (a *app) stopCmd() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "stop vm/NAME --force",
		Short: "End a machine's process now",
		Long: `stop ends a machine at once, whatever its guest does; what the guest has not
written to its disks is lost. It is the way out where a machine must end and
cannot be asked to. A machine that is declared Running is started again by the
next pass, unless it is suspended. Where there was no process to end, it says so.

To stop a machine in good order, and for good, set spec.powerState: Stopped in
the repository.`,
		Example: `  reconciler suspend vm/web-1 --reason "runaway guest"
  reconciler stop vm/web-1 --force`,
		Args:              oneArg("vm/NAME"),
		ValidArgsFunction: a.completeObjects(spec.KindVirtualMachine),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := parseOf(spec.KindVirtualMachine, args[0])
			if err != nil {
				return err
			}
			if !force {
				return usagef("stop ends a machine without asking its guest, so --force must be given; for good order, set spec.powerState: Stopped in the repository")
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			result, err := client.Stop(cmd.Context(), api.MachineRequest{Name: name, Force: true})
			if err != nil {
				return err
			}
			if !result.Idle {
				fmt.Fprintf(a.stdout, "VirtualMachine/%s is stopped\n", clean(name))
				return nil
			}
			fmt.Fprintf(a.stdout, "VirtualMachine/%s had no process: nothing was done\n", clean(name))
			if result.Why != "" {
				fmt.Fprintf(a.stdout, "%s\n", clean(result.Why))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "do not ask the guest to shut down first")
	return c
}
