package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"reconciler/api"
	"reconciler/deadline"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
)

var _ api.Agent = (*Agent)(nil)

// Status is the state as of the last pass.
func (a *Agent) Status(context.Context) (api.Status, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.host
	if h.Host == "" {
		h = a.hostStatus(nil, nil, a.cfg.Now())
	}
	return a.aged(h), nil
}

// Objects are the objects as of the last pass.
func (a *Agent) Objects(context.Context) ([]api.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.objects), nil
}

// Reconcile asks for a pass over the newest revision.
func (a *Agent) Reconcile(ctx context.Context, r api.ReconcileRequest, progress func(string)) (*reconcile.Plan, error) {
	if r.Wait {
		return a.untilDone(ctx, progress)
	}
	a.forgiveFailures()
	a.wake(trigger{fetch: true, why: "asked for"})
	return nil, nil
}

// Events are the journal's.
func (a *Agent) Events(ctx context.Context, after uint64, follow bool) ([]api.Event, error) {
	return a.events.after(ctx, after, follow)
}

// find looks an object up by kind and name, in the tree or among what is here.
func (a *Agent) find(kind spec.Kind, name string) (reconcile.Key, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []reconcile.Key
	for i := range a.objects {
		if o := &a.objects[i]; o.Kind == kind && (o.Name == name || o.UID == name) {
			found = append(found, reconcile.Key{Kind: o.Kind, UID: o.UID})
		}
	}
	switch len(found) {
	case 0:
		if a.host.Host == "" {
			return reconcile.Key{}, api.Errorf(api.Unavailable, "the agent has not finished its first pass")
		}
		return reconcile.Key{}, api.Errorf(api.NotFound, "%s/%s is not known on this host", kind, name)
	case 1:
		return found[0], nil
	}
	return reconcile.Key{}, api.Errorf(api.Invalid, "%d objects are called %s/%s; use the UID", len(found), kind, name)
}

// key parses KIND/NAME.
func (a *Agent) key(object string) (reconcile.Key, error) {
	kind, name, ok := strings.Cut(object, "/")
	if !ok {
		return reconcile.Key{}, api.Errorf(api.Invalid, "%q is not KIND/NAME", object)
	}
	return a.find(spec.Kind(kind), name)
}

// Suspend stops the agent from acting on an object, or on everything.
func (a *Agent) Suspend(_ context.Context, r api.SuspendRequest) error {
	if r.Reason == "" {
		return api.Errorf(api.Invalid, "a suspension needs a reason")
	}
	var k reconcile.Key
	if r.Object != "" {
		var err error
		if k, err = a.key(r.Object); err != nil {
			return err
		}
	}
	now := a.cfg.Now()
	if !r.Until.IsZero() && !r.Until.After(now) {
		return api.Errorf(api.Invalid, "until %s is in the past", r.Until.Format(time.RFC3339))
	}
	var until deadline.Deadline
	if !r.Until.IsZero() {
		until = deadline.At(a.clock(), r.Until)
	}
	err := a.remember(func(m *memory) {
		m.Suspensions = slices.DeleteFunc(m.Suspensions, func(s policy.Suspension) bool { return s.Key == k || !s.Active(a.clock()) })
		m.Suspensions = append(m.Suspensions, policy.Suspension{Key: k, Object: r.Object, Reason: r.Reason, By: r.Caller.Name, Since: now, Deadline: until})
	})
	a.audit(r.Object, "Suspended", r.Reason, r.Caller, err)
	return err
}

// Resume ends a suspension; without an object, all of them.
func (a *Agent) Resume(_ context.Context, r api.ResumeRequest) error {
	n := 0
	// It may be called otherwise since it was suspended, or be gone.
	k, unknown := a.key(r.Object)
	err := a.remember(func(m *memory) {
		m.Suspensions = slices.DeleteFunc(m.Suspensions, func(s policy.Suspension) bool {
			gone := r.Object == "" || s.Object == r.Object || unknown == nil && s.Key == k
			if gone {
				n++
			}
			return gone
		})
	})
	if err == nil && n == 0 {
		return api.Errorf(api.NotFound, "nothing is suspended under that name")
	}
	a.audit(r.Object, "Resumed", "", r.Caller, err)
	a.wake(trigger{why: "resumed"})
	return err
}

