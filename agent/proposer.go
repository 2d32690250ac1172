package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"reconciler/drift"
	"reconciler/forge"
	"reconciler/gitrepo"
	"reconciler/reconcile"
)

// driftFile holds what was proposed, so that a restart neither repeats nor
// forgets anything.
const driftFile = "drift.json"

// settleDrift is how long changes are gathered: who unplugs one disk may
// unplug two.
const settleDrift = time.Second

// made is what the repository has of us.
type made struct {
	Digest  string                   `json:"digest,omitempty"` // of the last proposal that was carried out
	Offered proposal                 `json:"offered"`          // the last one, carried out or not
	Since   map[string]time.Time     `json:"since,omitempty"`  // when an object was first seen to differ, by UID
	Traces  map[string][]drift.Trace `json:"traces,omitempty"`
	// Commit is our branch's, as far as we wrote it; empty where there is none.
	Commit string `json:"commit,omitempty"`
	// Asked is the drift that a pull request was opened for. If somebody closes
	// it, it is not opened again for the same.
	Asked string `json:"asked,omitempty"`
	// Foreign says that somebody else committed to the branch.
	Foreign bool `json:"foreign,omitempty"`
}

// proposer brings the branch and the pull request in line with what drifted: the
// newest replaces what is not done yet.
type proposer struct {
	courier // guarded by mu, but for its channel
	cfg     Drift
	host    string
	ref     string
	branch  string // that is followed
	store   store
	log     *slog.Logger
	events  *journal

	mu      sync.Mutex // guards what follows
	made    made
	unsaved bool // made is not on the disk
}

func newProposer(cfg Config, s store, log *slog.Logger, events *journal) *proposer {
	if cfg.Drift.Branches == nil {
		return nil
	}
	prefix := cfg.Drift.Prefix
	if prefix == "" {
		prefix = driftBranch
	}
	return &proposer{
		courier: newCourier(), cfg: cfg.Drift, host: cfg.Host, ref: prefix + cfg.Host, branch: cfg.Branch,
		store: s, log: log, events: events,
	}
}

// proposed is the last proposal.
func (p *proposer) proposed() drift.Proposal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.made.Offered.Proposal
}

// offer takes the newest proposal and returns the objects and notes that are new
// in it.
func (p *proposer) offer(next proposal, now time.Time) (fresh []drift.Item, notes []drift.Note) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unsaved {
		p.save()
	}
	known := p.made.Offered.Proposal
	same := next.digest() == p.made.Offered.digest()
	if same || len(next.Proposal.Items)+len(next.Proposal.Notes) == 0 && len(known.Items)+len(known.Notes) == 0 && p.made.Commit == "" {
		return nil, nil
	}
	for _, n := range next.Proposal.Notes {
		if !slices.Contains(known.Notes, n) {
			notes = append(notes, n)
		}
	}
	since, traces := map[string]time.Time{}, map[string][]drift.Trace{}
	for _, item := range next.Proposal.Items {
		at, known := p.made.Since[item.UID]
		if !known {
			at = now
			fresh = append(fresh, item)
		}
		since[item.UID] = at
		if list := p.made.Traces[item.UID]; list != nil {
			traces[item.UID] = list
		}
	}
	p.made.Offered, p.made.Since, p.made.Traces = next, since, traces
	if p.failed == 0 {
		p.next = time.Now().Add(settleDrift)
	}
	p.save()
	p.wake()
	return fresh, notes
}

// save writes down what was offered and done. p.mu is held.
func (p *proposer) save() {
	err := p.store.save(driftFile, p.made)
	if p.unsaved = err != nil; err != nil {
		p.log.Warn("what was proposed could not be written down; tried again with the next pass", "error", err)
	}
}

// due says whether there is anything to do, and in how long.
func (p *proposer) due(now time.Time) (wait time.Duration, due bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made.Digest == p.made.Offered.digest() || len(p.made.Offered.Proposal.Items) == 0 && p.made.Commit == "" {
		return 0, false
	}
	return max(p.next.Sub(now), 0), true
}

