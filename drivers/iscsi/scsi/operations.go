package scsi

import "context"

// access says which reservations of another nexus a command conflicts with
// (SPC-5 §5.14, SBC-4 table 13).
type access uint8

const (
	accessAlways      access = iota // never conflicts, reports no unit attention
	accessFree                      // conflicts with no persistent reservation
	accessRead                      // conflicts with Exclusive Access kinds
	accessWrite                     // conflicts with Write Exclusive kinds as well
	accessReservation               // RESERVE, RELEASE, PERSISTENT RESERVE: see guard
)

// dataKind says what data a command moves and where its CDB has the length.
type dataKind uint8

const (
	dataNone dataKind = iota
	dataIn
	dataInBlocks
	dataOutBlocks
	dataOutVerify
	dataOutAll
	dataOutList6
	dataOutList16
	dataOutList32
)

// operation is a command this logical unit supports.
type operation struct {
	run    func(*Device, context.Context, *Command) outcome
	access access
	data   dataKind
	medium bool // needs a medium: NOT READY when it is ejected
	writes bool // DATA PROTECT when write-protected
	unmaps bool // there only where space can be given back
	legacy bool // passes another nexus's RESERVE (SPC-2 §5.5.1)
	// usage is the CDB usage data of REPORT SUPPORTED OPERATION CODES (SPC-5
	// §6.34.3): its length is the CDB's, its first byte the operation code.
	usage []byte
	// action is the service action where sa is set.
	action byte
	sa     bool
}

// allocation is the allocation length, by where CDBs of each length have it.
func (op *operation) allocation(cdb []byte) int {
	switch {
	case op.sa && cdb[0] == opServiceActionIn16:
		return allocation32(cdb, 10)
	case cdb[0] == opReadCapacity10:
		return 8 // its CDB has none
	case cdb[0] == opInquiry:
		return allocation16(cdb, 3)
	case len(op.usage) == 6:
		return int(cdb[4])
	case len(op.usage) == 10:
		return allocation16(cdb, 7)
	}
	return allocation32(cdb, 6)
}

const ff = 0xff

// operations is constant: it is filled when the package is initialised (it
// refers to methods that read it) and never written again.
var operations []operation

// byOpcode finds an operation code's entries, operations[from:to].
var byOpcode [256]struct{ from, to uint8 }