// Allow releases held actions for a while.
func (a *Agent) Allow(ctx context.Context, r api.AllowRequest) error {
	switch {
	case r.Reason == "":
		return api.Errorf(api.Invalid, "an allowance needs a reason")
	case r.For <= 0 || r.For > 7*24*time.Hour:
		return api.Errorf(api.Invalid, "an allowance lasts between 1s and 168h")
	case !strings.HasPrefix(r.ID, "sha256:") && !strings.Contains(r.ID, "/") && len(r.ID) < policy.MinID:
		return api.Errorf(api.Invalid, "give at least %d digits of the action's id", policy.MinID)
	}
	var ids []string
	var err error
	if strings.HasPrefix(r.ID, "sha256:") {
		ids, err = a.idsOf(ctx, r.ID)
	} else {
		r.ID, err = a.allowable(ctx, r.ID)
	}
	if err != nil {
		return err
	}
	now := a.clock()
	err = a.remember(func(m *memory) {
		m.Allowances = slices.DeleteFunc(m.Allowances, func(l policy.Allowance) bool { return l.Over(now) })
		m.Allowances = append(m.Allowances, policy.Allowance{ID: r.ID, IDs: ids, Reason: r.Reason, By: r.Caller.Name, Deadline: deadline.In(now, r.For)})
	})
	a.audit("", "Allowed", fmt.Sprintf("%s for %s: %s", r.ID, r.For, r.Reason), r.Caller, err)
	a.wake(trigger{why: "allowed"})
	return err
}

// idsOf lists the actions of the present plan, which must be the one named.
func (a *Agent) idsOf(ctx context.Context, digest string) ([]string, error) {
	p, err := a.Plan(ctx, api.PlanRequest{})
	if err != nil {
		return nil, err
	}
	if p.Hosts[0].Digest != digest {
		return nil, &api.Error{Code: api.Conflict, Message: "the plan is another by now: its digest is " + p.Hosts[0].Digest, Hint: "look at it with reconciler plan"}
	}
	var ids []string
	for i := range p.Actions {
		if p.Actions[i].ID != "" {
			ids = append(ids, p.Actions[i].ID)
		}
	}
	return ids, nil
}

// Accept lets a revision come into force that does not descend from the one in
// force, or says that this machine is the host.
func (a *Agent) Accept(ctx context.Context, r api.AcceptRequest) error {
	if r.Reason == "" {
		return api.Errorf(api.Invalid, "to accept needs a reason")
	}
	if r.Machine {
		return a.acceptThisMachine(r)
	}
	rev, err := a.cfg.Source.Resolve(ctx, r.Rev)
	if err != nil {
		return api.Errorf(api.Invalid, "%s: %v", r.Rev, err)
	}
	err = a.remember(func(m *memory) {
		m.Accepted = append(m.Accepted, rev.Hash)
		if n := len(m.Accepted) - 20; n > 0 {
			m.Accepted = m.Accepted[n:]
		}
	})
	a.audit("", "Accepted", fmt.Sprintf("%s: %s", rev.Hash, r.Reason), r.Caller, err)
	a.wake(trigger{fetch: true, why: "accepted"})
	return err
}

// Restart asks for a restart of a machine; the next pass carries it out.
func (a *Agent) Restart(_ context.Context, r api.MachineRequest) error {
	k, err := a.find(spec.KindVirtualMachine, r.Name)
	if err != nil {
		return err
	}
	if a.declaredStopped(k) {
		return &api.Error{Code: api.Conflict, Message: r.Name + " is declared Stopped", Hint: "set spec.powerState: Running in the repository"}
	}
	if cannot := a.cannotStart(k); cannot != "" {
		return &api.Error{Code: api.Conflict, Message: "it is not restarted, for it would not start again: " + cannot, Hint: "put that right in the repository, or end the machine with reconciler stop --force"}
	}
	why := "asked for by " + r.Caller.Name
	if r.Force {
		why += forcedSuffix
	}
	launch, err := a.launchOf(k)
	if err != nil {
		return err
	}
	err = a.remember(func(m *memory) { m.Restarts[k.UID] = reconcile.Restart{Why: why, Launch: launch} })
	if err == nil {
		a.forgive(k)
	}
	a.audit("VirtualMachine/"+r.Name, "Restart", why, r.Caller, err)
	a.wake(trigger{why: "restart asked for"})
	return err
}

