package scsi

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// SPC-5 §6.7.2.
func TestStandardInquiry(t *testing.T) {
	u := newUnit(t)
	a := u.wantGood(u.do(inquiryCDB(0xff, 260), nil, 260))
	d := a.data
	if len(d) != 5+int(d[4]) {
		t.Fatalf("%d bytes, ADDITIONAL LENGTH says %d", len(d), 5+int(d[4]))
	}
	if d[0] != 0 || d[1] != 0 || d[2] != 6 || d[3]&0x0f != 2 || d[5] != 0 || d[7] != 2 {
		t.Fatalf("header % x", d[:8])
	}
	if got := string(d[8:36]); got != "RECON   DISK            1   " {
		t.Fatalf("identification %q", got)
	}
	for i, want := range []uint16{0x0460, 0x04c0, 0x00a0, 0x0960} {
		if got := binary.BigEndian.Uint16(d[58+2*i:]); got != want {
			t.Errorf("version descriptor %d is %04x, want %04x", i, got, want)
		}
	}
	u.wantIllegal(u.do([]byte{opInquiry, 0, 1, 0, 36, 0}, nil, 36), gotgt.ASC_INVALID_FIELD_IN_CDB)
}

// SPC-5 §4.2.5.6: data are truncated to the allocation length, lengths in them
// are not.
func TestAllocationLength(t *testing.T) {
	u := newUnit(t)
	full := u.wantGood(u.do(inquiryCDB(0xff, 260), nil, 260)).data
	for _, n := range []int{0, 1, 5, 35, 36, 57, len(full), 255} {
		a := u.wantGood(u.do(inquiryCDB(0xff, uint16(n)), nil, 1000))
		if want := min(n, len(full)); a.N != want || a.Want != want || !bytes.Equal(a.data, full[:want]) {
			t.Fatalf("allocation length %d: N %d, Want %d", n, a.N, a.Want)
		}
		a = u.wantGood(u.do(inquiryCDB(0xff, 260), nil, n))
		if want := min(n, len(full)); a.N != want || a.Want != len(full) {
			t.Fatalf("room for %d: N %d, Want %d", n, a.N, a.Want)
		}
	}
}

// SPC-5 §7.7.
func TestVitalProductData(t *testing.T) {
	u := newUnit(t)
	page := func(code byte) []byte {
		t.Helper()
		d := u.wantGood(u.do(inquiryCDB(code, 0xffff), nil, 4096)).data
		if d[0] != 0 || d[1] != code || int(binary.BigEndian.Uint16(d[2:])) != len(d)-4 {
			t.Fatalf("page %02x: header % x of %d bytes", code, d[:4], len(d))
		}
		return d[4:]
	}
	supported := page(vpdSupported)
	if !bytes.Equal(supported, []byte{0, 0x80, 0x83, 0x87, 0xb0, 0xb1, 0xb2}) {
		t.Fatalf("supported pages % x", supported)
	}
	for _, code := range supported {
		page(code)
	}
	if got := string(page(vpdSerial)); got != "0123456789abcdef0123" {
		t.Errorf("serial %q", got)
	}
	ids := string(page(vpdIdentification))
	for _, want := range []string{
		"RECON   0123456789abcdef0123", "\x30\x12\x34\x56\x78\x9a\xbc\xde", "\x10\x00\x01\x02\x03",
		"iqn.2026-11.local.reconciler:disk,t,0x0001\x00",
	} {
		if !strings.Contains(ids, want) {
			t.Errorf("no designator %q in %q", want, ids)
		}
	}
	b0 := page(vpdBlockLimits)
	if b0[1] != 255 || binary.BigEndian.Uint32(b0[4:]) != MaxTransfer/512 ||
		binary.BigEndian.Uint32(b0[16:]) != maxUnmapBlocks || binary.BigEndian.Uint32(b0[20:]) != maxUnmapDescriptors ||
		binary.BigEndian.Uint64(b0[32:]) != maxWriteSame/512 {
		t.Errorf("block limits % x", b0)
	}
	if b1 := page(vpdCharacteristics); binary.BigEndian.Uint16(b1) != 1 || len(b1) != 60 {
		t.Errorf("characteristics % x", b1)
	}
	if b2 := page(vpdProvisioning); b2[1] != 0xe4 || b2[2] != 2 {
		t.Errorf("provisioning % x", b2)
	}
	u.wantIllegal(u.do(inquiryCDB(0xb7, 255), nil, 255), gotgt.ASC_INVALID_FIELD_IN_CDB)
}

