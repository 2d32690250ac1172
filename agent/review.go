package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"reconciler/deadline"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/review"
	"reconciler/spec"
	"reconciler/trust"
)

// Review is whose approvals a host waits for.
type Review struct {
	// Required lets only that run of a commit's work which was approved.
	Required bool
	// Signers may approve plans, Overrides may release what is held. nil is nobody.
	Signers, Overrides *trust.Keys
	Ref                string // that holds the records; default refs/reconciler/approvals
}

// reviewMemory is what the agent remembers of approvals over a restart.
type reviewMemory struct {
	// Begun says that Base was thought of.
	Begun bool `json:"begun,omitempty"`
	// Base is the newest revision at which nothing awaited a review. What was
	// approved for an earlier one does not count again.
	Base  string         `json:"base,omitempty"`
	Plans []approvedPlan `json:"plans,omitempty"`
}

// approvedPlan is an approval whose signature was found good.
type approvedPlan struct {
	Record string `json:"record"` // SHA-256 of the record
	Tree   string `json:"tree"`
	By     string `json:"by"`
	deadline.Deadline
	IDs []string `json:"ids"`
	// Parts are the actions that were seen, by KIND/UID: a part of one of them
	// is approved with it.
	Parts map[string]approvedPart `json:"parts,omitempty"`
}

// approvedPart is one action of an approved plan as it was first seen.
type approvedPart struct {
	Generation string           `json:"generation"` // of the object that was asked for
	Fields     []string         `json:"fields"`
	Impact     reconcile.Impact `json:"impact"`
}

const (
	reviewFile  = "review.json"
	approvalRef = "refs/reconciler/approvals"
	// maxPlans bounds the approvals that count at a time.
	maxPlans = 50
)

// reviewer is the agent's side of reviews. Agent.mu guards it.
type reviewer struct {
	reviewMemory
	dirty   bool // of reviewMemory
	awaits  []policy.Unreviewed
	inUse   map[string]bool   // records that the plan of the moment needs
	told    string            // what awaits, as it was last said
	tell    bool              // with the next plan
	stale   bool              // awaits was worked out before the newest approval was taken
	refused map[string]string // record to why, said once
	failed  string            // why the records could not be read, said once
	looked  time.Time         // for records
}

// holdUnreviewed holds what nobody approved, and returns it, and the records
// that approve the rest. a.mu is held.
func (a *Agent) holdUnreviewed(want *reconcile.Desired, plan *reconcile.Plan) (awaits []policy.Unreviewed, inUse map[string]bool) {
	if !a.cfg.Review.Required {
		return nil, nil
	}
	r, inUse := &a.review, map[string]bool{}
	now := a.clock()
	hold := policy.Review{
		Approved: map[string]bool{}, Beyond: map[string]string{}, Asked: map[reconcile.Key]bool{},
		Allowances: a.mem.Allowances, Clock: now,
	}
	for uid := range a.mem.Restarts {
		hold.Asked[reconcile.Key{Kind: spec.KindVirtualMachine, UID: uid}] = true
	}
	var names []string
	for _, p := range r.Plans {
		if !p.Over(now) {
			names = append(names, p.By)
		}
	}
	asked := a.askedOf(want, plan)
	for i := range plan.Actions {
		act := &plan.Actions[i]
		ask := asked[act.Key()]
		if act.ID == "" || ask == nil {
			continue
		}
		for j := range r.Plans {
			p := &r.Plans[j]
			if p.Over(now) || !p.contains(act, ask) {
				continue
			}
			hold.Approved[act.ID], inUse[p.Record] = true, true
			r.dirty = p.see(act, ask) || r.dirty
		}
		// What an id says of a removal follows from what was applied; what is
		// there may have lost its protection since. And what is to be made may be
		// there by now, and have been changed.
		if act.Impact > ask.Impact && (act.Op == reconcile.OpDelete || act.Op == reconcile.OpQuarantine || ask.Op == reconcile.OpCreate) {
			hold.Beyond[act.ID] = fmt.Sprintf("its impact is %s by now, and %s was approved", act.Impact, ask.Impact)
		}
	}
	hold.Found = policy.ApprovedBy(len(hold.Approved), names)
	return hold.Hold(plan), inUse
}

