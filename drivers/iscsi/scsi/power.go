package scsi

import (
	"context"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// testUnitReady is TEST UNIT READY, SPC-5.
func (d *Device) testUnitReady(_ context.Context, c *Command) outcome {
	_, f := d.gotgt.ask(d.Size(), c.CDB, nil)
	return fail(f)
}

// requestSense is REQUEST SENSE, SPC-5: a pending unit attention is
// returned as parameter data and is then no longer pending.
func (d *Device) requestSense(_ context.Context, c *Command) outcome {
	var f fault
	if ua, ok := c.Nexus.take(); ok {
		f = check(gotgt.UNIT_ATTENTION, additionalSense(ua))
	} else if d.ejected.Load() {
		f = check(gotgt.NOT_READY, gotgt.ASC_MEDIUM_NOT_PRESENT)
	}
	if c.CDB[1]&1 != 0 { // DESC
		return reply(c, f.descriptorSense(), int(c.CDB[4]))
	}
	return reply(c, f.fixedSense(), int(c.CDB[4]))
}

// sendDiagnostic is SEND DIAGNOSTIC, SPC-5: the default self-test, which
// gotgt passes, and no diagnostic page.
func (d *Device) sendDiagnostic(_ context.Context, c *Command) outcome {
	if c.CDB[1]&0x04 == 0 { // SELFTEST
		return fail(invalidCDB(1))
	}
	if allocation16(c.CDB, 3) != 0 {
		return fail(invalidCDB(3))
	}
	_, f := d.gotgt.ask(d.Size(), c.CDB, nil)
	return fail(f)
}

// START STOP UNIT, byte 4 (SBC-4 §5.31).
const (
	powerCondition = 0xf0
	noFlush        = 0x04
	loadEject      = 0x02
	startUnit      = 0x01
)

// startStopUnit is START STOP UNIT. There is no motor: a stopped unit stays
// ready, power conditions change nothing. What stops or ejects is flushed first.
func (d *Device) startStopUnit(_ context.Context, c *Command) outcome {
	flags := c.CDB[4]
	if flags&powerCondition != 0 {
		return outcome{}
	}
	if flags&loadEject != 0 && !d.cfg.Removable {
		return fail(invalidCDB(4))
	}
	if flags&(noFlush|startUnit) == 0 && !d.cfg.ReadOnly {
		if f := d.synchronize(); f.failed() {
			return fail(f)
		}
	}
	if flags&loadEject == 0 {
		return outcome{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.nexuses {
		if n.prevent {
			return fail(illegal(gotgt.ASC_MEDIUM_REMOVAL_PREVENTED))
		}
	}
	eject := flags&startUnit == 0
	if d.ejected.Swap(eject) && !eject {
		d.raiseOthers(c.Nexus, gotgt.ASC_NOT_READY_TO_TRANSITION)
	}
	return outcome{}
}

// prevents tells PREVENT from ALLOW MEDIUM REMOVAL.
func prevents(cdb []byte) bool { return cdb[4]&1 != 0 }

// preventAllow is PREVENT ALLOW MEDIUM REMOVAL, SBC-4. It holds per nexus
// until that nexus allows it, is lost or the unit is reset.
func (d *Device) preventAllow(_ context.Context, c *Command) outcome {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.Nexus.prevent = prevents(c.CDB)
	return outcome{}
}
