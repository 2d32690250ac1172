package main

import (
	"os"

	"github.com/spf13/cobra"

	"reconciler/drivers/iscsi/target"
)

// targetCmd is the process that serves the disks. The agent starts it; it goes
// on when the agent ends.
func (a *app) targetCmd() *cobra.Command {
	var logs logFlags
	var supervise bool
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
			if supervise {
				e, err := targetProcess(a.flags.stateDir, a.flags.runDir)
				if err != nil {
					return err
				}
				return ended(cmd.Context(), target.Supervise(cmd.Context(), e, log))
			}
			err = target.Serve(cmd.Context(), target.Config{StateDir: a.flags.stateDir, RunDir: a.flags.runDir, Logger: log})
			return ended(cmd.Context(), err)
		},
	}
	logs.register(c)
	c.Flags().BoolVar(&supervise, target.SuperviseFlag[len("--"):], false, "keep a target running instead of being one")
	return c
}

// targetProcess says how the target of these directories is started.
func targetProcess(stateDir, runDir string) (target.EnsureConfig, error) {
	exe, err := os.Executable()
	return target.EnsureConfig{
		Exe: exe, Args: []string{"target", "--state-dir", stateDir, "--run-dir", runDir},
		StateDir: stateDir, RunDir: runDir,
	}, err
}
