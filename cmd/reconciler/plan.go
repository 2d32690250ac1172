package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"reconciler/agent"
	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/status"
)

func (a *app) planCmd() *cobra.Command {
	var req api.PlanRequest
	var detailed bool
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what would be done, and change nothing",
		Long: `plan compares what runs on this host with the newest revision of the repository
and shows what apply would do: each object with its operation, cause, impact and
state, what hurts first. It changes nothing.

The plan is made by the agent where one runs, else by this command.

--rev is the revision to reach, as git writes it: HEAD~1, a branch, a tag, a hash.
HEAD is the branch that is followed. --base is the one the changes are attributed
against. --against says what the target is compared with: live, the host as it is
now; status, as it last reported itself; base, as if the base revision were fully
applied, for which no host is needed (the default where only --base is given).`,
		Example: `  reconciler plan
  reconciler plan -o markdown --base main --rev feature
  reconciler plan --detailed-exitcode || echo "exit code $?"`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json, markdown", detailedKey: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.plan(cmd.Context(), req)
			if err != nil {
				return err
			}
			a.warnRefused(cmd.Context(), p)
			if err := printPlan(a.stdout, a.flags.output, p); err != nil {
				return err
			}
			if detailed {
				return planExit(p)
			}
			return nil
		},
	}
	c.Flags().StringVar(&req.Rev, "rev", "", "`revision` to reach: a hash, branch or tag (default the newest)")
	c.Flags().StringVar(&req.Base, "base", "", "`revision` that the changes are attributed against (default what was last applied)")
	c.Flags().StringVar(&req.Against, "against", "", "what to compare with: `live|base|status`")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "tell by the exit code what is left to do")
	must(c.RegisterFlagCompletionFunc("against", cobra.FixedCompletions([]string{"live", "base", "status"}, cobra.ShellCompDirectiveNoFileComp)))
	for _, name := range []string{"rev", "base"} {
		must(c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return c
}

// warnRefused says that what a plan is made for does not come into force.
func (a *app) warnRefused(ctx context.Context, p *reconcile.Plan) {
	client, err := a.dial()
	if err != nil {
		return // without an agent nothing has been refused
	}
	st, err := client.Status(ctx)
	if err != nil || st.LastAttemptedRevision != p.Revision || st.LastAppliedRevision == p.Revision {
		return
	}
	for _, c := range st.Conditions {
		if c.Type == status.Stalled && c.Status == status.True {
			fmt.Fprintf(a.stderr, "reconciler: %s is refused, and this is what it would do: %s\n", shortRev(p.Revision), clean(c.Message))
		}
	}
}

// plan asks the agent where one runs, else makes the plan in this process.
func (a *app) plan(ctx context.Context, req api.PlanRequest) (*reconcile.Plan, error) {
	switch req.Against {
	case "", "live", "status":
	case "base":
		if req.Base == "" {
			return nil, usagef("--against base needs --base")
		}
	default:
		return nil, usagef("--against is live, base or status, not %q", req.Against)
	}
	client, err := a.dial()
	if err == nil {
		return client.Plan(ctx, req)
	}
	if !errors.Is(err, api.ErrNoAgent) {
		return nil, err
	}
	return a.withEngine(ctx, slog.New(slog.DiscardHandler), func(e *agent.Agent) (*reconcile.Plan, error) {
		return e.Plan(ctx, req)
	})
}