// cannotStart says why a machine as it is declared would not start, as far as the
// last pass knows.
func (a *Agent) cannotStart(k reconcile.Key) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.plan == nil {
		return ""
	}
	for i := range a.plan.Actions {
		if act := &a.plan.Actions[i]; act.Key() == k && act.Want != nil {
			return reconcile.CannotStart(act.Want, a.have.Facts)
		}
	}
	return ""
}

func (a *Agent) declaredStopped(k reconcile.Key) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil {
		return false
	}
	o := a.set.ByUID(k.UID)
	if o == nil {
		return false
	}
	vm, ok := o.Spec.(*spec.VirtualMachine)
	return ok && vm.PowerState == spec.PowerStopped
}

// launchOf is the launch that runs as of the last pass; empty where none does.
func (a *Agent) launchOf(k reconcile.Key) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.have.Objects[k]; h != nil && h.VM != nil {
		return h.VM.Launch, nil
	}
	why := a.have.Unknown[k]
	if why == "" {
		why = "it does not exist yet"
	}
	return "", &api.Error{Code: api.Unavailable, Message: "the machine cannot be restarted now: " + why, Hint: "try again, or end it with reconciler stop --force"}
}

// forcedSuffix ends the reason of a restart that does not ask the guest.
const forcedSuffix = ", without asking the guest"

// asksRestart says whether an operator asked for a machine's restart.
func (a *Agent) asksRestart(uid string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, asked := a.mem.Restarts[uid]
	return asked
}

// forced says whether the machine is to be stopped without asking the guest.
func (a *Agent) forced(uid string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.HasSuffix(a.mem.Restarts[uid].Why, forcedSuffix)
}

// Stop stops a machine now. The next pass starts it again where it is declared
// Running and not suspended.
func (a *Agent) Stop(ctx context.Context, r api.MachineRequest) (api.StopResult, error) {
	k, err := a.find(spec.KindVirtualMachine, r.Name)
	if err != nil {
		return api.StopResult{}, err
	}
	a.audit("VirtualMachine/"+r.Name, "Stop", "", r.Caller, nil)
	a.forgive(k) // the start that comes next is of a machine that a person has stopped
	act, why, end, err := a.beginStop(ctx, k, r)
	if err != nil {
		return api.StopResult{}, err
	}
	defer end()
	out, err := a.end(ctx, act, reconcile.Inputs{BootID: a.bootID, Force: r.Force, Progress: func(string, ...any) {}})
	result := api.StopResult{Idle: out.Idle}
	if out.Idle {
		result.Why = why
	}
	return result, err
}

