package scsi

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
	"golang.org/x/sys/unix"
)

// SPC-2 §5.5.1.
func TestReserve6And10(t *testing.T) {
	for _, k := range [][2][]byte{
		{cdb6(opReserve6), cdb6(opRelease6)},
		{block10(opReserve10, 0, 0, 0), block10(opRelease10, 0, 0, 0)},
	} {
		reserve, release := k[0], k[1]
		u := newUnit(t)
		b := u.attach("iqn.2026-11.test:b")
		u.wantGood(u.as(u.n, reserve))
		u.wantGood(u.as(u.n, reserve))
		u.wantStatus(u.as(b, reserve), StatusReservationConflict)
		for _, cdb := range [][]byte{
			cdb6(opTestUnitReady), block10(opRead10, 0, 0, 1), modeSense6(pageAll, modeCurrent, false),
			block10(opPersistentReserveIn, prInReadKeys, 0, 8), {opPreventAllow, 0, 0, 0, 1, 0},
		} {
			u.wantStatus(u.run(b, cdb, nil, 512), StatusReservationConflict)
		}
		for _, cdb := range [][]byte{
			inquiryCDB(0xff, 36), {opRequestSense, 0, 0, 0, 18, 0}, block12(opReportLUNs, 0, 0, 64),
			block10(opReadCapacity10, 0, 0, 0), release, {opPreventAllow, 0, 0, 0, 0, 0},
		} {
			u.wantGood(u.run(b, cdb, nil, 512))
		}
		u.wantStatus(u.run(b, block10(opRead10, 0, 0, 1), nil, 512), StatusReservationConflict)
		u.wantGood(u.run(u.n, block10(opRead10, 0, 0, 1), nil, 512))
		u.wantStatus(u.prOut(u.n, prOutRegister, 0, 0, 1), StatusReservationConflict)
		u.wantGood(u.as(u.n, release))
		u.wantGood(u.as(b, reserve))

		// Released by the loss of the nexus and by resets.
		u.Detach(b)
		u.wantGood(u.as(u.n, reserve))
		b = u.attach2()
		u.wantStatus(u.as(b, cdb6(opTestUnitReady)), StatusReservationConflict)
		for _, kind := range []ResetKind{LUReset, TargetReset, NexusReset} {
			u.Reset(u.n, kind)
			asc := additionalSense(gotgt.ASC_POWERON_RESET)
			if kind == NexusReset {
				asc = gotgt.ASC_I_T_NEXUS_LOSS_OCCURRED
			} else {
				u.wantSense(u.as(b, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, asc)
			}
			u.wantSense(u.as(u.n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, asc)
			u.wantGood(u.as(b, reserve))
			u.wantGood(u.as(b, release))
			u.wantGood(u.as(u.n, reserve))
		}
		third := bytes.Clone(reserve)
		third[1] = 0x10
		u.wantIllegal(u.as(u.n, third), gotgt.ASC_INVALID_FIELD_IN_CDB)
		// Nothing would ever release what a nexus without a session reserves.
		u.wantGood(u.as(u.n, release))
		u.Detach(b)
		u.wantStatus(u.as(b, reserve), StatusTaskAborted)
		u.wantGood(u.as(u.n, reserve))
	}
}

// attach2 attaches a second initiator while the first holds a RESERVE.
func (u *unit) attach2() *Nexus {
	n := NewNexus("iqn.2026-11.test:b", [6]byte{}, 1, false)
	u.Attach(n)
	u.wantSense(u.as(n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_POWERON_RESET)
	return n
}

// SAM-5 §5.14: reported once, never by INQUIRY or REPORT LUNS, and by REQUEST
// SENSE as data.
func TestUnitAttention(t *testing.T) {
	u := newUnit(t)
	n := NewNexus("iqn.2026-11.test:b", [6]byte{}, 1, false)
	u.Attach(n)
	u.wantGood(u.run(n, inquiryCDB(0xff, 36), nil, 36))
	u.wantGood(u.run(n, block12(opReportLUNs, 0, 0, 64), nil, 64))
	a := u.wantGood(u.run(n, []byte{opRequestSense, 0, 0, 0, 18, 0}, nil, 18))
	if a.data[2] != gotgt.UNIT_ATTENTION || a.data[12] != 0x29 {
		t.Errorf("REQUEST SENSE % x", a.data)
	}
	u.wantGood(u.as(n, cdb6(opTestUnitReady)))
	a = u.wantGood(u.run(n, []byte{opRequestSense, 0, 0, 0, 252, 0}, nil, 252))
	if len(a.data) != 18 || a.data[2] != 0 {
		t.Errorf("REQUEST SENSE % x", a.data)
	}
	a = u.wantGood(u.run(n, []byte{opRequestSense, 1, 0, 0, 252, 0}, nil, 252))
	if !bytes.Equal(a.data, []byte{0x72, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("REQUEST SENSE with DESC % x", a.data)
	}
	u.Reset(u.n, ClearTaskSet)
	u.wantGood(u.as(u.n, cdb6(opTestUnitReady)))
	// A write that meets a unit attention is not carried out.
	u.wantSense(u.run(n, block10(opWrite10, 0, 0, 1), pattern('x', 1), 0), gotgt.UNIT_ATTENTION, gotgt.ASC_CMDS_CLEARED_BY_ANOTHER_INI)
	if u.file(0, 1)[0] != 0 {
		t.Error("a write that was refused is in the file")
	}
	// The queue is bounded, and one reset says all that came before.
	for i := range 100 {
		n.raise(unitAttention(i))
	}
	if len(n.pending) != maxAttentions || n.pending[0] != 100-maxAttentions {
		t.Errorf("pending %v", n.pending)
	}
	n.raise(unitAttention(gotgt.ASC_POWERON_RESET))
	u.wantSense(u.as(n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_POWERON_RESET)
	u.wantGood(u.as(n, cdb6(opTestUnitReady)))
}

// SBC-4: START STOP UNIT §5.31, PREVENT ALLOW MEDIUM REMOVAL.
func TestRemovableMedium(t *testing.T) {
	u := newUnit(t, func(c *Config) { c.Removable = true })
	b := u.attach("iqn.2026-11.test:b")
	startStop := func(flags byte) []byte { return []byte{opStartStopUnit, 1, 0, 0, flags, 0} }
	prevent := func(p byte) []byte { return []byte{opPreventAllow, 0, 0, 0, p, 0} }
	eject, load := startStop(loadEject), startStop(loadEject|startUnit)
	if d := u.wantGood(u.do(inquiryCDB(0xff, 36), nil, 36)).data; d[1] != 0x80 {
		t.Errorf("RMB: % x", d[:4])
	}
	for flags := range byte(8) {
		if flags&loadEject == 0 {
			u.wantGood(u.as(u.n, startStop(flags)))
		}
	}
	u.wantGood(u.as(u.n, startStop(0x10|loadEject)))
	u.wantGood(u.as(u.n, cdb6(opTestUnitReady)))

	u.wantGood(u.as(b, prevent(1)))
	u.wantIllegal(u.as(u.n, eject), gotgt.ASC_MEDIUM_REMOVAL_PREVENTED)
	u.wantGood(u.as(b, prevent(0)))
	u.wantGood(u.as(u.n, eject))
	for _, cdb := range [][]byte{
		cdb6(opTestUnitReady), block10(opRead10, 0, 0, 1), block16(opWrite16, 0, 0, 1), block10(opSyncCache10, 0, 0, 0),
		block10(opReadCapacity10, 0, 0, 0), block10(opUnmap, 0, 0, 0), cawCDB(0, 0, 0),
	} {
		u.wantSense(u.run(u.n, cdb, pattern(0, 1), 512), gotgt.NOT_READY, gotgt.ASC_MEDIUM_NOT_PRESENT)
	}
	u.wantGood(u.do(inquiryCDB(0xff, 36), nil, 36))
	if d := u.wantGood(u.do([]byte{opRequestSense, 0, 0, 0, 18, 0}, nil, 18)).data; d[2] != gotgt.NOT_READY {
		t.Errorf("REQUEST SENSE % x", d)
	}
	u.wantGood(u.as(u.n, load))
	u.wantGood(u.as(u.n, cdb6(opTestUnitReady)))
	u.wantSense(u.as(b, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_NOT_READY_TO_TRANSITION)

	u.wantGood(u.as(b, prevent(1)))
	u.Detach(b)
	u.wantGood(u.as(u.n, eject))
	u.wantGood(u.as(u.n, load))
	u.wantGood(u.as(u.n, prevent(1)))
	u.Reset(u.n, LUReset)
	u.wantSense(u.as(u.n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_POWERON_RESET)
	u.wantGood(u.as(u.n, eject))

	fixed := newUnit(t)
	fixed.wantIllegal(fixed.as(fixed.n, eject), gotgt.ASC_INVALID_FIELD_IN_CDB)
	fixed.wantGood(fixed.as(fixed.n, prevent(1)))
}

func TestSendDiagnostic(t *testing.T) {
	u := newUnit(t)
	u.wantGood(u.as(u.n, []byte{opSendDiagnostic, 4, 0, 0, 0, 0}))
	u.wantIllegal(u.as(u.n, []byte{opSendDiagnostic, 0x10, 0, 0, 0, 0}), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.as(u.n, []byte{opSendDiagnostic, 4, 0, 0, 8, 0}), gotgt.ASC_INVALID_FIELD_IN_CDB)
}

// SBC-4, write protection: WP, and DATA PROTECT for everything that would write.
func TestReadOnly(t *testing.T) {
	check := func(t *testing.T, u *unit, n *Nexus) {
		list := unmapList(0, 8)
		for _, c := range []struct{ cdb, out []byte }{
			{[]byte{opWrite6, 0, 0, 0, 1, 0}, pattern('x', 1)}, {block10(opWrite10, 0, 0, 1), pattern('x', 1)},
			{block12(opWrite12, 0, 0, 1), pattern('x', 1)}, {block16(opWrite16, 0, 0, 1), pattern('x', 1)},
			{block16(opWriteVerify16, 0, 0, 1), pattern('x', 1)}, {block16(opWriteSame16, 0, 0, 1), pattern('x', 1)},
			{block16(opOrWrite16, 0, 0, 1), pattern('x', 1)}, {cawCDB(0, 0, 1), append(pattern(0, 1), pattern('x', 1)...)},
			{unmapCDB(list), list},
		} {
			u.wantSense(u.run(n, c.cdb, c.out, 0), gotgt.DATA_PROTECT, gotgt.ASC_WRITE_PROTECT)
		}
		u.wantGood(u.run(n, block10(opRead10, 0, 0, 1), nil, 512))
		u.wantGood(u.as(n, block10(opSyncCache10, 0, 0, 0)))
		if d := u.wantGood(u.run(n, modeSense6(pageControl, modeCurrent, true), nil, 255)).data; d[2] != 0x90 {
			t.Errorf("device-specific parameter %02x, want WP and DPOFUA", d[2])
		}
		if !bytes.Equal(u.file(0, 512), pattern(0, 1)) {
			t.Error("the volume changed")
		}
	}
	t.Run("volume", func(t *testing.T) {
		u := newUnit(t, func(c *Config) { c.ReadOnly = true })
		check(t, u, u.n)
	})
	t.Run("nexus", func(t *testing.T) {
		u := newUnit(t)
		n := NewNexus("iqn.2026-11.test:rescue", [6]byte{}, 1, true)
		u.Attach(n)
		u.wantSense(u.as(n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_POWERON_RESET)
		check(t, u, n)
		if d := u.wantGood(u.do(modeSense6(pageControl, modeCurrent, true), nil, 255)).data; d[2] != 0x10 {
			t.Errorf("device-specific parameter of the other nexus %02x", d[2])
		}
		u.wantGood(u.do(block10(opWrite10, 0, 0, 1), pattern('x', 1), 0))
	})
}

func TestGrow(t *testing.T) {
	u := newUnit(t)
	b := u.attach("iqn.2026-11.test:b")
	if err := u.Grow(testSize); err != nil {
		t.Fatal(err)
	}
	u.wantGood(u.as(b, cdb6(opTestUnitReady)))
	if err := u.Grow(testSize - 512); !errors.Is(err, ErrShrink) {
		t.Errorf("shrinking: %v", err)
	}
	u.wantIllegal(u.do(block10(opWrite10, 0, testSize/512, 1), pattern('x', 1), 0), gotgt.ASC_LBA_OUT_OF_RANGE)
	if err := u.Grow(2 * testSize); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*Nexus{u.n, b} {
		u.wantSense(u.as(n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, ascCapacityChanged)
		u.wantGood(u.as(n, cdb6(opTestUnitReady)))
	}
	u.wantGood(u.do(block10(opWrite10, 0, testSize/512, 1), pattern('x', 1), 0))
	a := u.wantGood(u.do(block10(opReadCapacity10, 0, 0, 0), nil, 8))
	if !bytes.Equal(a.data[:4], []byte{0, 0, 0x7f, 0xff}) || u.Size() != 2*testSize {
		t.Errorf("capacity % x, size %d", a.data, u.Size())
	}
	// Grown by other hands.
	truncate(t, u.path, 3*testSize)
	if err := u.Grow(0); err != nil || u.Size() != 3*testSize {
		t.Errorf("size %d: %v", u.Size(), err)
	}
}

func TestExclusiveLock(t *testing.T) {
	u := newUnit(t)
	cfg := u.cfg
	for _, readOnly := range []bool{false, true} {
		cfg.ReadOnly = readOnly
		if _, err := Open(cfg); !errors.Is(err, ErrInUse) {
			t.Errorf("read-only %t: %v, want ErrInUse", readOnly, err)
		}
	}
	// The lock that QEMU and qemu-img look at.
	f, err := os.OpenFile(u.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 201, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil || lk.Type == unix.F_UNLCK {
		t.Errorf("no lock is seen: %+v, %v", lk, err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.ReadOnly = true
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); !errors.Is(err, ErrInUse) {
		t.Errorf("two readers: %v, want ErrInUse", err)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64) string {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, size)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	disk := file("disk", 4096)
	for name, c := range map[string]Config{
		"missing":      {Path: filepath.Join(dir, "none")},
		"a directory":  {Path: dir},
		"a device":     {Path: "/dev/null"},
		"empty":        {Path: file("empty", 0)},
		"half a block": {Path: file("half", 511)},
		"block size":   {Path: disk, BlockSize: 1024},
		"serial":       {Path: disk, Serial: string(make([]byte, 37))},
		"vendor":       {Path: disk, Vendor: "much too long"},
	} {
		if d, err := Open(c); err == nil {
			t.Errorf("%s: opened", name)
			_ = d.Close()
		}
	}
	d, err := Open(Config{Path: disk})
	if err != nil {
		t.Fatalf("a refusal left the lock behind: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStats(t *testing.T) {
	u := newUnit(t)
	before := u.Stats()
	u.wantGood(u.do(block10(opWrite10, 0, 0, 4), pattern('x', 4), 0))
	u.wantGood(u.do(block10(opRead10, 0, 0, 2), nil, 1024))
	u.wantIllegal(u.do(block10(opRead10, 0x20, 0, 2), nil, 1024), gotgt.ASC_INVALID_FIELD_IN_CDB)
	got := u.Stats()
	want := Stats{Commands: before.Commands + 3, Reads: 1, ReadBytes: 1024, Writes: 1, WriteBytes: 2048, Errors: before.Errors + 1}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
