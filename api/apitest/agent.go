// Package apitest has an agent in memory, for tests of what talks to one.
package apitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Agent keeps in memory what an agent keeps, and follows the same rules in what
// it refuses. Its clock is Now.
type Agent struct {
	Now time.Time

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at every event
	status    api.Status
	objects   []api.Object
	plan      *reconcile.Plan
	progress  []string
	access    []api.Access
	consoles  map[string]api.Console
	events    []api.Event
	lastGrant int
}

var _ api.Agent = (*Agent)(nil)

// New returns an agent that has objects and finds a plan.
func New(now time.Time, objects []api.Object, plan *reconcile.Plan) *Agent {
	return &Agent{
		Now:     now,
		changed: make(chan struct{}),
		status: api.Status{
			Host: "host1", Repo: "/srv/cluster", Branch: "main", Version: "test", PID: 1,
			LastAttemptedRevision: plan.Revision, LastAppliedRevision: plan.Revision, ObservedAt: now,
			Conditions: []api.Condition{{Type: "Ready", Status: "True", Reason: "Applied", Message: "applied " + plan.Revision, LastTransitionTime: now}},
		},
		objects:  objects,
		plan:     plan,
		consoles: map[string]api.Console{},
	}
}

// SetConsole says where the console of a machine is.
func (a *Agent) SetConsole(vm string, c api.Console) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.consoles[vm] = c
}

// SetStatus changes what the agent says of itself.
func (a *Agent) SetStatus(change func(*api.Status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.status)
}

// SetProgress says what a reconciliation tells on its way.
func (a *Agent) SetProgress(lines ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.progress = lines
}

// SetObject replaces an object, or adds it.
func (a *Agent) SetObject(o api.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := a.find(string(o.Kind) + "/" + o.Name); i >= 0 {
		a.objects[i] = o
	} else {
		a.objects = append(a.objects, o)
	}
	a.record(string(o.Kind)+"/"+o.Name, "Normal", "Observed", o.Sync+", "+o.Health, api.Caller{})
}

func (a *Agent) record(object, typ, reason, message string, by api.Caller) {
	a.events = append(a.events, api.Event{
		Seq: uint64(len(a.events) + 1), Time: a.Now, Object: object, Type: typ, Reason: reason, Message: message, By: by.Name,
	})
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Agent) find(object string) int {
	return slices.IndexFunc(a.objects, func(o api.Object) bool {
		return string(o.Kind)+"/"+o.Name == object
	})
}

func (a *Agent) need(object string) (*api.Object, error) {
	i := a.find(object)
	if i < 0 {
		return nil, api.Errorf(api.NotFound, "%s is not known", object)
	}
	return &a.objects[i], nil
}

// Status implements api.Agent.
func (a *Agent) Status(context.Context) (api.Status, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.status
	st.Summary = api.Summary{Waiting: a.plan.Count(reconcile.Waiting), Held: a.plan.Count(reconcile.Held), Blocked: a.plan.Count(reconcile.Blocked)}
	for _, o := range a.objects {
		if o.Sync == "Synced" {
			st.Summary.Synced++
		} else {
			st.Summary.OutOfSync++
		}
	}
	st.Suspended = slices.Clone(st.Suspended)
	return st, nil
}

// Objects implements api.Agent.
func (a *Agent) Objects(context.Context) ([]api.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.objects), nil
}

// Plan implements api.Agent.
func (a *Agent) Plan(_ context.Context, r api.PlanRequest) (*reconcile.Plan, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Rev != "" && !strings.HasPrefix(a.plan.Revision, r.Rev) {
		return nil, &api.Error{Code: api.NotFound, Message: "revision " + r.Rev + " is not known", Hint: "push it first"}
	}
	p := *a.plan
	p.Base = r.Base
	return &p, nil
}

