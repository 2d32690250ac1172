package main

import (
	"fmt"

	"reconciler/agent"
	"reconciler/cmd/reconciler/config"
	"reconciler/trust"
)

// reviewOf is whose approvals this host waits for.
func reviewOf(c config.Config) (r agent.Review, err error) {
	r = agent.Review{Required: c.RequireReviewedPlan, Ref: c.ApprovalsRef}
	if len(c.PlanSigners) > 0 {
		if r.Signers, err = trust.ParsePublicKeys(c.PlanSigners); err != nil {
			return r, fmt.Errorf("planSigners: %w", err)
		}
	}
	if len(c.OverrideKeys) > 0 {
		if r.Overrides, err = trust.ParsePublicKeys(c.OverrideKeys); err != nil {
			return r, fmt.Errorf("overrideKeys: %w", err)
		}
	}
	return r, nil
}
