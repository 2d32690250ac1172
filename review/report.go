// Package review compares what a pull request asks for with what was asked for
// before, and holds the records by which a plan is approved. It is pure.
package review

import (
	"cmp"
	"slices"
	"sort"
	"strings"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

// HostInput is what is known of one host.
type HostInput struct {
	Host string
	// Was is what the base calls it, where that is another name.
	Was string
	// New hosts come with the pull request: there is nothing on them yet.
	New bool
	// Gone hosts are no longer declared by the merge.
	Gone bool
	// Problem is why Have and Base cannot be relied on; empty if they can.
	Problem    string
	Have       reconcile.State
	Base       reconcile.Base // what the host last applied
	ObservedAt time.Time
	State      string   // commit of the status ref that Have is from
	Notes      []string // what a reviewer should know
}

// Input is all that a review is made of.
type Input struct {
	BaseRevision, HeadRevision string // commits
	Tree                       string // tree of their merge
	Base, Merge                *spec.Set
	Hosts                      []HostInput
	// Restrain, where set, applies what is known of a host's policy to a plan.
	Restrain func(*reconcile.Plan, reconcile.State)
	Now      time.Time
}

// Origin says whose doing an action is.
type Origin string

// The origins. An action that does nothing has none.
const (
	PullRequest Origin = "pullRequest"
	// Mixed actions finish something that was pending or drifted, too.
	Mixed Origin = "mixed"
	// Pending actions are there without the pull request.
	Pending Origin = "pending"
	// Cancelled actions were pending, and with the pull request are not any more.
	Cancelled Origin = "cancelled"
)

// Row is an action with its origin.
type Row struct {
	reconcile.Action
	Origin Origin `json:"origin"`
	// Note is what the host's policy is expected to say.
	Note string `json:"note,omitempty"`
	// Most is what a cancelled action takes to be undone, if it is carried out
	// before the pull request is merged.
	Most reconcile.Impact `json:"most,omitzero"`
}

// Host is what is to be approved for one host.
type Host struct {
	Host       string    `json:"host"`
	Digest     string    `json:"digest"` // of its plan, as the host itself computes it
	ObservedAt time.Time `json:"observedAt"`
	State      string    `json:"state"` // commit of the status ref
	New        bool      `json:"new"`
	Problem    string    `json:"problem"`
	Notes      []string  `json:"notes"`
	// IDs are the actions of the pull request, and Also those it has once a
	// part of them, or what was pending before, is done.
	IDs  []string `json:"ids"`
	Also []string `json:"also"`
}

// Report is the plan of a pull request.
type Report struct {
	APIVersion string               `json:"apiVersion"`
	Kind       string               `json:"kind"`
	Cluster    string               `json:"cluster"` // id
	Revision   string               `json:"revision"`
	Base       string               `json:"base"`
	Tree       string               `json:"tree"`
	Impact     reconcile.Impact     `json:"impact"` // of what the pull request causes
	Incomplete bool                 `json:"incomplete"`
	Refused    string               `json:"refused"` // why hosts would refuse the merge
	Summary    map[reconcile.Op]int `json:"summary"` // of what the pull request causes
	Pending    map[reconcile.Op]int `json:"pending"`
	Hosts      []Host               `json:"hosts"`
	Actions    []Row                `json:"actions"`
	Cancelled  []Row                `json:"cancelled"`
}

const reportKind = "PullRequestPlan"

// Compare makes the plan of a pull request: for every host what it would do
// after the merge, and which of that it would do without it.
func Compare(in Input) *Report {
	r := &Report{
		APIVersion: spec.APIVersion, Kind: reportKind, Cluster: in.Merge.ClusterID(),
		Revision: in.HeadRevision, Base: in.BaseRevision, Tree: in.Tree,
		Summary: map[reconcile.Op]int{}, Pending: map[reconcile.Op]int{},
		Hosts: []Host{}, Actions: []Row{}, Cancelled: []Row{},
	}
	if in.Base != nil {
		r.Refused = refusal(in.Base, in.Merge)
	}
	if r.Refused == "" {
		r.Refused = misplaced(in)
	}
	hosts := slices.SortedFunc(slices.Values(in.Hosts), func(a, b HostInput) int { return cmp.Compare(a.Host, b.Host) })
	for _, h := range hosts {
		r.add(in, h)
	}
	r.sum()
	return r
}

// refusal is why every host would refuse a tree; empty if none is known.
func refusal(base, merge *spec.Set) string {
	if was, id := base.ClusterID(), merge.ClusterID(); was != id {
		return "the merge declares the cluster id " + quote(id) + ", and the hosts belong to " + quote(was) +
			" (a renamed Cluster keeps its identity by spec.id or metadata.movedFrom)"
	}
	was, now := base.Cluster().Spec.(*spec.Cluster).IQNBase, merge.Cluster().Spec.(*spec.Cluster).IQNBase
	if was != now && len(base.Of(spec.KindDisk)) > 0 {
		return "the merge changes iqnBase from " + quote(was) + " to " + quote(now) + " while disks exist"
	}
	return ""
}

// add compares one host.
func (r *Report) add(in Input, h HostInput) {
	out := Host{
		Host: h.Host, ObservedAt: h.ObservedAt, State: h.State, New: h.New, Problem: h.Problem,
		Notes: slices.Clone(h.Notes), IDs: []string{}, Also: []string{},
	}
	if out.Notes == nil {
		out.Notes = []string{}
	}
	defer func() { r.Hosts = append(r.Hosts, out) }()
	if h.Problem != "" {
		r.Incomplete = true
	}
	if h.Gone {
		out.Notes = append(out.Notes, "it is no longer declared: its agent refuses the merge, and what runs there stays as it is")
		return
	}
	want := reconcile.NewDesired(in.Merge, h.Host, in.HeadRevision)
	was := nothing(want)
	if in.Base != nil && !h.New {
		was = reconcile.NewDesired(in.Base, h.was(), in.BaseRevision)
		was.Formerly, was.Host = append(slices.Clone(was.Formerly), was.Host), h.Host
		was.Arriving = arriving(in, in.Base, h)
	}
	want.Arriving = arriving(in, in.Merge, h)
	base, have := h.Base, h.Have
	switch {
	case h.Problem != "":
		// Nobody may approve it; it is shown as if all before were done.
		base = reconcile.BaseOf(was)
		have = reconcile.StateFromBase(base)
	case h.New:
		base, have = reconcile.Base{}, reconcile.StateFromBase(nil)
	}
	plan := reconcile.Diff(want, base, have, in.Now)
	before := reconcile.Diff(was, base, have, in.Now)
	rows := attribute(plan, before)
	if in.Restrain != nil && h.Problem == "" {
		note(rows, plan, have, in.Restrain)
	}
	promise(rows, want, was, base, in.Now)
	for _, row := range rows {
		if row.Origin == Cancelled {
			r.Cancelled = append(r.Cancelled, row)
		} else {
			r.Actions = append(r.Actions, row)
		}
	}
	if h.Problem != "" {
		return
	}
	out.Digest = plan.Hosts[0].Digest
	out.IDs, out.Also = approvable(want, was, base, have, &plan, in.Now)
}

// nothing is a host without any object, of the same cluster.
func nothing(of *reconcile.Desired) *reconcile.Desired {
	d := *of
	d.Objects, d.Elsewhere = map[reconcile.Key]*reconcile.Object{}, map[reconcile.Key]string{}
	return &d
}

// attribute tells the actions of a plan from those that were there before.
func attribute(plan, before reconcile.Plan) []Row {
	earlier := make(map[reconcile.Key]*reconcile.Action, len(before.Actions))
	for i := range before.Actions {
		earlier[before.Actions[i].Key()] = &before.Actions[i]
	}
	rows := make([]Row, 0, len(plan.Actions))
	for i := range plan.Actions {
		a := &plan.Actions[i]
		b := earlier[a.Key()]
		delete(earlier, a.Key())
		does, did := a.Op != reconcile.OpUnchanged, b != nil && b.Op != reconcile.OpUnchanged
		switch {
		case !does && !did:
			rows = append(rows, row(a, ""))
		case !does:
			rows = append(rows, row(a, ""), row(b, Cancelled))
		case !did:
			rows = append(rows, row(a, PullRequest))
		case same(a, b):
			rows = append(rows, row(a, Pending))
		default:
			rows = append(rows, row(a, Mixed))
		}
	}
	// What is left was there only before: an object that was to be made.
	for _, k := range reconcile.SortedKeys(earlier) {
		if b := earlier[k]; b.Op != reconcile.OpUnchanged {
			rows = append(rows, row(b, Cancelled))
		}
	}
	return rows
}

func row(a *reconcile.Action, o Origin) Row {
	r := Row{Action: *a, Origin: o}
	r.Want, r.Have, r.After = nil, nil, nil // nobody needs them, and they hold the trees
	return r
}

// same says whether the action is what it was before the pull request.
func same(a, b *reconcile.Action) bool {
	if a.ID != b.ID || a.Op != b.Op || a.Cause != b.Cause || a.Impact != b.Impact || a.State != b.State || a.Name != b.Name ||
		len(a.Changes) != len(b.Changes) || (a.Want == nil) != (b.Want == nil) {
		return false
	}
	// Of a blocked object nothing is compared; the trees still are.
	if a.Want != nil && a.Want.Generation() != b.Want.Generation() {
		return false
	}
	for i, c := range a.Changes {
		d := b.Changes[i]
		if c.Field != d.Field || c.From != d.From || c.To != d.To || c.Impact != d.Impact || (c.Waits == "") != (d.Waits == "") {
			return false
		}
	}
	return true
}

// note adds what policy would hold.
func note(rows []Row, plan reconcile.Plan, have reconcile.State, restrain func(*reconcile.Plan, reconcile.State)) {
	held := plan
	held.Hosts = slices.Clone(plan.Hosts)
	held.Actions = slices.Clone(plan.Actions)
	for i := range held.Actions {
		held.Actions[i].Changes = slices.Clone(held.Actions[i].Changes)
	}
	restrain(&held, have)
	why := map[reconcile.Key]string{}
	for i := range held.Actions {
		if a := &held.Actions[i]; a.State != plan.Actions[i].State {
			why[a.Key()] = "on the host " + string(a.State) + ": " + strings.TrimPrefix(a.Reason, "held ")
		}
	}
	for i := range rows {
		if rows[i].Origin != Cancelled {
			rows[i].Note = why[rows[i].Key()]
		}
	}
}

// sum orders the actions, what hurts first, and counts them.
func (r *Report) sum() {
	rank := map[Origin]int{PullRequest: 0, Mixed: 0, Pending: 1, "": 2}
	sort.SliceStable(r.Actions, func(i, j int) bool {
		a, b := &r.Actions[i], &r.Actions[j]
		return cmp.Or(cmp.Compare(rank[a.Origin], rank[b.Origin]), cmp.Compare(b.Impact, a.Impact)) < 0
	})
	for i := range r.Actions {
		switch a := &r.Actions[i]; a.Origin {
		case PullRequest, Mixed:
			r.Summary[a.Op]++
			if a.State != reconcile.Blocked {
				r.Impact = max(r.Impact, a.Impact)
			}
		case Pending:
			r.Pending[a.Op]++
		}
	}
	for i := range r.Cancelled {
		r.Impact = max(r.Impact, r.Cancelled[i].Most)
	}
}

// Count is the number of actions of the pull request in a state.
func (r *Report) Count(s reconcile.ActionState) int {
	n := 0
	for i := range r.Actions {
		if a := &r.Actions[i]; a.ours() && a.State == s {
			n++
		}
	}
	return n
}

func (r *Row) ours() bool { return r.Origin == PullRequest || r.Origin == Mixed }

// rows lists the actions of the pull request, or those that were there before.
func (r *Report) rows(ours bool) []*Row {
	var list []*Row
	for i := range r.Actions {
		if a := &r.Actions[i]; a.Origin != "" && a.ours() == ours {
			list = append(list, a)
		}
	}
	return list
}

// PendingIDs are the ids of what was asked for before the pull request, by host.
func (r *Report) PendingIDs() map[string][]string {
	ids := map[string][]string{}
	for i := range r.Actions {
		if a := &r.Actions[i]; a.Origin == Pending && a.ID != "" {
			ids[a.Host] = append(ids[a.Host], a.ID)
		}
	}
	return ids
}

// unknown lists the hosts whose state cannot be relied on.
func (r *Report) unknown() []Host {
	return slices.DeleteFunc(slices.Clone(r.Hosts), func(h Host) bool { return h.Problem == "" })
}

// Headline is the report in one line.
func (r *Report) Headline() string {
	p := reconcile.Plan{Summary: r.Summary, Impact: r.Impact, Incomplete: r.Incomplete}
	if len(r.Summary) == 0 {
		line := "Plan: this pull request changes nothing that runs"
		if r.Incomplete {
			line += "; INCOMPLETE"
		}
		return line
	}
	return p.Headline()
}
