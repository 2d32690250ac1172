package scsi

import gotgt "github.com/gostor/gotgt/pkg/scsi"

// Reservation is what one initiator keeps in the unit against others.
type Reservation struct {
	Initiator string `json:"initiator"`
	Owner     uint64 `json:"owner,omitempty"` // of the nexus that made it
	Key       uint64 `json:"key,omitempty"`
	// Type is the kind of reservation that it holds; empty where it is only
	// registered.
	Type string `json:"type,omitempty"`
	// Kept says that it outlives a restart (APTPL).
	Kept bool `json:"kept,omitempty"`
}

// kinds names the types of a persistent reservation (SPC-5 §6.16.3).
var kinds = map[byte]string{
	gotgt.PR_TYPE_WRITE_EXCLUSIVE:          "WriteExclusive",
	gotgt.PR_TYPE_EXCLUSIVE_ACCESS:         "ExclusiveAccess",
	gotgt.PR_TYPE_WRITE_EXCLUSIVE_REGONLY:  "WriteExclusiveRegistrantsOnly",
	gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY: "ExclusiveAccessRegistrantsOnly",
	gotgt.PR_TYPE_WRITE_EXCLUSIVE_ALLREG:   "WriteExclusiveAllRegistrants",
	gotgt.PR_TYPE_EXCLUSIVE_ACCESS_ALLREG:  "ExclusiveAccessAllRegistrants",
}

// Reservations lists them in the order of their registration.
func (d *Device) Reservations() []Reservation {
	g := d.guard.Load()
	if g == nil {
		return nil
	}
	var list []Reservation
	if n := g.holder; n != nil {
		list = append(list, Reservation{Initiator: n.initiator, Owner: n.Owner, Type: "Reserve"})
	}
	for _, reg := range g.pr.all {
		r := Reservation{Initiator: reg.Nexus.Initiator, Owner: reg.Owner, Key: reg.Key, Kept: g.pr.aptpl}
		if g.pr.holds(reg.Nexus) {
			r.Type = kinds[g.pr.kind]
		}
		list = append(list, r)
	}
	return list
}

// Keep ends what those left behind who are not let in any more: the persistent
// registrations of each owner that keep says no to, and the reservation that one
// of them holds. Its owner is 0 where only the name is known. They have ended also
// when the error says that the file still has them: it is for whoever opens the
// unit to call Keep again.
func (d *Device) Keep(keep func(initiator string, owner uint64) bool) error {
	return d.endReservations(false, func(r registration) bool { return !keep(r.Nexus.Initiator, r.Owner) })
}

// ClearReservations ends every reservation and registration, as Keep does.
func (d *Device) ClearReservations() error {
	return d.endReservations(true, func(registration) bool { return true })
}

func (d *Device) endReservations(legacy bool, match func(registration) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.reservations()
	if legacy {
		g.holder = nil
	}
	next := g.pr.clone()
	var gone []notice
	notices := next.unregister(func(r registration) bool {
		if !match(r) {
			return false
		}
		gone = append(gone, notice{r.Nexus, gotgt.ASC_RESERVATIONS_PREEMPTED})
		return true
	})
	var err error
	if len(gone) > 0 {
		next.generation++
		next.aptpl = next.aptpl && !next.empty()
		err = d.saveReservations(g.pr, next)
		g.pr = next
	}
	d.setGuard(g)
	d.notify(nil, append(gone, notices...))
	return err
}
