package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// maxRounds bounds one pass: a disk handed from machine to machine takes a
// round each, and what is not done after this many waits for the next pass.
const maxRounds = 20

// onePass brings the host to the revision in force, which is the one of the news
// if it may be: observe, plan, carry out, and again until nothing is ready. It
// talks to nobody outside of the host. The error says why the revision or the
// observation failed; failing objects are no error.
func (a *Agent) onePass(ctx context.Context, n *news, progress func(string)) (plan *reconcile.Plan, err error) {
	a.pass.Lock()
	defer a.pass.Unlock()
	defer func() { a.settlePass(err) }()
	revErr := a.boot(ctx)
	fetched := a.heard(n)
	if fetched {
		revErr = a.advance(ctx, n)
		if revErr != nil {
			progress(revErr.Error())
		}
	}
	a.mu.Lock()
	if fetched {
		a.contact = revErr == nil
	}
	set, said := a.set, revErr
	if said == nil {
		said = a.fetchErr // which stands until it is asked again
	}
	a.mu.Unlock()
	if set == nil {
		a.reportRefusal(said)
		return nil, errors.Join(revErr, errNoRevision)
	}
	// Once, at the end: what is about to change is not worth a push.
	defer func() {
		if plan != nil {
			a.offerReport()
		}
	}()
	stuck := func(have reconcile.State, err error) (*reconcile.Plan, error) {
		a.report(plan, have, errors.Join(said, err))
		return plan, errors.Join(revErr, err)
	}
	for round := 1; ; round++ {
		want := a.desired(set)
		if !a.isDouble() {
			if err := a.cfg.Storage.Ensure(ctx); err != nil {
				a.log.Warn("storage", "error", err)
			}
		}
		have, err := a.observe(ctx, want)
		if err != nil {
			return plan, errors.Join(revErr, err)
		}
		plan = a.decide(want, have)
		a.seekApprovals(plan, fetched && round == 1)
		a.seekArrivals(plan, fetched && round == 1)
		if err := a.settleReview(plan, have); err != nil {
			return stuck(have, err)
		}
		if err := a.absorb(plan, have); err != nil {
			return stuck(have, err)
		}
		a.report(plan, have, said)
		if plan.Empty() || round == maxRounds || ctx.Err() != nil {
			break
		}
		if round == 1 {
			progress(plan.Headline())
		}
		if err := a.execute(want, plan, progress); err != nil {
			return stuck(have, err)
		}
	}
	a.proposeDrift(plan)
	return plan, errors.Join(revErr, ctx.Err())
}

var errNoRevision = errors.New("no revision is in force yet")

// desired is what this host is to be, with what operators asked for.
func (a *Agent) desired(set *spec.Set) *reconcile.Desired {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.share == nil || a.shareOf != set || a.share.Revision != a.mem.Good {
		share := a.work(set, a.mem.Good)
		if set != a.set {
			return a.withRestarts(share)
		}
		a.share, a.shareOf = share, set
	}
	return a.withRestarts(a.share)
}

// work is what a tree asks of this host. a.mu is held.
func (a *Agent) work(set *spec.Set, revision string) *reconcile.Desired {
	d := reconcile.NewDesired(set, a.nameIn(set), revision)
	d.Arriving = a.arriving(set)
	return d
}

// withRestarts adds to what a tree wants the restarts that were asked for. The
// objects are shared: nobody changes them.
func (a *Agent) withRestarts(want *reconcile.Desired) *reconcile.Desired {
	d := *want
	d.Restart = make(map[reconcile.Key]reconcile.Restart, len(a.mem.Restarts))
	for uid, r := range a.mem.Restarts {
		d.Restart[reconcile.Key{Kind: spec.KindVirtualMachine, UID: uid}] = r
	}
	d.Revert, d.Known = a.reverts(want), a.hadHere()
	return &d
}

