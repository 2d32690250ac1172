package scsi

import (
	"context"
	"encoding/binary"
	"slices"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// PERSISTENT RESERVE OUT service actions (SPC-5 §6.17).
const (
	prOutRegister       = 0x00
	prOutReserve        = 0x01
	prOutRelease        = 0x02
	prOutClear          = 0x03
	prOutPreempt        = 0x04
	prOutPreemptAbort   = 0x05
	prOutRegisterIgnore = 0x06
)

// prOutLength is the length of the basic parameter list.
const prOutLength = 24

// prRequest is a decoded PERSISTENT RESERVE OUT.
type prRequest struct {
	action byte
	kind   byte
	key    uint64 // RESERVATION KEY
	newKey uint64 // SERVICE ACTION RESERVATION KEY
	aptpl  bool
	from   nexusID
	owner  uint64
}

// notice is a unit attention that a change of the reservations raises.
type notice struct {
	to  nexusID
	asc additionalSense
}

// persistentReserveOut is PERSISTENT RESERVE OUT, SPC-5 §6.17.
func (d *Device) persistentReserveOut(_ context.Context, c *Command) outcome {
	o := outcome{want: d.OutLen(c.CDB)}
	q, f := d.decodeReserveOut(c)
	if f.failed() {
		o.fault = f
		return o
	}
	var preempted []*Nexus
	preempted, o.fault = d.applyReserveOut(c.Nexus, q)
	if q.action == prOutPreemptAbort {
		// Commands of a preempted nexus that are under way are stopped or waited
		// for: when this one answers, no write of it can come any more (SPC-5
		// §5.14.11.2.6).
		// Not under mu, which they may need to end.
		for _, n := range preempted {
			n.abort()
		}
	}
	return o
}

func (d *Device) decodeReserveOut(c *Command) (prRequest, fault) {
	q := prRequest{action: c.CDB[1] & serviceActionBits, kind: c.CDB[2] & 0x0f, from: c.Nexus.id(), owner: c.Nexus.Owner}
	switch q.action {
	case prOutReserve, prOutRelease, prOutPreempt, prOutPreemptAbort:
		if c.CDB[2]>>4 != gotgt.PR_LU_SCOPE || !validKind(q.kind) {
			return q, invalidCDB(2)
		}
	}
	// SPEC_I_PT would make the list longer, and is not offered.
	if allocation32(c.CDB, 5) != prOutLength || len(c.Out) < prOutLength {
		return q, illegal(gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
	}
	q.key = binary.BigEndian.Uint64(c.Out)
	q.newKey = binary.BigEndian.Uint64(c.Out[8:])
	const specIPT, allTGPT, aptpl = 0x08, 0x04, 0x01
	if q.action == prOutRegister || q.action == prOutRegisterIgnore {
		q.aptpl = c.Out[20]&aptpl != 0
		if c.Out[20]&(specIPT|allTGPT) != 0 || q.aptpl && d.cfg.ReservationFile == "" {
			return q, invalidParameter(20)
		}
	}
	return q, good
}

// applyReserveOut carries a request out: it makes the new state durable where it
// has to be, puts it in force and raises the unit attentions. It returns the
// sessions whose registration was taken from them.
func (d *Device) applyReserveOut(n *Nexus, q prRequest) ([]*Nexus, fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.reservations()
	if g.holder != nil {
		return nil, conflict()
	}
	next := g.pr.clone()
	notices, f := next.apply(q)
	if f.failed() {
		return nil, f
	}
	if err := d.saveReservations(g.pr, next); err != nil {
		return nil, illegal(gotgt.ASC_INSUFFICIENT_REGISTRATION_RESOURCES)
	}
	g.pr = next
	d.setGuard(g)
	return d.notify(n, notices), good
}

// notify raises the unit attentions of a change that n made, and returns the
// sessions whose registration was taken from them. It is called with mu held.
func (d *Device) notify(n *Nexus, notices []notice) (preempted []*Nexus) {
	for _, w := range notices {
		for o := range d.nexuses {
			if o == n || o.id() != w.to {
				continue
			}
			o.raise(unitAttention(w.asc))
			if w.asc == ascRegistrationsPreempted {
				preempted = append(preempted, o)
			}
		}
	}
	return preempted
}

// apply changes r as the request says and returns who must be told.
func (r *registrations) apply(q prRequest) ([]notice, fault) {
	if q.action == prOutRegister || q.action == prOutRegisterIgnore {
		return r.register(q)
	}
	// All others are for registered nexuses that know their key (SPC-5 §5.14).
	if k := r.key(q.from); k == 0 || k != q.key {
		return nil, conflict()
	}
	switch q.action {
	case prOutReserve:
		return nil, r.reserve(q)
	case prOutRelease:
		return r.releaseBy(q)
	case prOutClear:
		notices := r.tell(q.from, gotgt.ASC_RESERVATIONS_PREEMPTED)
		r.all = nil
		r.release()
		r.generation++
		return notices, good
	}
	return r.preempt(q)
}

// register is REGISTER and REGISTER AND IGNORE EXISTING KEY, SPC-5 §5.14.
func (r *registrations) register(q prRequest) ([]notice, fault) {
	if q.action == prOutRegister && q.key != r.key(q.from) {
		return nil, conflict()
	}
	r.generation++
	r.aptpl = q.aptpl
	if q.newKey != 0 {
		if !r.set(q.from, q.newKey, q.owner) {
			return nil, illegal(gotgt.ASC_INSUFFICIENT_REGISTRATION_RESOURCES)
		}
		return nil, good
	}
	return r.unregister(func(reg registration) bool { return reg.Nexus == q.from }), good
}

// reserve is RESERVE, SPC-5 §5.14.
func (r *registrations) reserve(q prRequest) fault {
	if r.kind == 0 {
		r.kind, r.holder = q.kind, q.from
		return good
	}
	if !r.holds(q.from) || r.kind != q.kind {
		return conflict()
	}
	return good
}

// releaseBy is RELEASE, SPC-5 §5.14.
func (r *registrations) releaseBy(q prRequest) ([]notice, fault) {
	if !r.holds(q.from) {
		return nil, good
	}
	if r.kind != q.kind {
		return nil, illegal(gotgt.ASC_INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
	}
	r.release()
	if registrantsOnly(q.kind) || allRegistrants(q.kind) {
		return r.tell(q.from, gotgt.ASC_RESERVATIONS_RELEASED), good
	}
	return nil, good
}

// preempt is PREEMPT and PREEMPT AND ABORT, SPC-5 §5.14.
func (r *registrations) preempt(q prRequest) ([]notice, fault) {
	victims := func(reg registration) bool { return reg.Key == q.newKey }
	takeOver := false
	switch {
	case r.kind == 0:
		if q.newKey == 0 {
			return nil, invalidParameter(8)
		}
	case allRegistrants(r.kind):
		if q.newKey == 0 {
			takeOver = true
			victims = func(reg registration) bool { return reg.Nexus != q.from }
		}
	case q.newKey == r.key(r.holder):
		takeOver = true
		victims = func(reg registration) bool { return reg.Key == q.newKey && reg.Nexus != q.from }
	case q.newKey == 0:
		return nil, invalidParameter(8)
	}
	if !takeOver && !slices.ContainsFunc(r.all, victims) {
		return nil, conflict()
	}
	old := r.kind
	var notices []notice
	for _, id := range r.remove(victims) {
		notices = append(notices, notice{id, ascRegistrationsPreempted})
	}
	if takeOver {
		r.kind, r.holder = q.kind, q.from
		if old != q.kind {
			notices = append(notices, r.tell(q.from, gotgt.ASC_RESERVATIONS_RELEASED)...)
		}
	}
	r.generation++
	return notices, good
}

// tell addresses every registered nexus but one.
func (r *registrations) tell(but nexusID, asc additionalSense) []notice {
	var n []notice
	for _, reg := range r.all {
		if reg.Nexus != but {
			n = append(n, notice{reg.Nexus, asc})
		}
	}
	return n
}