// begin lets nothing count that was approved for what is applied already,
// where reviews begin with this start, or what is known of them was lost.
func (r *reviewer) begin(lastApplied string) {
	if r.Begun {
		return
	}
	r.Begun, r.dirty = true, true
	if r.Base == "" {
		r.Base = lastApplied
	}
}

// diff makes the plan, and holds what nobody approved. a.mu is held.
func (a *Agent) diff(want *reconcile.Desired, base reconcile.Base, have reconcile.State) (plan reconcile.Plan, awaits []policy.Unreviewed, inUse map[string]bool) {
	now := a.cfg.Now()
	plan = reconcile.Diff(want, base, have, now)
	awaits, inUse = a.holdUnreviewed(want, &plan)
	for _, u := range awaits {
		b := base[u.Action.Key()]
		if u.Action.Kind != spec.KindHost || u.Action.Name != a.name() || b == nil || b.Get(driftField) == u.Action.Want.Get(driftField) {
			continue
		}
		// Drift has no id. Its mode is what was applied until the change of it is
		// approved.
		mode, as := b.Get(driftField), *want
		as.HostDrift = &mode
		plan = reconcile.Diff(&as, base, have, now)
		awaits, inUse = a.holdUnreviewed(want, &plan)
		break
	}
	return plan, awaits, inUse
}

const driftField = "spec.drift"

// askedOf is what the commit asks for, as if nothing had moved: what ids are
// made of. It is worked out only where the plan has any.
func (a *Agent) askedOf(want *reconcile.Desired, plan *reconcile.Plan) map[reconcile.Key]*reconcile.Action {
	if !slices.ContainsFunc(plan.Actions, func(act reconcile.Action) bool { return act.ID != "" }) {
		return nil
	}
	unasked := *want
	unasked.Restart = nil
	pure := reconcile.Diff(&unasked, a.base, reconcile.Calm(&unasked, a.base), a.cfg.Now())
	asked := make(map[reconcile.Key]*reconcile.Action, len(pure.Actions))
	for i := range pure.Actions {
		asked[pure.Actions[i].Key()] = &pure.Actions[i]
	}
	return asked
}

// contains says whether an action was approved: by its id, or as what is left
// of an action that was. A part of it may have been done before a crash, or may
// not have had to wait.
func (p *approvedPlan) contains(act, ask *reconcile.Action) bool {
	if _, ok := slices.BinarySearch(p.IDs, act.ID); ok {
		return true
	}
	part, ok := p.Parts[objectID(act)]
	if !ok || ask.Want == nil || ask.Op != reconcile.OpUpdate && ask.Op != reconcile.OpRestart ||
		ask.Impact > part.Impact || ask.Want.Generation() != part.Generation {
		return false
	}
	for _, c := range ask.Changes {
		if !slices.Contains(part.Fields, c.Field) {
			return false
		}
	}
	return true
}

// see takes an approved action down, and says whether that is news.
func (p *approvedPlan) see(act, ask *reconcile.Action) bool {
	if _, ok := p.Parts[objectID(act)]; ok || ask.Want == nil {
		return false
	}
	part := approvedPart{Generation: ask.Want.Generation(), Impact: ask.Impact}
	for _, c := range ask.Changes {
		part.Fields = append(part.Fields, c.Field)
	}
	if p.Parts == nil {
		p.Parts = map[string]approvedPart{}
	}
	p.Parts[objectID(act)] = part
	return true
}

func objectID(a *reconcile.Action) string { return string(a.Kind) + "/" + a.UID }

// lookInterval is how often records are looked for between two fetches: an
// approval may come after the merge, and no push to the branch tells of it.
const lookInterval = time.Minute

// seekApprovals has records looked for that release what is held, beside the
// pass. fetched says that the repository was asked for a revision just now.
func (a *Agent) seekApprovals(plan *reconcile.Plan, fetched bool) {
	c := a.cfg.Review
	a.mu.Lock()
	awaits := c.Required && c.Signers != nil && len(a.review.awaits) > 0
	held := c.Overrides != nil && plan.Count(reconcile.Held) > 0
	from, good, base := a.review.Base, a.mem.Good, maps.Clone(a.base)
	now := a.cfg.Now()
	due := fetched || now.Sub(a.review.looked) >= lookInterval
	if (awaits || held) && due {
		a.review.looked = now
	}
	a.mu.Unlock()
	if (awaits || held) && due {
		a.aside("approvals", func(ctx context.Context) bool { return a.readApprovals(ctx, plan, from, good, base, awaits, held) })
	}
}

