package scsi

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// Vital product data pages (SPC-5 §7.7, SBC-4 §6.6).
const (
	vpdSupported       = 0x00
	vpdSerial          = 0x80
	vpdIdentification  = 0x83
	vpdModePagePolicy  = 0x87
	vpdBlockLimits     = 0xb0
	vpdCharacteristics = 0xb1
	vpdProvisioning    = 0xb2
)

func (d *Device) vitalProductData(code byte, n *Nexus) ([]byte, bool) {
	var body []byte
	switch code {
	case vpdSupported:
		body = []byte{vpdSupported, vpdSerial, vpdIdentification, vpdModePagePolicy, vpdBlockLimits, vpdCharacteristics, vpdProvisioning}
	case vpdSerial:
		body = []byte(d.cfg.Serial)
	case vpdIdentification:
		body = d.designators(n)
	case vpdModePagePolicy:
		body = modePagePolicy()
	case vpdBlockLimits:
		body = d.blockLimits()
	case vpdCharacteristics:
		body = make([]byte, 60)
		body[1] = 1 // MEDIUM ROTATION RATE: not a rotating medium
	case vpdProvisioning:
		body = d.provisioning()
	default:
		return nil, false
	}
	page := make([]byte, 4, 4+len(body))
	page[1] = code
	binary.BigEndian.PutUint16(page[2:], uint16(len(body)))
	return append(page, body...), true
}

// modePagePolicy is the Mode Page Policy page, SPC-5 §7.7.11: a page with
// parameters that can change is each nexus's own, the others are the same for all.
func modePagePolicy() []byte {
	const shared, perNexus = 0, 3
	var b []byte
	for _, p := range modePages(nil) {
		policy := byte(shared)
		if slices.ContainsFunc(p.changeable, func(bits byte) bool { return bits != 0 }) {
			policy = perNexus
		}
		b = append(b, p.code, 0, policy, 0)
	}
	return b
}

// blockLimits is SBC-4 §6.6.4. What it promises is what Execute checks.
func (d *Device) blockLimits() []byte {
	b := make([]byte, 60)
	granularity := uint32(d.physical >> d.shift)
	b[1] = maxCompareAndWrite
	binary.BigEndian.PutUint16(b[2:], uint16(granularity))  // OPTIMAL TRANSFER LENGTH GRANULARITY
	binary.BigEndian.PutUint32(b[4:], MaxTransfer>>d.shift) // MAXIMUM TRANSFER LENGTH
	binary.BigEndian.PutUint32(b[8:], chunk>>d.shift)       // OPTIMAL TRANSFER LENGTH
	if d.thin {
		binary.BigEndian.PutUint32(b[16:], maxUnmapBlocks)
		binary.BigEndian.PutUint32(b[20:], maxUnmapDescriptors)
		binary.BigEndian.PutUint32(b[24:], granularity) // OPTIMAL UNMAP GRANULARITY
		b[28] = 0x80                                    // UGAVALID, alignment 0
	}
	binary.BigEndian.PutUint64(b[32:], maxWriteSame>>d.shift)
	return b
}

// provisioning is the Logical Block Provisioning page, SBC-4 §6.6.7.
func (d *Device) provisioning() []byte {
	b := make([]byte, 4)
	if d.thin {
		b[1] = 0x80 | 0x40 | 0x20 | 0x04 // LBPU, LBPWS, LBPWS10, LBPRZ 001b
		b[2] = 2                         // PROVISIONING TYPE: thin
	}
	return b
}

// designators is the body of the Device Identification page, SPC-5 §7.7: the
// unit by vendor and serial, by a locally assigned NAA made of the serial's
// leading hex digits, and by its UUID; the port; the device.
func (d *Device) designators(n *Nexus) []byte {
	var b []byte
	add := func(codeSet, association, kind byte, id []byte) {
		proto := byte(0)
		if association != gotgt.ASS_LU {
			proto = gotgt.PIV_ISCSI << 4
			association |= 0x08 // PIV
		}
		b = append(b, proto|codeSet, association<<4|kind, 0, byte(len(id)))
		b = append(b, id...)
	}
	add(gotgt.INQ_CODE_ASCII, gotgt.ASS_LU, gotgt.DESG_T10, fmt.Appendf(nil, "%-8s%s", d.cfg.Vendor, d.cfg.Serial))
	if len(d.cfg.Serial) >= 15 {
		if naa, err := hex.DecodeString(fmt.Sprintf("%x%s", gotgt.NAA_LOCAL, d.cfg.Serial[:15])); err == nil {
			add(gotgt.INQ_CODE_BIN, gotgt.ASS_LU, gotgt.DESG_NAA, naa)
		}
	}
	if d.cfg.UID != [16]byte{} {
		add(gotgt.INQ_CODE_BIN, gotgt.ASS_LU, desigUUID, append([]byte{0x10, 0}, d.cfg.UID[:]...))
	}
	if d.cfg.TargetName != "" {
		add(gotgt.INQ_CODE_BIN, gotgt.ASS_TGT_PORT, gotgt.DESG_REL_TGT_PORT, binary.BigEndian.AppendUint32(nil, uint32(n.tpg)))
		add(gotgt.INQ_CODE_UTF8, gotgt.ASS_TGT_PORT, gotgt.DESG_SCSI, nameString(fmt.Sprintf("%s,t,0x%04x", d.cfg.TargetName, n.tpg)))
		add(gotgt.INQ_CODE_UTF8, gotgt.ASS_TGT_DEV, gotgt.DESG_SCSI, nameString(d.cfg.TargetName))
	}
	return b
}

// desigUUID is the UUID designator type (SPC-5 §7.7).
const desigUUID = 0x0a

// nameString is a SCSI name string: null-terminated and padded to a multiple of
// four bytes (SPC-5 §7.7, RFC 7143 §4.2.7.1).
func nameString(s string) []byte {
	b := append([]byte(s), 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
