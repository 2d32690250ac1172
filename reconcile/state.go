package reconcile

import (
	"sort"
	"time"

	"reconciler/claim"
	"reconciler/spec"
)

// Key identifies an object over renames.
type Key struct {
	Kind spec.Kind
	UID  string
}

// Field is one value of an object at its path in the spec.
type Field struct {
	Path  string `json:"path"`
	Value string `json:"value"`
	// ID, where set, is compared in place of Value: the UID behind a name, so
	// that a rename is no change.
	ID string `json:"id,omitempty"`
}

func (f Field) same(g Field) bool {
	if f.ID != "" && g.ID != "" {
		return f.ID == g.ID
	}
	return f.Value == g.Value
}

// Object is an object with its fields, sorted by path.
type Object struct {
	Kind        spec.Kind `json:"kind"`
	Name        string    `json:"name"`
	UID         string    `json:"uid"`
	Incarnation int       `json:"incarnation,omitempty"`
	Fields      []Field   `json:"fields"`
	// Spec is the typed spec behind the fields; set in Desired only.
	Spec any `json:"-"`
	// Refs are the objects this one needs, by the path of the reference. Set in Desired only.
	Refs []Ref `json:"-"`
}

// Key is the identity of the object.
func (o *Object) Key() Key { return Key{o.Kind, o.UID} }

// Ref is a reference from one object to another.
type Ref struct {
	Path string
	To   *Object
}

// Live is an object as it was observed.
type Live struct {
	Object
	VM   *LiveVM
	Disk *LiveDisk
	Pool *LivePool
}

// Power is what a machine's process does.
type Power string

// Powers of a machine. A machine whose process does not answer is Unknown, not a Power.
const (
	PowerStopped   Power = "Stopped"   // no process
	PowerStarting  Power = "Starting"  // QEMU is there, the guest has never run (-S): an interrupted start
	PowerRunning   Power = "Running"   // the guest runs
	PowerPaused    Power = "Paused"    // somebody or something stopped the vCPUs
	PowerIOError   Power = "IOError"   // paused by QEMU: a disk returned an error, such as no space
	PowerEnded     Power = "Ended"     // the guest shut down or panicked; QEMU waits to be read
	PowerMigrating Power = "Migrating" // memory is on its way
)

// LiveVM is what only a machine has.
type LiveVM struct {
	Power  Power
	Launch string // id of the launch that the process belongs to; empty without a process
	PID    int    // 0 without a process
	// Exit says how the guest or QEMU ended by itself; empty if it was asked to, or runs.
	Exit string
	// Failed says that Exit was not an orderly shutdown by the guest.
	Failed bool
	// Asked says that somebody asked QEMU for the end in Exit, past the agent.
	Asked bool
	// RetryAt is when restartPolicy may start the machine again; zero means at once.
	RetryAt time.Time
	// Disks are the disks of the process by entry name: UID of each.
	Disks map[string]string
	// Ports are the PCI slots of the process for disks and NICs; 0 if not known.
	Ports int
}

// LiveDisk is what only a disk has.
type LiveDisk struct {
	Volume int64 // bytes; the observed spec.size is the smaller of Volume and LUN
	LUN    int64 // bytes the target serves; 0 if it is not exported
	// Quarantined since the disk was removed from the tree.
	Quarantined bool
	// Until ends the quarantine; zero keeps it without a deadline.
	Until time.Time
	// Elapsed says that wall clock and accumulated uptime both passed Until.
	Elapsed bool
	// Written is when the data was last in use, for the reason of a restore.
	Written time.Time
	Claims  []claim.Claim
	// Reservations are what initiators keep in the disk against others (SCSI), in words.
	Reservations []string
	// Allocated is the space really used, in bytes.
	Allocated int64
}

// LivePool is what only a pool has, in bytes.
type LivePool struct {
	Provisioned int64 // sum of the disks' sizes, quarantine included
	Quarantined int64 // of that, in quarantine
	Allocated   int64 // really used
	Free        int64 // left in the file system below
}

// Unmanaged is something found on the host that is not ours.
type Unmanaged struct {
	Kind   string `json:"kind"` // Process, Volume, Target
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// State is what was observed on one host.
type State struct {
	Objects   map[Key]*Live
	Unknown   map[Key]string     // could not be observed, and why
	Complete  map[spec.Kind]bool // kinds of which absent means absent
	Unmanaged []Unmanaged
	Facts     Facts
}

// Facts are what a host can do for machines. What is not known stands in the way
// of nothing.
type Facts struct {
	Machines []string // machine types of QEMU; none: not known
	CPUs     []string // CPU models of QEMU; none: not known
	Memory   int64    // bytes that one machine can have at most; 0: not known
}

// NewState returns an empty State.
func NewState() State {
	return State{Objects: map[Key]*Live{}, Unknown: map[Key]string{}, Complete: map[spec.Kind]bool{}}
}

// Merge adds what another driver observed. Kinds do not overlap.
func (s *State) Merge(o State) {
	for k, v := range o.Objects {
		s.Objects[k] = v
	}
	for k, v := range o.Unknown {
		s.Unknown[k] = v
	}
	for k, v := range o.Complete {
		s.Complete[k] = v
	}
	s.Unmanaged = append(s.Unmanaged, o.Unmanaged...)
	if s.Facts.Memory == 0 && s.Facts.Machines == nil && s.Facts.CPUs == nil {
		s.Facts = o.Facts
	}
}

// Base is what was last applied, per object.
type Base map[Key]*Applied

// Applied is an object as it was last applied.
type Applied struct {
	Object
	// Attempted is the digest of the desired object that was tried and not finished.
	Attempted string `json:"attempted,omitempty"`
	// Done is false while no attempt to make the object has ever finished.
	Done bool `json:"done"`
}

// SortedKeys lists the keys of a map in a stable order.
func SortedKeys[V any](m map[Key]V) []Key {
	keys := make([]Key, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		if keys[i].Kind != keys[j].Kind {
			return keys[i].Kind < keys[j].Kind
		}
		return keys[i].UID < keys[j].UID
	})
	return keys
}
