// Package claim holds what storage and hypervisor say to each other about the
// right to write a disk: who owns it, and how it is reached.
package claim

import "fmt"

// Secret is a string that does not print. Only Reveal gives it away.
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(s string) Secret { return Secret{s} }

// Reveal returns the value, for the one place that must have it.
func (s Secret) Reveal() string { return s.value }

// IsZero says whether there is no value.
func (s Secret) IsZero() bool { return s.value == "" }

const hidden = "(sensitive)"

// String hides the value.
func (Secret) String() string { return hidden }

// Format hides the value from every verb, %#v included.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// MarshalText hides the value from JSON and YAML.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Owner is who may write a disk: one launch of one machine, or one access of
// an operator (Access set, the rest but Host empty).
type Owner struct {
	Host   string `json:"host"`
	BootID string `json:"bootId,omitempty"` // the kernel's, so that a launch before a reboot is known to be gone
	VM     string `json:"vm,omitempty"`     // UID of the machine
	Launch string `json:"launch,omitempty"` // id of one QEMU process
	Access string `json:"access,omitempty"` // id of a temporary access
}

// Same says whether two owners are one: a host keeps its claims when it is
// renamed, and launches and accesses have ids that nobody else has.
func (o Owner) Same(p Owner) bool {
	p.Host = o.Host
	return o == p
}

// Claim is a disk's owner as the storage side persisted it.
type Claim struct {
	Disk  string `json:"disk"` // UID
	Epoch uint64 `json:"epoch"`
	Owner Owner  `json:"owner"`
	// ReadOnly is an access that stands beside the owner and writes nothing.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Sessions is the number of iSCSI sessions of this epoch that are logged in.
	Sessions int `json:"sessions"`
}

// Grant is how the owner of a claim reaches its disk. It belongs to one epoch
// and never changes within it.
type Grant struct {
	Disk      string // UID
	Epoch     uint64
	Portal    string // ADDRESS:PORT
	Target    string // IQN
	LUN       int
	Initiator string // IQN the owner must use
	User      string // CHAP
	Password  Secret
}
