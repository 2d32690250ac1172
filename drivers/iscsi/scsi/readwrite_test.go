package scsi

import (
	"bytes"
	"encoding/binary"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// readWriteCDBs builds READ, WRITE of each CDB length.
var readWriteCDBs = []struct {
	name        string
	read, write func(flags byte, lba uint32, blocks uint16) []byte
}{
	{"6", short(opRead6), short(opWrite6)},
	{"10", ten(opRead10), ten(opWrite10)},
	{"12", twelve(opRead12), twelve(opWrite12)},
	{"16", sixteen(opRead16), sixteen(opWrite16)},
}

func short(op byte) func(byte, uint32, uint16) []byte {
	return func(_ byte, lba uint32, blocks uint16) []byte {
		c := make([]byte, 6)
		binary.BigEndian.PutUint32(c, lba)
		c[0], c[4] = op, byte(blocks)
		return c
	}
}

func ten(op byte) func(byte, uint32, uint16) []byte {
	return func(flags byte, lba uint32, blocks uint16) []byte { return block10(op, flags, lba, blocks) }
}

func twelve(op byte) func(byte, uint32, uint16) []byte {
	return func(flags byte, lba uint32, blocks uint16) []byte { return block12(op, flags, lba, uint32(blocks)) }
}

func sixteen(op byte) func(byte, uint32, uint16) []byte {
	return func(flags byte, lba uint32, blocks uint16) []byte {
		return block16(op, flags, uint64(lba), uint32(blocks))
	}
}

// SBC-4: READ, and WRITE §5.40 to §5.42.
func TestReadWrite(t *testing.T) {
	for _, k := range readWriteCDBs {
		t.Run(k.name, func(t *testing.T) {
			u := newUnit(t)
			data := append(pattern('a', 1), pattern('b', 2)...)
			for _, flags := range []byte{0, dpoBit, fuaBit, dpoBit | fuaBit} {
				u.wantGood(u.do(k.write(flags, 7, 3), data, 0))
				a := u.wantGood(u.do(k.read(flags, 7, 3), nil, len(data)))
				if !bytes.Equal(a.data, data) {
					t.Fatal("what was read is not what was written")
				}
			}
			if !bytes.Equal(u.file(7*512, 3*512), data) {
				t.Fatal("the file holds something else")
			}

			last := uint32(testSize/512 - 1)
			u.wantGood(u.do(k.write(0, last, 1), pattern('z', 1), 0))
			u.wantIllegal(u.do(k.write(0, last, 2), pattern('z', 2), 0), gotgt.ASC_LBA_OUT_OF_RANGE)
			u.wantIllegal(u.do(k.read(0, last, 2), nil, 1024), gotgt.ASC_LBA_OUT_OF_RANGE)
			u.wantIllegal(u.do(k.read(0, last+1, 1), nil, 512), gotgt.ASC_LBA_OUT_OF_RANGE)
			if k.name == "6" {
				a := u.wantGood(u.do(k.read(0, 0, 0), nil, 256*512))
				if a.N != 256*512 {
					t.Fatalf("READ(6) of length 0 moved %d bytes, want 256 blocks", a.N)
				}
				return
			}
			if a := u.wantGood(u.do(k.read(0, 0, 0), nil, 512)); a.N != 0 || a.Want != 0 {
				t.Fatalf("a transfer length of 0 moved %d bytes", a.N)
			}
			u.wantIllegal(u.do(k.read(0x20, 0, 1), nil, 512), gotgt.ASC_INVALID_FIELD_IN_CDB)
			u.wantIllegal(u.do(k.write(0x20, 0, 1), pattern(0, 1), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
		})
	}
}

func TestReadWriteAtTheEndOfTheAddressSpace(t *testing.T) {
	u := newUnit(t)
	for _, lba := range []uint64{^uint64(0), 1 << 63, ^uint64(0) >> 9} {
		u.wantIllegal(u.do(block16(opRead16, 0, lba, 2), nil, 1024), gotgt.ASC_LBA_OUT_OF_RANGE)
		u.wantIllegal(u.do(block16(opWrite16, 0, lba, 2), pattern(0, 2), 0), gotgt.ASC_LBA_OUT_OF_RANGE)
	}
}

// RFC 7143 §11.4.5.1: an expected length that is not the CDB's.
func TestTransferLengthMismatch(t *testing.T) {
	u := newUnit(t)
	u.wantGood(u.do(block10(opWrite10, 0, 0, 4), pattern('a', 4), 0))

	a := u.wantGood(u.do(block10(opWrite10, 0, 0, 2), pattern('b', 3), 0))
	if a.Want != 1024 || !bytes.Equal(u.file(0, 2048), append(pattern('b', 2), pattern('a', 2)...)) {
		t.Fatalf("data past the transfer length was written, or Want %d is not 1024", a.Want)
	}
	a = u.wantGood(u.do(block10(opWrite10, 0, 0, 2), pattern('c', 1), 0))
	if a.Want != 1024 || !bytes.Equal(u.file(0, 1024), append(pattern('c', 1), pattern('b', 1)...)) {
		t.Fatal("a write cut short at a block was not written up to there")
	}
	a = u.do(block10(opWrite10, 0, 0, 2), pattern('d', 2)[:700], 0)
	u.wantIllegal(a, ascIncompleteInitiatorData)
	if a.Want != 1024 || u.file(0, 1)[0] != 'c' {
		t.Fatal("a write that ends within a block was written")
	}
	a = u.wantGood(u.do(block10(opRead10, 0, 0, 2), nil, 200))
	if a.N != 200 || a.Want != 1024 {
		t.Fatalf("N %d, Want %d; want 200 and 1024", a.N, a.Want)
	}
	a = u.wantGood(u.do(block10(opRead10, 0, 0, 1), nil, 4096))
	if a.N != 512 || a.Want != 512 {
		t.Fatalf("N %d, Want %d; want 512", a.N, a.Want)
	}
	u.wantIllegal(u.do(block16(opRead16, 0, 0, MaxTransfer/512+1), nil, 0), gotgt.ASC_LBA_OUT_OF_RANGE)
}

func TestTransferIsBounded(t *testing.T) {
	u := newUnit(t, func(c *Config) { truncate(t, c.Path, 4*MaxTransfer) })
	cdb := block16(opWrite16, 0, 0, MaxTransfer/512+1)
	if n := u.OutLen(cdb); n != MaxTransfer {
		t.Fatalf("OutLen is %d, want %d", n, MaxTransfer)
	}
	a := u.do(cdb, nil, 0)
	u.wantIllegal(a, gotgt.ASC_INVALID_FIELD_IN_CDB)
	if !bytes.Equal(a.Sense[15:18], []byte{0xc0, 0, 10}) {
		t.Errorf("sense % x: the field pointer is not at the transfer length", a.Sense)
	}
	cdb = block16(opRead16, 0, 0, 1<<16)
	if n := u.InLen(cdb); n != MaxTransfer {
		t.Fatalf("InLen is %d, want %d", n, MaxTransfer)
	}
	u.wantIllegal(u.do(cdb, nil, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
}

// SBC-4 §5.44: BYTCHK and DPO.
func TestWriteAndVerify(t *testing.T) {
	for _, cdb := range [][]byte{
		block10(opWriteVerify10, 0, 3, 2), block12(opWriteVerify12, 0, 3, 2), block16(opWriteVerify16, 0, 3, 2),
		block10(opWriteVerify10, 0x02, 3, 2), block12(opWriteVerify12, 0x12, 3, 2), block16(opWriteVerify16, 0x12, 3, 2),
	} {
		u := newUnit(t)
		u.wantGood(u.do(cdb, pattern('v', 2), 0))
		if !bytes.Equal(u.file(3*512, 1024), pattern('v', 2)) {
			t.Fatalf("% x wrote nothing", cdb)
		}
		bad := bytes.Clone(cdb)
		bad[1] = 0x06
		u.wantIllegal(u.do(bad, pattern('v', 2), 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
	}
}

// SBC-4, PRE-FETCH: IMMED and group numbers are accepted, the range is checked.
func TestPrefetch(t *testing.T) {
	u := newUnit(t)
	for _, cdb := range [][]byte{block10(opPrefetch10, 0, 0, 8), block10(opPrefetch10, 2, 0, 0), block16(opPrefetch16, 2, 5, 8)} {
		u.wantGood(u.do(cdb, nil, 0))
	}
	u.wantIllegal(u.do(block10(opPrefetch10, 0, testSize/512, 1), nil, 0), gotgt.ASC_LBA_OUT_OF_RANGE)
	u.wantIllegal(u.do(block16(opPrefetch16, 0, testSize/512-1, 2), nil, 0), gotgt.ASC_LBA_OUT_OF_RANGE)
}
