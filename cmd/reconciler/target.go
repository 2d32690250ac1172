package main

import (
	"github.com/spf13/cobra"

	"reconciler/drivers/iscsi/target"
)

// targetCmd is the process that serves the disks. The agent starts it; it goes
// on when the agent ends.
func (a *app) targetCmd() *cobra.Command {
	var logs logFlags
	c := &cobra.Command{
		Use:   "target",
		Short: "Serve disks over iSCSI",
		Long: `target is the process that serves this host's disks. The agent starts it and tells
it what to serve; it goes on while the agent is stopped, upgraded or gone. The
directories are those of the target itself.`,
		Example: `  reconciler target --state-dir /var/lib/reconciler/target --run-dir /run/reconciler/target`,
		Hidden:  true,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.flags.stateDir == "" || a.flags.runDir == "" {
				return usagef("--state-dir and --run-dir must be given")
			}
			log, err := logs.logger(a.stderr)
			if err != nil {
				return err
			}
			err = target.Serve(cmd.Context(), target.Config{StateDir: a.flags.stateDir, RunDir: a.flags.runDir, Logger: log})
			return ended(cmd.Context(), err)
		},
	}
	logs.register(c)
	return c
}
