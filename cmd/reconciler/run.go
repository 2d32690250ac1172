package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"reconciler/agent"
	"reconciler/reconcile"
)

func (a *app) runCmd() *cobra.Command {
	var logs logFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the agent of this host",
		Long: `run is the agent: it follows the repository, compares it with what runs on this
host, carries out the difference and reports, until it is told to end by SIGTERM
or SIGINT. Machines and disks go on without it.

It logs to standard error. The other commands find it by the run directory.`,
		Example: `  reconciler run
  reconciler run --repo ssh://git@forge.example/cluster.git --path clusters/demo --host host1
  reconciler run --config ./config.yaml --log-format json --log-level debug`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.logger(a.stderr)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			_, err = a.withEngine(ctx, log, func(e *agent.Agent) (*reconcile.Plan, error) {
				return nil, e.Run(ctx)
			})
			if errors.Is(err, context.Canceled) {
				return ended(ctx, err)
			}
			return err
		},
	}
	logs.register(c)
	return c
}
