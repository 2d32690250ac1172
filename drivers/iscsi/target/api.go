package target

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"reconciler/claim"
	"reconciler/drivers/iscsi/scsi"
)

// Export is one volume served as LUN 0 of one target.
type Export struct {
	IQN      string   `json:"iqn"`
	Path     string   `json:"path"`             // a file or a block device
	Size     int64    `json:"size,omitempty"`   // bytes; checked against the volume where not 0
	Serial   string   `json:"serial,omitempty"` // unit serial number, 20 hexadecimal digits
	UID      string   `json:"uid,omitempty"`    // the disk's UID; the caller's matter
	Volume   string   `json:"volume,omitempty"` // id in the record beside the volume, where it is known
	Portals  []string `json:"portals"`          // ADDRESS:PORT, as initiators reach it
	ReadOnly bool     `json:"readOnly,omitempty"`
	// DiscoveryCHAP has those who list the targets of its portals prove who they are.
	DiscoveryCHAP bool `json:"discoveryCHAP,omitempty"`
}

// Access admits initiators to an export. Grants of one export are told apart by
// their epoch; what one says never changes, another takes its place.
type Access struct {
	Epoch      uint64
	Initiators []string // iSCSI names
	// User and Password are the initiator's (CHAP, RFC 7143 §12.1.3); an empty
	// user admits by name alone.
	User     string
	Password claim.Secret
	// MutualUser and MutualPassword are what the target proves itself with, where
	// the initiator asks for it.
	MutualUser     string
	MutualPassword claim.Secret
	ReadOnly       bool
	// Incoming admits a second writer beside the first: the receiving end of a
	// live migration, for as long as that takes.
	Incoming bool
	// Kind and Owner are stored and given back.
	Kind  string
	Owner string
}

// accessJSON is an Access on the control socket and in its record, both of
// mode 0600: the only places where a password is written.
type accessJSON struct {
	Epoch          uint64   `json:"epoch"`
	Initiators     []string `json:"initiators"`
	User           string   `json:"user,omitempty"`
	Password       string   `json:"password,omitempty"`
	MutualUser     string   `json:"mutualUser,omitempty"`
	MutualPassword string   `json:"mutualPassword,omitempty"`
	ReadOnly       bool     `json:"readOnly,omitempty"`
	Incoming       bool     `json:"incoming,omitempty"`
	Kind           string   `json:"kind,omitempty"`
	Owner          string   `json:"owner,omitempty"`
}

func (a Access) wire() accessJSON {
	return accessJSON{a.Epoch, a.Initiators, a.User, a.Password.Reveal(), a.MutualUser, a.MutualPassword.Reveal(),
		a.ReadOnly, a.Incoming, a.Kind, a.Owner}
}

func (w accessJSON) access() Access {
	return Access{w.Epoch, w.Initiators, w.User, claim.NewSecret(w.Password), w.MutualUser, claim.NewSecret(w.MutualPassword),
		w.ReadOnly, w.Incoming, w.Kind, w.Owner}
}

// MarshalJSON hides the passwords: an Access may be printed anywhere.
func (a Access) MarshalJSON() ([]byte, error) {
	w := a.wire()
	if w.Password != "" {
		w.Password = a.Password.String()
	}
	if w.MutualPassword != "" {
		w.MutualPassword = a.MutualPassword.String()
	}
	return json.Marshal(w)
}

// UnmarshalJSON is the counterpart of MarshalJSON; passwords do not come back.
func (a *Access) UnmarshalJSON(b []byte) error {
	var w accessJSON
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	w.Password, w.MutualPassword = "", ""
	*a = w.access()
	return nil
}

// same reports whether a and b admit the same initiators in the same way.
func (a Access) same(b Access) bool {
	return a.Epoch == b.Epoch && slices.Equal(a.Initiators, b.Initiators) &&
		a.User == b.User && a.Password == b.Password &&
		a.MutualUser == b.MutualUser && a.MutualPassword == b.MutualPassword &&
		a.ReadOnly == b.ReadOnly
}

// Status is an export as it is served.
type Status struct {
	Export
	Size   int64    `json:"currentSize"` // bytes, as read from the volume; 0 while it cannot be opened
	Access []Access `json:"access"`      // without passwords
	// Fenced lists the newest epochs that were fenced and are refused for ever.
	Fenced   []uint64  `json:"fenced,omitempty"`
	Sessions []Session `json:"sessions"`
	// Reservations are what initiators keep in the unit against others. Those of an
	// epoch end with it.
	Reservations []scsi.Reservation `json:"reservations,omitempty"`
	// File is what is open; nil where that is not known, or nothing is.
	File *File `json:"file,omitempty"`
	// Error says why the volume is not served: it could not be opened and is
	// tried again. Empty when it is.
	Error string `json:"error,omitempty"`
	// PortalErrors says, by portal, why it is not listened on; it is tried again.
	PortalErrors map[string]string `json:"portalErrors,omitempty"`
}

