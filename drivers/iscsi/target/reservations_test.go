package target

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"reconciler/drivers/iscsi/target/pdu"
)

// reserve registers with APTPL and takes a reservation that keeps all others out.
func (i *ini) reserve(key byte) {
	i.t.Helper()
	const exclusiveAccess = 3
	register, reserve := make([]byte, 24), make([]byte, 24)
	register[15], register[20] = key, 1
	reserve[7] = key
	for _, c := range []struct{ action, kind byte }{{0, 0}, {1, exclusiveAccess}} {
		list := register
		if c.action == 1 {
			list = reserve
		}
		cdb := make([]byte, 16)
		cdb[0], cdb[1], cdb[2], cdb[8] = 0x5f, c.action, c.kind, 24
		i.must(i.finish(i.start(pdu.Final|pdu.CommandWrite, cdb, 24, list), list))
	}
}

// What an access reserved ends with it, whichever way it ends; the machine that gets
// the disk next is not stopped by it.
func TestReservationsEndWithTheirEpoch(t *testing.T) {
	lent, machine := Access{Epoch: 1, Initiators: []string{name(1)}}, Access{Epoch: 2, Initiators: []string{name(2)}}
	replace := func(b *bed) { b.grant(machine) }
	for _, c := range []struct {
		name string
		end  func(b *bed)
	}{
		{"replaced", replace},
		{"fenced", func(b *bed) {
			if err := b.client.Fence(b.t.Context(), testIQN, 1); err != nil {
				b.t.Fatal(err)
			}
			replace(b)
		}},
		{"a crash before they ended", func(b *bed) {
			if err := b.stop(); err != nil {
				b.t.Fatal(err)
			}
			st, _, err := openStore(filepath.Join(b.dir, "s", "exports"))
			if err != nil {
				b.t.Fatal(err)
			}
			e, _ := st.get(testIQN)
			e.fence(1)
			if err := errors.Join(st.update(testIQN, &e), st.dir.Close()); err != nil {
				b.t.Fatal(err)
			}
			b.client, b.stop = serveTest(b.t, b.dir, nil)
			replace(b)
		}},
		{"the export removed and made again", func(b *bed) {
			if err := b.client.Remove(b.t.Context(), testIQN); err != nil {
				b.t.Fatal(err)
			}
			if err := b.client.Put(b.t.Context(), b.export()); err != nil {
				b.t.Fatal(err)
			}
			replace(b)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, nil)
			b.grant(lent)
			i := b.loginAs(name(1))
			i.reserve(7)
			// They outlive the session, and a restart: only the right to come back ends them.
			i.nc.Close()
			waitFor(t, "the session's end", func() bool { return len(b.status().Sessions) == 0 })
			if err := b.stop(); err != nil {
				t.Fatal(err)
			}
			b.client, b.stop = serveTest(t, b.dir, nil)
			if r := b.status().Reservations; len(r) != 1 || r[0].Owner != 1 || r[0].Type != "ExclusiveAccess" || !r[0].Kept {
				t.Fatalf("reservations %+v", r)
			}
			c.end(b)
			if r := b.status().Reservations; len(r) != 0 {
				t.Errorf("left is %+v", r)
			}
			m := b.loginAs(name(2))
			m.write(0, pattern(512, 1))
			m.read(0, 1)
			if _, err := os.Stat(reservationFile(filepath.Join(b.dir, "s"), testIQN)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("their file: %v", err)
			}
		})
	}
}

// An operator can end those of an access that goes on, and a record of them that is
// damaged, which keeps the volume from being served.
func TestClearReservations(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{name(1), name(2)}})
	one, two := b.loginAs(name(1)), b.loginAs(name(2))
	one.reserve(7)
	if r, err := two.finish(two.start(pdu.Final|pdu.CommandRead, rw10(opRead10, 0, 1), 512, nil), nil); err != nil || r.status != 0x18 {
		t.Errorf("beside a reservation: status %#x, %v", r.status, err)
	}
	if err := b.client.ClearReservations(t.Context(), testIQN); err != nil {
		t.Fatal(err)
	}
	two.read(0, 1)
	one.ready().read(0, 1)

	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(reservationFile(filepath.Join(b.dir, "s"), testIQN), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.client, b.stop = serveTest(t, b.dir, nil)
	if st := b.status(); st.Error == "" {
		t.Error("a damaged record of reservations is taken for none")
	}
	if err := b.client.ClearReservations(t.Context(), testIQN); err != nil {
		t.Fatal(err)
	}
	if st := b.status(); st.Error != "" {
		t.Error(st.Error)
	}
	b.loginAs(name(1)).read(0, 1)
	// One that a later build wrote is left to that.
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	later := reservationFile(filepath.Join(b.dir, "s"), testIQN)
	if err := os.WriteFile(later, []byte(`{"version":99,"registrations":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.client, b.stop = serveTest(t, b.dir, nil)
	if err := b.client.ClearReservations(t.Context(), testIQN); err == nil {
		t.Error("a record of a later build was cleared")
	}
	if _, err := os.Stat(later); err != nil {
		t.Error(err)
	}
	// They stay, too, where the volume itself is not there.
	if err := errors.Join(b.stop(), os.WriteFile(later, []byte(`{"version":1,"registrations":[]}`), 0o600), os.Rename(b.volume, b.volume+".away")); err != nil {
		t.Fatal(err)
	}
	b.client, b.stop = serveTest(t, b.dir, nil)
	if err := b.client.ClearReservations(t.Context(), testIQN); !errors.Is(err, ErrConflict) {
		t.Errorf("of a volume that is not there: %v", err)
	}
	if _, err := os.Stat(later); err != nil {
		t.Error(err)
	}
	if err := b.client.ClearReservations(t.Context(), testIQN+"2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of what is not exported: %v", err)
	}
}
