package scsi

import (
	"context"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// guard is what the data path asks before it lets a command in: an immutable
// snapshot of the reservations. There is none while nothing is reserved.
type guard struct {
	// holder of a RESERVE(6) or (10), or nil (SPC-2 §5.5.1).
	holder *Nexus
	pr     *registrations
}

// setGuard publishes the reservations. It is called with mu held.
func (d *Device) setGuard(g guard) {
	if g.holder == nil && g.pr.empty() {
		// The generation outlives the registrations it counted.
		if g.pr.generation == 0 {
			d.guard.Store(nil)
			return
		}
	}
	d.guard.Store(&g)
}

// reservations returns the present ones. It is called with mu held.
func (d *Device) reservations() guard {
	if g := d.guard.Load(); g != nil {
		return *g
	}
	return guard{pr: &registrations{}}
}

// conflicts says whether a command from n ends with RESERVATION CONFLICT
// (SPC-5 §5.14, SBC-4 table 13; SPC-2 §5.5.1 for RESERVE).
func (g *guard) conflicts(n *Nexus, op *operation, cdb []byte) bool {
	opcode := cdb[0]
	if opcode == opPersistentReserveIn || opcode == opPersistentReserveOut {
		return g.holder != nil
	}
	// PREVENT of the medium's removal conflicts, allowing it does not.
	prevents := opcode == opPreventAllow && prevents(cdb)
	if g.holder != nil && g.holder != n && (!op.legacy || prevents) {
		return true
	}
	if g.pr.empty() {
		return false
	}
	if op.access == accessReservation { // RESERVE and RELEASE: SPC-3 §5.6.3
		return true
	}
	if g.pr.kind == 0 || g.pr.admits(n) {
		return false
	}
	switch {
	case prevents:
		return true
	case opcode == opStartStopUnit:
		return cdb[4] != startUnit // a mere START is allowed
	case op.access == accessRead:
		return exclusiveAccess(g.pr.kind)
	}
	return op.access == accessWrite
}

// exclusiveAccess tells the kinds that keep readers out from those that only
// keep writers out.
func exclusiveAccess(kind byte) bool {
	switch kind {
	case gotgt.PR_TYPE_EXCLUSIVE_ACCESS, gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY, gotgt.PR_TYPE_EXCLUSIVE_ACCESS_ALLREG:
		return true
	}
	return false
}

// reserve is RESERVE(6) and (10), SPC-2 §7.21 and §7.22, of the whole unit for
// the nexus itself: extents and third parties are obsolete.
func (d *Device) reserve(_ context.Context, c *Command) outcome {
	if f := wholeUnit(c.CDB); f.failed() {
		return fail(f)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.reservations()
	if g.holder != nil && g.holder != c.Nexus || !g.pr.empty() {
		return fail(conflict())
	}
	if _, attached := d.nexuses[c.Nexus]; !attached {
		// Its session is being torn down: nothing would release this again.
		return fail(fault{status: StatusTaskAborted})
	}
	g.holder = c.Nexus
	d.setGuard(g)
	return outcome{}
}

// release is RELEASE(6) and (10), SPC-2 §7.16 and §7.17: of what another nexus
// holds it is no error and does nothing.
func (d *Device) release(_ context.Context, c *Command) outcome {
	if f := wholeUnit(c.CDB); f.failed() {
		return fail(f)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.releaseLegacy(c.Nexus)
	return outcome{}
}

func wholeUnit(cdb []byte) fault {
	if cdb[1]&0x1f != 0 { // third party, extent
		return invalidCDB(1)
	}
	return good
}

// releaseLegacy ends the RESERVE of n, of anyone when n is nil. It is called
// with mu held.
func (d *Device) releaseLegacy(n *Nexus) {
	g := d.reservations()
	if g.holder == nil || n != nil && g.holder != n {
		return
	}
	g.holder = nil
	d.setGuard(g)
}
