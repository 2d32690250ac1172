package scsi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

func prOut(action, kind byte, key, newKey uint64, flags byte) (cdb, list []byte) {
	cdb = []byte{opPersistentReserveOut, action, kind, 0, 0, 0, 0, 0, prOutLength, 0}
	list = binary.BigEndian.AppendUint64(nil, key)
	list = binary.BigEndian.AppendUint64(list, newKey)
	return cdb, append(list, 0, 0, 0, 0, flags, 0, 0, 0)
}

func (u *unit) prOut(n *Nexus, action, kind byte, key, newKey uint64) answer {
	cdb, list := prOut(action, kind, key, newKey, 0)
	return u.run(n, cdb, list, 0)
}

func (u *unit) register(n *Nexus, key uint64) {
	u.t.Helper()
	u.wantGood(u.prOut(n, prOutRegisterIgnore, 0, 0, key))
}

func (u *unit) prIn(action byte, allocation uint16) []byte {
	u.t.Helper()
	cdb := block10(opPersistentReserveIn, action, 0, allocation)
	return u.wantGood(u.do(cdb, nil, int(allocation))).data
}

func (u *unit) keys() []uint64 {
	u.t.Helper()
	var keys []uint64
	for d := u.prIn(prInReadKeys, 0xfff8)[8:]; len(d) > 0; d = d[8:] {
		keys = append(keys, binary.BigEndian.Uint64(d))
	}
	return keys
}

func (u *unit) generation() uint32 { return binary.BigEndian.Uint32(u.prIn(prInReadKeys, 8)) }

// reservation returns type and key of the present reservation.
func (u *unit) reservation() (kind byte, key uint64) {
	u.t.Helper()
	d := u.prIn(prInReadReservation, 256)
	if len(d) == 8 {
		return 0, 0
	}
	return d[21], binary.BigEndian.Uint64(d[8:])
}

var prKinds = []byte{
	gotgt.PR_TYPE_WRITE_EXCLUSIVE, gotgt.PR_TYPE_EXCLUSIVE_ACCESS,
	gotgt.PR_TYPE_WRITE_EXCLUSIVE_REGONLY, gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY,
	gotgt.PR_TYPE_WRITE_EXCLUSIVE_ALLREG, gotgt.PR_TYPE_EXCLUSIVE_ACCESS_ALLREG,
}

// SPC-5 §5.14.
func TestRegister(t *testing.T) {
	u := newUnit(t)
	b := u.attach("iqn.2026-11.test:b")
	u.wantStatus(u.prOut(u.n, prOutRegister, 0, 7, 1), StatusReservationConflict)
	u.wantGood(u.prOut(u.n, prOutRegister, 0, 0, 1))
	u.wantGood(u.prOut(b, prOutRegister, 0, 0, 2))
	u.wantStatus(u.prOut(u.n, prOutRegister, 0, 2, 3), StatusReservationConflict)
	u.wantGood(u.prOut(u.n, prOutRegister, 0, 1, 3))
	if got := u.keys(); !slices.Equal(got, []uint64{3, 2}) {
		t.Errorf("keys %v", got)
	}
	u.wantGood(u.prOut(b, prOutRegisterIgnore, 0, 99, 4))
	u.wantGood(u.prOut(b, prOutRegisterIgnore, 0, 99, 0))
	if got := u.keys(); !slices.Equal(got, []uint64{3}) {
		t.Errorf("keys %v", got)
	}
	if got := u.generation(); got != 5 {
		t.Errorf("generation %d, want 5", got)
	}
	if d := u.prIn(prInReadKeys, 8); len(d) != 8 || binary.BigEndian.Uint32(d[4:]) != 8 {
		t.Errorf("truncated READ KEYS % x", d)
	}
	u.wantGood(u.prOut(u.n, prOutRegister, 0, 3, 0))
	if got := u.generation(); len(u.keys()) != 0 || got != 6 {
		t.Errorf("keys %v, generation %d", u.keys(), got)
	}
}

