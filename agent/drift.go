package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"reconciler/api"
	"reconciler/deadline"
	"reconciler/drift"
	"reconciler/forge"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Branches is where proposals are committed.
type Branches interface {
	// File reads a file of a revision's tree.
	File(ctx context.Context, revision, name string) ([]byte, error)
	// Propose makes a branch one commit on top of base in which files of the tree
	// are replaced, if its tip is ours; else the error is gitrepo.ErrForeignTip.
	Propose(ctx context.Context, ref, base string, files map[string][]byte, message string) (commit string, err error)
	// Withdraw deletes a branch whose tip is ours; else the error is gitrepo.ErrForeignTip.
	Withdraw(ctx context.Context, ref string) error
}

// Pulls are the pull requests of the forge.
type Pulls interface {
	FindPull(ctx context.Context, head, base string) (*forge.Pull, error)
	EnsurePull(ctx context.Context, p forge.Pull) (forge.Pull, error)
	ClosePull(ctx context.Context, number int, why string) error
}

// Drift is how changes that nobody committed are brought back to the repository.
type Drift struct {
	Prefix   string   // of the branch, refs/heads/…; the host's name is added
	Dir      string   // of the tree, where new files go
	Branches Branches // nil: drift is reported in the status only
	Pulls    Pulls    // nil: there is a branch and no pull request
	// Traces is what is known of who changed an object; nil: nothing.
	Traces func(k reconcile.Key) []drift.Trace
	// Foreign describes machines of the host that no agent of ours started, as
	// far as that can be told without touching them; nil: nobody looks.
	Foreign func(ctx context.Context, host string) []api.ImportDocument
}

// driftBranch is the default of Drift.Prefix.
const driftBranch = "refs/heads/reconciler-drift/"

// proposal is on its way to the repository.
type proposal struct {
	Proposal  drift.Proposal `json:"proposal"`
	Revision  string         `json:"revision"` // that it is on top of
	Unmanaged []drift.Note   `json:"unmanaged,omitempty"`
}

// digest tells whether a proposal says anything new.
func (p proposal) digest() string {
	b, _ := json.Marshal(p) // of strings only: cannot fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// proposeDrift hands over what a plan leaves as it is because it is reported.
// It never waits for the repository.
func (a *Agent) proposeDrift(plan *reconcile.Plan) {
	if a.proposer == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// A revision that was refused is not the one the proposal is made against:
	// its fix comes first.
	if a.set == nil || plan.Revision != a.mem.Good || a.mem.Refused != "" || a.double() != "" {
		return
	}
	p := proposal{Proposal: drift.Propose(plan, a.set), Revision: plan.Revision}
	// What cannot be observed, or is being changed right now, has not stopped to differ.
	for _, item := range a.proposer.proposed().Items {
		k := reconcile.Key{Kind: item.Kind, UID: item.UID}
		_, unknown := a.have.Unknown[k]
		if unknown && !slices.ContainsFunc(p.Proposal.Items, func(x drift.Item) bool { return x.UID == item.UID }) {
			p.Proposal.Items = append(p.Proposal.Items, item)
		}
	}
	mode := spec.DriftCorrect
	if host := a.selfIn(a.set); host != nil {
		mode = host.Spec.(*spec.Host).Drift
	}
	if mode != spec.DriftOff {
		p.Proposal.Items = append(p.Proposal.Items, a.undeclared(plan)...)
	}
	if mode == spec.DriftReport {
		for _, u := range plan.Unmanaged {
			p.Unmanaged = append(p.Unmanaged, drift.Note{Object: u.Kind + " " + u.Name, Text: u.Reason})
		}
	}
	items, notes := a.proposer.offer(p, a.cfg.Now())
	for _, item := range items {
		if item.Document != "" {
			a.events.warn(string(item.Kind)+"/"+item.Name, "Undeclared", "it is here, and no file declares it; "+item.File+" is proposed to")
		}
		for _, m := range item.Moved {
			a.events.warn(string(item.Kind)+"/"+item.Name, "Drifted",
				fmt.Sprintf("%s: %q is declared, %q is there; reported, not corrected", m.Field, m.Declared, m.Real))
		}
	}
	for _, n := range notes {
		a.events.warn(n.Object, "Drifted", n.Text)
	}
}

// reversion is an operator's request to correct the drift of one object.
type reversion struct {
	By string `json:"by"`
	deadline.Deadline
}

// revertTime is how long a reversion may take. What is not corrected by then,
// for want of a restart for instance, is left alone again.
const revertTime = time.Hour

// Revert lets the agent correct the drift of an object once, whatever its mode.
func (a *Agent) Revert(ctx context.Context, r api.RevertRequest) error {
	k, err := a.key(r.Object)
	if err != nil {
		return err
	}
	a.mu.Lock()
	inForce := a.mem.Good
	a.mu.Unlock()
	plan, err := a.Plan(ctx, api.PlanRequest{Rev: inForce})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(plan.Actions, func(act reconcile.Action) bool { return act.Key() == k && act.Drift != "" }) {
		return &api.Error{Code: api.Conflict, Message: r.Object + " has no drift that is left alone", Hint: "reconciler plan shows what differs"}
	}
	now := a.clock()
	err = a.remember(func(m *memory) {
		if m.Reverts == nil {
			m.Reverts = map[string]reversion{}
		}
		m.Reverts[k.UID] = reversion{By: r.Caller.Name, Deadline: deadline.In(now, revertTime)}
	})
	a.audit(r.Object, "Reverted", r.Reason, r.Caller, err)
	a.wake(trigger{why: "revert asked for"})
	return err
}

// reverts are the objects whose drift is to be corrected. a.mu is held.
func (a *Agent) reverts(want *reconcile.Desired) map[reconcile.Key]bool {
	var keys map[reconcile.Key]bool
	now := a.clock()
	for k := range want.Objects {
		if r, ok := a.mem.Reverts[k.UID]; ok && !r.Over(now) {
			if keys == nil {
				keys = map[reconcile.Key]bool{}
			}
			keys[k] = true
		}
	}
	return keys
}

// reverted lists the requests that are fulfilled or too old. a.mu is held.
func (a *Agent) reverted(plan *reconcile.Plan) (uids []string) {
	if len(a.mem.Reverts) == 0 {
		return nil
	}
	now := a.clock()
	open := map[string]bool{}
	for i := range plan.Actions {
		act := &plan.Actions[i]
		open[act.UID] = act.Op != reconcile.OpUnchanged
	}
	for uid, r := range a.mem.Reverts {
		if !open[uid] || r.Over(now) {
			uids = append(uids, uid)
		}
	}
	return uids
}