// readApprovals looks for records, and says whether it found any that count.
func (a *Agent) readApprovals(ctx context.Context, plan *reconcile.Plan, from, good string, base reconcile.Base, awaits, held bool) bool {
	files, err := a.cfg.Source.Records(ctx, a.cfg.Review.Ref)
	var chain []Revision
	var found []offer
	if err == nil && awaits && len(files) > 0 {
		chain, err = a.cfg.Source.Between(ctx, from, good, true)
	}
	if err == nil {
		found, err = a.findApprovals(ctx, files, from, chain, base)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if why := err.Error(); ctx.Err() == nil && a.review.failed != why {
			a.review.failed = why
			a.events.warn("", "ApprovalsNotRead", "approvals cannot be read, and what awaits one stays held: "+why)
		}
		if !a.review.stale {
			a.tellUnreviewed(plan)
		}
		return false
	}
	a.review.failed = ""
	taken := a.takeApprovals(found, plan)
	if held {
		taken = a.takeOverrides(files, plan) || taken
	}
	if taken { // the next plan awaits less
		a.review.stale, a.review.tell = true, true
	} else if !a.review.stale {
		a.tellUnreviewed(plan)
	}
	return taken
}

// seeksApprovals says whether something may be released by a record. a.mu is
// held.
func (a *Agent) seeksApprovals() bool {
	return len(a.review.awaits) > 0 || a.cfg.Review.Overrides != nil && a.plan != nil && a.plan.Count(reconcile.Held) > 0
}

// offer is an approval whose signature is good, or why it does not count.
type offer struct {
	review.Signed
	rec  review.Approval
	by   string
	at   Revision // that it approves
	plan approvedPlan
	err  error
}

// findApprovals finds the approvals of the revisions since the last one at which
// nothing awaited a review. chain is newest first.
func (a *Agent) findApprovals(ctx context.Context, files map[string][]byte, from string, chain []Revision, base reconcile.Base) ([]offer, error) {
	place := make(map[string]int, len(chain))
	for i, c := range chain {
		place[c.Hash] = i
	}
	var list []offer
	seen := map[string]int{} // by path, its place in list
	oldest := 0
	// Oldest first: a tree that comes again by a revert of a revert is another
	// change, and needs an approval of its own.
	for i, c := range slices.Backward(chain) {
		s, ok := review.ApprovalOf(files, c.Tree, a.name())
		n, again := seen[s.Path]
		if !ok || again && list[n].err == nil {
			continue
		}
		o := offer{Signed: s, at: c}
		a.mu.Lock()
		known := a.known(s)
		if !known {
			o.rec, o.by, o.err = a.approval(s)
		}
		a.mu.Unlock()
		if known {
			continue
		}
		at, listed := place[o.rec.Base]
		switch {
		case o.err != nil:
		case o.rec.Tree != c.Tree:
			o.err = errors.New("it is of another tree")
		case o.rec.Base != from && (!listed || at <= i):
			o.err = fmt.Errorf("it approves a change of %s, which is not what this host comes from", short(o.rec.Base))
		case i > maxSince:
			o.err = fmt.Errorf("more than %d revisions came after %s, which it approves", maxSince, short(c.Hash))
		default:
			oldest = max(oldest, i)
		}
		if again {
			list[n] = o
		} else {
			seen[s.Path] = len(list)
			list = append(list, o)
		}
	}
	for i := range list {
		o := &list[i]
		o.plan = approvedPlan{Record: sum(o.Signed), Tree: o.rec.Tree, By: o.by, Deadline: deadline.At(a.clock(), o.rec.Until)}
		o.plan.IDs = slices.Sorted(slices.Values(slices.Concat(o.rec.IDs, o.rec.Also)))
	}
	for i := range chain[:oldest] {
		since, err := a.asks(ctx, chain[i], base, a.cfg.Now())
		if err != nil {
			return nil, err
		}
		for j := range list {
			if o := &list[j]; o.err == nil && place[o.at.Hash] > i {
				o.plan.withdraw(since)
			}
		}
	}
	return list, nil
}

