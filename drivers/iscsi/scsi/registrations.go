package scsi

import (
	"slices"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// maxRegistrations bounds the registered nexuses of a unit.
const maxRegistrations = 128

// nexusID names an I_T nexus beyond the session that was it: registrations
// survive I_T nexus loss.
type nexusID struct {
	Initiator string  `json:"initiator"`
	ISID      [6]byte `json:"isid"`
	Group     uint16  `json:"targetPortalGroup"`
}

func (n *Nexus) id() nexusID { return nexusID{n.initiator, n.isid, n.tpg} }

type registration struct {
	Nexus nexusID `json:"nexus"`
	Key   uint64  `json:"key"`
	Owner uint64  `json:"owner,omitempty"` // 0 in a file that knows of none
}

// registrations is the state of persistent reservations (SPC-5 §5.14). It is
// immutable: a PERSISTENT RESERVE OUT makes a new one, which takes effect when
// it is stored, so that one that cannot be made durable changes nothing.
type registrations struct {
	generation uint32
	all        []registration // in the order of their registration
	kind       byte           // TYPE of the reservation, 0 while there is none
	holder     nexusID        // but for the All Registrants kinds
	aptpl      bool
}

func (r *registrations) empty() bool { return len(r.all) == 0 }

func (r *registrations) clone() *registrations {
	c := *r
	c.all = slices.Clone(r.all)
	return &c
}

// key returns the key of a nexus; 0 when it is not registered.
func (r *registrations) key(id nexusID) uint64 {
	for i := range r.all {
		if r.all[i].Nexus == id {
			return r.all[i].Key
		}
	}
	return 0
}

func allRegistrants(kind byte) bool {
	return kind == gotgt.PR_TYPE_WRITE_EXCLUSIVE_ALLREG || kind == gotgt.PR_TYPE_EXCLUSIVE_ACCESS_ALLREG
}

func registrantsOnly(kind byte) bool {
	return kind == gotgt.PR_TYPE_WRITE_EXCLUSIVE_REGONLY || kind == gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY
}

func validKind(kind byte) bool {
	return kind == gotgt.PR_TYPE_WRITE_EXCLUSIVE || kind == gotgt.PR_TYPE_EXCLUSIVE_ACCESS || allRegistrants(kind) || registrantsOnly(kind)
}

// holds says whether a nexus is a reservation holder (SPC-5 §5.14).
func (r *registrations) holds(id nexusID) bool {
	if r.kind == 0 {
		return false
	}
	if allRegistrants(r.kind) {
		return r.key(id) != 0
	}
	return r.holder == id
}

// admits says whether the reservation lets a nexus do everything.
func (r *registrations) admits(n *Nexus) bool {
	id := n.id()
	if registrantsOnly(r.kind) || allRegistrants(r.kind) {
		return r.key(id) != 0
	}
	return r.holder == id
}

// set registers a nexus or changes its key.
func (r *registrations) set(id nexusID, key, owner uint64) bool {
	for i := range r.all {
		if r.all[i].Nexus == id {
			r.all[i].Key, r.all[i].Owner = key, owner
			return true
		}
	}
	if len(r.all) == maxRegistrations {
		return false
	}
	r.all = append(r.all, registration{id, key, owner})
	return true
}

// remove unregisters those that match and returns them. A reservation whose
// last holder is among them is released (SPC-5 §5.14).
func (r *registrations) remove(match func(registration) bool) []nexusID {
	var gone []nexusID
	r.all = slices.DeleteFunc(r.all, func(reg registration) bool {
		if !match(reg) {
			return false
		}
		gone = append(gone, reg.Nexus)
		return true
	})
	if allRegistrants(r.kind) && r.empty() || r.kind != 0 && !allRegistrants(r.kind) && slices.Contains(gone, r.holder) {
		r.release()
	}
	return gone
}

// unregister removes those that match and returns who must be told: with the
// holder its reservation goes, on which the access of others hung (SPC-5 §5.14).
func (r *registrations) unregister(match func(registration) bool) []notice {
	kind := r.kind
	r.remove(match)
	if registrantsOnly(kind) && r.kind == 0 {
		return r.tell(nexusID{}, gotgt.ASC_RESERVATIONS_RELEASED)
	}
	return nil
}

func (r *registrations) release() { r.kind, r.holder = 0, nexusID{} }