func init() {
	operations = []operation{
		{run: (*Device).testUnitReady, access: accessFree, medium: true, usage: []byte{opTestUnitReady, 0, 0, 0, 0, 0}},
		{run: (*Device).requestSense, access: accessAlways, legacy: true, data: dataIn, usage: []byte{opRequestSense, 1, 0, 0, ff, 0}},
		{run: (*Device).read, access: accessRead, medium: true, data: dataInBlocks, usage: []byte{opRead6, 0x1f, ff, ff, ff, 0}},
		{run: (*Device).write, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: []byte{opWrite6, 0x1f, ff, ff, ff, 0}},
		{run: (*Device).inquiry, access: accessAlways, legacy: true, data: dataIn, usage: []byte{opInquiry, 1, ff, ff, ff, 0}},
		{run: (*Device).modeSelect, access: accessWrite, data: dataOutList6, usage: []byte{opModeSelect6, 0x11, 0, 0, ff, 0}},
		{run: (*Device).reserve, access: accessReservation, usage: []byte{opReserve6, 0, 0, 0, 0, 0}},
		{run: (*Device).release, access: accessReservation, legacy: true, usage: []byte{opRelease6, 0, 0, 0, 0, 0}},
		{run: (*Device).modeSense, access: accessRead, data: dataIn, usage: []byte{opModeSense6, 0x08, ff, ff, ff, 0}},
		{run: (*Device).startStopUnit, access: accessWrite, usage: []byte{opStartStopUnit, 1, 0, 0x0f, 0xf7, 0}},
		{run: (*Device).sendDiagnostic, access: accessWrite, usage: []byte{opSendDiagnostic, 0x04, 0, 0, 0, 0}},
		{run: (*Device).preventAllow, access: accessFree, legacy: true, usage: []byte{opPreventAllow, 0, 0, 0, 0x03, 0}},
		{run: (*Device).readCapacity10, access: accessFree, legacy: true, medium: true, data: dataIn, usage: []byte{opReadCapacity10, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{run: (*Device).read, access: accessRead, medium: true, data: dataInBlocks, usage: []byte{opRead10, 0xf8, ff, ff, ff, ff, groupNumberBits, ff, ff, 0}},
		{run: (*Device).write, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: []byte{opWrite10, 0xf8, ff, ff, ff, ff, groupNumberBits, ff, ff, 0}},
		{run: (*Device).writeVerify, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: []byte{opWriteVerify10, 0xf6, ff, ff, ff, ff, groupNumberBits, ff, ff, 0}},
		{run: (*Device).verify, access: accessRead, medium: true, data: dataOutVerify, usage: []byte{opVerify10, 0xf6, ff, ff, ff, ff, groupNumberBits, ff, ff, 0}},
		{run: (*Device).prefetch, access: accessRead, medium: true, usage: []byte{opPrefetch10, 0x02, ff, ff, ff, ff, groupNumberBits, ff, ff, 0}},
		{run: (*Device).syncCache, access: accessWrite, medium: true, usage: []byte{opSyncCache10, 0x06, ff, ff, ff, ff, groupNumberBits, ff, ff, 0}},
		{run: (*Device).readDefectData, access: accessFree, medium: true, data: dataIn, usage: []byte{opReadDefectData10, 0, 0x1f, 0, 0, 0, 0, ff, ff, 0}},
		{run: (*Device).writeSame, access: accessWrite, medium: true, writes: true, data: dataOutAll, usage: []byte{opWriteSame10, 0xf8, ff, ff, ff, ff, groupNumberBits, ff, ff, 0}},
		{run: (*Device).unmap, access: accessWrite, medium: true, writes: true, unmaps: true, data: dataOutList16, usage: []byte{opUnmap, 0x01, 0, 0, 0, 0, groupNumberBits, ff, ff, 0}},
		{run: (*Device).modeSelect, access: accessWrite, data: dataOutList16, usage: []byte{opModeSelect10, 0x11, 0, 0, 0, 0, 0, ff, ff, 0}},
		{run: (*Device).reserve, access: accessReservation, usage: []byte{opReserve10, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{run: (*Device).release, access: accessReservation, legacy: true, usage: []byte{opRelease10, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{run: (*Device).modeSense, access: accessRead, data: dataIn, usage: []byte{opModeSense10, 0x18, ff, ff, 0, 0, 0, ff, ff, 0}},

		{run: (*Device).readKeys, access: accessReservation, data: dataIn, sa: true, action: prInReadKeys, usage: []byte{opPersistentReserveIn, 0x1f, 0, 0, 0, 0, 0, ff, ff, 0}},
		{run: (*Device).readReservation, access: accessReservation, data: dataIn, sa: true, action: prInReadReservation, usage: []byte{opPersistentReserveIn, 0x1f, 0, 0, 0, 0, 0, ff, ff, 0}},
		{run: (*Device).reportCapabilities, access: accessReservation, data: dataIn, sa: true, action: prInReportCapabilities, usage: []byte{opPersistentReserveIn, 0x1f, 0, 0, 0, 0, 0, ff, ff, 0}},
		{run: (*Device).readFullStatus, access: accessReservation, data: dataIn, sa: true, action: prInReadFullStatus, usage: []byte{opPersistentReserveIn, 0x1f, 0, 0, 0, 0, 0, ff, ff, 0}},
		{run: (*Device).persistentReserveOut, access: accessReservation, data: dataOutList32, sa: true, action: prOutRegister, usage: []byte{opPersistentReserveOut, 0x1f, 0, 0, 0, ff, ff, ff, ff, 0}},
		{run: (*Device).persistentReserveOut, access: accessReservation, data: dataOutList32, sa: true, action: prOutReserve, usage: []byte{opPersistentReserveOut, 0x1f, ff, 0, 0, ff, ff, ff, ff, 0}},
		{run: (*Device).persistentReserveOut, access: accessReservation, data: dataOutList32, sa: true, action: prOutRelease, usage: []byte{opPersistentReserveOut, 0x1f, ff, 0, 0, ff, ff, ff, ff, 0}},
		{run: (*Device).persistentReserveOut, access: accessReservation, data: dataOutList32, sa: true, action: prOutClear, usage: []byte{opPersistentReserveOut, 0x1f, 0, 0, 0, ff, ff, ff, ff, 0}},
		{run: (*Device).persistentReserveOut, access: accessReservation, data: dataOutList32, sa: true, action: prOutPreempt, usage: []byte{opPersistentReserveOut, 0x1f, ff, 0, 0, ff, ff, ff, ff, 0}},
		{run: (*Device).persistentReserveOut, access: accessReservation, data: dataOutList32, sa: true, action: prOutPreemptAbort, usage: []byte{opPersistentReserveOut, 0x1f, ff, 0, 0, ff, ff, ff, ff, 0}},
		{run: (*Device).persistentReserveOut, access: accessReservation, data: dataOutList32, sa: true, action: prOutRegisterIgnore, usage: []byte{opPersistentReserveOut, 0x1f, 0, 0, 0, ff, ff, ff, ff, 0}},

		{run: (*Device).read, access: accessRead, medium: true, data: dataInBlocks, usage: cdb16(opRead16, 0xf8)},
		{run: (*Device).compareAndWrite, access: accessWrite, medium: true, writes: true, data: dataOutAll, usage: []byte{opCompareAndWrite, 0xf8, ff, ff, ff, ff, ff, ff, ff, ff, 0, 0, 0, ff, groupNumberBits, 0}},
		{run: (*Device).write, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: cdb16(opWrite16, 0xf8)},
		{run: (*Device).orWrite, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: cdb16(opOrWrite16, 0xf8)},
		{run: (*Device).writeVerify, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: cdb16(opWriteVerify16, 0xf6)},
		{run: (*Device).verify, access: accessRead, medium: true, data: dataOutVerify, usage: cdb16(opVerify16, 0xf6)},
		{run: (*Device).prefetch, access: accessRead, medium: true, usage: cdb16(opPrefetch16, 0x02)},
		{run: (*Device).syncCache, access: accessWrite, medium: true, usage: cdb16(opSyncCache16, 0x06)},
		{run: (*Device).writeSame, access: accessWrite, medium: true, writes: true, data: dataOutAll, usage: cdb16(opWriteSame16, 0xf9)},
		{run: (*Device).readCapacity16, access: accessFree, legacy: true, medium: true, data: dataIn, sa: true, action: saReadCapacity16, usage: []byte{opServiceActionIn16, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, ff, ff, ff, ff, 0, 0}},
		{run: (*Device).getLBAStatus, access: accessRead, medium: true, data: dataIn, sa: true, action: saGetLBAStatus, usage: []byte{opServiceActionIn16, 0x1f, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, 0, 0}},

		{run: (*Device).reportLUNs, access: accessAlways, legacy: true, data: dataIn, usage: []byte{opReportLUNs, 0, ff, 0, 0, 0, ff, ff, ff, ff, 0, 0}},
		{run: (*Device).reportOpcodes, access: accessFree, data: dataIn, sa: true, action: saReportOpcodes, usage: []byte{opMaintenanceIn, 0x1f, 0x87, ff, ff, ff, ff, ff, ff, ff, 0, 0}},
		{run: (*Device).reportTaskMgmt, access: accessFree, data: dataIn, sa: true, action: saReportTaskMgmt, usage: []byte{opMaintenanceIn, 0x1f, 0x80, 0, 0, 0, ff, ff, ff, ff, 0, 0}},
		{run: (*Device).read, access: accessRead, medium: true, data: dataInBlocks, usage: cdb12(opRead12, 0xf8)},
		{run: (*Device).write, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: cdb12(opWrite12, 0xf8)},
		{run: (*Device).writeVerify, access: accessWrite, medium: true, writes: true, data: dataOutBlocks, usage: cdb12(opWriteVerify12, 0xf6)},
		{run: (*Device).verify, access: accessRead, medium: true, data: dataOutVerify, usage: cdb12(opVerify12, 0xf6)},
		{run: (*Device).readDefectData, access: accessFree, medium: true, data: dataIn, usage: []byte{opReadDefectData12, 0x1f, 0, 0, 0, 0, ff, ff, ff, ff, 0, 0}},
	}
	for i, op := range operations {
		e := &byOpcode[op.usage[0]]
		if e.to == 0 {
			e.from = uint8(i)
		}
		e.to = uint8(i + 1)
	}
}

func cdb16(op, flags byte) []byte {
	return []byte{op, flags, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, groupNumberBits, 0}
}

func cdb12(op, flags byte) []byte {
	return []byte{op, flags, ff, ff, ff, ff, ff, ff, ff, ff, groupNumberBits, 0}
}

// lookup finds the operation that a CDB asks for; nil when there is none.
func lookup(cdb []byte) *operation {
	if len(cdb) < 6 {
		return nil
	}
	e := byOpcode[cdb[0]]
	for i := e.from; i < e.to; i++ {
		op := &operations[i]
		if !op.sa || op.action == cdb[1]&serviceActionBits {
			return op
		}
	}
	return nil
}

func hasServiceActions(opcode byte) bool {
	e := byOpcode[opcode]
	return e.to > e.from && operations[e.from].sa
}
