package agent

import (
	"context"
	"fmt"
	"time"

	"reconciler/api"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// Plan compares without changing anything.
func (a *Agent) Plan(ctx context.Context, r api.PlanRequest) (*reconcile.Plan, error) {
	if r.Against == "" {
		r.Against = "live"
		if r.Base != "" {
			r.Against = "base"
		}
	}
	rev, set, err := a.target(ctx, r.Rev)
	if err != nil {
		return nil, err
	}
	base, baseRev, err := a.planBase(ctx, r.Base)
	if err != nil {
		return nil, err
	}
	want := a.desired(set)
	want.Revision = rev.Hash
	now := a.cfg.Now()
	var plan reconcile.Plan
	switch r.Against {
	case "base":
		plan = reconcile.Diff(want, base, reconcile.StateFromBase(base), now)
	case "live", "status":
		have, observed, err := a.planState(ctx, want, r.Against)
		if err != nil && r.Against == "live" {
			return nil, err
		}
		if err != nil {
			// Nothing is known, so nothing is claimed: every object is blocked.
			a.log.Warn("plan against status", "error", err)
			have = reconcile.NewState()
		}
		a.mu.Lock()
		live := err == nil && r.Against == "live"
		if live {
			a.hideRunning(have)
		}
		if r.Rev == "" && r.Base == "" {
			plan, _, _ = a.diff(want, base, have)
		} else {
			plan = reconcile.Diff(want, base, have, now)
		}
		plan.Hosts[0].ObservedAt = observed
		plan.Incomplete = err != nil || now.Sub(observed) > maxReportAge
		if live {
			a.showRunning(&plan)
		}
		in := a.restraints(have, a.contact || r.Rev == "")
		in.Ownership = a.ownership(set)
		policy.Apply(&plan, in)
		a.holdDouble(&plan)
		a.mu.Unlock()
	default:
		return nil, api.Errorf(api.Invalid, "--against is live, base or status, not %q", r.Against)
	}
	plan.Base = baseRev
	return &plan, nil
}

// maxReportAge is how old a host's report may be for a plan to be complete.
const maxReportAge = 15 * time.Minute

// target is the revision that a plan is made for: the newest unless one is named.
func (a *Agent) target(ctx context.Context, name string) (Revision, *spec.Set, error) {
	var rev Revision
	var err error
	if name == "" {
		rev, err = a.cfg.Source.Fetch(ctx)
	} else {
		rev, err = a.cfg.Source.Resolve(ctx, name)
	}
	if err != nil {
		return rev, nil, err
	}
	set, err := a.cfg.Source.Load(ctx, rev.Hash)
	if err != nil {
		return rev, nil, err
	}
	if err := a.belongs(set); err != nil {
		return rev, nil, err
	}
	if err := a.keepsDisks(ctx, set); err != nil {
		return rev, nil, err
	}
	return rev, set, a.checkTenants(set)
}

// planBase is what was last applied, or a revision as if it had been.
func (a *Agent) planBase(ctx context.Context, name string) (reconcile.Base, string, error) {
	if name == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		base := make(reconcile.Base, len(a.base))
		for k, b := range a.base {
			base[k] = b
		}
		return base, a.mem.LastApplied, nil
	}
	rev, err := a.cfg.Source.Resolve(ctx, name)
	if err != nil {
		return nil, "", err
	}
	set, err := a.cfg.Source.Load(ctx, rev.Hash)
	if err != nil {
		return nil, "", err
	}
	return reconcile.BaseOf(reconcile.NewDesired(set, a.nameIn(set), rev.Hash)), rev.Hash, nil
}

// planState is what is there: observed now, or as of the last report.
func (a *Agent) planState(ctx context.Context, want *reconcile.Desired, against string) (reconcile.State, time.Time, error) {
	if against == "live" {
		have, err := a.observe(ctx, want)
		return have, a.cfg.Now(), err
	}
	data, err := a.cfg.Source.Published(ctx, a.cfg.StatusRef+a.name(), status.StateFile)
	if err != nil {
		return reconcile.State{}, time.Time{}, fmt.Errorf("the host's last report: %w", err)
	}
	r, err := status.ReadState(data)
	if err != nil {
		return reconcile.State{}, time.Time{}, fmt.Errorf("the host's last report: %w", err)
	}
	if r.Host != a.name() || r.Cluster != want.Cluster {
		return reconcile.State{}, time.Time{}, fmt.Errorf("the report is of host %s of cluster %s", r.Host, r.Cluster)
	}
	return r.State(), r.ObservedAt, nil
}
