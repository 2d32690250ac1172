package scsi

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

func cawCDB(flags byte, lba uint64, blocks byte) []byte {
	c := block16(opCompareAndWrite, flags, lba, 0)
	c[13] = blocks
	return c
}

// SBC-4 §5.3.
func TestCompareAndWrite(t *testing.T) {
	u := newUnit(t)
	u.fillAll('a')
	for _, flags := range []byte{0, dpoBit, fuaBit} {
		u.wantGood(u.do(cawCDB(flags, 10, 2), append(pattern('a', 2), pattern('b', 2)...), 0))
		u.wantGood(u.do(cawCDB(flags, 10, 2), append(pattern('b', 2), pattern('a', 2)...), 0))
	}
	a := u.wantGood(u.do(cawCDB(0, testSize/512-255, 255), append(pattern('a', 255), pattern('z', 255)...), 0))
	if a.Want != 2*255*512 {
		t.Errorf("Want %d", a.Want)
	}
	data := append(pattern('a', 2), pattern('b', 2)...)
	data[600] = '?'
	u.wantMiscompare(u.do(cawCDB(0, 10, 2), data, 0), 600)
	if u.file(10*512, 1)[0] != 'a' {
		t.Error("a miscompare wrote")
	}
	u.wantGood(u.do(cawCDB(0, 10, 0), nil, 0))
	u.wantIllegal(u.do(cawCDB(0x20, 10, 1), pattern('a', 2), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.do(cawCDB(0, 10, 1), pattern('a', 4), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.do(cawCDB(0, 10, 3), pattern('a', 4), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.do(cawCDB(0, 10, 0), pattern('a', 512), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.do(cawCDB(0, testSize/512-1, 2), pattern('a', 4), 0), gotgt.ASC_LBA_OUT_OF_RANGE)
}

// SBC-4: ORWRITE.
func TestOrWrite(t *testing.T) {
	u := newUnit(t)
	const n = 3*chunk/512 + 5
	u.wantGood(u.do(block16(opWrite16, 0, 3, n), pattern(0x0f, n), 0))
	u.wantGood(u.do(block16(opOrWrite16, 0, 3, n), pattern(0x35, n), 0))
	u.wantGood(u.do(block16(opOrWrite16, dpoBit|fuaBit, 3, 1), pattern(0x40, 1), 0))
	u.check(func(lba int) byte {
		switch {
		case lba == 3:
			return 0x7f
		case lba > 3 && lba < 3+n:
			return 0x3f
		}
		return 0
	})
	u.wantGood(u.do(block16(opOrWrite16, 0, 3, 0), nil, 0))
	u.wantIllegal(u.do(block16(opOrWrite16, 0x20, 3, 1), pattern(1, 1), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.do(block16(opOrWrite16, 0, 3, 2), pattern(1, 1), 0), ascIncompleteInitiatorData)
	u.wantIllegal(u.do(block16(opOrWrite16, 0, testSize/512, 1), pattern(1, 1), 0), gotgt.ASC_LBA_OUT_OF_RANGE)
}

// SBC-4, uninterrupted sequences on LBA ranges: counters kept with COMPARE AND
// WRITE and with ORWRITE by several initiators at once lose nothing, while others
// read and write beside them.
func TestCompareAndWriteIsAtomic(t *testing.T) {
	u := newUnit(t)
	const workers, rounds = 4, 100
	var wg sync.WaitGroup
	for w := range workers {
		n := u.attach("iqn.2026-11.test:" + string(rune('p'+w)))
		wg.Go(func() {
			for range rounds {
				for {
					old := u.run(n, block10(opRead10, 0, 64, 1), nil, 512)
					next := bytes.Clone(old.data)
					binary.BigEndian.PutUint64(next, binary.BigEndian.Uint64(next)+1)
					a := u.run(n, cawCDB(0, 64, 1), append(old.data, next...), 0)
					if a.Status == StatusGood {
						break
					}
					if a.Status != StatusCheckCondition || a.Sense[2] != gotgt.MISCOMPARE {
						t.Errorf("status %#x, sense % x", a.Status, a.Sense)
						return
					}
				}
			}
		})
		wg.Go(func() {
			bits := pattern(0, 1)
			for i := range 512 {
				clear(bits)
				bits[i] = 1 << w
				if a := u.run(n, block16(opOrWrite16, 0, 65, 1), bits, 0); a.Status != StatusGood {
					t.Errorf("ORWRITE: status %#x", a.Status)
					return
				}
				if a := u.run(n, block10(opWrite10, 0, 66, 1), bits, 0); a.Status != StatusGood {
					t.Errorf("WRITE: status %#x", a.Status)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := binary.BigEndian.Uint64(u.file(64*512, 8)); got != workers*rounds {
		t.Errorf("the counter is at %d, want %d", got, workers*rounds)
	}
	if got := u.file(65*512, 512); !bytes.Equal(got, pattern(1<<workers-1, 1)) {
		t.Errorf("bits were lost: % x", got[:32])
	}
}

// While a COMPARE AND WRITE is between its comparison and its write, a WRITE of
// its range waits and one elsewhere does not.
func TestCompareAndWriteKeepsWritesOut(t *testing.T) {
	m := &memory{data: make([]byte, 16<<20)}
	d, err := newDevice(testConfig(), m)
	if err != nil {
		t.Fatal(err)
	}
	u := wrap(t, d, "")
	compared, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.intercept(func(call string, off, _ int64) error {
		if call == "write" && off == 512 {
			once.Do(func() {
				close(compared)
				<-release
			})
		}
		return nil
	})
	done := make(chan answer, 1)
	go func() { done <- u.do(cawCDB(0, 1, 1), append(pattern(0, 1), pattern('c', 1)...), 0) }()
	await(t, compared, "the comparison")

	beside := make(chan answer, 1)
	go func() { beside <- u.do(block10(opWrite10, 0, 8192, 1), pattern('w', 1), 0) }()
	u.wantGood(await(t, beside, "a write elsewhere"))

	within := make(chan answer, 1)
	go func() { within <- u.do(block10(opWrite10, 0, 1, 1), pattern('w', 1), 0) }()
	select {
	case <-within:
		t.Error("a write of the same block did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	u.wantGood(await(t, done, "COMPARE AND WRITE"))
	u.wantGood(await(t, within, "the write of the same block"))
	if m.data[512] != 'w' {
		t.Errorf("the block holds %q: the later write is lost", m.data[512])
	}
}

// await receives from c and fails the test when nothing comes.
func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("waited 10 s for %s", what)
		panic("unreachable")
	}
}
