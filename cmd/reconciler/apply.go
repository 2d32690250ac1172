package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spf13/cobra"

	"reconciler/agent"
	"reconciler/api"
	"reconciler/reconcile"
)

func (a *app) applyCmd() *cobra.Command {
	var detailed bool
	c := &cobra.Command{
		Use:   "apply",
		Short: "Bring the newest revision into force once",
		Long: `apply carries out what the newest revision asks for and returns when nothing is
ready any more. What then waits, is held or is blocked is shown.

It is done by the agent where one runs, else by this command. Machines and disks
go on when it has returned.`,
		Example: `  reconciler apply
  reconciler apply --repo /srv/cluster --host host1 --detailed-exitcode`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json", detailedKey: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.apply(cmd.Context(), progressTo(a.progressWriter()))
			if err != nil {
				return err
			}
			return a.settled(p, detailed)
		},
	}
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "tell by the exit code what is left to do")
	return c
}

// apply has the agent do it where one runs, else does it in this process.
func (a *app) apply(ctx context.Context, progress func(string)) (*reconcile.Plan, error) {
	client, err := a.dial()
	if err == nil {
		return client.Reconcile(ctx, api.ReconcileRequest{Wait: true}, progress)
	}
	if !errors.Is(err, api.ErrNoAgent) {
		return nil, err
	}
	return a.withEngine(ctx, slog.New(slog.DiscardHandler), func(e *agent.Agent) (*reconcile.Plan, error) {
		return e.ApplyOnce(ctx, progress)
	})
}