func TestReserveOutRefuses(t *testing.T) {
	u := newUnit(t)
	u.register(u.n, 1)
	for _, flags := range []byte{0x08, 0x04, 0x01} { // SPEC_I_PT, ALL_TG_PT, APTPL without a file
		cdb, list := prOut(prOutRegister, 0, 1, 1, flags)
		u.wantIllegal(u.do(cdb, list, 0), ascInvalidFieldInParameters)
	}
	cdb, list := prOut(prOutRegister, 0, 1, 1, 0)
	u.wantIllegal(u.do(cdb, list[:23], 0), gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
	cdb[8]++
	u.wantIllegal(u.do(cdb, append(list, 0), 0), gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
	for _, kind := range []byte{0, 2, 4, 9, 15, 0x11} { // no such type, and another scope
		u.wantIllegal(u.prOut(u.n, prOutReserve, kind, 1, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	}
	u.wantIllegal(u.prOut(u.n, 0x07, 1, 1, 0), gotgt.ASC_INVALID_FIELD_IN_CDB) // REGISTER AND MOVE
	u.wantStatus(u.prOut(u.n, prOutReserve, 1, 2, 0), StatusReservationConflict)
	for action := byte(4); action < 32; action++ {
		u.wantIllegal(u.do(block10(opPersistentReserveIn, action, 0, 8), nil, 8), gotgt.ASC_INVALID_FIELD_IN_CDB)
	}
}

// SPC-5 §5.14, SBC-4 table 13.
func TestReservationAccess(t *testing.T) {
	const (
		read = 1 << iota
		write
	)
	for _, c := range []struct {
		kind               byte
		others, registered int // what they may do; a holder may do all
	}{
		{gotgt.PR_TYPE_WRITE_EXCLUSIVE, read, read},
		{gotgt.PR_TYPE_EXCLUSIVE_ACCESS, 0, 0},
		{gotgt.PR_TYPE_WRITE_EXCLUSIVE_REGONLY, read, read | write},
		{gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY, 0, read | write},
		{gotgt.PR_TYPE_WRITE_EXCLUSIVE_ALLREG, read, read | write},
		{gotgt.PR_TYPE_EXCLUSIVE_ACCESS_ALLREG, 0, read | write},
	} {
		t.Run(fmt.Sprint(c.kind), func(t *testing.T) {
			u := newUnit(t)
			registered, stranger := u.attach("iqn.2026-11.test:b"), u.attach("iqn.2026-11.test:c")
			u.register(u.n, 1)
			u.register(registered, 2)
			u.wantGood(u.prOut(u.n, prOutReserve, c.kind, 1, 0))
			u.wantGood(u.prOut(u.n, prOutReserve, c.kind, 1, 0))
			unmap := unmapList(0, 8)
			try := func(n *Nexus, may int) {
				t.Helper()
				want := func(a answer, bit int) {
					t.Helper()
					if may&bit != 0 {
						u.wantGood(a)
					} else {
						u.wantStatus(a, StatusReservationConflict)
					}
				}
				for _, cdb := range [][]byte{
					block10(opRead10, 0, 0, 1), block16(opRead16, 0, 0, 1), block10(opVerify10, 0, 0, 1),
					block10(opPrefetch10, 0, 0, 1), block16(opServiceActionIn16, saGetLBAStatus, 0, 24),
					modeSense6(pageControl, modeCurrent, true),
				} {
					want(u.run(n, cdb, nil, 512), read)
				}
				want(u.run(n, block10(opWrite10, 0, 0, 1), pattern(1, 1), 0), write)
				want(u.run(n, block16(opWriteSame16, 0, 0, 1), pattern(0, 1), 0), write)
				want(u.run(n, unmapCDB(unmap), unmap, 0), write)
				want(u.run(n, cawCDB(0, 0, 1), pattern(0, 2), 0), write)
				want(u.run(n, block16(opOrWrite16, 0, 0, 1), pattern(0, 1), 0), write)
				want(u.run(n, block10(opWriteVerify10, 0, 0, 1), pattern(0, 1), 0), write)
				want(u.as(n, block10(opSyncCache10, 0, 0, 0)), write)
				want(u.as(n, []byte{opStartStopUnit, 0, 0, 0, 0, 0}), write)
				// These are never kept out.
				u.wantGood(u.as(n, cdb6(opTestUnitReady)))
				u.wantGood(u.run(n, inquiryCDB(0xff, 36), nil, 36))
				u.wantGood(u.run(n, block10(opReadCapacity10, 0, 0, 0), nil, 8))
				u.wantGood(u.run(n, block10(opPersistentReserveIn, prInReadKeys, 0, 64), nil, 64))
				u.wantGood(u.as(n, []byte{opStartStopUnit, 0, 0, 0, startUnit, 0}))
				// RESERVE(6) and persistent reservations exclude each other.
				u.wantStatus(u.as(n, cdb6(opReserve6)), StatusReservationConflict)
			}
			try(u.n, read|write)
			try(registered, c.registered)
			try(stranger, c.others)

			kind, key := u.reservation()
			if wantKey := uint64(1); kind != c.kind || key != wantKey && !allRegistrants(kind) || key != 0 && allRegistrants(kind) {
				t.Errorf("READ RESERVATION: type %d, key %d", kind, key)
			}
			other := prKinds[(slices.Index(prKinds, c.kind)+1)%len(prKinds)]
			u.wantStatus(u.prOut(u.n, prOutReserve, other, 1, 0), StatusReservationConflict)
			u.wantIllegal(u.prOut(u.n, prOutRelease, other, 1, 0), gotgt.ASC_INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
			if !allRegistrants(c.kind) {
				u.wantStatus(u.prOut(registered, prOutReserve, c.kind, 2, 0), StatusReservationConflict)
				u.wantGood(u.prOut(registered, prOutRelease, c.kind, 2, 0)) // not its own: no effect
			}
			if kind, _ := u.reservation(); kind != c.kind {
				t.Errorf("after another's release the type is %d", kind)
			}
			u.wantGood(u.prOut(u.n, prOutRelease, c.kind, 1, 0))
			if kind, _ := u.reservation(); kind != 0 {
				t.Errorf("after the release the type is %d", kind)
			}
			if c.kind > gotgt.PR_TYPE_EXCLUSIVE_ACCESS {
				u.wantSense(u.as(registered, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_RESERVATIONS_RELEASED)
			}
			for _, n := range []*Nexus{registered, stranger} {
				u.wantGood(u.run(n, block10(opWrite10, 0, 0, 1), pattern(1, 1), 0))
			}
		})
	}
}

// SPC-5 §5.14: unregistering the holder releases its reservation.
func TestUnregisterHolder(t *testing.T) {
	for _, kind := range prKinds {
		u := newUnit(t)
		b := u.attach("iqn.2026-11.test:b")
		u.register(u.n, 1)
		u.register(b, 2)
		u.wantGood(u.prOut(u.n, prOutReserve, kind, 1, 0))
		u.wantGood(u.prOut(u.n, prOutRegister, 0, 1, 0))
		got, _ := u.reservation()
		if allRegistrants(kind) {
			if got != kind {
				t.Errorf("type %d: released while another registrant holds it", kind)
			}
			u.wantGood(u.prOut(b, prOutRegister, 0, 2, 0))
			got, _ = u.reservation()
		}
		if got != 0 {
			t.Errorf("type %d is still reserved", kind)
		}
		if registrantsOnly(kind) {
			u.wantSense(u.as(b, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_RESERVATIONS_RELEASED)
		} else {
			u.wantGood(u.as(b, cdb6(opTestUnitReady)))
		}
	}
}

// SPC-5 §5.14.
func TestClear(t *testing.T) {
	u := newUnit(t)
	b := u.attach("iqn.2026-11.test:b")
	u.register(u.n, 1)
	u.register(b, 2)
	u.wantGood(u.prOut(u.n, prOutReserve, gotgt.PR_TYPE_EXCLUSIVE_ACCESS, 1, 0))
	u.wantStatus(u.prOut(b, prOutClear, 0, 1, 0), StatusReservationConflict)
	u.wantGood(u.prOut(b, prOutClear, 0, 2, 0))
	u.wantSense(u.as(u.n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_RESERVATIONS_PREEMPTED)
	u.wantGood(u.as(b, cdb6(opTestUnitReady)))
	if kind, _ := u.reservation(); kind != 0 || len(u.keys()) != 0 {
		t.Errorf("type %d, keys %v", kind, u.keys())
	}
}

// SPC-5 §5.14.
func TestPreempt(t *testing.T) {
	const wero, wear, ea = gotgt.PR_TYPE_WRITE_EXCLUSIVE_REGONLY, gotgt.PR_TYPE_WRITE_EXCLUSIVE_ALLREG, gotgt.PR_TYPE_EXCLUSIVE_ACCESS
	for _, c := range []struct {
		name     string
		held     byte // by a, 0: nothing is reserved
		by       int
		kind     byte
		newKey   uint64
		status   byte
		asc      additionalSense
		keys     []uint64
		left     byte
		leftKey  uint64
		notified map[int]additionalSense
	}{
		{name: "registration only", by: 0, kind: ea, newKey: 2, keys: []uint64{1, 3}, notified: map[int]additionalSense{1: ascRegistrationsPreempted}},
		{name: "nothing to preempt", by: 0, kind: ea, newKey: 9, status: StatusReservationConflict, keys: []uint64{1, 2, 3}},
		{name: "no key", by: 0, kind: ea, newKey: 0, asc: ascInvalidFieldInParameters, keys: []uint64{1, 2, 3}},
		{name: "the holder", held: wero, by: 1, kind: wero, newKey: 1, keys: []uint64{2, 3}, left: wero, leftKey: 2, notified: map[int]additionalSense{0: ascRegistrationsPreempted}},
		{name: "the holder, other type", held: wero, by: 1, kind: ea, newKey: 1, keys: []uint64{2, 3}, left: ea, leftKey: 2, notified: map[int]additionalSense{0: ascRegistrationsPreempted, 2: gotgt.ASC_RESERVATIONS_RELEASED}},
		{name: "another registrant", held: wero, by: 0, kind: wero, newKey: 3, keys: []uint64{1, 2}, left: wero, leftKey: 1, notified: map[int]additionalSense{2: ascRegistrationsPreempted}},
		{name: "no key with a holder", held: wero, by: 1, kind: wero, newKey: 0, asc: ascInvalidFieldInParameters, keys: []uint64{1, 2, 3}, left: wero, leftKey: 1},
		{name: "all registrants", held: wear, by: 2, kind: ea, newKey: 0, keys: []uint64{3}, left: ea, leftKey: 3, notified: map[int]additionalSense{0: ascRegistrationsPreempted, 1: ascRegistrationsPreempted}},
		{name: "one of all registrants", held: wear, by: 2, kind: ea, newKey: 1, keys: []uint64{2, 3}, left: wear, notified: map[int]additionalSense{0: ascRegistrationsPreempted}},
		{name: "the holder itself", held: wero, by: 0, kind: ea, newKey: 1, keys: []uint64{1, 2, 3}, left: ea, leftKey: 1, notified: map[int]additionalSense{1: gotgt.ASC_RESERVATIONS_RELEASED, 2: gotgt.ASC_RESERVATIONS_RELEASED}},
	} {
		for _, action := range []byte{prOutPreempt, prOutPreemptAbort} {
			t.Run(fmt.Sprintf("%s/%d", c.name, action), func(t *testing.T) {
				u := newUnit(t)
				all := []*Nexus{u.n, u.attach("iqn.2026-11.test:b"), u.attach("iqn.2026-11.test:c")}
				for i, n := range all {
					u.register(n, uint64(i+1))
				}
				if c.held != 0 {
					u.wantGood(u.prOut(u.n, prOutReserve, c.held, 1, 0))
				}
				generation := u.generation()
				a := u.prOut(all[c.by], action, c.kind, uint64(c.by+1), c.newKey)
				switch {
				case c.asc != 0:
					u.wantIllegal(a, c.asc)
				case c.status != 0:
					u.wantStatus(a, c.status)
				default:
					u.wantGood(a)
					generation++
				}
				for i, n := range all {
					if asc, ok := c.notified[i]; ok {
						u.wantSense(u.as(n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, asc)
					}
					u.wantGood(u.as(n, cdb6(opTestUnitReady)))
				}
				if got := u.keys(); !slices.Equal(got, c.keys) {
					t.Errorf("keys %v, want %v", got, c.keys)
				}
				if kind, key := u.reservation(); kind != c.left || key != c.leftKey {
					t.Errorf("type %d of key %d, want %d of %d", kind, key, c.left, c.leftKey)
				}
				if got := u.generation(); got != generation {
					t.Errorf("generation %d, want %d", got, generation)
				}
			})
		}
	}
}

// SPC-5 §5.14: when PREEMPT AND ABORT has answered, nothing that the
// preempted nexus had begun reaches the medium any more.
func TestPreemptAndAbortDrains(t *testing.T) {
	m := &memory{data: make([]byte, testSize)}
	d, err := newDevice(testConfig(), m)
	if err != nil {
		t.Fatal(err)
	}
	u := wrap(t, d, "")
	b := u.attach("iqn.2026-11.test:b")
	u.register(u.n, 1)
	u.register(b, 2)
	u.wantGood(u.prOut(b, prOutReserve, gotgt.PR_TYPE_WRITE_EXCLUSIVE, 2, 0))
	writing, release := make(chan struct{}), make(chan struct{})
	m.intercept(func(call string, _, _ int64) error {
		if call == "write" {
			close(writing)
			<-release
		}
		return nil
	})
	wrote, preempted := make(chan answer, 1), make(chan answer, 1)
	go func() { wrote <- u.run(b, block10(opWrite10, 0, 0, 1), pattern('b', 1), 0) }()
	await(t, writing, "the write")
	go func() { preempted <- u.prOut(u.n, prOutPreemptAbort, gotgt.PR_TYPE_WRITE_EXCLUSIVE, 1, 2) }()
	select {
	case <-preempted:
		t.Error("answered while a write of the preempted nexus was under way")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	u.wantGood(await(t, preempted, "PREEMPT AND ABORT"))
	u.wantGood(await(t, wrote, "the write"))
	u.wantSense(u.run(b, block10(opWrite10, 0, 0, 1), pattern('b', 1), 0), gotgt.UNIT_ATTENTION, ascRegistrationsPreempted)
	u.wantStatus(u.run(b, block10(opWrite10, 0, 0, 1), pattern('b', 1), 0), StatusReservationConflict)
}

// A long command of the preempted nexus does not hold PREEMPT AND ABORT up until
// it is through.
func TestPreemptAndAbortStops(t *testing.T) {
	u, m := faulty(t)
	b := u.attach("iqn.2026-11.test:b")
	u.register(u.n, 1)
	u.register(b, 2)
	reading, aborted := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.intercept(func(call string, _, _ int64) error {
		if call == "read" {
			once.Do(func() {
				close(reading)
				<-aborted
			})
		}
		return nil
	})
	verified := make(chan answer, 1)
	go func() { verified <- u.run(b, block16(opVerify16, 0, 0, testSize/512), nil, 0) }()
	await(t, reading, "the VERIFY")
	preempted := make(chan answer, 1)
	go func() { preempted <- u.prOut(u.n, prOutPreemptAbort, gotgt.PR_TYPE_WRITE_EXCLUSIVE, 1, 2) }()
	for deadline := time.Now().Add(10 * time.Second); b.aborts.Load() == 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("waited 10 s for the abort")
		}
	}
	close(aborted)
	u.wantGood(await(t, preempted, "PREEMPT AND ABORT"))
	u.wantStatus(await(t, verified, "the VERIFY"), StatusTaskAborted)
	if n := m.count("read"); n != 1 {
		t.Errorf("%d reads, want the one that was under way", n)
	}
}

// SPC-5 §6.16.4, §6.16.5.
func TestReportCapabilitiesAndFullStatus(t *testing.T) {
	u := newUnit(t)
	if d := u.prIn(prInReportCapabilities, 255); !bytes.Equal(d, []byte{0, 8, 0, 0x80, 0xea, 1, 0, 0}) {
		t.Errorf("capabilities % x", d)
	}
	b := u.attach("iqn.2026-11.test:b")
	u.register(u.n, 1)
	u.register(b, 2)
	u.wantGood(u.prOut(b, prOutReserve, gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY, 2, 0))
	d := u.prIn(prInReadFullStatus, 4096)
	if int(binary.BigEndian.Uint32(d[4:])) != len(d)-8 {
		t.Fatalf("full status % x", d)
	}
	for i, name := range []string{"iqn.2026-11.test:a", "iqn.2026-11.test:b"} {
		desc := d[8:]
		for range i {
			desc = desc[24+binary.BigEndian.Uint32(desc[20:]):]
		}
		id := append([]byte{0x45, 0, 0, 0}, name+",i,0x800100000000\x00"...)
		for len(id)%4 != 0 {
			id = append(id, 0)
		}
		id[3] = byte(len(id) - 4)
		if key := binary.BigEndian.Uint64(desc); key != uint64(i+1) || !bytes.Equal(desc[24:24+len(id)], id) {
			t.Errorf("descriptor %d: key %d, % x", i, key, desc)
		}
		if holder := desc[12] == 1; holder != (i == 1) || holder && desc[13] != gotgt.PR_TYPE_EXCLUSIVE_ACCESS_REGONLY {
			t.Errorf("descriptor %d: holder %x, type %x", i, desc[12], desc[13])
		}
	}
}

// SPC-5 §5.14: registrations outlive the nexus; over a restart only with APTPL.
func TestPersistence(t *testing.T) {
	dir := t.TempDir()
	saved := filepath.Join(dir, "pr.json")
	withFile := func(c *Config) { c.ReservationFile = saved }
	u := newUnit(t, withFile)
	reopen := func() {
		t.Helper()
		cfg := u.cfg
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		d, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		u = wrap(t, d, cfg.Path)
	}
	if d := u.prIn(prInReportCapabilities, 255); d[2] != 1 || d[3] != 0x80 {
		t.Errorf("capabilities % x", d)
	}
	cdb, list := prOut(prOutRegister, 0, 0, 1, 1)
	u.wantGood(u.do(cdb, list, 0))
	if d := u.prIn(prInReportCapabilities, 255); d[2] != 1 || d[3] != 0x81 {
		t.Errorf("capabilities % x", d)
	}
	u.wantGood(u.prOut(u.n, prOutReserve, gotgt.PR_TYPE_WRITE_EXCLUSIVE, 1, 0))
	u.Detach(u.n)
	if u.n = u.attach("iqn.2026-11.test:a"); u.keys()[0] != 1 {
		t.Error("the registration did not outlive its session")
	}
	reopen()
	if kind, key := u.reservation(); kind != gotgt.PR_TYPE_WRITE_EXCLUSIVE || key != 1 || u.generation() != 0 {
		t.Errorf("after a restart: type %d, key %d, generation %d", kind, key, u.generation())
	}
	u.wantStatus(u.run(u.attach("iqn.2026-11.test:b"), block10(opWrite10, 0, 0, 1), pattern(1, 1), 0), StatusReservationConflict)
	u.wantGood(u.do(block10(opWrite10, 0, 0, 1), pattern(1, 1), 0))

	u.wantGood(u.prOut(u.n, prOutRegister, 0, 1, 1)) // APTPL 0
	reopen()
	if len(u.keys()) != 0 {
		t.Error("registrations outlived a restart without APTPL")
	}
	// A state that cannot be kept is not taken on.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	u.wantIllegal(u.do(cdb, list, 0), gotgt.ASC_INSUFFICIENT_REGISTRATION_RESOURCES)
	if len(u.keys()) != 0 {
		t.Error("a registration that could not be saved is in force")
	}
}

func TestDamagedReservationFile(t *testing.T) {
	for _, content := range []string{"{", `{"registrations":[],"type":1}`, `{"registrations":[{"nexus":{"initiator":"x"},"key":1}],"type":2,"holder":{"initiator":"x"}}`} {
		cfg := testConfig()
		cfg.ReservationFile = filepath.Join(t.TempDir(), "pr.json")
		if err := os.WriteFile(cfg.ReservationFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := newDevice(cfg, &memory{data: make([]byte, 4096)}); err == nil {
			t.Errorf("%s was accepted", content)
		}
	}
}

func TestRegistrationsAreBounded(t *testing.T) {
	u := newUnit(t)
	for i := range maxRegistrations + 1 {
		a := u.prOut(NewNexus(fmt.Sprintf("iqn.2026-11.test:%d", i), [6]byte{}, 1, false), prOutRegister, 0, 0, 1)
		if i < maxRegistrations {
			u.wantGood(a)
		} else {
			u.wantIllegal(a, gotgt.ASC_INSUFFICIENT_REGISTRATION_RESOURCES)
		}
	}
}
