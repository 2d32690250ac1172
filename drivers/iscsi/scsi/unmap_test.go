package scsi

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"syscall"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// unmapList is an UNMAP parameter list of (LBA, blocks) pairs.
func unmapList(pairs ...uint64) []byte {
	n := len(pairs) / 2 * 16
	b := make([]byte, 8+n)
	binary.BigEndian.PutUint16(b, uint16(6+n))
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	for i := 0; i < len(pairs); i += 2 {
		binary.BigEndian.PutUint64(b[8+8*i:], pairs[i])
		binary.BigEndian.PutUint32(b[16+8*i:], uint32(pairs[i+1]))
	}
	return b
}

func unmapCDB(list []byte) []byte { return block10(opUnmap, 0, 0, uint16(len(list))) }

// fill writes b over the whole volume.
func (u *unit) fillAll(b byte) {
	u.t.Helper()
	u.wantGood(u.do(block16(opWrite16, 0, 0, testSize/512), bytes.Repeat([]byte{b}, testSize), 0))
}

// allocated returns the bytes of disk space that the volume takes.
func (u *unit) allocated() int64 {
	u.t.Helper()
	u.wantGood(u.do(block10(opSyncCache10, 0, 0, 0), nil, 0))
	st, err := os.Stat(u.path)
	if err != nil {
		u.t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// check compares the whole volume with want, block by block.
func (u *unit) check(want func(lba int) byte) {
	u.t.Helper()
	all := u.file(0, testSize)
	for lba := range testSize / 512 {
		if !bytes.Equal(all[lba*512:][:512], pattern(want(lba), 1)) {
			u.t.Fatalf("block %d begins with %02x, want %02x", lba, all[lba*512], want(lba))
		}
	}
}

// SBC-4 §5.35.
func TestUnmap(t *testing.T) {
	u := newUnit(t)
	u.fillAll('a')
	before := u.allocated()
	list := unmapList(0, 8, 13, 1, 4096, 4096, 2000, 0, testSize/512, 0, testSize/512-1, 1)
	u.wantGood(u.do(unmapCDB(list), list, 0))
	u.check(func(lba int) byte {
		if lba < 8 || lba == 13 || lba >= 4096 && lba < 8192 || lba == testSize/512-1 {
			return 0
		}
		return 'a'
	})
	if got := before - u.allocated(); got < 2<<20 {
		t.Errorf("UNMAP of 2 MiB gave %d bytes back", got)
	}
}

func TestUnmapRefuses(t *testing.T) {
	u := newUnit(t)
	u.fillAll('a')
	last := uint64(testSize / 512)
	for _, c := range []struct {
		name string
		list []byte
		asc  additionalSense
	}{
		{"beyond the end", unmapList(0, 8, last-1, 2), gotgt.ASC_LBA_OUT_OF_RANGE},
		{"overflow", unmapList(0, 8, ^uint64(0), 2), gotgt.ASC_LBA_OUT_OF_RANGE},
		{"too many descriptors", unmapList(make([]uint64, 2*(maxUnmapDescriptors+1))...), ascInvalidFieldInParameters},
		{"cut header", unmapList()[:7], gotgt.ASC_PARAMETER_LIST_LENGTH_ERR},
	} {
		u.wantIllegal(u.do(unmapCDB(c.list), c.list, 0), c.asc)
	}
	list := unmapList(0, 8)
	u.wantIllegal(u.do(unmapCDB(list), list[:20], 0), gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
	u.wantIllegal(u.do(block10(opUnmap, 1, 0, uint16(len(list))), list, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantGood(u.do(unmapCDB(nil), nil, 0))
	list = unmapList(0, 8)
	binary.BigEndian.PutUint16(list[2:], 15) // less than a descriptor: nothing to do
	u.wantGood(u.do(unmapCDB(list), list, 0))
	u.check(func(int) byte { return 'a' })
}

func TestUnmapBlockCountLimit(t *testing.T) {
	u := newUnit(t, func(c *Config) { truncate(t, c.Path, 2*maxUnmapBlocks*512) })
	list := unmapList(0, maxUnmapBlocks)
	u.wantGood(u.do(unmapCDB(list), list, 0))
	list = unmapList(0, maxUnmapBlocks, maxUnmapBlocks, 1)
	u.wantIllegal(u.do(unmapCDB(list), list, 0), ascInvalidFieldInParameters)
	u.wantIllegal(u.do(block16(opWriteSame16, 0, 0, maxWriteSame/512+1), pattern(0, 1), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	u.wantIllegal(u.do(block16(opWriteSame16, 0, 0, 0), pattern(0, 1), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
}

// SBC-4, WRITE SAME: stock gotgt answers GOOD and writes nothing.
func TestWriteSame(t *testing.T) {
	const length = testSize / 512
	for _, c := range []struct {
		name     string
		cdb      []byte
		data     []byte
		from, to int
		want     byte
		frees    bool
	}{
		{name: "10", cdb: block10(opWriteSame10, 0, 5, 9), data: pattern('x', 1), from: 5, to: 14, want: 'x'},
		{name: "16", cdb: block16(opWriteSame16, 0, 5, 5000), data: pattern('x', 1), from: 5, to: 5005, want: 'x'},
		{name: "to the end", cdb: block16(opWriteSame16, 0, 777, 0), data: pattern('x', 1), from: 777, to: length, want: 'x'},
		{name: "zeros", cdb: block10(opWriteSame10, 0, 3, 4000), data: pattern(0, 1), from: 3, to: 4003},
		{name: "unmap 10", cdb: block10(opWriteSame10, wsUnmap, 3, 8000), data: pattern(0, 1), from: 3, to: 8003, frees: true},
		{name: "unmap 16", cdb: block16(opWriteSame16, wsUnmap, 3, 8000), data: pattern(0, 1), from: 3, to: 8003, frees: true},
		{name: "unmap to the end", cdb: block16(opWriteSame16, wsUnmap, 1, 0), data: pattern(0, 1), from: 1, to: length, frees: true},
		{name: "unmap with data", cdb: block16(opWriteSame16, wsUnmap, 3, 80), data: pattern('d', 1), from: 3, to: 83, want: 'd'},
		{name: "no data-out", cdb: block16(opWriteSame16, wsNoData, 3, 80), from: 3, to: 83},
		{name: "unmap, no data-out", cdb: block16(opWriteSame16, wsNoData|wsUnmap, 8, 8000), from: 8, to: 8008, frees: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUnit(t)
			u.fillAll('a')
			before := u.allocated()
			a := u.wantGood(u.do(c.cdb, c.data, 0))
			if a.Want != len(c.data) {
				t.Errorf("Want %d, data-out has %d", a.Want, len(c.data))
			}
			u.check(func(lba int) byte {
				if lba >= c.from && lba < c.to {
					return c.want
				}
				return 'a'
			})
			if freed := before - u.allocated(); (freed > 1<<20) != c.frees {
				t.Errorf("%d bytes were given back", freed)
			}
		})
	}
}

func TestWriteSameRefuses(t *testing.T) {
	u := newUnit(t)
	u.fillAll('a')
	one := pattern('x', 1)
	for _, flags := range []byte{0x20, wsAnchor, wsAnchor | wsUnmap, 0x04, 0x02} {
		u.wantIllegal(u.do(block10(opWriteSame10, flags, 0, 1), one, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
		u.wantIllegal(u.do(block16(opWriteSame16, flags, 0, 1), one, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	}
	for _, data := range [][]byte{nil, one[:511], pattern('x', 2)} {
		u.wantIllegal(u.do(block10(opWriteSame10, wsUnmap, 0, 1), data, 0), ascIncompleteInitiatorData)
	}
	u.wantIllegal(u.do(block16(opWriteSame16, wsNoData, 0, 1), one, 0), ascIncompleteInitiatorData)
	u.wantIllegal(u.do(block10(opWriteSame10, 0, testSize/512, 1), one, 0), gotgt.ASC_LBA_OUT_OF_RANGE)
	u.wantIllegal(u.do(block16(opWriteSame16, 0, testSize/512-1, 2), one, 0), gotgt.ASC_LBA_OUT_OF_RANGE)
	u.check(func(int) byte { return 'a' })
}

func TestLongCommandsStopWhenCancelled(t *testing.T) {
	u := newUnit(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	list := unmapList(0, 8)
	for _, c := range []Command{
		{CDB: block16(opWriteSame16, 0, 0, 0), Out: pattern('x', 1)},
		{CDB: block16(opVerify16, 0, 0, 100)},
		{CDB: unmapCDB(list), Out: list},
		{CDB: block10(opWrite10, 0, 0, 1), Out: pattern('x', 1)},
	} {
		c.Nexus = u.n
		if r := u.Execute(ctx, &c); r.Status != StatusTaskAborted {
			t.Errorf("% x: status %#x", c.CDB, r.Status)
		}
	}
	u.check(func(int) byte { return 0 })
	// Between two chunks as well.
	ctx = &countdown{Context: t.Context(), left: 3}
	r := u.Execute(ctx, &Command{Nexus: u.n, CDB: block16(opWriteSame16, 0, 0, 0), Out: pattern('x', 1)})
	if r.Status != StatusTaskAborted {
		t.Fatalf("status %#x", r.Status)
	}
	u.check(func(lba int) byte {
		if lba < 2*chunk/512 {
			return 'x'
		}
		return 0
	})
}

// countdown is a context that is cancelled when Err was asked left times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

type lbaRun struct {
	lba    uint64
	blocks uint32
	status byte
}

func (u *unit) lbaStatus(lba uint64, allocation uint32) []lbaRun {
	u.t.Helper()
	cdb := block16(opServiceActionIn16, saGetLBAStatus, lba, allocation)
	d := u.wantGood(u.do(cdb, nil, int(allocation))).data
	if int(binary.BigEndian.Uint32(d)) != len(d)-4 {
		u.t.Fatalf("parameter data length %d of %d bytes", binary.BigEndian.Uint32(d), len(d))
	}
	var runs []lbaRun
	for d = d[8:]; len(d) > 0; d = d[16:] {
		runs = append(runs, lbaRun{binary.BigEndian.Uint64(d), binary.BigEndian.Uint32(d[8:]), d[12]})
	}
	return runs
}

// SBC-4, GET LBA STATUS: what is reported covers the medium without a gap and is true.
func TestGetLBAStatus(t *testing.T) {
	u := newUnit(t)
	u.wantGood(u.do(block10(opWrite10, 0, 2048, 16), pattern('x', 16), 0))
	u.wantGood(u.do(block10(opWrite10, 0, 8192, 8), pattern('x', 8), 0))
	u.wantGood(u.do(block10(opSyncCache10, 0, 0, 0), nil, 0))
	runs := u.lbaStatus(0, 8+16*64)
	next := uint64(0)
	for i, r := range runs {
		if r.lba != next || r.blocks == 0 || i > 0 && runs[i-1].status == r.status {
			t.Fatalf("runs %v", runs)
		}
		next += uint64(r.blocks)
		data := u.file(int64(r.lba)*512, int64(r.blocks)*512)
		if r.status == lbaDeallocated && len(bytes.Trim(data, "\x00")) != 0 {
			t.Fatalf("run %v is not zeros", r)
		}
	}
	if next != testSize/512 || len(runs) != 5 || runs[1].status != lbaMapped {
		t.Fatalf("runs %v", runs)
	}
	if got := u.lbaStatus(2050, 24); len(got) != 1 || got[0].lba != 2050 || got[0].status != lbaMapped {
		t.Errorf("at 2050: %v", got)
	}
	if got := u.lbaStatus(testSize/512-1, 24); len(got) != 1 || got[0] != (lbaRun{testSize/512 - 1, 1, lbaDeallocated}) {
		t.Errorf("at the last block: %v", got)
	}
	u.wantIllegal(u.do(block16(opServiceActionIn16, saGetLBAStatus, testSize/512, 24), nil, 24), gotgt.ASC_LBA_OUT_OF_RANGE)
}

// A block with any data in it is mapped.
func TestGetLBAStatusRounds(t *testing.T) {
	b := &memory{data: make([]byte, 64<<10), runs: []int64{700, 900, 5000, 6144}}
	d, err := newDevice(testConfig(), b)
	if err != nil {
		t.Fatal(err)
	}
	u := wrap(t, d, "")
	want := []lbaRun{{0, 1, 1}, {1, 1, 0}, {2, 7, 1}, {9, 3, 0}, {12, 116, 1}}
	got := u.lbaStatus(0, 4096)
	if len(got) != len(want) {
		t.Fatalf("runs %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("runs %v, want %v", got, want)
		}
	}
}
