package main

import (
	"context"
	"errors"
	"log/slog"

	"reconciler/agent"
	"reconciler/gitrepo"
	"reconciler/reconcile"
)

// withEngine makes an agent in this process and ends it after use.
func (a *app) withEngine(ctx context.Context, log *slog.Logger, use func(*agent.Agent) (*reconcile.Plan, error)) (p *reconcile.Plan, err error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	if c.Repo == "" {
		return nil, &hinted{
			errors.New("no repository is given"),
			"give --repo, or repo in the configuration; where an agent runs (--run-dir), neither is needed",
		}
	}
	engine, release, err := build(ctx, c, log)
	if errors.Is(err, gitrepo.ErrCacheInUse) {
		err = &hinted{err, "one process at a time uses a state directory: where that is the agent, name its run directory (--run-dir); where it is a plan or apply, wait for its end"}
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	return use(engine)
}