// SBC-4: READ CAPACITY.
func TestReadCapacity(t *testing.T) {
	u := newUnit(t)
	a := u.wantGood(u.do(block10(opReadCapacity10, 0, 0, 0), nil, 8))
	if got := binary.BigEndian.Uint64(a.data); got != (testSize/512-1)<<32|512 {
		t.Errorf("READ CAPACITY(10): % x", a.data)
	}
	u.wantIllegal(u.do(block10(opReadCapacity10, 0, 1, 0), nil, 8), gotgt.ASC_INVALID_FIELD_IN_CDB)
	cdb := block16(opServiceActionIn16, saReadCapacity16, 0, 32)
	a = u.wantGood(u.do(cdb, nil, 64))
	d := a.data
	if len(d) != 32 || binary.BigEndian.Uint64(d) != testSize/512-1 || binary.BigEndian.Uint32(d[8:]) != 512 {
		t.Fatalf("READ CAPACITY(16): % x", d)
	}
	if d[12] != 0 || d[13] != 3 || d[14] != 0xc0 || d[15] != 0 {
		t.Errorf("P_TYPE %x LBPPBE %x, LBPME, LBPRZ %x; want 4 KiB physical blocks and thin zeros", d[12], d[13], d[14])
	}
	for _, n := range []uint32{0, 8, 12, 15, 20} {
		if a := u.wantGood(u.do(block16(opServiceActionIn16, saReadCapacity16, 0, n), nil, 64)); a.N != int(n) {
			t.Errorf("allocation length %d: %d bytes", n, a.N)
		}
	}
	u.wantIllegal(u.do(block16(opServiceActionIn16, 0x1f, 0, 32), nil, 32), gotgt.ASC_INVALID_FIELD_IN_CDB)
}

func TestBlocksOf4K(t *testing.T) {
	u := newUnit(t, func(c *Config) { c.BlockSize = 4096 })
	a := u.wantGood(u.do(block10(opReadCapacity10, 0, 0, 0), nil, 8))
	if got := binary.BigEndian.Uint64(a.data); got != (testSize/4096-1)<<32|4096 {
		t.Errorf("READ CAPACITY(10): % x", a.data)
	}
	u.wantGood(u.do(block10(opWrite10, 0, 3, 1), pattern('x', 8), 0))
	if !bytes.Equal(u.file(3*4096, 4096), pattern('x', 8)) {
		t.Error("block 3 is not at byte 12288")
	}
}

