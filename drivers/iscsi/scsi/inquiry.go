package scsi

import (
	"context"
	"encoding/binary"
)

// inquiry is INQUIRY, SPC-5 §6.7. Standard data come from gotgt; vital product
// data pages are in vpd.go.
func (d *Device) inquiry(_ context.Context, c *Command) outcome {
	allocation := allocation16(c.CDB, 3)
	if c.CDB[1]&1 != 0 {
		page, ok := d.vitalProductData(c.CDB[2], c.Nexus)
		if !ok {
			return fail(invalidCDB(2))
		}
		return reply(c, page, allocation)
	}
	if c.CDB[2] != 0 {
		return fail(invalidCDB(2))
	}
	data, f := d.gotgt.ask(d.Size(), withAllocation(c.CDB, 3, 2), nil)
	if f.failed() {
		return fail(f)
	}
	data = data[:5+int(data[4])]
	if d.cfg.Removable {
		data[1] |= 0x80
	}
	data[2] = 6    // SPC-4, as the version descriptors say
	data[3] = 2    // response format; no HISUP, there is but one unit
	data[5] = 0    // TPGS: gotgt's global switch claims implicit ALUA, which is not here
	data[7] = 0x02 // CMDQUE
	return reply(c, data, allocation)
}

// reportLUNs is REPORT LUNS, SPC-5 §6.32: there is LUN 0, and no well-known
// logical unit.
func (d *Device) reportLUNs(_ context.Context, c *Command) outcome {
	allocation := allocation32(c.CDB, 6)
	if allocation < 16 {
		return fail(invalidCDB(6))
	}
	switch c.CDB[2] {
	case 0, 2:
	case 1: // well-known logical units only
		return reply(c, make([]byte, 8), allocation)
	default:
		return fail(invalidCDB(2))
	}
	data, f := d.gotgt.ask(d.Size(), withAllocation(c.CDB, 6, 4), nil)
	if f.failed() {
		return fail(f)
	}
	return reply(c, data[:8+binary.BigEndian.Uint32(data)], allocation)
}

// readCapacity10 is READ CAPACITY(10), SBC-4. An LBA makes sense with the
// PMI bit only, which is obsolete together with it.
func (d *Device) readCapacity10(_ context.Context, c *Command) outcome {
	if c.CDB[8]&1 == 0 && binary.BigEndian.Uint32(c.CDB[2:]) != 0 {
		return fail(invalidCDB(2))
	}
	data, f := d.gotgt.ask(d.Size(), c.CDB, nil)
	if f.failed() {
		return fail(f)
	}
	return reply(c, data[:8], 8)
}

// readCapacity16 is READ CAPACITY(16), SBC-4.
func (d *Device) readCapacity16(_ context.Context, c *Command) outcome {
	data, f := d.gotgt.ask(d.Size(), withAllocation(c.CDB, 10, 4), nil)
	if f.failed() {
		return fail(f)
	}
	if d.thin {
		data[14] |= 0x40 // LBPRZ, which gotgt has no switch for
	}
	return reply(c, data[:32], allocation32(c.CDB, 10))
}

// readDefectData is READ DEFECT DATA(10) and (12), SBC-4: a file
// has no defect list, so the lists are empty and both are declared valid.
func (d *Device) readDefectData(_ context.Context, c *Command) outcome {
	if c.CDB[0] == opReadDefectData10 {
		return reply(c, []byte{0, c.CDB[2] & 0x1f, 0, 0}, allocation16(c.CDB, 7))
	}
	return reply(c, []byte{0, c.CDB[1] & 0x1f, 0, 0, 0, 0, 0, 0}, allocation32(c.CDB, 6))
}
