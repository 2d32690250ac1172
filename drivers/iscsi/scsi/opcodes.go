package scsi

import (
	"context"
	"encoding/binary"
)

// Reporting options of REPORT SUPPORTED OPERATION CODES (SPC-5 §6.34).
const (
	reportAll       = 0
	reportOpcode    = 1
	reportService   = 2
	reportEither    = 3
	timeoutsPresent = 0x80 // RCTD
	timeoutsLength  = 0x0a
)

// reportOpcodes is REPORT SUPPORTED OPERATION CODES, SPC-5 §6.34.
func (d *Device) reportOpcodes(_ context.Context, c *Command) outcome {
	timeouts := c.CDB[2]&timeoutsPresent != 0
	allocation := allocation32(c.CDB, 6)
	if c.CDB[2]&7 == reportAll {
		return reply(c, d.allOpcodes(timeouts), allocation)
	}
	opcode, action := c.CDB[3], binary.BigEndian.Uint16(c.CDB[4:])
	withActions := hasServiceActions(opcode)
	switch c.CDB[2] & 7 {
	case reportOpcode:
		if withActions {
			return fail(invalidCDB(2))
		}
		action = 0
	case reportService:
		if !withActions && lookup([]byte{opcode, 0, 0, 0, 0, 0}) != nil {
			return fail(invalidCDB(2))
		}
	case reportEither:
		if !withActions && action != 0 {
			return reply(c, oneOpcode(nil, timeouts), allocation)
		}
	default:
		return fail(invalidCDB(2))
	}
	var op *operation
	if action <= serviceActionBits {
		op = lookup([]byte{opcode, byte(action), 0, 0, 0, 0})
	}
	if op != nil && op.unmaps && !d.thin {
		op = nil
	}
	return reply(c, oneOpcode(op, timeouts), allocation)
}

// allOpcodes is the all_commands parameter data, SPC-5 §6.34.
func (d *Device) allOpcodes(timeouts bool) []byte {
	data := make([]byte, 4, 4+20*len(operations))
	for i := range operations {
		op := &operations[i]
		if op.unmaps && !d.thin {
			continue
		}
		desc := make([]byte, 8)
		desc[0] = op.usage[0]
		if op.sa {
			desc[3] = op.action
			desc[5] = 0x01 // SERVACTV
		}
		desc[7] = byte(len(op.usage))
		if timeouts {
			desc[5] |= 0x02 // CTDP
			desc = append(desc, noTimeouts()...)
		}
		data = append(data, desc...)
	}
	binary.BigEndian.PutUint32(data, uint32(len(data)-4))
	return data
}

// oneOpcode is the one_command parameter data, SPC-5 §6.34; op is nil for a
// command that is not supported.
func oneOpcode(op *operation, timeouts bool) []byte {
	if op == nil {
		return []byte{0, 1, 0, 0}
	}
	data := []byte{0, 3, 0, byte(len(op.usage))}
	data = append(data, op.usage...)
	if op.sa {
		data[5] = data[5]&^serviceActionBits | op.action
	}
	if timeouts {
		data[1] |= 0x80
		data = append(data, noTimeouts()...)
	}
	return data
}

// noTimeouts is a command timeouts descriptor that states no time (SPC-5 §6.34).
func noTimeouts() []byte { return append([]byte{0, timeoutsLength}, make([]byte, timeoutsLength)...) }

// reportTaskMgmt is REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, SPC-5 §6.35:
// what RFC 7143 §11.5.1 has and the transport carries out.
func (d *Device) reportTaskMgmt(_ context.Context, c *Command) outcome {
	const (
		abortTask, abortTaskSet, clearTaskSet, logicalUnitReset, queryTask = 0x80, 0x40, 0x10, 0x08, 0x04
		queryTaskSet, nexusReset                                           = 0x02, 0x01
	)
	data := []byte{abortTask | abortTaskSet | clearTaskSet | logicalUnitReset | queryTask, queryTaskSet | nexusReset, 0, 0}
	if c.CDB[2]&0x80 != 0 { // REPD
		data = append(data, make([]byte, 12)...)
		data[3] = 12
	}
	return reply(c, data, allocation32(c.CDB, 6))
}