// observe asks both drivers. A driver that fails leaves its kinds incomplete;
// that is no reason to stop, and nothing is taken for absent.
func (a *Agent) observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	disks := make(chan sight, 1)
	go func() {
		s, err := a.disks.observe(ctx, "disks", a.cfg.Storage, want)
		disks <- sight{s, err}
	}()
	vms, vmErr := a.machines.observe(ctx, "machines", a.cfg.Hypervisor, want)
	storage := <-disks
	have := reconcile.NewState()
	if vmErr == nil {
		have.Merge(vms)
	}
	if storage.err == nil {
		have.Merge(storage.state)
	}
	if vmErr != nil && storage.err != nil {
		return have, errors.Join(vmErr, storage.err)
	}
	if err := errors.Join(vmErr, storage.err); err != nil {
		a.log.Warn("observation incomplete", "error", err)
	}
	return have, parent.Err()
}

const observeTimeout = time.Minute

// decide makes the plan and lets policy and back-off hold what may not run now.
func (a *Agent) decide(want *reconcile.Desired, have reconcile.State) *reconcile.Plan {
	a.mu.Lock()
	defer a.mu.Unlock()
	// What was charged and did not begin is not to count. Where this fails, absorb
	// says so.
	_ = a.writeDown()
	now := a.cfg.Now()
	a.hideRunning(have)
	plan, awaits, inUse := a.diff(want, a.base, have)
	a.review.awaits, a.review.inUse, a.review.stale = awaits, inUse, false
	plan.Base = a.mem.LastApplied
	policy.Apply(&plan, a.restraints(have, a.contact && now.Sub(a.mem.LastContact) < 2*a.cfg.Interval+time.Minute))
	a.holdDouble(&plan)
	a.showRunning(&plan)
	failing := map[reconcile.Key]*failure{}
	for i := range plan.Actions {
		act := &plan.Actions[i]
		k := act.Key()
		if act.State == reconcile.Ready && act.Op != reconcile.OpUnchanged {
			a.rest(act, now)
		}
		f := a.failures[k]
		if f == nil || act.State != reconcile.Ready || act.Op == reconcile.OpUnchanged {
			continue
		}
		failing[k] = f
		if now.Before(f.next) && f.op == act.Op {
			act.State = reconcile.Waiting
			act.Reason = fmt.Sprintf("tries again at %s; %s", f.next.UTC().Format(time.RFC3339), f.message)
		}
	}
	a.failures = failing // what is not going to be tried does not fail any more
	plan.Settle()
	return &plan
}

// restraints are what policy is to go by; contact says that the repository was
// reached just now. a.mu is held.
func (a *Agent) restraints(have reconcile.State, contact bool) policy.Input {
	now := a.clock()
	in := policy.Input{
		Have: have, Limits: a.cfg.Limits, Ledger: a.mem.Ledger,
		Suspensions: a.mem.Suspensions, Allowances: a.mem.Allowances, Now: now.Now, BootID: now.BootID, Up: now.Up,
		Windows: a.cfg.Windows, Asked: a.askedRestarts(have), Ownership: a.ownership(a.set),
	}
	switch {
	case a.mem.Refused != "":
		in.NoPurge = "nothing is destroyed while a revision is refused"
	case !contact:
		in.NoPurge = "nothing is destroyed without contact to the repository"
	}
	for _, s := range a.mem.Suspensions {
		if s.Active(now) {
			in.NoPurge = "nothing is destroyed while anything is suspended"
		}
	}
	return in
}

// askedRestarts are the machines whose present launch an operator asked to
// restart. a.mu is held.
func (a *Agent) askedRestarts(have reconcile.State) map[reconcile.Key]bool {
	asked := make(map[reconcile.Key]bool, len(a.mem.Restarts))
	for uid, r := range a.mem.Restarts {
		k := reconcile.Key{Kind: spec.KindVirtualMachine, UID: uid}
		h := have.Objects[k]
		asked[k] = h != nil && h.VM != nil && h.VM.Launch == r.Launch
	}
	return asked
}

const inProgress = "in progress"

