package scsi

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// attachOwned adds a nexus of an owner.
func (u *unit) attachOwned(name string, owner uint64) *Nexus {
	n := NewNexus(name, [6]byte{0x80, 1}, 1, false)
	n.Owner = owner
	u.Attach(n)
	u.wantSense(u.as(n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_POWERON_RESET)
	return n
}

func only(owners ...uint64) func(string, uint64) bool {
	return func(_ string, owner uint64) bool {
		for _, o := range owners {
			if o == owner {
				return true
			}
		}
		return false
	}
}

// What an owner left ends with it, of every type, on disk too, and nothing else does.
func TestKeep(t *testing.T) {
	for kind, name := range kinds {
		t.Run(name, func(t *testing.T) {
			saved := filepath.Join(t.TempDir(), "pr.json")
			u := newUnit(t, func(c *Config) { c.ReservationFile = saved })
			lent, machine, third := u.attachOwned("iqn.2026-11.test:lent", 7), u.attachOwned("iqn.2026-11.test:vm", 8), u.attachOwned("iqn.2026-11.test:c", 9)
			for i, n := range []*Nexus{lent, machine} {
				cdb, list := prOut(prOutRegister, 0, 0, uint64(i+1), 1)
				u.wantGood(u.run(n, cdb, list, 0))
			}
			u.wantGood(u.prOut(lent, prOutReserve, kind, 1, 0))
			u.wantStatus(u.run(third, block10(opWrite10, 0, 0, 1), pattern(1, 1), 0), StatusReservationConflict)
			list := u.Reservations()
			if len(list) != 2 || list[0] != (Reservation{"iqn.2026-11.test:lent", 7, 1, name, true}) || list[1].Owner != 8 {
				t.Errorf("listed as %+v", list)
			}
			if err := u.Keep(only(7, 8, 9)); err != nil || len(u.Reservations()) != 2 {
				t.Errorf("%+v, %v", u.Reservations(), err)
			}
			u.Detach(lent)
			if err := u.Keep(only(8, 9)); err != nil {
				t.Fatal(err)
			}
			if registrantsOnly(kind) {
				u.wantSense(u.as(machine, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_RESERVATIONS_RELEASED)
			}
			u.wantGood(u.run(machine, block10(opWrite10, 0, 0, 1), pattern(2, 1), 0))
			if !allRegistrants(kind) { // the machine, being registered, holds it then
				u.wantGood(u.run(third, block10(opWrite10, 0, 0, 1), pattern(3, 1), 0))
			}
			if list := u.Reservations(); len(list) != 1 || list[0].Owner != 8 {
				t.Errorf("left is %+v", list)
			}
			b, err := os.ReadFile(saved)
			if err != nil || strings.Contains(string(b), "lent") || !strings.Contains(string(b), "vm") {
				t.Errorf("the file says %s, %v", b, err)
			}
			if err := u.Keep(only()); err != nil || len(u.Reservations()) != 0 {
				t.Errorf("%+v, %v", u.Reservations(), err)
			}
			if _, err := os.Stat(saved); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the file stays: %v", err)
			}
		})
	}
}

// Registrations of a file that knows no owners are told by their name.
func TestKeepByName(t *testing.T) {
	saved := filepath.Join(t.TempDir(), "pr.json")
	old := `{"registrations":[{"nexus":{"initiator":"iqn.2026-11.test:A","isid":[128,1,0,0,0,0],"targetPortalGroup":1},"key":1},` +
		`{"nexus":{"initiator":"iqn.2026-11.test:b","isid":[128,1,0,0,0,0],"targetPortalGroup":1},"key":2}],"type":1,` +
		`"holder":{"initiator":"iqn.2026-11.test:B","isid":[128,1,0,0,0,0],"targetPortalGroup":1}}`
	if err := os.WriteFile(saved, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	u := newUnit(t, func(c *Config) { c.ReservationFile = saved })
	u.wantStatus(u.do(block10(opWrite10, 0, 0, 1), pattern(1, 1), 0), StatusReservationConflict)
	if err := u.Keep(func(name string, owner uint64) bool { return owner == 0 && name == "iqn.2026-11.test:a" }); err != nil {
		t.Fatal(err)
	}
	u.wantGood(u.do(block10(opWrite10, 0, 0, 1), pattern(1, 1), 0))
	u.wantGood(u.prOut(u.n, prOutRegister, 0, 1, 5)) // whose it is by any spelling
	if list := u.Reservations(); len(list) != 1 || list[0].Initiator != "iqn.2026-11.test:a" {
		t.Errorf("left is %+v", list)
	}
}

func TestClearReservations(t *testing.T) {
	u := newUnit(t)
	b := u.attach("iqn.2026-11.test:b")
	u.wantGood(u.as(b, cdb6(opReserve6)))
	if list := u.Reservations(); len(list) != 1 || list[0].Type != "Reserve" {
		t.Errorf("listed as %+v", list)
	}
	u.wantStatus(u.do(block10(opRead10, 0, 0, 1), nil, 512), StatusReservationConflict)
	if err := u.ClearReservations(); err != nil {
		t.Fatal(err)
	}
	u.wantGood(u.do(block10(opRead10, 0, 0, 1), nil, 512))
	u.register(b, 1)
	u.wantGood(u.prOut(b, prOutReserve, gotgt.PR_TYPE_EXCLUSIVE_ACCESS, 1, 0))
	u.wantStatus(u.do(block10(opRead10, 0, 0, 1), nil, 512), StatusReservationConflict)
	if err := u.ClearReservations(); err != nil || len(u.Reservations()) != 0 {
		t.Fatalf("%+v, %v", u.Reservations(), err)
	}
	u.wantSense(u.as(b, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_RESERVATIONS_PREEMPTED)
	u.wantGood(u.do(block10(opRead10, 0, 0, 1), nil, 512))
}

// A file that cannot be written keeps nobody out of what is served.
func TestKeepWithoutItsFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pr")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	u := newUnit(t, func(c *Config) { c.ReservationFile = filepath.Join(dir, "f") })
	for i, name := range []string{"iqn.2026-11.test:b", "iqn.2026-11.test:c"} {
		cdb, list := prOut(prOutRegister, 0, 0, 1, 1)
		u.wantGood(u.run(u.attachOwned(name, uint64(i)+1), cdb, list, 0))
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := u.Keep(only(1)); err == nil {
		t.Error("a file that could not be written is no error")
	}
	if list := u.Reservations(); len(list) != 1 || list[0].Owner != 1 {
		t.Errorf("left is %+v", list)
	}
}