// SPC-5 §6.32, and other logical units than 0 (SAM-5 §5.11).
func TestLogicalUnits(t *testing.T) {
	u := newUnit(t)
	cdb := block12(opReportLUNs, 0, 0, 0)
	binary.BigEndian.PutUint32(cdb[6:], 256)
	a := u.wantGood(u.do(cdb, nil, 256))
	if !bytes.Equal(a.data, []byte{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("REPORT LUNS: % x", a.data)
	}
	cdb[2] = 1
	if a = u.wantGood(u.do(cdb, nil, 256)); len(a.data) != 8 {
		t.Errorf("well-known units: % x", a.data)
	}
	cdb[2] = 9
	u.wantIllegal(u.do(cdb, nil, 256), gotgt.ASC_INVALID_FIELD_IN_CDB)
	cdb[2], cdb[9] = 0, 15
	cdb[8] = 0
	u.wantIllegal(u.do(cdb, nil, 256), gotgt.ASC_INVALID_FIELD_IN_CDB)

	at1 := func(cdb []byte, room int) answer {
		in := make([]byte, room)
		r := u.Execute(t.Context(), &Command{Nexus: u.n, LUN: 1, CDB: cdb, In: in})
		return answer{r, in[:r.N]}
	}
	u.wantIllegal(at1(cdb6(opTestUnitReady), 0), gotgt.ASC_LUN_NOT_SUPPORTED)
	u.wantIllegal(at1(block10(opRead10, 0, 0, 1), 512), gotgt.ASC_LUN_NOT_SUPPORTED)
	u.wantIllegal(at1([]byte{0xff, 0, 0, 0, 0, 0}, 0), gotgt.ASC_LUN_NOT_SUPPORTED)
	if a := u.wantGood(at1(inquiryCDB(0xff, 36), 36)); a.data[0] != 0x7f {
		t.Errorf("INQUIRY of LUN 1: % x", a.data)
	}
	if a := u.wantGood(at1([]byte{opRequestSense, 0, 0, 0, 18, 0}, 18)); a.data[12] != 0x25 {
		t.Errorf("REQUEST SENSE of LUN 1: % x", a.data)
	}
}

// SPC-5 §6.34, §6.35.
func TestReportSupported(t *testing.T) {
	u := newUnit(t)
	report := func(options, opcode byte, action uint16) answer {
		cdb := block12(opMaintenanceIn, saReportOpcodes, 0, 4096)
		cdb[2], cdb[3] = options, opcode
		binary.BigEndian.PutUint16(cdb[4:], action)
		return u.do(cdb, nil, 4096)
	}
	for _, timeouts := range []byte{0, timeoutsPresent} {
		all := u.wantGood(report(timeouts, 0, 0)).data
		if int(binary.BigEndian.Uint32(all)) != len(all)-4 {
			t.Fatalf("length %d of %d bytes", binary.BigEndian.Uint32(all), len(all))
		}
		size := 8
		if timeouts != 0 {
			size = 20
		}
		if len(all) != 4+size*len(operations) {
			t.Fatalf("%d bytes for %d operations", len(all), len(operations))
		}
		for d := all[4:]; len(d) > 0; d = d[size:] {
			opcode, action, flags, length := d[0], binary.BigEndian.Uint16(d[2:]), d[5], binary.BigEndian.Uint16(d[6:])
			option, other := byte(reportOpcode), byte(reportService)
			if flags&1 != 0 {
				option, other = other, option
			}
			one := u.wantGood(report(timeouts|option, opcode, action)).data
			if one[1]&7 != 3 || binary.BigEndian.Uint16(one[2:]) != length || one[4] != opcode {
				t.Errorf("opcode %02x/%x: % x", opcode, action, one)
			}
			u.wantIllegal(report(timeouts|other, opcode, action), gotgt.ASC_INVALID_FIELD_IN_CDB)
			if either := u.wantGood(report(timeouts|reportEither, opcode, action)).data; !bytes.Equal(either, one) {
				t.Errorf("opcode %02x/%x: option 3 differs", opcode, action)
			}
		}
	}
	for _, c := range []struct {
		option, opcode byte
		action         uint16
	}{{reportOpcode, 0x04, 0}, {reportService, opServiceActionIn16, 0x1f}, {reportEither, 0xc1, 0}, {reportService, opServiceActionIn16, 0x110}} {
		if one := u.wantGood(report(c.option, c.opcode, c.action)).data; one[1]&7 != 1 {
			t.Errorf("%+v is reported as supported: % x", c, one)
		}
	}
	u.wantIllegal(report(7, 0, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)

	cdb := block12(opMaintenanceIn, saReportTaskMgmt, 0, 64)
	if a := u.wantGood(u.do(cdb, nil, 64)); len(a.data) != 4 || a.data[0] != 0xdc || a.data[1] != 0x03 {
		t.Errorf("task management functions % x", a.data)
	}
	cdb[2] = 0x80
	if a := u.wantGood(u.do(cdb, nil, 64)); len(a.data) != 16 || a.data[3] != 12 {
		t.Errorf("extended task management functions % x", a.data)
	}
}

// Every operation's function runs and says what its entry promises of it.
func TestOperationTable(t *testing.T) {
	seen := map[[2]byte]bool{}
	for i := range operations {
		op := &operations[i]
		k := [2]byte{op.usage[0], op.action}
		if seen[k] {
			t.Errorf("%02x/%02x is there twice", k[0], k[1])
		}
		seen[k] = true
		if want := []int{6, 10, 10, 0, 16, 12}[op.usage[0]>>5]; len(op.usage) != want {
			t.Errorf("%02x: CDB of %d bytes, its group has %d", k[0], len(op.usage), want)
		}
		cdb := make([]byte, len(op.usage))
		cdb[0], cdb[1] = k[0], k[1]
		if got := lookup(cdb); got != op {
			t.Errorf("%02x/%02x is not found", k[0], k[1])
		}
	}
	u := newUnit(t)
	for i := range operations { // SAM-5 §5.2: NACA
		op := &operations[i]
		cdb := make([]byte, 16)
		cdb[0], cdb[1], cdb[len(op.usage)-1] = op.usage[0], op.action, 0x04
		u.wantIllegal(u.do(cdb, nil, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	}
	u.wantIllegal(u.do([]byte{0xee, 0, 0, 0, 0, 0}, nil, 0), gotgt.ASC_INVALID_OP_CODE)
	u.wantIllegal(u.do([]byte{opRead16, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, 0), gotgt.ASC_INVALID_OP_CODE)
	u.wantIllegal(u.do([]byte{opRead10, 0}, nil, 0), gotgt.ASC_INVALID_OP_CODE)
	u.wantIllegal(u.do(nil, nil, 0), gotgt.ASC_INVALID_OP_CODE)
}

func TestReadDefectData(t *testing.T) {
	u := newUnit(t)
	if a := u.wantGood(u.do([]byte{opReadDefectData10, 0, 0x18, 0, 0, 0, 0, 0, 32, 0}, nil, 32)); !bytes.Equal(a.data, []byte{0, 0x18, 0, 0}) {
		t.Errorf("% x", a.data)
	}
	if a := u.wantGood(u.do([]byte{opReadDefectData12, 0x08, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, nil, 32)); !bytes.Equal(a.data, []byte{0, 8, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("% x", a.data)
	}
}