// Reconcile implements api.Agent. A pass carries out all that is ready.
func (a *Agent) Reconcile(ctx context.Context, r api.ReconcileRequest, progress func(string)) (*reconcile.Plan, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record("", "Audit", "Reconcile", "reconciliation requested", r.Caller)
	if !r.Wait {
		return nil, nil
	}
	for _, s := range a.progress {
		progress(s)
	}
	p := *a.plan
	p.Actions = slices.Clone(p.Actions)
	for i := range p.Actions {
		if act := &p.Actions[i]; act.State == reconcile.Ready {
			act.Op, act.Impact, act.Changes = reconcile.OpUnchanged, reconcile.ImpactNone, []reconcile.Change{}
		}
	}
	p.Settle()
	a.plan = &p
	return &p, ctx.Err()
}

// Suspend implements api.Agent.
func (a *Agent) Suspend(_ context.Context, r api.SuspendRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Object != "" {
		if _, err := a.need(r.Object); err != nil {
			return err
		}
	}
	a.drop(r.Object)
	a.status.Suspended = append(a.status.Suspended, api.Suspension{Object: r.Object, Reason: r.Reason, By: r.Caller.Name, Since: a.Now, Until: r.Until})
	a.record(r.Object, "Audit", "Suspend", r.Reason, r.Caller)
	return nil
}

func (a *Agent) drop(object string) bool {
	n := len(a.status.Suspended)
	a.status.Suspended = slices.DeleteFunc(slices.Clone(a.status.Suspended), func(s api.Suspension) bool { return s.Object == object })
	return len(a.status.Suspended) < n
}

// Resume implements api.Agent.
func (a *Agent) Resume(_ context.Context, r api.ResumeRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.drop(r.Object) {
		return api.Errorf(api.Conflict, "it is not suspended")
	}
	a.record(r.Object, "Audit", "Resume", "resumed", r.Caller)
	return nil
}

// Allow implements api.Agent.
func (a *Agent) Allow(_ context.Context, r api.AllowRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	digest := len(a.plan.Hosts) > 0 && a.plan.Hosts[0].Digest == r.ID
	found := false
	for i := range a.plan.Actions {
		act := &a.plan.Actions[i]
		if act.State == reconcile.Held && (digest || act.ID != "" && strings.HasPrefix(act.ID, r.ID)) {
			act.State, found = reconcile.Ready, true
		}
	}
	if !found {
		return &api.Error{Code: api.NotFound, Message: "nothing that is held has the id " + r.ID, Hint: "reconciler plan shows the ids"}
	}
	a.record("", "Audit", "Allow", fmt.Sprintf("%s for %s: %s", r.ID, r.For, r.Reason), r.Caller)
	return nil
}

// Accept implements api.Agent.
func (a *Agent) Accept(_ context.Context, r api.AcceptRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.LastAttemptedRevision = r.Rev
	a.record("", "Audit", "Accept", r.Rev+": "+r.Reason, r.Caller)
	return nil
}

func (a *Agent) machine(verb string, r api.MachineRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	object := string(spec.KindVirtualMachine) + "/" + r.Name
	if _, err := a.need(object); err != nil {
		return err
	}
	a.record(object, "Audit", verb, fmt.Sprintf("force %t", r.Force), r.Caller)
	return nil
}

// Restart implements api.Agent.
func (a *Agent) Restart(_ context.Context, r api.MachineRequest) error {
	return a.machine("Restart", r)
}

// Stop implements api.Agent.
func (a *Agent) Stop(_ context.Context, r api.MachineRequest) (api.StopResult, error) {
	return api.StopResult{}, a.machine("Stop", r)
}

// Undelete implements api.Agent.
func (a *Agent) Undelete(_ context.Context, r api.UndeleteRequest) (api.UndeleteResult, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.objects {
		if o.Quarantined && (o.Name == r.Name || o.UID == r.Name) {
			a.record("Disk/"+o.Name, "Audit", "Undelete", "kept without a deadline", r.Caller)
			return api.UndeleteResult{YAML: "apiVersion: " + spec.APIVersion + "\nkind: Disk\nmetadata: {name: " + o.Name + "}\n"}, nil
		}
	}
	return api.UndeleteResult{}, api.Errorf(api.NotFound, "no disk %s is in quarantine", r.Name)
}