// beginStop looks at a machine that is to be stopped and lets no pass act on it
// until end is called. The passes go on: a guest may take its time.
func (a *Agent) beginStop(ctx context.Context, k reconcile.Key, r api.MachineRequest) (act *reconcile.Action, why string, end func(), err error) {
	a.pass.Lock()
	defer a.pass.Unlock()
	a.mu.Lock()
	set := a.set
	a.mu.Unlock()
	if set == nil {
		return nil, "", nil, errNoRevision
	}
	want := a.desired(set)
	have, err := a.observe(ctx, want)
	if err != nil {
		return nil, "", nil, err
	}
	h, why := have.Objects[k], have.Unknown[k]
	if h == nil || h.VM == nil {
		if why != "" && !r.Force {
			return nil, "", nil, api.Errorf(api.Invalid, "%s (--force ends it)", why)
		}
		h = &reconcile.Live{Object: reconcile.Object{Kind: k.Kind, UID: k.UID, Name: r.Name}, VM: &reconcile.LiveVM{}}
	}
	act = &reconcile.Action{
		Kind: k.Kind, Name: r.Name, UID: k.UID, Host: a.name(), Op: reconcile.OpStop, Cause: reconcile.CauseRevision,
		Impact: reconcile.ImpactStop, State: reconcile.Ready, Want: want.Objects[k], Have: h,
	}
	t := &task{action: act, done: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running[k] == nil { // else that action is what is to be ended
		a.running[k] = t
	}
	return act, why, func() {
		close(t.done)
		a.mu.Lock()
		if a.running[k] == t {
			delete(a.running, k)
		}
		a.mu.Unlock()
		a.wake(trigger{why: "stopped"})
	}, nil
}

// Undelete keeps a quarantined disk without a deadline.
func (a *Agent) Undelete(ctx context.Context, r api.UndeleteRequest) (api.UndeleteResult, error) {
	k, err := a.find(spec.KindDisk, r.Name)
	if err != nil {
		return api.UndeleteResult{}, err
	}
	yaml, err := a.cfg.Storage.Undelete(ctx, k.UID)
	a.audit("Disk/"+r.Name, "Undeleted", "", r.Caller, err)
	a.wake(trigger{why: "undelete"})
	return api.UndeleteResult{YAML: yaml}, err
}

// Access lends a disk to an initiator.
func (a *Agent) Access(ctx context.Context, r api.AccessRequest) (api.Access, error) {
	k, err := a.find(spec.KindDisk, r.Disk)
	if err != nil {
		return api.Access{}, err
	}
	access, err := a.cfg.Storage.Access(ctx, k.UID, r, a.cfg.Now().Add(r.For))
	access.Disk = r.Disk
	a.audit("Disk/"+r.Disk, "Access", fmt.Sprintf("%s for %s to %s", access.ID, r.For, strings.Join(r.Initiators, ", ")), r.Caller, err)
	a.wake(trigger{why: "access"})
	return access, err
}

// ListAccess lists what is lent.
func (a *Agent) ListAccess(ctx context.Context) ([]api.Access, error) {
	list, err := a.cfg.Storage.ListAccess(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range list {
		for _, o := range a.objects {
			if o.UID == list[i].Disk {
				list[i].Disk = o.Name
			}
		}
	}
	return list, err
}

// EndAccess takes a lent disk back, its session drained first.
func (a *Agent) EndAccess(ctx context.Context, r api.EndAccessRequest) error {
	err := a.cfg.Storage.EndAccess(ctx, r.ID)
	a.audit("", "AccessEnded", r.ID, r.Caller, err)
	a.wake(trigger{why: "access ended"})
	return err
}

// ClearReservations ends what initiators reserved of a disk.
func (a *Agent) ClearReservations(ctx context.Context, r api.ClearRequest) (api.ClearResult, error) {
	k, err := a.find(spec.KindDisk, r.Disk)
	if err != nil {
		return api.ClearResult{}, err
	}
	gone, err := a.cfg.Storage.ClearReservations(ctx, k.UID)
	a.audit("Disk/"+r.Disk, "ReservationsCleared", strings.Join(gone, ", "), r.Caller, err)
	a.wake(trigger{why: "reservations cleared"})
	return api.ClearResult{Cleared: gone}, err
}

// Console says where the console of a machine is.
func (a *Agent) Console(_ context.Context, vm string) (api.Console, error) {
	k, err := a.find(spec.KindVirtualMachine, vm)
	if err != nil {
		return api.Console{}, err
	}
	return a.cfg.Hypervisor.Console(k.UID), nil
}

// audit writes down what an operator did, and that it failed if it did.
func (a *Agent) audit(object, reason, message string, by api.Caller, err error) {
	if err != nil {
		message = strings.TrimPrefix(message+": ", ": ") + "failed: " + err.Error()
	}
	a.events.audit(object, reason, message, by.Name)
	a.log.Info("audit", "verb", reason, "object", object, "by", by.Name, "uid", by.UID, "error", err)
}
