// Package pdu is the wire format of iSCSI (RFC 7143 §11): basic header
// segments, additional header segments, digests and the text of login and text
// requests. It does no I/O and keeps no state.
package pdu

import "encoding/binary"

// HeaderLen is the length of a basic header segment in bytes (RFC 7143 §11.2.1).
const HeaderLen = 48

// DigestLen is the length of a CRC32C header or data digest (RFC 7143 §11.2.3).
const DigestLen = 4

// Reserved is the task or transfer tag that stands for "none" (RFC 7143 §11.2.1.8).
const Reserved uint32 = 0xffffffff

// Opcodes (RFC 7143 §11.2.1.2).
const (
	OpNOPOut        byte = 0x00
	OpSCSICommand   byte = 0x01
	OpTaskRequest   byte = 0x02
	OpLoginRequest  byte = 0x03
	OpTextRequest   byte = 0x04
	OpDataOut       byte = 0x05
	OpLogoutRequest byte = 0x06
	OpSNACK         byte = 0x10

	OpNOPIn          byte = 0x20
	OpSCSIResponse   byte = 0x21
	OpTaskResponse   byte = 0x22
	OpLoginResponse  byte = 0x23
	OpTextResponse   byte = 0x24
	OpDataIn         byte = 0x25
	OpLogoutResponse byte = 0x26
	OpR2T            byte = 0x31
	OpAsync          byte = 0x32
	OpReject         byte = 0x3f

	// Immediate is the I bit beside a request's opcode.
	Immediate byte = 0x40
	opMask    byte = 0x3f
)

// Bits of header byte 1.
const (
	Final byte = 0x80 // F, the last PDU of a sequence

	CommandRead  byte = 0x40 // SCSI Command (§11.3.1)
	CommandWrite byte = 0x20
	CommandAttr  byte = 0x07

	Transit  byte = 0x80 // Login (§11.12.2)
	Continue byte = 0x40 // Login and Text: the text goes on in the next PDU

	DataInStatus byte = 0x01 // Data-In (§11.7.2): the status is here too

	ResidualOverflow  byte = 0x04 // SCSI Response and Data-In (§11.4.1)
	ResidualUnderflow byte = 0x02
)

// Task attributes of a SCSI Command (RFC 7143 §11.3.1.1).
const (
	AttrUntagged    byte = 0
	AttrSimple      byte = 1
	AttrOrdered     byte = 2
	AttrHeadOfQueue byte = 3
	AttrACA         byte = 4
)

// Task management functions (RFC 7143 §11.5.1, RFC 7144 §5).
const (
	TaskAbort         byte = 1
	TaskAbortSet      byte = 2
	TaskClearACA      byte = 3
	TaskClearSet      byte = 4
	TaskLUReset       byte = 5
	TaskWarmReset     byte = 6
	TaskColdReset     byte = 7
	TaskReassign      byte = 8
	TaskQuery         byte = 9
	TaskQuerySet      byte = 10
	TaskNexusReset    byte = 11
	TaskQueryAsyncEvt byte = 12
)

// Task management responses (RFC 7143 §11.6.1, RFC 7144 §5.1).
const (
	TaskComplete        byte = 0
	TaskNotExist        byte = 1
	TaskLUNNotExist     byte = 2
	TaskStillAllegiant  byte = 3
	TaskNoReassign      byte = 4
	TaskNotSupported    byte = 5
	TaskNotAuthorized   byte = 6
	TaskFunctionSuccess byte = 7
	TaskRejected        byte = 255
)

// Reject reasons (RFC 7143 §11.17.1).
const (
	RejectDataDigest    byte = 0x02
	RejectSNACK         byte = 0x03
	RejectProtocol      byte = 0x04
	RejectNotSupported  byte = 0x05
	RejectImmediate     byte = 0x06
	RejectInProgress    byte = 0x07
	RejectInvalidField  byte = 0x09
	RejectWaitForLogout byte = 0x0c
)

// Asynchronous events (RFC 7143 §11.9.1).
const (
	AsyncSCSI           byte = 0
	AsyncLogout         byte = 1
	AsyncDropConnection byte = 2
	AsyncDropSession    byte = 3
)