// Revert implements api.Agent.
func (a *Agent) Revert(_ context.Context, r api.RevertRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.need(r.Object); err != nil {
		return err
	}
	a.record(r.Object, "Audit", "Revert", r.Reason, r.Caller)
	return nil
}

// Import implements api.Agent. It finds one disk that nobody declares.
func (a *Agent) Import(_ context.Context, r api.ImportRequest) (api.ImportResult, error) {
	const stray = "Disk/stray"
	if len(r.Objects) > 0 && !slices.Contains(r.Objects, stray) {
		return api.ImportResult{}, api.Errorf(api.NotFound, "%s is not here, or is declared", r.Objects[0])
	}
	return api.ImportResult{
		Documents: []api.ImportDocument{{
			Kind: "Disk", Name: "stray", Adopted: true, Notes: []string{"it is kept as it is"},
			YAML: "apiVersion: " + spec.APIVersion + "\nkind: Disk\nmetadata: {name: stray}\nspec: {pool: fast, size: 1Gi}\n",
		}},
		Notes: []string{"Process other: it has no monitor"},
	}, nil
}

// Access implements api.Agent.
func (a *Agent) Access(_ context.Context, r api.AccessRequest) (api.Access, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.need("Disk/" + r.Disk); err != nil {
		return api.Access{}, err
	}
	for _, other := range a.access {
		if other.Disk == r.Disk && !other.ReadOnly && !r.ReadOnly {
			return api.Access{}, api.Errorf(api.Conflict, "access %s may write to the disk", other.ID)
		}
	}
	a.lastGrant++
	g := api.Access{
		ID: fmt.Sprintf("a%d", a.lastGrant), Disk: r.Disk, Portal: "127.0.0.1:3260", Target: "iqn.2026-11.local.reconciler:" + r.Disk,
		Initiators: r.Initiators, ReadOnly: r.ReadOnly, Until: a.Now.Add(r.For), By: r.Caller.Name,
	}
	a.access = append(a.access, g)
	g.User, g.Password = "access-"+g.ID, "correct horse"
	g.URL = fmt.Sprintf("iscsi://%s%%%s@%s/%s/%d", g.User, g.Password, g.Portal, g.Target, g.LUN)
	a.record("Disk/"+r.Disk, "Audit", "Access", g.ID, r.Caller)
	return g, nil
}

// ListAccess implements api.Agent.
func (a *Agent) ListAccess(context.Context) ([]api.Access, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.access), nil
}

// ClearReservations implements api.Agent.
func (a *Agent) ClearReservations(_ context.Context, r api.ClearRequest) (api.ClearResult, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o, err := a.need("Disk/" + r.Disk)
	if err != nil {
		return api.ClearResult{}, err
	}
	gone, _ := o.Status["reservations"].([]string)
	delete(o.Status, "reservations")
	a.record("Disk/"+r.Disk, "Audit", "ReservationsCleared", strings.Join(gone, ", "), r.Caller)
	return api.ClearResult{Cleared: gone}, nil
}

// EndAccess implements api.Agent.
func (a *Agent) EndAccess(_ context.Context, r api.EndAccessRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.access, func(g api.Access) bool { return g.ID == r.ID })
	if i < 0 {
		return api.Errorf(api.NotFound, "there is no access %s", r.ID)
	}
	a.record("Disk/"+a.access[i].Disk, "Audit", "EndAccess", r.ID, r.Caller)
	a.access = slices.Delete(a.access, i, i+1)
	return nil
}

// Console implements api.Agent.
func (a *Agent) Console(_ context.Context, vm string) (api.Console, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.need(string(spec.KindVirtualMachine) + "/" + vm); err != nil {
		return api.Console{}, err
	}
	return a.consoles[vm], nil
}

// Events implements api.Agent.
func (a *Agent) Events(ctx context.Context, after uint64, follow bool) ([]api.Event, error) {
	for {
		a.mu.Lock()
		if after > uint64(len(a.events)) {
			after = 0
		}
		list, changed := slices.Clone(a.events[after:]), a.changed
		a.mu.Unlock()
		if len(list) > 0 || !follow {
			return list, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
