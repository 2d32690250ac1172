package scsi

import (
	"bytes"
	"encoding/binary"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// view is all that a nexus can find out that another could have changed: what it
// may do, what is registered, what it is told.
func (u *unit) view(n *Nexus) []byte {
	u.t.Helper()
	var all []byte
	for _, cdb := range [][]byte{
		cdb6(opTestUnitReady),
		modeSense6(pageAll, modeCurrent, false),
		block10(opReadCapacity10, 0, 0, 0),
		block10(opRead10, 0, 0, 8),
		block10(opPersistentReserveIn, prInReadFullStatus, 0, 4096),
		block10(opPersistentReserveIn, prInReadReservation, 0, 4096),
		{opPreventAllow, 0, 0, 0, 0, 0},
	} {
		a := u.run(n, cdb, nil, 4096)
		all = append(all, a.Status, cdb[0])
		all = append(append(all, a.Sense...), a.data...)
	}
	a := u.run(n, block10(opWrite10, 0, 100, 1), pattern('w', 1), 0)
	return append(append(all, a.Status), a.Sense...)
}

// Nothing that a nexus which may only read can send changes what a writer finds:
// every operation code and service action there may be, with parameters that would
// take effect.
func TestReaderDisturbsNobody(t *testing.T) {
	u := newUnit(t, func(c *Config) { c.Removable, c.ReservationFile = true, c.Path+".pr" })
	u.wantGood(u.prOut(u.n, prOutRegister, 0, 0, 7))
	reader := NewNexus("iqn.2026-11.test:reader", [6]byte{}, 1, true)
	u.Attach(reader)
	volume := u.file(0, testSize)
	before := u.view(u.n)
	copy(volume[100*512:], pattern('w', 1))

	swp := make([]byte, 4, 16)
	swp = append(swp, pageControl, 10, 2|controlDSense, 0x10, controlSWP, 0, 0, 0, 0xff, 0xff, 0, 0)
	register := make([]byte, prOutLength) // a new key; the writer's own to preempt
	binary.BigEndian.PutUint64(register[8:], 7)
	preempt := bytes.Clone(register)
	binary.BigEndian.PutUint64(preempt, 7)
	lists := [][]byte{swp, append(make([]byte, 4), swp...), register, preempt, bytes.Repeat([]byte{0xff}, 2<<20), make([]byte, 4096)}
	for op := range 256 {
		for action := range 32 {
			for _, flags := range []byte{0, 1, 2, 3, 0x10, 0x11} {
				for _, list := range lists {
					cdb := make([]byte, 16)
					cdb[0], cdb[1], cdb[2] = byte(op), byte(action)|flags, 1
					// Where the CDBs of each kind have their length.
					cdb[4] = byte(min(len(list), 255))
					if op == opStartStopUnit || op == opPreventAllow {
						cdb[4] = flags & 3
					}
					cdb[8], cdb[13] = byte(len(list)), 1
					u.run(reader, cdb, list, 4096)
					if lookup(cdb) == nil {
						break // an unknown one has no parameters
					}
				}
			}
			if after := u.view(u.n); !bytes.Equal(after, before) {
				t.Fatalf("operation code %#02x, service action %#02x changed what another nexus finds:\n% x\n% x", op, action, before, after)
			}
		}
	}
	if !bytes.Equal(u.file(0, testSize), volume) {
		t.Error("the volume changed")
	}
}

// It is told so as of a write.
func TestReaderIsRefused(t *testing.T) {
	u := newUnit(t, func(c *Config) { c.Removable = true })
	reader := NewNexus("iqn.2026-11.test:reader", [6]byte{}, 1, true)
	u.Attach(reader)
	u.wantSense(u.as(reader, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_POWERON_RESET)
	for _, cdb := range [][]byte{
		cdb6(opReserve6), block10(opReserve10, 0, 0, 0),
		{opPreventAllow, 0, 0, 0, 1, 0}, {opStartStopUnit, 0, 0, 0, loadEject, 0}, {opStartStopUnit, 0, 0, 0, loadEject | startUnit, 0},
	} {
		u.wantSense(u.as(reader, cdb), gotgt.DATA_PROTECT, gotgt.ASC_WRITE_PROTECT)
	}
	for action := range byte(8) {
		if action == 7 { // REGISTER AND MOVE, which is not there
			continue
		}
		u.wantSense(u.prOut(reader, action, gotgt.PR_TYPE_WRITE_EXCLUSIVE, 0, 1), gotgt.DATA_PROTECT, gotgt.ASC_WRITE_PROTECT)
	}
	// What is its own it may do.
	list := u.controlPage(func(p []byte) { p[2] |= controlDSense; p[4] |= controlSWP })
	for _, c := range []struct{ cdb, out []byte }{
		{cdb6(opRelease6), nil}, {block10(opRelease10, 0, 0, 0), nil},
		{[]byte{opPreventAllow, 0, 0, 0, 0, 0}, nil}, {[]byte{opStartStopUnit, 0, 0, 0, startUnit, 0}, nil},
		{block10(opSyncCache10, 0, 0, 0), nil}, {modeSelect6(list), list},
		{block10(opPersistentReserveIn, prInReadKeys, 0, 8), nil},
	} {
		u.wantGood(u.run(reader, c.cdb, c.out, 4096))
	}
}
