// Package api is the local socket of the agent: its types, server and client.
// The commands talk to a running agent through it.
package api

import (
	"context"
	"time"

	"reconciler/reconcile"
	"reconciler/status"
)

// Agent is what the server serves. Every call is audited by the agent with the
// caller it is given.
type Agent interface {
	Status(ctx context.Context) (Status, error)
	Objects(ctx context.Context) ([]Object, error)
	Plan(ctx context.Context, r PlanRequest) (*reconcile.Plan, error)
	// Reconcile asks for a pass; with Wait it returns when nothing is ready any
	// more, with progress as lines.
	Reconcile(ctx context.Context, r ReconcileRequest, progress func(string)) (*reconcile.Plan, error)
	Suspend(ctx context.Context, r SuspendRequest) error
	Resume(ctx context.Context, r ResumeRequest) error
	Allow(ctx context.Context, r AllowRequest) error
	Accept(ctx context.Context, r AcceptRequest) error
	Restart(ctx context.Context, r MachineRequest) error
	Stop(ctx context.Context, r MachineRequest) (StopResult, error)
	Undelete(ctx context.Context, r UndeleteRequest) (UndeleteResult, error)
	Revert(ctx context.Context, r RevertRequest) error
	Import(ctx context.Context, r ImportRequest) (ImportResult, error)
	Access(ctx context.Context, r AccessRequest) (Access, error)
	ListAccess(ctx context.Context) ([]Access, error)
	EndAccess(ctx context.Context, r EndAccessRequest) error
	ClearReservations(ctx context.Context, r ClearRequest) (ClearResult, error)
	Console(ctx context.Context, vm string) (Console, error)
	// Events returns those after a sequence number, and waits for one if there
	// is none and follow is set.
	Events(ctx context.Context, after uint64, follow bool) ([]Event, error)
}

// Caller is who is at the other end of the socket (SO_PEERCRED).
type Caller struct {
	UID  int    `json:"uid"`
	PID  int    `json:"pid"`
	Name string `json:"name"` // user name, or the UID as text
}

// What the agent reports is made by package status.
type (
	Status     = status.Host
	Suspension = status.Suspension
	Window     = status.Window
	Condition  = status.Condition
	Summary    = status.Summary
	Object     = status.Object
)

// PlanRequest says which plan: Against is live (default), base or status.
type PlanRequest struct {
	Rev     string `json:"rev,omitempty"`
	Base    string `json:"base,omitempty"`
	Against string `json:"against,omitempty"`
}

// ReconcileRequest asks for a pass over the newest revision.
type ReconcileRequest struct {
	Wait   bool   `json:"wait,omitempty"`
	Caller Caller `json:"-"`
}

// SuspendRequest stops the agent from acting; Object empty means everything.
type SuspendRequest struct {
	Object string    `json:"object,omitempty"` // KIND/NAME
	Reason string    `json:"reason"`
	Until  time.Time `json:"until,omitzero"`
	Caller Caller    `json:"-"`
}

// ResumeRequest ends a suspension.
type ResumeRequest struct {
	Object string `json:"object,omitempty"`
	Caller Caller `json:"-"`
}

// AllowRequest releases held actions: one by id (or a prefix of 8 digits or
// more), or all of a plan by its digest.
type AllowRequest struct {
	ID     string        `json:"id"`
	For    time.Duration `json:"for"`
	Reason string        `json:"reason"`
	Caller Caller        `json:"-"`
}

// AcceptRequest accepts a revision that does not descend from the last applied
// one, or this machine as the host.
type AcceptRequest struct {
	Rev     string `json:"rev,omitempty"`
	Machine bool   `json:"machine,omitempty"`
	Reason  string `json:"reason"`
	Caller  Caller `json:"-"`
}

// MachineRequest restarts or stops a machine.
type MachineRequest struct {
	Name   string `json:"name"`
	Force  bool   `json:"force,omitempty"`
	Caller Caller `json:"-"`
}

// UndeleteRequest keeps a quarantined disk without a deadline.
type UndeleteRequest struct {
	Name   string `json:"name"` // name or UID
	Caller Caller `json:"-"`
}

// UndeleteResult is the YAML to commit.
type UndeleteResult struct {
	YAML string `json:"yaml"`
}

// RevertRequest lets the agent correct the drift of an object once, whatever its mode.
type RevertRequest struct {
	Object string `json:"object"` // KIND/NAME
	Reason string `json:"reason"`
	Caller Caller `json:"-"`
}

// ImportRequest asks for the specs of what runs here and no tree declares.
type ImportRequest struct {
	Objects []string `json:"objects,omitempty"` // KIND/NAME; empty means all
	Caller  Caller   `json:"-"`
}

