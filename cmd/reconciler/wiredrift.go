package main

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"reconciler/agent"
	"reconciler/api"
	"reconciler/cmd/reconciler/config"
	"reconciler/drift"
	"reconciler/drivers/kvm"
	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/trust"
)

// driftOf is how this host brings back what nobody committed.
func driftOf(c config.Config, repo *gitrepo.Repo, pulls agent.Pulls, machines *kvm.Driver, disks *storage) agent.Drift {
	d := agent.Drift{
		Prefix: c.DriftBranchPrefix, Dir: c.Path, Branches: &branches{repo, func() (*trust.Key, error) { return hostKey(c) }},
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
		Foreign: func(ctx context.Context, host string) []api.ImportDocument {
			return foreignMachines(ctx, machines, host)
		},
	}
	if c.Branch != "" {
		d.Pulls = pulls
	}
	return d
}

// branches writes proposals to the followed repository, signed with the host's
// key: where all commits must be signed, an accepted proposal is one of them.
// Files are named as the tree names them, from the repository's root.
type branches struct {
	repo *gitrepo.Repo
	key  func() (*trust.Key, error)
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
	return nil, fmt.Errorf("%s in %s: %w", name, revision, fs.ErrNotExist)
}

func (b *branches) Propose(ctx context.Context, ref, base string, files map[string][]byte, message string) (string, error) {
	edits := make(map[string][]byte, len(files))
	for name, data := range files {
		if len(data) == 0 {
			data = nil // nothing is left of it
		}
		edits[name] = data
	}
	key, err := b.key()
	if err != nil {
		return "", err
	}
	sign := func(payload []byte) ([]byte, error) { return key.Sign(payload, trust.NamespaceGit) }
	commit, _, err := b.repo.PushEdit(ctx, ref, base, edits, message, gitrepo.PushOptions{OwnOnly: true, Sign: sign})
	return commit, err
}

func (b *branches) Withdraw(ctx context.Context, ref string) error {
	return b.repo.DeleteRef(ctx, ref, gitrepo.PushOptions{OwnOnly: true})
}

// foreignMachines describes the QEMU processes of others as documents.
func foreignMachines(ctx context.Context, d *kvm.Driver, host string) []api.ImportDocument {
	list, err := d.Foreign(ctx)
	if err != nil {
		return []api.ImportDocument{{Kind: "Process", Name: "table", Notes: []string{err.Error()}}}
	}
	var docs []api.ImportDocument
	for _, f := range list {
		doc := api.ImportDocument{Kind: string(spec.KindVirtualMachine), Name: objectNameOf(f), Notes: f.Notes}
		if f.VM != nil {
			f.VM.Host = host
			for i := range f.VM.NICs {
				f.VM.NICs[i].Network = "NETWORK" // which no name is: the document has to be looked at
			}
			yaml, err := spec.Marshal(&spec.Object{Kind: spec.KindVirtualMachine, Meta: spec.Meta{Name: doc.Name}, Spec: f.VM})
			if err != nil {
				doc.Notes = append(doc.Notes, err.Error())
			}
			doc.YAML = string(yaml)
		}
		docs = append(docs, doc)
	}
	return docs
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// objectNameOf makes a name of what a foreign QEMU calls itself.
func objectNameOf(f kvm.Foreign) string {
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(f.Name), "-"), "-")
	if name == "" {
		name = fmt.Sprintf("pid-%d", f.PID)
	}
	return name[:min(len(name), 60)]
}
