package scsi

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzExecute throws CDBs and data-out at a unit: whatever they are, there is no
// panic, no access outside the medium, no more data-in than there is room or the
// CDB asks for, sense data exactly with CHECK CONDITION, and afterwards the unit
// works.
func FuzzExecute(f *testing.F) {
	for i := range operations {
		op := &operations[i]
		cdb := append([]byte{}, op.usage...)
		cdb[1] |= op.action
		zero := make([]byte, len(cdb))
		zero[0], zero[1] = cdb[0], op.action
		f.Add(cdb, []byte{}, uint16(0))
		f.Add(zero, make([]byte, 512), uint16(512))
		cdb, list := append([]byte{}, zero...), unmapList(0, 8, 100, 1)
		cdb[len(cdb)-2] = byte(len(list))
		f.Add(cdb, list, uint16(64))
	}
	cdb, list := prOut(prOutRegisterIgnore, 0, 0, 1, 0)
	f.Add(cdb, list, uint16(0))
	cdb, list = prOut(prOutReserve, 1, 1, 0, 0)
	f.Add(cdb, list, uint16(0))
	f.Add([]byte{0x7f, 0, 0, 0, 0, 0, 0, 255, 0, 9}, []byte{}, uint16(9))
	f.Add(modeSelect6(make([]byte, 24)), []byte{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x0a, 10, 6, 0x10, 0, 0x40, 0, 0, 0xff, 0xff, 0, 0}, uint16(0))

	path := filepath.Join(f.TempDir(), "pr.json")
	f.Fuzz(func(t *testing.T, cdb, out []byte, room uint16) {
		cfg := testConfig()
		cfg.ReservationFile, cfg.Removable = path, true
		cfg.OnPanic = func(cdb []byte, v any, stack []byte) { t.Errorf("% x: panic: %v\n%s", cdb, v, stack) }
		_ = os.Remove(path)
		m := &memory{data: make([]byte, 256<<10), runs: []int64{4096, 9000, 70000}}
		m.before = func(call string, off, n int64) error {
			if off < 0 || n < 0 || off > int64(len(m.data)) || off+n > int64(len(m.data)) {
				t.Errorf("% x: %s of %d bytes at %d", cdb, call, n, off)
			}
			return nil
		}
		d, err := newDevice(cfg, m)
		if err != nil {
			t.Fatal(err)
		}
		a, b := NewNexus("iqn.2026-11.test:a", [6]byte{}, 1, false), NewNexus("iqn.2026-11.test:b", [6]byte{}, 1, false)
		for _, n := range []*Nexus{a, b} {
			d.Attach(n)
			n.take()
		}
		outLen, inLen := d.OutLen(cdb), d.InLen(cdb)
		if outLen < -1 || outLen > MaxTransfer || inLen < 0 || inLen > MaxTransfer {
			t.Errorf("% x: OutLen %d, InLen %d", cdb, outLen, inLen)
		}
		for _, lun := range []uint64{0, 1} {
			c := &Command{Nexus: a, LUN: lun, CDB: cdb, Out: out, In: make([]byte, room)}
			r := d.Execute(t.Context(), c)
			if r.N > len(c.In) || r.N < 0 || r.Want < 0 || lun == 0 && r.N > inLen {
				t.Errorf("% x: N %d of %d, InLen %d, Want %d", cdb, r.N, len(c.In), inLen, r.Want)
			}
			if (r.Status == StatusCheckCondition) != (len(r.Sense) >= 8) {
				t.Errorf("% x: status %#x with sense % x", cdb, r.Status, r.Sense)
			}
		}
		d.Detach(a)
		d.Reset(b, LUReset)
		d.ejected.Store(false)
		b.take()
		r := d.Execute(t.Context(), &Command{Nexus: b, CDB: []byte{opInquiry, 0, 0, 0, 36, 0}, In: make([]byte, 36)})
		if r.Status != StatusGood || r.N != 36 {
			t.Errorf("% x: INQUIRY afterwards: status %#x", cdb, r.Status)
		}
		r = d.Execute(t.Context(), &Command{Nexus: b, CDB: block10(opRead10, 0, 0, 1), In: make([]byte, 512)})
		if r.Status != StatusGood && r.Status != StatusReservationConflict {
			t.Errorf("% x: READ afterwards: status %#x, sense % x", cdb, r.Status, r.Sense)
		}
	})
}
