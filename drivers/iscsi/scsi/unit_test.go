package scsi

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

const testSize = 8 << 20

func testConfig() Config {
	return Config{
		TargetName: "iqn.2026-11.local.reconciler:disk", Serial: "0123456789abcdef0123",
		UID: [16]byte{1, 2, 3}, Vendor: "RECON", Product: "DISK", Revision: "1",
	}
}

// unit is a Device under test with one nexus attached and its unit attention
// taken.
type unit struct {
	*Device
	t    *testing.T
	path string
	n    *Nexus
}

// newUnit serves a file of testSize bytes.
func newUnit(t *testing.T, change ...func(*Config)) *unit {
	t.Helper()
	cfg := testConfig()
	cfg.Path = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(cfg.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(cfg.Path, testSize); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(&cfg)
	}
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, d, cfg.Path)
}

func wrap(t *testing.T, d *Device, path string) *unit {
	t.Helper()
	t.Cleanup(func() { _ = d.Close() })
	u := &unit{Device: d, t: t, path: path}
	u.n = u.attach("iqn.2026-11.test:a")
	return u
}

// attach adds a nexus and takes its POWER ON unit attention.
func (u *unit) attach(name string) *Nexus {
	u.t.Helper()
	n := NewNexus(name, [6]byte{0x80, 1}, 1, false)
	u.Attach(n)
	u.wantSense(u.as(n, cdb6(opTestUnitReady)), gotgt.UNIT_ATTENTION, gotgt.ASC_POWERON_RESET)
	return n
}

// answer is a Result together with the data-in.
type answer struct {
	Result
	data []byte
}

func (u *unit) run(n *Nexus, cdb, out []byte, room int) answer {
	in := make([]byte, room)
	r := u.Execute(context.Background(), &Command{Nexus: n, CDB: cdb, Out: out, In: in})
	return answer{r, in[:r.N]}
}

// do runs a command from u.n.
func (u *unit) do(cdb, out []byte, room int) answer { return u.run(u.n, cdb, out, room) }

// as runs a command without data from n.
func (u *unit) as(n *Nexus, cdb []byte) answer { return u.run(n, cdb, nil, 0) }

func (u *unit) wantGood(a answer) answer {
	u.t.Helper()
	if a.Status != StatusGood {
		u.t.Fatalf("status %#x, sense % x; want GOOD", a.Status, a.Sense)
	}
	return a
}

func (u *unit) wantStatus(a answer, status byte) {
	u.t.Helper()
	if a.Status != status {
		u.t.Fatalf("status %#x, sense % x; want status %#x", a.Status, a.Sense, status)
	}
}

func (u *unit) wantSense(a answer, key byte, asc additionalSense) {
	u.t.Helper()
	if a.Status != StatusCheckCondition || len(a.Sense) < 18 {
		u.t.Fatalf("status %#x, sense % x; want CHECK CONDITION %x/%04x", a.Status, a.Sense, key, asc)
	}
	if got := additionalSense(binary.BigEndian.Uint16(a.Sense[12:])); a.Sense[2]&0x0f != key || got != asc {
		u.t.Fatalf("sense %x/%04x, want %x/%04x", a.Sense[2]&0x0f, got, key, asc)
	}
}

func (u *unit) wantIllegal(a answer, asc additionalSense) {
	u.t.Helper()
	u.wantSense(a, gotgt.ILLEGAL_REQUEST, asc)
}

// file returns n bytes at off of the volume itself.
func (u *unit) file(off, n int64) []byte {
	u.t.Helper()
	f, err := os.Open(u.path)
	if err != nil {
		u.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		u.t.Fatal(err)
	}
	return b
}

func cdb6(op byte) []byte { return []byte{op, 0, 0, 0, 0, 0} }

// block10 is a CDB of the READ(10) layout.
func block10(op, flags byte, lba uint32, blocks uint16) []byte {
	c := make([]byte, 10)
	c[0], c[1] = op, flags
	binary.BigEndian.PutUint32(c[2:], lba)
	binary.BigEndian.PutUint16(c[7:], blocks)
	return c
}

func block12(op, flags byte, lba, blocks uint32) []byte {
	c := make([]byte, 12)
	c[0], c[1] = op, flags
	binary.BigEndian.PutUint32(c[2:], lba)
	binary.BigEndian.PutUint32(c[6:], blocks)
	return c
}

func block16(op, flags byte, lba uint64, blocks uint32) []byte {
	c := make([]byte, 16)
	c[0], c[1] = op, flags
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint32(c[10:], blocks)
	return c
}

func inquiryCDB(page byte, allocation uint16) []byte {
	c := cdb6(opInquiry)
	if page != 0xff {
		c[1], c[2] = 1, page
	}
	binary.BigEndian.PutUint16(c[3:], allocation)
	return c
}

func pattern(b byte, blocks int) []byte { return bytes.Repeat([]byte{b}, blocks*512) }

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
