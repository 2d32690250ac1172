package reconcile

import (
	"fmt"
	"slices"
	"time"

	"reconciler/claim"
	"reconciler/spec"
)

// Op is what an action does.
type Op string

// The operations.
const (
	OpCreate     Op = "create"
	OpUpdate     Op = "update"
	OpStart      Op = "start"
	OpStop       Op = "stop"
	OpRestart    Op = "restart"
	OpMigrate    Op = "migrate"
	OpDelete     Op = "delete"     // a machine
	OpQuarantine Op = "quarantine" // a disk: taken away, recoverable until a date
	OpRestore    Op = "restore"    // a disk comes back from quarantine
	OpPurge      Op = "purge"      // a disk's data, for ever
	OpAdopt      Op = "adopt"
	OpBlocked    Op = "blocked"
	OpUnchanged  Op = "unchanged"
)

// Cause is why an action is there.
type Cause string

// The causes.
const (
	CauseRevision Cause = "revision" // this commit asks for it
	CauseDrift    Cause = "drift"    // the world moved
	CauseRetry    Cause = "retry"    // an earlier attempt did not finish
	CauseExpiry   Cause = "expiry"   // a deadline passed
)

// Impact is what an action does to what runs, ordered.
type Impact int

// The impacts, least first.
const (
	ImpactNone    Impact = iota
	ImpactLive           // done in the running guest
	ImpactMigrate        // the guest moves to another host
	ImpactRestart        // the guest is restarted
	ImpactStop           // the guest is stopped
	ImpactRemove         // taken away, recoverable
	ImpactDestroy        // data gone
)

var impactNames = []string{"none", "live", "migrate", "restart", "stop", "remove", "destroy"}

func (i Impact) String() string { return impactNames[i] }

// MarshalText writes the impact's name.
func (i Impact) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText reads the impact's name.
func (i *Impact) UnmarshalText(text []byte) error {
	at := slices.Index(impactNames, string(text))
	if at < 0 {
		return fmt.Errorf("impact %q is not known", text)
	}
	*i = Impact(at)
	return nil
}

// ActionState says whether an action may run.
type ActionState string

// The states.
const (
	Ready   ActionState = "ready"
	Waiting ActionState = "waiting" // for a restart, a guest, a window, a claim
	Held    ActionState = "held"    // by budget, policy or approval
	Blocked ActionState = "blocked" // cannot be done
)

// Change is one field of an action.
type Change struct {
	Field  string `json:"field"` // path in the spec as the user wrote it
	From   string `json:"from"`
	To     string `json:"to"`
	Impact Impact `json:"impact"`
	// Waits says why this change is not carried out now, although others of the action may be.
	Waits string `json:"waits,omitempty"`
	// Drift says that the world moved here and is left as it is: Waits is set.
	Drift bool `json:"drift,omitempty"`

	cause Cause
	id    string // Field.ID of the wanted value
	needs []Key  // what must be done before this change
	// follows says that the change is what one of needs does, seen from here.
	follows bool
	never   bool   // Waits is for good
	because string // why it needs a restart, where its kind does not say so
}

// Action is what is to be done with one object. Every object has exactly one.
type Action struct {
	ID      string      `json:"id"` // empty unless Cause is revision or retry
	Kind    spec.Kind   `json:"kind"`
	Name    string      `json:"name"`
	UID     string      `json:"uid"`
	Host    string      `json:"host"`
	Op      Op          `json:"op"`
	Cause   Cause       `json:"cause"`
	Impact  Impact      `json:"impact"`
	State   ActionState `json:"state"`
	Reason  string      `json:"reason"`
	Changes []Change    `json:"changes"`
	// Drift is the mode, Report or Off, by which some of Changes are left alone.
	Drift string `json:"drift,omitempty"`

	// After are the actions that must succeed first.
	After []Key   `json:"-"`
	Want  *Object `json:"-"` // nil when the object is to go
	Have  *Live   `json:"-"` // nil when it is not there

	outOfSlots bool // a restart of what would be live, had the process room for it

	unknown bool // blocked because its object could not be observed
}

// Key is the identity of the action's object.
func (a *Action) Key() Key { return Key{a.Kind, a.UID} }

// HostDigest is what a reviewer approves for one host.
type HostDigest struct {
	Host       string    `json:"host"`
	Digest     string    `json:"digest"`
	ObservedAt time.Time `json:"observedAt"`
}

// Plan is every action of one revision, dependencies first.
type Plan struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Revision   string       `json:"revision"`
	Base       string       `json:"base"`
	Impact     Impact       `json:"impact"`
	Incomplete bool         `json:"incomplete"`
	Summary    map[Op]int   `json:"summary"`
	Hosts      []HostDigest `json:"hosts"`
	Actions    []Action     `json:"actions"`
	Unmanaged  []Unmanaged  `json:"unmanaged,omitempty"`
}

// Inputs are what a driver needs beyond the action: results of other drivers,
// carried along the edges of the graph, and values chosen on the host.
type Inputs struct {
	BootID string // of the host's kernel
	Launch string // id of the launch to start, or of the running one to change
	// Grants are the claimed disks by entry name: of all of the machine's disks
	// for a start, of those attached for an update.
	Grants   map[string]claim.Grant
	Networks map[string]*spec.Network // by NIC name
	Files    map[string]string        // paths of images: kernel, initrd, source
	// Secrets are the texts of Secrets that the machine names, by the path of
	// what names them: spec.cloudInit.userData.
	Secrets  map[string]claim.Secret
	Force    bool // a stop does not ask the guest first
	Progress func(format string, args ...any)
}

// Outputs are what an action produced for the actions after it.
type Outputs struct {
	File string // path of a verified image
	Idle bool   // there was no process to be stopped
	// Disks are those that a machine's process has, or may have, open after an
	// update, by UID; nil where that is not known.
	Disks []string
}
