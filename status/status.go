// Package status turns a plan and the state it was made from into what people
// and programs read: sync, health and conditions of every object. It is pure.
package status

import (
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

// Condition is a condition as kstatus has it.
type Condition struct {
	Type               string    `json:"type" yaml:"type"` // Ready, Reconciling, Stalled
	Status             string    `json:"status" yaml:"status"`
	Reason             string    `json:"reason" yaml:"reason"`
	Message            string    `json:"message" yaml:"message"`
	LastTransitionTime time.Time `json:"lastTransitionTime" yaml:"lastTransitionTime"`
}

// Condition types and statuses.
const (
	Ready       = "Ready"
	Reconciling = "Reconciling"
	Stalled     = "Stalled"
	True        = "True"
	False       = "False"
	Unknown     = "Unknown"
)

// Sync and health of an object.
const (
	Synced      = "Synced"
	OutOfSync   = "OutOfSync"
	Healthy     = "Healthy"
	Progressing = "Progressing"
	Degraded    = "Degraded"
	Missing     = "Missing"
	Suspended   = "Suspended"
)

// Summary counts objects.
type Summary struct {
	Synced    int `json:"synced" yaml:"synced"`
	OutOfSync int `json:"outOfSync" yaml:"outOfSync"`
	Unmanaged int `json:"unmanaged" yaml:"unmanaged"`
	Waiting   int `json:"waiting" yaml:"waiting"`
	Held      int `json:"held" yaml:"held"`
	Blocked   int `json:"blocked" yaml:"blocked"`
}

// Host is the state of one agent.
type Host struct {
	Host                  string       `json:"host" yaml:"host"`
	Repo                  string       `json:"repo" yaml:"repo"`
	Branch                string       `json:"branch" yaml:"branch"`
	LastAttemptedRevision string       `json:"lastAttemptedRevision" yaml:"lastAttemptedRevision"`
	LastAppliedRevision   string       `json:"lastAppliedRevision" yaml:"lastAppliedRevision"`
	Conditions            []Condition  `json:"conditions" yaml:"conditions"`
	Summary               Summary      `json:"summary" yaml:"summary"`
	Suspended             []Suspension `json:"suspended" yaml:"suspended"`
	Windows               []Window     `json:"windows,omitempty" yaml:"windows,omitempty"`
	Version               string       `json:"version" yaml:"version"`
	PID                   int          `json:"pid,omitempty" yaml:"pid,omitempty"`
	ObservedAt            time.Time    `json:"observedAt" yaml:"observedAt"`
}

// Suspension stops the agent from acting on one object, or on all (Object empty).
type Suspension struct {
	Object string    `json:"object,omitempty" yaml:"object,omitempty"` // KIND/NAME
	Reason string    `json:"reason" yaml:"reason"`
	By     string    `json:"by" yaml:"by"`
	Since  time.Time `json:"since" yaml:"since"`
	Until  time.Time `json:"until,omitzero" yaml:"until,omitempty"`
}

// Window is a maintenance window: open, or when it opens next.
type Window struct {
	Name     string    `json:"name" yaml:"name"`
	Impact   string    `json:"impact" yaml:"impact"` // the least that waits for it
	TimeZone string    `json:"timeZone" yaml:"timeZone"`
	Open     bool      `json:"open" yaml:"open"`
	Opens    time.Time `json:"opens,omitzero" yaml:"opens,omitempty"`
	Closes   time.Time `json:"closes,omitzero" yaml:"closes,omitempty"` // zero: it opens again before
}

// Object is one object with its sync and its health.
type Object struct {
	Kind       spec.Kind      `json:"kind" yaml:"kind"`
	Name       string         `json:"name" yaml:"name"`
	UID        string         `json:"uid" yaml:"uid"`
	Host       string         `json:"host" yaml:"host"`
	Sync       string         `json:"sync" yaml:"sync"`
	Health     string         `json:"health" yaml:"health"`
	Conditions []Condition    `json:"conditions" yaml:"conditions"`
	Revision   string         `json:"revision" yaml:"revision"` // last applied to the object
	Status     map[string]any `json:"status" yaml:"status"`
	// Quarantined disks are declared nowhere and wait for their deadline.
	Quarantined bool `json:"quarantined,omitempty" yaml:"quarantined,omitempty"`
}

// Input is what a report is made from.
type Input struct {
	Plan *reconcile.Plan
	Have reconcile.State
	// Failed are objects whose last attempt failed, and how.
	Failed map[reconcile.Key]string
	// Running are objects of which an action runs right now.
	Running map[reconcile.Key]bool
	// Suspended are the objects that are suspended; Everything says all are.
	Suspended  map[reconcile.Key]bool
	Everything bool
	// Revisions are the revisions last applied, per object.
	Revisions map[reconcile.Key]string
	Previous  []Object // of the last report, for the times of transition
	Now       time.Time
}

// Objects reports on every object of the plan.
func Objects(in Input) []Object {
	previous := make(map[reconcile.Key]*Object, len(in.Previous))
	for i := range in.Previous {
		o := &in.Previous[i]
		previous[reconcile.Key{Kind: o.Kind, UID: o.UID}] = o
	}
	objects := make([]Object, 0, len(in.Plan.Actions))
	for i := range in.Plan.Actions {
		a := &in.Plan.Actions[i]
		k := a.Key()
		o := Object{
			Kind: a.Kind, Name: a.Name, UID: a.UID, Host: a.Host,
			Revision: in.Revisions[k], Status: details(a, in.Have.Objects[k]),
		}
		o.Quarantined = a.Want == nil && a.Have != nil && a.Have.Disk != nil && a.Have.Disk.Quarantined
		o.Sync, o.Health = Synced, health(a, in)
		if a.Op != reconcile.OpUnchanged {
			o.Sync = OutOfSync
		}
		o.Conditions = conditions(a, o, in.Failed[k], in.Running[k])
		var old []Condition
		if p := previous[k]; p != nil {
			old = p.Conditions
		}
		Carry(o.Conditions, old, in.Now)
		objects = append(objects, o)
	}
	return objects
}

// Carry keeps the time of transition of what did not change.
func Carry(conditions, previous []Condition, now time.Time) {
	for i := range conditions {
		c := &conditions[i]
		c.LastTransitionTime = now
		for _, p := range previous {
			if p.Type == c.Type && p.Status == c.Status {
				c.LastTransitionTime = p.LastTransitionTime
			}
		}
	}
}

func health(a *reconcile.Action, in Input) string {
	k := a.Key()
	switch {
	case in.Everything || in.Suspended[k]:
		return Suspended
	case in.Running[k]:
		return Progressing
	case in.Failed[k] != "" || a.State == reconcile.Blocked:
		return Degraded
	case a.Have == nil && a.State == reconcile.Ready:
		return Progressing
	case a.Have == nil:
		return Missing
	case a.Have.VM != nil && (a.Have.VM.Power == reconcile.PowerIOError || a.Have.VM.Failed):
		return Degraded
	case a.State == reconcile.Ready && a.Op != reconcile.OpUnchanged:
		return Progressing
	case a.Have.VM != nil && a.Have.VM.Power == reconcile.PowerPaused: // no spec asks for that
		return Degraded
	}
	return Healthy
}

func conditions(a *reconcile.Action, o Object, failed string, running bool) []Condition {
	ready := Condition{Type: Ready, Status: True, Reason: o.Sync, Message: a.Reason}
	reconciling := Condition{Type: Reconciling, Status: False, Reason: "Idle"}
	stalled := Condition{Type: Stalled, Status: False, Reason: "NotStalled"}
	switch {
	case failed != "":
		ready.Status, ready.Reason, ready.Message = False, "Failed", failed
		stalled.Status, stalled.Reason, stalled.Message = True, "Failed", failed
	case a.State == reconcile.Blocked:
		ready.Status, ready.Reason = False, "Blocked"
		stalled.Status, stalled.Reason, stalled.Message = True, "Blocked", a.Reason
	case running || a.Op != reconcile.OpUnchanged && a.State == reconcile.Ready:
		ready.Status, ready.Reason = False, "Progressing"
		reconciling.Status, reconciling.Reason, reconciling.Message = True, "Progressing", string(a.Op)
	case o.Health == Missing:
		ready.Status, ready.Reason = False, "Missing"
	case o.Health == Degraded:
		ready.Status, ready.Reason = False, "Degraded"
	case a.Op != reconcile.OpUnchanged:
		ready.Reason = string(a.State) // it runs, and something waits or is held
	}
	return []Condition{ready, reconciling, stalled}
}

// Details that change without anybody's doing.
const (
	allocated = "allocated"
	free      = "free"
)

// details are the facts of a kind, for get and describe.
func details(a *reconcile.Action, h *reconcile.Live) map[string]any {
	d := map[string]any{"op": a.Op}
	if a.Op != reconcile.OpUnchanged {
		d["state"] = a.State
	}
	if a.Reason != "" {
		d["reason"] = a.Reason
	}
	if h == nil {
		return d
	}
	switch {
	case h.VM != nil:
		d["power"] = h.VM.Power
		if h.VM.PID != 0 {
			d["pid"] = h.VM.PID
		}
		if h.VM.Exit != "" {
			d["exit"] = h.VM.Exit
		}
		for _, f := range []string{"spec.memory.size", "spec.cpu.cores"} {
			if v := h.Get(f); v != "" {
				d[f[len("spec."):]] = v
			}
		}
	case h.Disk != nil:
		d["size"] = h.Get("spec.size")
		d["pool"] = h.Get("spec.pool")
		d[allocated] = h.Disk.Allocated
		if h.Disk.Quarantined {
			d["until"] = "no deadline"
			if !h.Disk.Until.IsZero() {
				d["until"] = h.Disk.Until.UTC().Format(time.RFC3339)
			}
		}
		if len(h.Disk.Reservations) > 0 {
			d["reservations"] = h.Disk.Reservations
		}
		for _, c := range h.Disk.Claims {
			if c.ReadOnly {
				continue
			}
			d["epoch"], d["sessions"] = c.Epoch, c.Sessions
			d["claimedBy"] = c.Owner.VM + c.Owner.Access
		}
	case h.Pool != nil:
		d["provisioned"] = spec.Size(h.Pool.Provisioned).String()
		d["quarantined"] = spec.Size(h.Pool.Quarantined).String()
		d[allocated], d[free] = h.Pool.Allocated, h.Pool.Free
	}
	return d
}

// Summarize counts the objects of a plan.
func Summarize(p *reconcile.Plan) Summary {
	s := Summary{Unmanaged: len(p.Unmanaged)}
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Op == reconcile.OpUnchanged {
			s.Synced++
			continue
		}
		s.OutOfSync++
		switch a.State {
		case reconcile.Waiting:
			s.Waiting++
		case reconcile.Held:
			s.Held++
		case reconcile.Blocked:
			s.Blocked++
		}
	}
	return s
}
