package scsi

import (
	"encoding/binary"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// additionalSense is an additional sense code and its qualifier (SPC-5 annex F).
type additionalSense = gotgt.SCSISubError

// Additional sense codes that gotgt does not name.
const (
	ascIncompleteInitiatorData  additionalSense = 0x0e03 // INVALID FIELD IN COMMAND INFORMATION UNIT
	ascRegistrationsPreempted   additionalSense = 0x2a05
	ascCapacityChanged          additionalSense = 0x2a09
	ascSpaceAllocationFailed    additionalSense = 0x2707 // SPACE ALLOCATION FAILED WRITE PROTECT
	ascSoftwareWriteProtected   additionalSense = 0x2702 // LOGICAL UNIT SOFTWARE WRITE PROTECTED
	ascInvalidFieldInParameters additionalSense = 0x2600
)

// fault is why a command did not end with GOOD: a status and, with CHECK
// CONDITION, what the sense data say. The zero fault is GOOD.
type fault struct {
	status byte
	key    byte
	asc    additionalSense
	// info is the INFORMATION field (SPC-5 §4.4), for MISCOMPARE the offset of
	// the first byte that differs (SBC-4 §5.3) and for medium errors the LBA.
	info    uint64
	hasInfo bool
	// field points at the CDB or parameter byte at fault (SPC-5 §4.4).
	field    uint16
	inCDB    bool
	hasField bool
}

var good fault

func (f fault) failed() bool { return f.status != StatusGood }

func check(key byte, asc additionalSense) fault {
	return fault{status: StatusCheckCondition, key: key, asc: asc}
}

func conflict() fault { return fault{status: StatusReservationConflict} }

// invalidCDB names byte i of the CDB as the one in error.
func invalidCDB(i int) fault {
	f := check(gotgt.ILLEGAL_REQUEST, gotgt.ASC_INVALID_FIELD_IN_CDB)
	f.field, f.inCDB, f.hasField = uint16(i), true, true
	return f
}

// invalidParameter names byte i of the parameter list as the one in error.
func invalidParameter(i int) fault {
	f := check(gotgt.ILLEGAL_REQUEST, ascInvalidFieldInParameters)
	f.field, f.hasField = uint16(i), true
	return f
}

func illegal(asc additionalSense) fault { return check(gotgt.ILLEGAL_REQUEST, asc) }

func (f fault) withInfo(v uint64) fault {
	f.info, f.hasInfo = v, true
	return f
}

// fixedSense encodes f in fixed format (SPC-5 §4.4). An INFORMATION value
// above 32 bits does not fit there and is left out, as the section asks.
func (f fault) fixedSense() []byte {
	s := make([]byte, 18)
	s[0] = 0x70
	s[2] = f.key
	s[7] = 10
	binary.BigEndian.PutUint16(s[12:], uint16(f.asc))
	if f.hasInfo && f.info <= 0xffffffff {
		s[0] |= 0x80
		binary.BigEndian.PutUint32(s[3:], uint32(f.info))
	}
	if f.hasField {
		s[15] = f.sksv()
		binary.BigEndian.PutUint16(s[16:], f.field)
	}
	return s
}

// descriptorSense encodes f in descriptor format (SPC-5 §4.4).
func (f fault) descriptorSense() []byte {
	s := make([]byte, 8, 28)
	s[0] = 0x72
	s[1] = f.key
	binary.BigEndian.PutUint16(s[2:], uint16(f.asc))
	if f.hasInfo {
		d := make([]byte, 12)
		d[1], d[2] = 0x0a, 0x80
		binary.BigEndian.PutUint64(d[4:], f.info)
		s = append(s, d...)
	}
	if f.hasField {
		d := make([]byte, 8)
		d[0], d[1], d[4] = 0x02, 0x06, f.sksv()
		binary.BigEndian.PutUint16(d[5:], f.field)
		s = append(s, d...)
	}
	s[7] = byte(len(s) - 8)
	return s
}

// sksv is the first byte of the field pointer: SKSV and C/D.
func (f fault) sksv() byte {
	if f.inCDB {
		return 0xc0
	}
	return 0x80
}