// Session is one logged-in initiator.
type Session struct {
	Initiator string    `json:"initiator"`
	Address   string    `json:"address"`
	Since     time.Time `json:"since"`
	Epoch     uint64    `json:"epoch"`
	ReadOnly  bool      `json:"readOnly,omitempty"`
	// Replaced counts the earlier sessions of the initiator that were ended because
	// it logged in again; the last came from ReplacedFrom.
	Replaced     int    `json:"replaced,omitempty"`
	ReplacedFrom string `json:"replacedFrom,omitempty"`
	// Draining is set once the session is closed and while a command of it is
	// still at the volume.
	Draining     bool   `json:"draining,omitempty"`
	Commands     uint64 `json:"commands"`
	BytesRead    uint64 `json:"bytesRead"`
	BytesWritten uint64 `json:"bytesWritten"`
}

// Errors a caller of Client tells apart.
var (
	ErrNotFound = errors.New("no such export")
	ErrConflict = errors.New("conflicts with what is exported")
	ErrFenced   = errors.New("epoch was fenced")
	ErrInvalid  = errors.New("invalid request")
	// ErrDraining means that a command is still at the volume: the change is
	// persisted and no new command is admitted, but the caller must ask again
	// before it may take the volume for free.
	ErrDraining = errors.New("commands are still in flight")
)

// LogicalUnit is what the front needs of a logical unit; *scsi.Device is one.
type LogicalUnit interface {
	Execute(ctx context.Context, c *scsi.Command) scsi.Result
	OutLen(cdb []byte) int
	InLen(cdb []byte) int
	Attach(n *scsi.Nexus)
	Detach(n *scsi.Nexus)
	Reset(from *scsi.Nexus, kind scsi.ResetKind)
	Reservations() []scsi.Reservation
	Keep(keep func(initiator string, owner uint64) bool) error
	ClearReservations() error
	Grow(size int64) error
	Size() int64
	Close() error
}

const maxNameLen = 223 // RFC 7143 §4.2.7.1

// ValidName checks an iSCSI name of one of the three types (RFC 7143 §4.2.7.3).
func ValidName(name string) bool {
	name = scsi.FoldName(name)
	if len(name) > maxNameLen {
		return false
	}
	if !strings.HasPrefix(name, "iqn.") && !strings.HasPrefix(name, "eui.") && !strings.HasPrefix(name, "naa.") {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == ',' || c == '=' || c == 0x7f {
			return false
		}
	}
	return true
}

func (e Export) validate() error {
	if !ValidName(e.IQN) {
		return fmt.Errorf("%w: %q is not an iSCSI name", ErrInvalid, e.IQN)
	}
	if !strings.HasPrefix(e.Path, "/") {
		return fmt.Errorf("%w: volume path %q is not absolute", ErrInvalid, e.Path)
	}
	if e.Size < 0 {
		return fmt.Errorf("%w: negative size", ErrInvalid)
	}
	if len(e.Portals) == 0 {
		return fmt.Errorf("%w: %s has no portal", ErrInvalid, e.IQN)
	}
	for _, p := range e.Portals {
		a, err := netip.ParseAddrPort(p)
		if err != nil || a.Port() == 0 {
			return fmt.Errorf("%w: portal %q is not ADDRESS:PORT", ErrInvalid, p)
		}
	}
	return nil
}

func (a Access) validate() error {
	if len(a.Initiators) == 0 {
		return fmt.Errorf("%w: epoch %d admits no initiator", ErrInvalid, a.Epoch)
	}
	for _, n := range a.Initiators {
		if !ValidName(n) {
			return fmt.Errorf("%w: %q is not an iSCSI name", ErrInvalid, n)
		}
	}
	if (a.User == "") != a.Password.IsZero() || (a.MutualUser == "") != a.MutualPassword.IsZero() {
		return fmt.Errorf("%w: a CHAP name and its secret go together", ErrInvalid)
	}
	// The same secret both ways would let a peer have its own challenge answered
	// (RFC 7143 §9.2.1).
	if a.MutualUser != "" && (a.User == "" || a.MutualPassword == a.Password) {
		return fmt.Errorf("%w: mutual CHAP needs one-way CHAP and a secret of its own", ErrInvalid)
	}
	return nil
}

// validateAccess checks the grants of one export against each other: epochs
// differ, and there is one writer (rule: never two writers on a disk) but for the
// receiving end of a migration.
func validateAccess(list []Access) error {
	seen := make(map[uint64]bool, len(list))
	writers, incoming := 0, 0
	for _, a := range list {
		if err := a.validate(); err != nil {
			return err
		}
		if seen[a.Epoch] {
			return fmt.Errorf("%w: epoch %d twice", ErrInvalid, a.Epoch)
		}
		seen[a.Epoch] = true
		switch {
		case a.ReadOnly:
		case a.Incoming:
			incoming++
		default:
			writers++
		}
	}
	if writers > 1 || incoming > 1 {
		return fmt.Errorf("%w: two epochs may write", ErrInvalid)
	}
	return nil
}