// hideRunning takes out of what was observed what is being changed right now, and
// so cannot be observed as a state. a.mu is held.
func (a *Agent) hideRunning(have reconcile.State) {
	for k := range a.running {
		have.Unknown[k] = inProgress
		delete(have.Objects, k)
	}
}

// showRunning puts the actions that run into a plan. a.mu is held.
func (a *Agent) showRunning(plan *reconcile.Plan) {
	for i := range plan.Actions {
		act := &plan.Actions[i]
		if t := a.running[act.Key()]; t != nil {
			act.Op, act.Cause, act.Impact = t.action.Op, t.action.Cause, t.action.Impact
			act.State, act.Reason = reconcile.Waiting, inProgress
		}
	}
}

// absorb notes in base what turned out to be as it is wanted, and forgets what
// is nowhere any more.
func (a *Agent) absorb(plan *reconcile.Plan, have reconcile.State) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := errors.Join(a.writeDown(), a.account()); err != nil {
		return err
	}
	var settled, news []*reconcile.Action
	var restarted []string
	listed := make(map[reconcile.Key]bool, len(plan.Actions))
	for i := range plan.Actions {
		act := &plan.Actions[i]
		k := act.Key()
		listed[k] = true
		if r, ok := a.mem.Restarts[k.UID]; ok && act.Have != nil && act.Have.VM != nil && act.Have.VM.Launch != r.Launch {
			restarted = append(restarted, k.UID) // by an agent that was killed before it wrote that down
		}
		if !act.Settled() || act.Want == nil {
			continue
		}
		settled = append(settled, act)
		if b := a.base[k]; b == nil || !b.Done || b.Attempted != "" || b.Name != act.Name || !sameFields(b.Fields, act.Want.Fields) {
			news = append(news, act)
		}
	}
	if err := errors.Join(a.own(settled...), a.disown(listed, have)); err != nil {
		return err
	}
	gone := func(k reconcile.Key) bool { return !listed[k] && (have.Complete[k.Kind] || !observed(k.Kind)) }
	if len(news) > 0 || slices.ContainsFunc(slices.Collect(maps.Keys(a.base)), gone) {
		err := a.keepBase(func(next applications) {
			for _, act := range news {
				next.base.Finish(act)
				next.revisions[act.Key()] = plan.Revision
			}
			for k := range next.base {
				if gone(k) {
					delete(next.base, k)
					delete(next.revisions, k)
				}
			}
		})
		if err != nil {
			return err
		}
	}
	reverted, found := a.reverted(plan), a.found(have)
	applied := plan.Empty() && len(a.failures) == 0 && len(a.running) == 0 && a.mem.LastApplied != plan.Revision
	if !applied && len(reverted)+len(restarted)+len(found) == 0 {
		return nil
	}
	err := a.keep(func(m *memory) {
		for _, uid := range restarted {
			delete(m.Restarts, uid)
		}
		for _, uid := range reverted {
			delete(m.Reverts, uid)
		}
		for _, uid := range found {
			delete(m.Missed, uid)
		}
		if applied {
			m.LastApplied = plan.Revision
		}
	})
	if err == nil && applied {
		how := " is applied: "
		if plan.Count(reconcile.Waiting)+plan.Count(reconcile.Held)+plan.Count(reconcile.Blocked) > 0 {
			how = " is applied as far as it can be now: "
		}
		a.events.normal("", "Applied", "revision "+short(plan.Revision)+how+plan.Headline())
	}
	return err
}

func observed(k spec.Kind) bool {
	switch k {
	case spec.KindVirtualMachine, spec.KindDisk, spec.KindStoragePool:
		return true
	}
	return false
}