// takeApprovals accepts approvals, as far as what they approve was not taken
// back meanwhile. a.mu is held.
func (a *Agent) takeApprovals(list []offer, plan *reconcile.Plan) bool {
	found := false
	for _, o := range list {
		if o.err != nil {
			a.refuseRecord(o.Signed, o.err)
			continue
		}
		if len(a.review.Plans) >= maxPlans {
			break
		}
		a.review.Plans = append(a.review.Plans, o.plan)
		a.review.dirty, found = true, true
		a.events.audit("", "PlanApproved", approvedMessage(o.at, o.rec, plan), o.by)
	}
	return found
}

// approvedMessage says what was approved, and what of it the host does not see.
func approvedMessage(c Revision, rec review.Approval, plan *reconcile.Plan) string {
	here := map[string]bool{}
	for i := range plan.Actions {
		here[plan.Actions[i].ID] = true
	}
	var missing []string
	for _, id := range rec.IDs {
		if !here[id] {
			missing = append(missing, id[:12])
		}
	}
	s := fmt.Sprintf("the plan of %s: %d actions, until %s", short(c.Hash), len(rec.IDs), rec.Until.Format(time.RFC3339))
	if len(missing) > 0 {
		s += fmt.Sprintf("; approved and not asked for here: %s", some(missing))
	}
	return s
}

// some lists the first few.
func some(list []string) string {
	const most = 10
	if n := len(list) - most; n > 0 {
		return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(list, ", ")
}

// approval verifies a record. Its signature comes first: nothing that somebody
// else wrote is looked at.
func (a *Agent) approval(s review.Signed) (rec review.Approval, by string, err error) {
	signer, err := a.cfg.Review.Signers.Verify(s.Data, s.Signature, trust.NamespaceApproval, a.cfg.Now())
	if err != nil {
		return rec, "", fmt.Errorf("signature: %w", err)
	}
	if rec, err = review.ParseApproval(s.Data); err != nil {
		return rec, "", err
	}
	return rec, signerName(signer), rec.Check(a.mem.Cluster, a.name(), a.cfg.Now())
}

func (a *Agent) known(s review.Signed) bool {
	h := sum(s)
	return slices.ContainsFunc(a.review.Plans, func(p approvedPlan) bool { return p.Record == h })
}

func sum(s review.Signed) string {
	h := sha256.Sum256(s.Data)
	return hex.EncodeToString(h[:])
}

// refuseRecord says why a record does not count, once. a.mu is held.
func (a *Agent) refuseRecord(s review.Signed, err error) {
	if a.review.refused == nil || len(a.review.refused) > 2*review.MaxRecords {
		a.review.refused = map[string]string{}
	}
	why := err.Error()
	if a.review.refused[s.Path] == why {
		return
	}
	a.review.refused[s.Path] = why
	a.events.warn("", "RecordRefused", s.Path+": "+why)
}

// takeOverrides turns overrides into allowances. a.mu is held.
func (a *Agent) takeOverrides(files map[string][]byte, plan *reconcile.Plan) bool {
	now, found := a.cfg.Now(), false
	for _, s := range review.OverridesOf(files, a.name()) {
		signer, err := a.cfg.Review.Overrides.Verify(s.Data, s.Signature, trust.NamespaceOverride, now)
		if err != nil {
			a.refuseRecord(s, fmt.Errorf("signature: %w", err))
			continue
		}
		rec, err := review.ParseOverride(s.Data)
		if err == nil {
			err = rec.Check(a.mem.Cluster, a.name(), now)
		}
		if err == nil && rec.Digest != "" && rec.Digest != plan.Hosts[0].Digest && !a.allowed(rec.Digest, rec.Until) {
			err = fmt.Errorf("it releases the plan %s, and the plan is %s by now", rec.Digest, plan.Hosts[0].Digest)
		}
		if err != nil {
			a.refuseRecord(s, err)
			continue
		}
		l := policy.Allowance{ID: rec.Digest, IDs: rec.IDs, Reason: rec.Reason, By: "override by " + signerName(signer), Deadline: deadline.At(a.clock(), rec.Until)}
		if rec.Digest == "" {
			l.ID = rec.IDs[0]
		} else {
			l.IDs = planIDs(plan)
		}
		if a.allowed(l.ID, l.Until) {
			continue
		}
		err = a.keep(func(m *memory) {
			m.Allowances = slices.DeleteFunc(m.Allowances, func(l policy.Allowance) bool { return l.Over(a.clock()) })
			m.Allowances = append(m.Allowances, l)
		})
		if err != nil {
			a.log.Error("an override could not be written down; it is looked for again", "error", err)
			a.review.looked = time.Time{}
			continue
		}
		found = true
		a.events.audit("", "Overridden", fmt.Sprintf("%s until %s: %s", l.ID, l.Until.Format(time.RFC3339), l.Reason), signerName(signer))
		a.log.Info("audit", "verb", "Overridden", "id", l.ID, "by", signerName(signer), "reason", l.Reason)
	}
	return found
}

// allowed says whether an override was taken before. a.mu is held.
func (a *Agent) allowed(id string, until time.Time) bool {
	return slices.ContainsFunc(a.mem.Allowances, func(l policy.Allowance) bool { return l.ID == id && l.Until.Equal(until) })
}

func planIDs(p *reconcile.Plan) []string {
	var ids []string
	for i := range p.Actions {
		if p.Actions[i].ID != "" {
			ids = append(ids, p.Actions[i].ID)
		}
	}
	return ids
}

// settleReview says what awaits a review, once for each revision, forgets what
// is carried out or expired, and remembers it all.
func (a *Agent) settleReview(plan *reconcile.Plan, have reconcile.State) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.cfg.Review.Required {
		return nil
	}
	r, now := &a.review, a.clock()
	if !r.stale && (r.tell || len(r.awaits) == 0) {
		a.tellUnreviewed(plan)
		r.tell = false
	}
	over := func(p approvedPlan) bool { return p.Over(now) }
	if len(r.awaits) == 0 && a.allSeen(plan, have) {
		over = func(p approvedPlan) bool { return p.Over(now) || !r.inUse[p.Record] }
		if r.Base != plan.Revision {
			r.Base, r.dirty = plan.Revision, true
		}
	}
	n := len(r.Plans)
	r.Plans = slices.DeleteFunc(r.Plans, over)
	r.dirty = r.dirty || len(r.Plans) < n
	return a.keepReview()
}

