package scsi

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Everything at once, for the race detector: I/O, discards, reservations, mode
// changes, resets, growth, sessions that come and go. Blocks carry their LBA and
// are only ever rewritten whole or zeroed, so that a read shows one of both.
func TestConcurrentCommands(t *testing.T) {
	u := newUnit(t, func(c *Config) { c.ReservationFile = filepath.Join(t.TempDir(), "pr.json") })
	const workers, rounds, span = 8, 300, 4096
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			n := NewNexus(fmt.Sprintf("iqn.2026-11.test:%d", w), [6]byte{}, 1, false)
			u.Attach(n)
			defer u.Detach(n)
			buf := make([]byte, 8*512)
			for range rounds {
				lba, count := uint32(r.IntN(span)), uint16(1+r.IntN(8))
				data := buf[:int(count)*512]
				switch r.IntN(10) {
				case 0, 1, 2:
					for i := range int(count) {
						stamp(data[i*512:][:512], uint64(lba)+uint64(i))
					}
					u.run(n, block10(opWrite10, byte(r.IntN(2))*fuaBit, lba, count), data, 0)
				case 3, 4, 5:
					a := u.run(n, block10(opRead10, 0, lba, count), nil, len(data))
					for i := range a.N / 512 {
						block := a.data[i*512:][:512]
						got := binary.BigEndian.Uint64(block)
						if want := uint64(lba) + uint64(i) + 1; got != want && got != 0 {
							t.Errorf("block %d holds the stamp of %d", want-1, got-1)
						}
					}
				case 6:
					list := unmapList(uint64(lba), uint64(count))
					u.run(n, unmapCDB(list), list, 0)
				case 7:
					u.run(n, block10(opSyncCache10, 0, 0, 0), nil, 0)
					u.run(n, block16(opServiceActionIn16, saGetLBAStatus, uint64(lba), 1024), nil, 1024)
				case 8:
					u.prOut(n, prOutRegisterIgnore, 0, 0, uint64(w+1))
					u.prOut(n, prOutReserve, prKinds[r.IntN(len(prKinds))], uint64(w+1), 0)
					u.prOut(n, prOutPreemptAbort, prKinds[r.IntN(len(prKinds))], uint64(w+1), uint64(1+r.IntN(workers)))
					u.prOut(n, prOutClear, 0, uint64(w+1), 0)
				case 9:
					u.run(n, modeSense6(pageAll, modeCurrent, false), nil, 255)
					u.run(n, inquiryCDB(vpdIdentification, 255), nil, 255)
					u.run(n, cdb6(opReserve6), nil, 0)
					u.run(n, cdb6(opRelease6), nil, 0)
					if r.IntN(10) == 0 {
						u.Reset(n, ResetKind(r.IntN(4)))
						if err := u.Grow(u.Size() + 4096); err != nil && u.Size() < testSize {
							t.Error(err)
						}
					}
				}
			}
		})
	}
	wg.Wait()
}

// stamp fills a block with its LBA plus one.
func stamp(block []byte, lba uint64) {
	for i := 0; i < len(block); i += 8 {
		binary.BigEndian.PutUint64(block[i:], lba+1)
	}
}

// BenchmarkExecute is the data path below the transport: 4 KiB at random.
func BenchmarkExecute(b *testing.B) {
	cfg := testConfig()
	cfg.Path = filepath.Join(b.TempDir(), "disk")
	const size = 256 << 20
	if err := os.WriteFile(cfg.Path, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	d, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for name, op := range map[string]byte{"read": opRead10, "write": opWrite10} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(4096)
			b.RunParallel(func(p *testing.PB) {
				n := NewNexus("iqn.2026-11.test:a", [6]byte{}, 1, false)
				d.Attach(n)
				defer d.Detach(n)
				n.take()
				buf := make([]byte, 4096)
				c := &Command{Nexus: n, CDB: block10(op, 0, 0, 8), In: buf, Out: buf}
				for p.Next() {
					binary.BigEndian.PutUint32(c.CDB[2:], uint32(rand.IntN(size/4096))*8)
					if r := d.Execute(b.Context(), c); r.Status != StatusGood {
						b.Fatalf("status %#x", r.Status)
					}
				}
			})
		})
	}
}