func sameFields(a, b []reconcile.Field) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// report makes the objects' status.
func (a *Agent) report(plan *reconcile.Plan, have reconcile.State, revErr error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	in := status.Input{
		Plan: plan, Have: have, Previous: a.objects, Revisions: a.revisions, Now: now,
		Failed: map[reconcile.Key]string{}, Suspended: map[reconcile.Key]bool{},
		Running: map[reconcile.Key]bool{},
	}
	for k, f := range a.failures {
		in.Failed[k] = f.message
	}
	for k := range a.running {
		in.Running[k] = true
	}
	for _, s := range a.mem.Suspensions {
		if s.Active(a.clock()) {
			in.Suspended[s.Key] = true
			in.Everything = in.Everything || s.Object == ""
		}
	}
	a.plan, a.have = plan, have
	a.objects = status.Objects(in)
	a.host = a.hostStatus(plan, revErr, now)
	a.tellForge()
}

// reportRefusal is the report of a host that has no revision in force.
func (a *Agent) reportRefusal(err error) {
	a.mu.Lock()
	a.host = a.hostStatus(nil, err, a.cfg.Now())
	a.tellForge()
	a.mu.Unlock()
	a.offerReport()
}

// hostStatus is the status of the host. a.mu is held.
func (a *Agent) hostStatus(plan *reconcile.Plan, revErr error, now time.Time) status.Host {
	h := status.Host{
		Host: a.name(), Repo: a.cfg.Repo, Branch: a.cfg.Branch, Version: a.cfg.Version, PID: processID(),
		LastAttemptedRevision: a.mem.LastAttempted, LastAppliedRevision: a.mem.LastApplied,
		ObservedAt: now, Suspended: []status.Suspension{}, Windows: windows(a.cfg.Windows, now),
	}
	for _, s := range a.mem.Suspensions {
		if c := a.clock(); s.Active(c) {
			h.Suspended = append(h.Suspended, status.Suspension{Object: s.Object, Reason: s.Reason, By: s.By, Since: s.Since, Until: s.When(c)})
		}
	}
	ready := status.Condition{Type: status.Ready, Status: status.True, Reason: "Applied"}
	reconciling := status.Condition{Type: status.Reconciling, Status: status.False, Reason: "Idle"}
	stalled := status.Condition{Type: status.Stalled, Status: status.False, Reason: "NotStalled"}
	if plan != nil {
		h.Summary = status.Summarize(plan)
		ready.Message = plan.Headline()
		if n := plan.Count(reconcile.Ready); n > 0 {
			reconciling.Status, reconciling.Reason, reconciling.Message = status.True, "Progressing", fmt.Sprintf("%d actions", n)
			ready.Status, ready.Reason = status.False, "Progressing"
		}
		if n := plan.Count(reconcile.Blocked); n > 0 {
			ready.Status, ready.Reason, ready.Message = status.False, "Blocked", fmt.Sprintf("%d objects are blocked", n)
		}
		if n := len(a.failures); n > 0 {
			ready.Status, ready.Reason, ready.Message = status.False, "Failing", fmt.Sprintf("%d objects fail", n)
		}
	}
	var r *refusal
	var unwritten *recordError
	if why := a.double(); why != "" {
		stalled.Status, stalled.Reason, stalled.Message = status.True, "OtherMachine", why
	} else if errors.As(revErr, &unwritten) {
		stalled.Status, stalled.Reason, stalled.Message = status.True, "RecordsNotWritten", unwritten.Error()+" (nothing is begun until it can)"
	} else if errors.As(revErr, &r) {
		stalled.Status, stalled.Reason, stalled.Message = status.True, r.reason, r.Error()
	} else if a.mem.Refused != "" {
		stalled.Status, stalled.Reason, stalled.Message = status.True, "Refused", a.mem.Refused
	} else if revErr != nil {
		stalled.Status, stalled.Reason, stalled.Message = status.True, "Failed", bounded(revErr.Error())
	}
	if stalled.Status == status.True {
		ready.Status, ready.Reason, ready.Message = status.False, stalled.Reason, stalled.Message
	}
	h.Conditions = []status.Condition{ready, reconciling, stalled}
	if c, differs := a.keyCondition(); differs {
		h.Conditions = append(h.Conditions, c)
	}
	if c, damaged := a.damagedCondition(); damaged {
		h.Conditions = append(h.Conditions, c)
	}
	status.Carry(h.Conditions, a.host.Conditions, now)
	return h
}
