package scsi

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
)

// SAM status codes (SAM-5 §5.3.1).
const (
	StatusGood                byte = 0x00
	StatusCheckCondition      byte = 0x02
	StatusConditionMet        byte = 0x04
	StatusBusy                byte = 0x08
	StatusReservationConflict byte = 0x18
	StatusTaskSetFull         byte = 0x28
	StatusTaskAborted         byte = 0x40
)

// MaxTransfer bounds the data one command may move, in bytes. It is told to
// initiators as MAXIMUM TRANSFER LENGTH (SBC-4 §6.6.4).
const MaxTransfer = 16 << 20

// Command is one SCSI command as it came from a nexus.
type Command struct {
	Nexus *Nexus
	// LUN is the flat logical unit number. Only 0 exists; others answer as
	// SPC-5 §6.7 and SAM-5 §5.11 say for an incorrect logical unit number.
	LUN uint64
	// CDB holds 16 bytes, or more for a variable-length CDB.
	CDB []byte
	// Out is the data-out received, complete.
	Out []byte
	// In is room for data-in; len(In) is how much may be returned.
	In []byte
}

// Result is the outcome of a command.
type Result struct {
	Status byte
	// Sense is fixed-format sense data (descriptor format while D_SENSE is
	// set), present with CHECK CONDITION.
	Sense []byte
	// N counts the valid bytes of Command.In.
	N int
	// Want is what the command would have moved, in bytes and in its own
	// direction, had the initiator's buffer been as long as the CDB says:
	// the transport's residual count is Want against the expected length.
	Want int
}

// Nexus is an I_T nexus (SAM-5 §4.6): an initiator port, seen through a target
// port. Reservations, registrations and unit attentions belong to one.
type Nexus struct {
	// Owner tells apart those who are let in one after the other: a registration
	// belongs to the owner of the nexus that made it, see [Device.Keep]. It is set
	// before Attach.
	Owner uint64

	initiator string
	isid      [6]byte
	tpg       uint16
	readOnly  bool

	// gate is shared by each command that may touch the medium, and taken by
	// PREEMPT AND ABORT to wait until none of them is under way.
	gate sync.RWMutex
	// aborts counts the times that the commands under way were aborted.
	aborts atomic.Uint64
	// prevent is set by PREVENT ALLOW MEDIUM REMOVAL, under Device.mu.
	prevent bool
	mode    modeParameters

	mu      sync.Mutex
	pending []unitAttention
	// attentions mirrors len(pending) != 0 so that the data path takes no lock.
	attentions atomic.Bool
}

// FoldName is the one form of an iSCSI name that may be written in several: names
// fold case (RFC 7143 §4.2.7.1).
func FoldName(name string) string { return strings.ToLower(name) }

// NewNexus describes the nexus of an iSCSI session: the initiator's name and
// ISID, and the target portal group tag (RFC 7143 §4.4.6). With readOnly its
// writes fail as on a write-protected medium, and with them every command that
// changes what others find.
func NewNexus(initiator string, isid [6]byte, tpg uint16, readOnly bool) *Nexus {
	return &Nexus{initiator: FoldName(initiator), isid: isid, tpg: tpg, readOnly: readOnly}
}

// abort stops the long commands of the nexus at their next chunk, and returns
// when none that began before is under way.
func (n *Nexus) abort() {
	n.aborts.Add(1)
	n.drain()
}

// abortable is the context of a long command: done, too, when its nexus's
// commands are aborted.
type abortable struct {
	context.Context
	n    *Nexus
	seen uint64
}

func (n *Nexus) abortable(ctx context.Context) abortable {
	return abortable{ctx, n, n.aborts.Load()}
}

func (a abortable) Err() error {
	if a.n.aborts.Load() != a.seen {
		return context.Canceled
	}
	return a.Context.Err()
}

// drain returns when no command of the nexus that began before is under way.
func (n *Nexus) drain() {
	n.gate.Lock()
	defer n.gate.Unlock()
}
