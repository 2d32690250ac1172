package scsi

import "encoding/binary"

// Operation codes (SPC-5 table F.2), and service actions where an operation
// code has them.
const (
	opTestUnitReady        = 0x00
	opRequestSense         = 0x03
	opRead6                = 0x08
	opWrite6               = 0x0a
	opInquiry              = 0x12
	opModeSelect6          = 0x15
	opReserve6             = 0x16
	opRelease6             = 0x17
	opModeSense6           = 0x1a
	opStartStopUnit        = 0x1b
	opSendDiagnostic       = 0x1d
	opPreventAllow         = 0x1e
	opReadCapacity10       = 0x25
	opRead10               = 0x28
	opWrite10              = 0x2a
	opWriteVerify10        = 0x2e
	opVerify10             = 0x2f
	opPrefetch10           = 0x34
	opSyncCache10          = 0x35
	opReadDefectData10     = 0x37
	opWriteSame10          = 0x41
	opUnmap                = 0x42
	opModeSelect10         = 0x55
	opReserve10            = 0x56
	opRelease10            = 0x57
	opModeSense10          = 0x5a
	opPersistentReserveIn  = 0x5e
	opPersistentReserveOut = 0x5f
	opRead16               = 0x88
	opCompareAndWrite      = 0x89
	opWrite16              = 0x8a
	opOrWrite16            = 0x8b
	opWriteVerify16        = 0x8e
	opVerify16             = 0x8f
	opPrefetch16           = 0x90
	opSyncCache16          = 0x91
	opWriteSame16          = 0x93
	opServiceActionIn16    = 0x9e
	opReportLUNs           = 0xa0
	opMaintenanceIn        = 0xa3
	opRead12               = 0xa8
	opWrite12              = 0xaa
	opWriteVerify12        = 0xae
	opVerify12             = 0xaf
	opReadDefectData12     = 0xb7

	saReadCapacity16   = 0x10
	saGetLBAStatus     = 0x12
	saReportOpcodes    = 0x0c
	saReportTaskMgmt   = 0x0d
	serviceActionBits  = 0x1f
	dpoBit, fuaBit     = 0x10, 0x08
	protectBits        = 0xe0 // RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT
	groupNumberBits    = 0x1f
	allocationUnlimted = 1 << 30
)

// extent decodes LBA and number of blocks of a CDB of the block command set
// by the length of its kind (SBC-4 §5).
func extent(cdb []byte) (lba, blocks uint64) {
	switch cdb[0] >> 5 {
	case 0:
		lba, blocks = uint64(binary.BigEndian.Uint32(cdb)&0x1fffff), uint64(cdb[4])
		if blocks == 0 {
			blocks = 256 // SBC-4: in READ(6) and WRITE(6) only
		}
	case 1, 2:
		lba, blocks = uint64(binary.BigEndian.Uint32(cdb[2:])), uint64(binary.BigEndian.Uint16(cdb[7:]))
	case 5:
		lba, blocks = uint64(binary.BigEndian.Uint32(cdb[2:])), uint64(binary.BigEndian.Uint32(cdb[6:]))
	default:
		lba, blocks = binary.BigEndian.Uint64(cdb[2:]), uint64(binary.BigEndian.Uint32(cdb[10:]))
	}
	return lba, blocks
}

// lengthField is the first byte of the number of blocks in such a CDB, which may
// be padded.
func lengthField(cdb []byte) int {
	switch cdb[0] >> 5 {
	case 0:
		return 4
	case 1, 2:
		return 7
	case 5:
		return 6
	}
	return 10
}

func allocation16(cdb []byte, i int) int { return int(binary.BigEndian.Uint16(cdb[i:])) }

func allocation32(cdb []byte, i int) int { return int(binary.BigEndian.Uint32(cdb[i:])) }

// OutLen returns how many bytes of data-out a CDB asks for, at most
// MaxTransfer; -1 where Execute wants all that the initiator announced, so that
// it can refuse what is too much.
func (d *Device) OutLen(cdb []byte) int {
	op := lookup(cdb)
	if op == nil || len(cdb) < len(op.usage) {
		return 0
	}
	switch op.data {
	case dataOutBlocks:
		return d.transfer(cdb)
	case dataOutVerify:
		switch cdb[1] >> 1 & 3 {
		case 1:
			return d.transfer(cdb)
		case 3:
			return d.cfg.BlockSize
		}
	case dataOutAll:
		return -1
	case dataOutList6:
		return int(cdb[4])
	case dataOutList16:
		return allocation16(cdb, 7)
	case dataOutList32:
		return min(allocation32(cdb, 5), MaxTransfer)
	}
	return 0
}

// InLen returns how many bytes of data-in a CDB asks for, at most MaxTransfer:
// more room than that in Command.In is never used.
func (d *Device) InLen(cdb []byte) int {
	op := lookup(cdb)
	if op == nil || len(cdb) < len(op.usage) {
		return 0
	}
	switch op.data {
	case dataInBlocks:
		return d.transfer(cdb)
	case dataIn:
		return min(op.allocation(cdb), MaxTransfer)
	}
	return 0
}

func (d *Device) transfer(cdb []byte) int {
	_, blocks := extent(cdb)
	return int(min(blocks<<d.shift, MaxTransfer))
}