// keepReview writes down what is known of approvals, if that changed. Nothing
// runs that counts on it before that. a.mu is held.
func (a *Agent) keepReview() error {
	if !a.review.dirty {
		return nil
	}
	if err := a.store.save(reviewFile, a.review.reviewMemory); err != nil {
		return err
	}
	a.review.dirty = false
	return nil
}

// allSeen says that the plan shows all that the commit asks for: an object that
// could not be looked at, or is being changed, may have an action that does not
// show. a.mu is held.
func (a *Agent) allSeen(plan *reconcile.Plan, have reconcile.State) bool {
	if len(have.Unknown) > 0 || len(a.running) > 0 {
		return false
	}
	for _, k := range spec.Kinds {
		if observed(k) && !have.Complete[k] {
			return false
		}
	}
	return !slices.ContainsFunc(plan.Actions, func(act reconcile.Action) bool {
		return act.Op == reconcile.OpBlocked && act.ID == "" && act.Want != nil
	})
}

// tellUnreviewed reports the difference between what was approved and what is
// asked for. a.mu is held.
func (a *Agent) tellUnreviewed(plan *reconcile.Plan) {
	r := &a.review
	var names []string
	key := plan.Revision
	for _, u := range r.awaits {
		id := u.Action.ID
		if id != "" {
			id = " " + id[:12]
		}
		names = append(names, fmt.Sprintf("%s %s%s (%s)", u.Action.Op, objectName(u.Action), id, u.Why))
		key += "\n" + objectID(u.Action) + u.Action.ID
	}
	if len(names) == 0 {
		r.told = ""
		return
	}
	if key == r.told {
		return
	}
	r.told = key
	var by []string
	for _, p := range r.Plans {
		by = append(by, p.By)
	}
	a.events.warn("", "NotReviewed", fmt.Sprintf("%s asks for %d actions that await a review: %s; %s",
		short(plan.Revision), len(names), some(names), policy.ApprovedBy(len(planIDs(plan))-len(names), by)))
}

// signerName is a signer for people.
func signerName(s trust.Signer) string {
	if s.Name == "" {
		return s.Fingerprint
	}
	return s.Name
}
