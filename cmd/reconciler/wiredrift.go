package main

import (
	"context"
	"fmt"
	"path"

	"reconciler/agent"
	"reconciler/cmd/reconciler/config"
	"reconciler/drift"
	"reconciler/drivers/kvm"
	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/spec"
)

// driftOf is how this host brings back what nobody committed.
func driftOf(c config.Config, repo *gitrepo.Repo, pulls agent.Pulls, machines *kvm.Driver, disks *storage) agent.Drift {
	d := agent.Drift{
		Prefix: c.DriftBranchPrefix, Branches: &branches{repo, c.Path},
		Traces: func(k reconcile.Key) (list []drift.Trace) {
			switch k.Kind {
			case spec.KindVirtualMachine:
				for _, t := range machines.Traces(k.UID) {
					list = append(list, drift.Trace{At: t.At, Text: t.Text})
				}
			case spec.KindDisk:
				for _, t := range disks.Traces(k.UID) {
					list = append(list, drift.Trace{At: t.At, Text: t.Text})
				}
			}
			return list
		},
	}
	if c.Branch != "" {
		d.Pulls = pulls
	}
	return d
}

// branches writes proposals to the followed repository. The agent names files
// as the tree does, below the directory of the specs.
type branches struct {
	repo *gitrepo.Repo
	dir  string
}

func (b *branches) File(ctx context.Context, revision, name string) ([]byte, error) {
	tree, err := b.repo.Files(ctx, revision)
	if err != nil {
		return nil, err
	}
	for _, f := range tree.Files {
		if f.Path == name {
			return tree.Read(ctx, f)
		}
	}
	return nil, fmt.Errorf("%s has no %s", revision, name)
}

func (b *branches) Propose(ctx context.Context, ref, base string, files map[string][]byte, message string) (string, error) {
	edits := make(map[string][]byte, len(files))
	for name, data := range files {
		if len(data) == 0 {
			data = nil // nothing is left of it
		}
		edits[path.Join(b.dir, name)] = data
	}
	commit, _, err := b.repo.PushEdit(ctx, ref, base, edits, message, gitrepo.PushOptions{OwnOnly: true})
	return commit, err
}

func (b *branches) Withdraw(ctx context.Context, ref string) error {
	return b.repo.DeleteRef(ctx, ref, gitrepo.PushOptions{OwnOnly: true})
}
