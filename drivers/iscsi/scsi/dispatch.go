package scsi

import (
	"context"
	"runtime/debug"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// outcome is what a command's function returns: how it ended, the bytes put in
// Command.In and the bytes the CDB stands for.
type outcome struct {
	fault
	n, want int
}

// fail is the outcome of a command that moved nothing.
func fail(f fault) outcome { return outcome{fault: f} }

// Execute runs one command. See the package comment for what it promises.
func (d *Device) Execute(ctx context.Context, c *Command) (r Result) {
	d.stats.commands.Add(1)
	defer func() {
		// A defect here or in gotgt costs one command, not the process and the
		// disks of everyone else (SPC-5 §4.4: INTERNAL TARGET FAILURE).
		if v := recover(); v != nil {
			if d.cfg.OnPanic != nil {
				d.cfg.OnPanic(c.CDB, v, debug.Stack())
			}
			r = d.result(c.Nexus, fail(check(gotgt.HARDWARE_ERROR, gotgt.ASC_INTERNAL_TGT_FAILURE)))
		}
	}()
	return d.result(c.Nexus, d.dispatch(ctx, c))
}

func (d *Device) result(n *Nexus, o outcome) Result {
	r := Result{Status: o.status, N: o.n, Want: o.want}
	if o.status == StatusCheckCondition {
		d.stats.errors.Add(1)
		if n.mode.descSense.Load() {
			r.Sense = o.descriptorSense()
		} else {
			r.Sense = o.fixedSense()
		}
	}
	return r
}

func (d *Device) dispatch(ctx context.Context, c *Command) outcome {
	op := lookup(c.CDB)
	if c.LUN != 0 {
		return d.wrongLUN(c, op)
	}
	if op == nil || op.unmaps && !d.thin {
		return d.unsupported(c)
	}
	if len(c.CDB) < len(op.usage) {
		return fail(illegal(gotgt.ASC_INVALID_OP_CODE))
	}
	// NACA in the CONTROL byte, for which INQUIRY would have to offer NORMACA
	// (SAM-5 §5.2).
	if last := len(op.usage) - 1; c.CDB[last]&0x04 != 0 {
		return fail(invalidCDB(last))
	}
	if op.access == accessAlways {
		return op.run(d, ctx, c)
	}
	// Shared until the command has ended: whoever takes the gate, as PREEMPT AND
	// ABORT does, knows that none of this nexus is under way and that the next
	// will see the reservation as it is by then.
	if op.access != accessReservation {
		c.Nexus.gate.RLock()
		defer c.Nexus.gate.RUnlock()
	}
	// Before a reservation conflict, as initiators expect: SAM-5 §5.14.
	if ua, ok := c.Nexus.take(); ok {
		return fail(check(gotgt.UNIT_ATTENTION, additionalSense(ua)))
	}
	if g := d.guard.Load(); g != nil && g.conflicts(c.Nexus, op, c.CDB) {
		return fail(conflict())
	}
	if op.medium && d.ejected.Load() {
		return fail(check(gotgt.NOT_READY, gotgt.ASC_MEDIUM_NOT_PRESENT))
	}
	if op.writes && d.protected(c.Nexus) || c.Nexus.readOnly && disturbs(c.CDB) {
		return fail(d.writeProtected(c.Nexus))
	}
	if ctx.Err() != nil {
		return outcome{fault: fault{status: StatusTaskAborted}}
	}
	return op.run(d, ctx, c)
}

// unsupported tells an operation code that is unknown from a service action
// that is (SPC-5 §4.2.5.1: the latter is an invalid field).
func (d *Device) unsupported(c *Command) outcome {
	if len(c.CDB) > 1 && hasServiceActions(c.CDB[0]) {
		f := invalidCDB(1)
		return fail(f)
	}
	return fail(illegal(gotgt.ASC_INVALID_OP_CODE))
}

// wrongLUN answers for a logical unit that does not exist (SPC-5 §6.7.1,
// SAM-5 §5.11).
func (d *Device) wrongLUN(c *Command, op *operation) outcome {
	missing := illegal(gotgt.ASC_LUN_NOT_SUPPORTED)
	if op == nil || len(c.CDB) < len(op.usage) {
		return fail(missing)
	}
	switch c.CDB[0] {
	case opInquiry:
		data := make([]byte, 36)
		data[0] = 0x7f // no device here, and none can be
		data[2], data[3], data[4] = 6, 2, 31
		return reply(c, data, allocation16(c.CDB, 3))
	case opReportLUNs:
		return op.run(d, nil, c)
	case opRequestSense:
		return reply(c, missing.fixedSense(), int(c.CDB[4]))
	}
	return fail(missing)
}

// reply returns parameter data, truncated to the allocation length (SPC-5
// §4.2.5.6) and to the room the initiator has.
func reply(c *Command, data []byte, allocation int) outcome {
	want := min(len(data), allocation)
	return outcome{n: copy(c.In, data[:want]), want: want}
}

// protected says whether writes from n are refused.
func (d *Device) protected(n *Nexus) bool {
	return d.cfg.ReadOnly || n.readOnly || n.mode.swp.Load()
}

// disturbs says whether a command that writes nothing changes what other nexuses
// may do: whoever may only read must not keep a writer out. What a nexus sets for
// itself, as by MODE SELECT, is not among them.
func disturbs(cdb []byte) bool {
	switch cdb[0] {
	case opReserve6, opReserve10, opPersistentReserveOut:
		return true
	case opPreventAllow:
		return prevents(cdb)
	case opStartStopUnit:
		return cdb[4]&loadEject != 0
	}
	return false
}

func (d *Device) writeProtected(n *Nexus) fault {
	if !d.cfg.ReadOnly && !n.readOnly {
		return check(gotgt.DATA_PROTECT, ascSoftwareWriteProtected)
	}
	return check(gotgt.DATA_PROTECT, gotgt.ASC_WRITE_PROTECT)
}
