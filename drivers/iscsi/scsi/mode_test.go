package scsi

import (
	"bytes"
	"encoding/binary"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

func modeSense6(page, control byte, dbd bool) []byte {
	c := []byte{opModeSense6, 0, control<<6 | page, 0, 255, 0}
	if dbd {
		c[1] = 8
	}
	return c
}

// controlPage is a MODE SELECT(6) list with the control page u reports now,
// changed by f.
func (u *unit) controlPage(f func(page []byte)) []byte {
	u.t.Helper()
	list := u.wantGood(u.do(modeSense6(pageControl, modeCurrent, true), nil, 255)).data
	list[0], list[2] = 0, 0
	f(list[4:])
	return list
}

func modeSelect6(list []byte) []byte {
	return []byte{opModeSelect6, 0x10, 0, 0, byte(len(list)), 0}
}

// SPC-5 §6.14, SBC-4 §6.5.
func TestModeSense(t *testing.T) {
	u := newUnit(t)
	d := u.wantGood(u.do(modeSense6(pageAll, modeCurrent, false), nil, 255)).data
	if int(d[0]) != len(d)-1 || d[2] != 0x10 || d[3] != 8 {
		t.Fatalf("header % x of %d bytes; want DPOFUA and a block descriptor", d[:4], len(d))
	}
	if binary.BigEndian.Uint32(d[4:]) != testSize/512 || binary.BigEndian.Uint32(d[8:]) != 512 {
		t.Errorf("block descriptor % x", d[4:12])
	}
	var codes []byte
	for p := d[12:]; len(p) > 0; p = p[2+p[1]:] {
		codes = append(codes, p[0])
		if p[0] == pageCaching && p[2]&0x05 != 0x04 {
			t.Errorf("caching page % x: WCE must be set, RCD clear", p[:4])
		}
		one := u.wantGood(u.do(modeSense6(p[0], modeCurrent, true), nil, 255)).data
		if one[3] != 0 || !bytes.Equal(one[4:], p[:2+p[1]]) {
			t.Errorf("page %02x alone is % x", p[0], one)
		}
	}
	if !bytes.Equal(codes, []byte{pageReadWriteRecovery, pageCaching, pageControl, pageExceptions}) {
		t.Errorf("pages % x", codes)
	}
	ten := []byte{opModeSense10, 0, pageAll, 0, 0, 0, 0, 1, 0, 0}
	d10 := u.wantGood(u.do(ten, nil, 256)).data
	if int(binary.BigEndian.Uint16(d10)) != len(d10)-2 || d10[3] != 0x10 || d10[7] != 8 || !bytes.Equal(d10[8:], d[4:]) {
		t.Errorf("MODE SENSE(10) % x", d10)
	}
	ch := u.wantGood(u.do(modeSense6(pageControl, modeChangeable, true), nil, 255)).data[4:]
	if ch[2] != controlDSense || ch[4] != controlSWP {
		t.Errorf("changeable % x", ch)
	}
	u.wantIllegal(u.do(modeSense6(0x3e, modeCurrent, false), nil, 255), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.do(modeSense6(pageAll, modeSaved, false), nil, 255), gotgt.ASC_SAVING_PARMS_UNSUP)
	for n := range byte(40) {
		cdb := modeSense6(pageAll, modeCurrent, false)
		cdb[4] = n
		if a := u.wantGood(u.do(cdb, nil, 255)); a.N != int(n) || a.Want != int(n) {
			t.Fatalf("allocation length %d: N %d", n, a.N)
		}
	}
}

// SPC-5 §7.5, §7.7.11: SWP, in force for the nexus that set it and for no other,
// gone with its session and after a reset.
func TestSoftwareWriteProtect(t *testing.T) {
	u := newUnit(t)
	other := u.attach("iqn.2026-11.test:b")
	list := u.controlPage(func(p []byte) { p[4] |= controlSWP })
	u.wantGood(u.do(modeSelect6(list), list, 0))

	u.wantSense(u.do(block10(opWrite10, 0, 0, 1), pattern('x', 1), 0), gotgt.DATA_PROTECT, ascSoftwareWriteProtected)
	u.wantGood(u.do(block10(opRead10, 0, 0, 1), nil, 512))
	u.wantGood(u.run(other, block10(opWrite10, 0, 0, 1), pattern('x', 1), 0))
	if d := u.wantGood(u.run(other, modeSense6(pageControl, modeCurrent, true), nil, 255)).data; d[2]&0x80 != 0 || d[8]&controlSWP != 0 {
		t.Errorf("SWP is reported to another nexus: % x", d)
	}
	if d := u.wantGood(u.do(modeSense6(pageControl, modeCurrent, true), nil, 255)).data; d[2]&0x80 == 0 || d[8]&controlSWP == 0 {
		t.Errorf("WP or SWP is not reported: % x", d)
	}
	if d := u.wantGood(u.do(modeSense6(pageControl, modeDefault, true), nil, 255)).data; d[8]&controlSWP != 0 {
		t.Errorf("SWP is reported as the default: % x", d)
	}
	for _, kind := range []ResetKind{LUReset, TargetReset, NexusReset} {
		u.wantGood(u.do(modeSelect6(list), list, 0))
		u.Reset(u.n, kind)
		if a := u.as(u.n, cdb6(opTestUnitReady)); a.Status != StatusCheckCondition {
			t.Errorf("reset %d: status %#x", kind, a.Status)
		}
		u.wantGood(u.do(block10(opWrite10, 0, 0, 1), pattern('x', 1), 0))
	}
}

// SPC-5 §4.4: D_SENSE.
func TestDescriptorSense(t *testing.T) {
	u := newUnit(t)
	list := u.controlPage(func(p []byte) { p[2] |= controlDSense })
	u.wantGood(u.do(modeSelect6(list), list, 0))
	a := u.do(block10(opRead10, 0x20, 0, 1), nil, 512)
	if other := u.run(u.attach("iqn.2026-11.test:b"), block10(opRead10, 0x20, 0, 1), nil, 512); other.Sense[0] != 0x70 {
		t.Errorf("sense of another nexus % x", other.Sense)
	}
	want := []byte{0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xc0, 0, 1, 0}
	if !bytes.Equal(a.Sense, want) {
		t.Errorf("sense % x, want % x", a.Sense, want)
	}
}

// SPC-5 §6.12: lists that must change nothing.
func TestModeSelectRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		asc  additionalSense
		cdb  func(list []byte) []byte
		list func(u *unit) []byte
	}{
		{"saving", gotgt.ASC_INVALID_FIELD_IN_CDB, func(l []byte) []byte { c := modeSelect6(l); c[1] |= 1; return c }, nil},
		{"no page format", gotgt.ASC_INVALID_FIELD_IN_CDB, func(l []byte) []byte { c := modeSelect6(l); c[1] = 0; return c }, nil},
		{"cut header", gotgt.ASC_PARAMETER_LIST_LENGTH_ERR, nil, func(*unit) []byte { return []byte{0, 0} }},
		{"cut page", gotgt.ASC_PARAMETER_LIST_LENGTH_ERR, nil, func(u *unit) []byte {
			l := u.controlPage(func([]byte) {})
			return l[:len(l)-3]
		}},
		{"unchangeable", ascInvalidFieldInParameters, nil, func(u *unit) []byte {
			return u.controlPage(func(p []byte) { p[4] |= controlSWP; p[3] ^= 0x10 })
		}},
		{"page length", ascInvalidFieldInParameters, nil, func(u *unit) []byte {
			return u.controlPage(func(p []byte) { p[1]-- })
		}},
		{"unknown page", ascInvalidFieldInParameters, nil, func(*unit) []byte { return []byte{0, 0, 0, 0, 0x1a, 2, 0, 0} }},
		{"subpage", ascInvalidFieldInParameters, nil, func(*unit) []byte { return []byte{0, 0, 0, 0, 0x4a, 1, 0, 0} }},
		{"block length", ascInvalidFieldInParameters, nil, func(*unit) []byte { return []byte{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 16, 0} }},
		{"block descriptor length", ascInvalidFieldInParameters, nil, func(*unit) []byte { return []byte{0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0} }},
		{"write cache off", ascInvalidFieldInParameters, nil, func(u *unit) []byte {
			l := u.wantGood(u.do(modeSense6(pageCaching, modeCurrent, true), nil, 255)).data
			l[0], l[2], l[6] = 0, 0, 0
			return l
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUnit(t)
			list := u.controlPage(func(p []byte) { p[4] |= controlSWP })
			if c.list != nil {
				list = c.list(u)
			}
			cdb := modeSelect6(list)
			if c.cdb != nil {
				cdb = c.cdb(list)
			}
			u.wantIllegal(u.do(cdb, list, 0), c.asc)
			u.wantGood(u.do(block10(opWrite10, 0, 0, 1), pattern('x', 1), 0))
		})
	}
	u := newUnit(t)
	u.wantGood(u.do(modeSelect6(nil), nil, 0))
	list := []byte{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0}
	u.wantGood(u.do(modeSelect6(list), list, 0))
	ten := append([]byte{0, 0, 0, 0, 0, 0, 0, 0}, u.controlPage(func([]byte) {})[4:]...)
	u.wantGood(u.do([]byte{opModeSelect10, 0x10, 0, 0, 0, 0, 0, 0, byte(len(ten)), 0}, ten, 0))
	u.wantIllegal(u.do([]byte{opModeSelect10, 0x10, 0, 0, 0, 0, 0, 0, byte(len(ten)), 0}, ten[:9], 0), gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
}