// Login statuses, class and detail (RFC 7143 §11.13.5).
const (
	LoginSuccess        uint16 = 0x0000
	LoginInitiatorError uint16 = 0x0200
	LoginAuthFailed     uint16 = 0x0201
	LoginForbidden      uint16 = 0x0202
	LoginNotFound       uint16 = 0x0203
	LoginRemoved        uint16 = 0x0204
	LoginBadVersion     uint16 = 0x0205
	LoginTooManyConns   uint16 = 0x0206
	LoginMissingParam   uint16 = 0x0207
	LoginCannotInclude  uint16 = 0x0208
	LoginBadSessionType uint16 = 0x0209
	LoginNoSession      uint16 = 0x020a
	LoginInvalidRequest uint16 = 0x020b
	LoginTargetError    uint16 = 0x0300
	LoginUnavailable    uint16 = 0x0301
	LoginOutOfResources uint16 = 0x0302
	StageSecurity       byte   = 0
	StageOperational    byte   = 1
	StageFullFeature    byte   = 3
	MaxAHSLen                  = 255 * 4
	MaxDataSegmentLen          = 1<<24 - 1
	ahsExtendedCDB      byte   = 1
)

// Header is a basic header segment.
type Header [HeaderLen]byte

// Opcode returns the opcode without the immediate bit.
func (h *Header) Opcode() byte { return h[0] & opMask }

// IsImmediate reports the I bit of a request (RFC 7143 §11.2.1.1).
func (h *Header) IsImmediate() bool { return h[0]&Immediate != 0 }

// AHSLen is the length of the additional header segments in bytes.
func (h *Header) AHSLen() int { return int(h[4]) * 4 }

// DataLen is DataSegmentLength: bytes, without padding.
func (h *Header) DataLen() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLen sets DataSegmentLength.
func (h *Header) SetDataLen(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// LUN returns the eight bytes of the LUN field.
func (h *Header) LUN() uint64 { return binary.BigEndian.Uint64(h[8:]) }

// U32 and PutU32 reach the 32-bit field that begins at byte off.
func (h *Header) U32(off int) uint32       { return binary.BigEndian.Uint32(h[off:]) }
func (h *Header) PutU32(off int, v uint32) { binary.BigEndian.PutUint32(h[off:], v) }

// ITT is the initiator task tag.
func (h *Header) ITT() uint32 { return h.U32(16) }

// Fields by their place in the PDUs that have them.
const (
	OffITT        = 16
	OffTTT        = 20
	OffEDTL       = 20 // SCSI Command
	OffRefTag     = 20 // Task Management Request
	OffCmdSN      = 24 // requests
	OffStatSN     = 24 // responses
	OffExpStatSN  = 28 // requests
	OffExpCmdSN   = 28 // responses
	OffMaxCmdSN   = 32
	OffRefCmdSN   = 32 // Task Management Request
	OffDataSN     = 36 // Data-In, Data-Out, R2T
	OffBufOffset  = 40
	OffResidual   = 44
	OffR2TLength  = 44
	OffCDB        = 32
	OffISID       = 8
	OffTSIH       = 14
	OffCID        = 20
	OffLoginState = 36
)

// FlatLUN decodes a single-level LUN in the peripheral or flat addressing method
// (SAM-5 §4.7); ok is false for all others.
func FlatLUN(lun uint64) (n uint64, ok bool) {
	first, rest := lun>>48, lun<<16
	switch {
	case rest != 0:
		return 0, false
	case first>>14 == 0: // peripheral device addressing: bus 0 only
		return first & 0xff, first>>8 == 0
	case first>>14 == 1: // flat space addressing
		return first & 0x3fff, true
	}
	return 0, false
}

// Pad is how many bytes follow a segment of n bytes to its four-byte boundary.
func Pad(n int) int { return -n & 3 }

// ExtendedCDB returns the bytes that follow the first sixteen of a CDB, and
// whether the additional header segments are well formed and hold nothing else
// (RFC 7143 §11.2.2). A bidirectional read length is not well formed here: no
// bidirectional command is served.
func ExtendedCDB(ahs []byte) (rest []byte, ok bool) {
	for len(ahs) > 0 {
		if len(ahs) < 4 {
			return nil, false
		}
		n := int(binary.BigEndian.Uint16(ahs)) // AHSLength counts from byte 3
		total := 3 + n
		if n < 1 || total > len(ahs) {
			return nil, false
		}
		if ahs[2] != ahsExtendedCDB || rest != nil {
			return nil, false
		}
		rest = ahs[4:total]
		total += Pad(total)
		if total > len(ahs) {
			return nil, false
		}
		ahs = ahs[total:]
	}
	return rest, true
}
