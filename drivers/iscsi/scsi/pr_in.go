package scsi

import (
	"context"
	"encoding/binary"
	"encoding/hex"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// PERSISTENT RESERVE IN service actions (SPC-5 §6.16).
const (
	prInReadKeys           = 0x00
	prInReadReservation    = 0x01
	prInReportCapabilities = 0x02
	prInReadFullStatus     = 0x03
)

func (d *Device) registered() *registrations {
	if g := d.guard.Load(); g != nil {
		return g.pr
	}
	return &registrations{}
}

// prHeader is PRGENERATION and ADDITIONAL LENGTH, the latter for all of body.
func prHeader(r *registrations, body []byte) []byte {
	data := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(body)), r.generation)
	data = binary.BigEndian.AppendUint32(data, uint32(len(body)))
	return append(data, body...)
}

// readKeys is READ KEYS, SPC-5 §6.16.2.
func (d *Device) readKeys(_ context.Context, c *Command) outcome {
	r := d.registered()
	var keys []byte
	for _, reg := range r.all {
		keys = binary.BigEndian.AppendUint64(keys, reg.Key)
	}
	return reply(c, prHeader(r, keys), allocation16(c.CDB, 7))
}

// readReservation is READ RESERVATION, SPC-5 §6.16.3. A reservation held by all
// registrants has no key.
func (d *Device) readReservation(_ context.Context, c *Command) outcome {
	r := d.registered()
	var body []byte
	if r.kind != 0 {
		body = make([]byte, 16)
		if !allRegistrants(r.kind) {
			binary.BigEndian.PutUint64(body, r.key(r.holder))
		}
		body[13] = r.kind // scope 0: the logical unit
	}
	return reply(c, prHeader(r, body), allocation16(c.CDB, 7))
}

// reportCapabilities is REPORT CAPABILITIES, SPC-5 §6.16.4.
func (d *Device) reportCapabilities(_ context.Context, c *Command) outcome {
	data := make([]byte, 8)
	binary.BigEndian.PutUint16(data, 8)
	if d.cfg.ReservationFile != "" {
		data[2] |= 0x01 // PTPL_C
	}
	data[3] = 0x80 // TMV
	if d.registered().aptpl {
		data[3] |= 0x01 // PTPL_A
	}
	for _, kind := range []byte{
		gotgt.PR_TYPE_WRITE_EXCLUSIVE, gotgt.PR_TYPE_EXCLUSIVE_ACCESS,
		gotgt.PR_TYPE_WRITE_EXCLUSIVE_REGONLY, gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY,
		gotgt.PR_TYPE_WRITE_EXCLUSIVE_ALLREG, gotgt.PR_TYPE_EXCLUSIVE_ACCESS_ALLREG,
	} {
		// Bit n of the type mask, in the order of the bytes, is type n.
		data[4+kind/8] |= 1 << (kind % 8)
	}
	return reply(c, data, allocation16(c.CDB, 7))
}

// readFullStatus is READ FULL STATUS, SPC-5 §6.16.5.
func (d *Device) readFullStatus(_ context.Context, c *Command) outcome {
	r := d.registered()
	var body []byte
	for _, reg := range r.all {
		id := transportID(reg.Nexus)
		desc := make([]byte, 24)
		binary.BigEndian.PutUint64(desc, reg.Key)
		if r.holds(reg.Nexus) {
			desc[12] = 0x01 // R_HOLDER
			desc[13] = r.kind
		}
		binary.BigEndian.PutUint16(desc[18:], reg.Nexus.Group) // RELATIVE TARGET PORT IDENTIFIER
		binary.BigEndian.PutUint32(desc[20:], uint32(len(id)))
		body = append(append(body, desc...), id...)
	}
	return reply(c, prHeader(r, body), allocation16(c.CDB, 7))
}

// transportID is the iSCSI initiator port TransportID, SPC-5 §7.6.
func transportID(id nexusID) []byte {
	name := nameString(id.Initiator + ",i,0x" + hex.EncodeToString(id.ISID[:]))
	b := []byte{0x40 | gotgt.PIV_ISCSI, 0, byte(len(name) >> 8), byte(len(name))}
	return append(b, name...)
}