// carryOut makes the branch and the pull request what the newest proposal says.
func (p *proposer) carryOut(ctx context.Context) bool {
	p.mu.Lock()
	now, wasForeign := p.made, p.made.Foreign
	p.mu.Unlock()
	var err error
	var files map[string][]byte
	next := now.Offered.Proposal
	if len(next.Items) > 0 {
		now.Traces = p.trace(next, now.Traces)
		files, err = next.Files(func(name string) ([]byte, error) {
			return p.cfg.Branches.File(ctx, now.Offered.Revision, name)
		})
	}
	if err == nil && len(files) > 0 {
		err = p.propose(ctx, next, now, files)
	} else if err == nil && now.Commit != "" {
		err = p.withdraw(ctx, now)
	}
	foreign := errors.Is(err, gitrepo.ErrForeignTip)
	if ctx.Err() != nil && !foreign && err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && !foreign {
		if p.pause(time.Now(), err) {
			p.log.Warn("drift could not be brought back to the repository; tried again", "error", err)
			p.events.warn("", "DriftNotProposed", err.Error())
		}
		return false
	}
	if foreign && !wasForeign {
		p.log.Warn("somebody else committed to the drift branch; it is left as it is", "branch", p.ref)
		p.events.warn("", "DriftBranchForeign", p.ref+" has commits of somebody else: it is left as it is until they are merged or the branch is deleted")
	}
	if p.resume() {
		p.events.normal("", "DriftProposed", "the repository has been told what it missed")
	}
	p.made.Digest, p.made.Foreign = now.Offered.digest(), foreign
	p.save()
	return true
}

// trace asks who changed the objects, and keeps what was known before where
// nothing is known any more.
func (p *proposer) trace(next drift.Proposal, known map[string][]drift.Trace) map[string][]drift.Trace {
	traces := map[string][]drift.Trace{}
	maps.Copy(traces, known)
	if p.cfg.Traces == nil {
		return traces
	}
	for _, item := range next.Items {
		if list := p.cfg.Traces(reconcile.Key{Kind: item.Kind, UID: item.UID}); len(list) > 0 {
			traces[item.UID] = list
		}
	}
	p.note(func(m *made) { m.Traces = traces })
	return traces
}

// propose writes the branch and keeps the pull request current.
func (p *proposer) propose(ctx context.Context, next drift.Proposal, now made, files map[string][]byte) error {
	about := drift.Context{
		Host: p.host, Branch: p.branch, Revision: now.Offered.Revision,
		Traces: now.Traces, Since: now.Since, Unmanaged: now.Offered.Unmanaged,
	}
	commit, err := p.cfg.Branches.Propose(ctx, p.ref, now.Offered.Revision, files, next.Message(about))
	if err != nil {
		return fmt.Errorf("write %s: %w", p.ref, err)
	}
	p.note(func(m *made) { m.Commit = commit })
	if p.cfg.Pulls == nil {
		return nil
	}
	asked := proposal{Proposal: drift.Proposal{Items: next.Items}}.digest()
	if asked == now.Asked {
		if open, err := p.cfg.Pulls.FindPull(ctx, p.head(), p.branch); err != nil || open == nil {
			return err
		}
	}
	pull, err := p.cfg.Pulls.EnsurePull(ctx, forge.Pull{Head: p.head(), Base: p.branch, Title: next.Title(about), Body: next.Body(about)})
	if err != nil {
		return err
	}
	p.note(func(m *made) { m.Asked = asked })
	p.log.Info("drift is proposed", "branch", p.head(), "pull", pull.URL)
	if asked != now.Asked { // else it is an open one that was brought up to date
		p.events.normal("", "DriftPullRequest", pull.URL)
	}
	return nil
}

// note writes down a step that was reached.
func (p *proposer) note(change func(*made)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.made)
	p.save()
}

func (p *proposer) head() string { return strings.TrimPrefix(p.ref, "refs/heads/") }

// withdraw takes back what is not so any more.
func (p *proposer) withdraw(ctx context.Context, now made) error {
	if p.cfg.Pulls != nil {
		pull, err := p.cfg.Pulls.FindPull(ctx, p.head(), p.branch)
		if err == nil && pull != nil && pull.HeadCommit != "" && pull.HeadCommit != now.Commit {
			return gitrepo.ErrForeignTip
		}
		if err == nil && pull != nil {
			err = p.cfg.Pulls.ClosePull(ctx, pull.Number, "What runs on "+p.host+" is what is declared again: there is nothing left to decide.")
		}
		if err != nil {
			return err
		}
	}
	switch err := p.cfg.Branches.Withdraw(ctx, p.ref); {
	case errors.Is(err, gitrepo.ErrRejected):
		// A forge that keeps workflows out of every branch may let nobody delete
		// one. Without its pull request the branch asks for nothing.
		p.log.Info("the drift branch stays: the forge lets nobody delete it", "branch", p.ref)
	case err != nil:
		return fmt.Errorf("delete %s: %w", p.ref, err)
	}
	p.note(func(m *made) { m.Commit, m.Asked = "", "" })
	return nil
}