// ImportResult is what can be declared, and what cannot, and why.
type ImportResult struct {
	Documents []ImportDocument `json:"documents"`
	Notes     []string         `json:"notes"`
}

// ImportDocument is the YAML of one object.
type ImportDocument struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	YAML string `json:"yaml"`
	// Notes are what to know before it is committed.
	Notes []string `json:"notes,omitempty"`
	// Adopted says that once it is committed the object is managed as it is. Else
	// it must be changed first.
	Adopted bool `json:"adopted"`
}

// AccessRequest lends a disk to an initiator for a while.
type AccessRequest struct {
	Disk       string        `json:"disk"`
	Initiators []string      `json:"initiators"`
	For        time.Duration `json:"for"`
	ReadOnly   bool          `json:"readOnly,omitempty"`
	Caller     Caller        `json:"-"`
}

// Access is a disk lent to an initiator. User and password stand only in the
// answer that made it.
type Access struct {
	ID         string    `json:"id" yaml:"id"`
	Disk       string    `json:"disk" yaml:"disk"`
	URL        string    `json:"url,omitempty" yaml:"url,omitempty"` // iscsi://user%password@host:port/target/lun
	Portal     string    `json:"portal" yaml:"portal"`
	Target     string    `json:"target" yaml:"target"`
	LUN        int       `json:"lun" yaml:"lun"`
	Initiators []string  `json:"initiators" yaml:"initiators"`
	User       string    `json:"user,omitempty" yaml:"user,omitempty"`
	Password   string    `json:"password,omitempty" yaml:"password,omitempty"`
	ReadOnly   bool      `json:"readOnly,omitempty" yaml:"readOnly,omitempty"`
	Until      time.Time `json:"until" yaml:"until"`
	By         string    `json:"by,omitempty" yaml:"by,omitempty"`
	// Sessions are logged in now.
	Sessions []AccessSession `json:"sessions,omitempty" yaml:"sessions,omitempty"`
}

// AccessSession is one initiator that is logged in. It has one session of an access.
type AccessSession struct {
	Initiator string    `json:"initiator" yaml:"initiator"`
	Address   string    `json:"address" yaml:"address"`
	Since     time.Time `json:"since" yaml:"since"`
	// Replaced counts the earlier sessions that ended because it logged in again;
	// the last came from ReplacedFrom.
	Replaced     int    `json:"replaced,omitempty" yaml:"replaced,omitempty"`
	ReplacedFrom string `json:"replacedFrom,omitempty" yaml:"replacedFrom,omitempty"`
}

// EndAccessRequest ends an access.
type EndAccessRequest struct {
	ID     string `json:"id"`
	Caller Caller `json:"-"`
}

// ClearRequest ends what initiators reserved of a disk.
type ClearRequest struct {
	Disk   string `json:"disk"`
	Caller Caller `json:"-"`
}

// ClearResult is what was reserved, in words.
type ClearResult struct {
	Cleared []string `json:"cleared" yaml:"cleared"`
}

// StopResult says what came of a stop.
type StopResult struct {
	Idle bool   `json:"idle,omitempty"` // there was no process, so nothing was done
	Why  string `json:"why,omitempty"`  // the machine could not be observed, and why
}

// Console is where the serial console of a machine is.
type Console struct {
	// Input is a named pipe for what is typed; what the guest writes is in Log.
	// Empty while the machine is off.
	Input string `json:"input,omitempty"`
	// Socket is that of a process that an earlier build started, in place of
	// Input: one client at a time, both ways, which must read.
	Socket string `json:"socket"`
	Log    string `json:"log"` // file, bounded
}

// Event is one thing that happened, for people and for audit.
type Event struct {
	Seq     uint64    `json:"seq" yaml:"seq"`
	Time    time.Time `json:"time" yaml:"time"`
	Object  string    `json:"object,omitempty" yaml:"object,omitempty"` // KIND/NAME
	Type    string    `json:"type" yaml:"type"`                         // Normal, Warning, Audit
	Reason  string    `json:"reason" yaml:"reason"`
	Message string    `json:"message" yaml:"message"`
	By      string    `json:"by,omitempty" yaml:"by,omitempty"`
	// Action is what was carried out, or failed, where the event is about that.
	Action *EventAction `json:"action,omitempty" yaml:"action,omitempty"`
}

// EventAction ties an event to the plan it is of, and to what reviewers approved.
type EventAction struct {
	ID       string           `json:"id" yaml:"id"` // empty of what no commit asked for
	Op       reconcile.Op     `json:"op" yaml:"op"`
	Cause    reconcile.Cause  `json:"cause" yaml:"cause"`
	Impact   reconcile.Impact `json:"impact" yaml:"impact"`     // of what was carried out, without what waits
	Revision string           `json:"revision" yaml:"revision"` // in force at the time
}
