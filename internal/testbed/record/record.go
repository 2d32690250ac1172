// Package record is the on-disk format of the test guest's record writer and
// the checker that finds lost acknowledged writes, gaps and second writers.
package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// BlockSize is the size of one record in bytes: one logical block of every
// disk in use, so that a record is written whole or not at all.
const BlockSize = 4096

// DefaultRing is the number of blocks a writer cycles through when the disk is
// large enough: 16 MiB, which a guest scans in well under a second when it
// starts and fills in about three and a half minutes.
const DefaultRing = 4096

// Record i is stored at block i mod Ring. Numbers start at 1, so that 0 can
// mean "nothing yet".
type Record struct {
	Number uint64
	Ring   uint64 // blocks in the ring; fixed for the life of the data
	Writer uint64 // random, new each time a writer opens the disk
	First  uint64 // first number this writer wrote: one more than what it found
}

const (
	magic     = "RTREC\x00\x01\n"
	headerLen = 40 // magic, Number, Ring, Writer, First
	crcOffset = BlockSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode fills the block b, which must be BlockSize long. The body is derived
// from the number, so that a block stitched from two records fails its
// checksum wherever the seam is.
func (r Record) Encode(b []byte) {
	_ = b[BlockSize-1]
	copy(b, magic)
	binary.LittleEndian.PutUint64(b[8:], r.Number)
	binary.LittleEndian.PutUint64(b[16:], r.Ring)
	binary.LittleEndian.PutUint64(b[24:], r.Writer)
	binary.LittleEndian.PutUint64(b[32:], r.First)
	for i := headerLen; i < crcOffset; i++ {
		b[i] = byte(r.Number) + byte(i)
	}
	binary.LittleEndian.PutUint32(b[crcOffset:], crc32.Checksum(b[:crcOffset], castagnoli))
}

// Decode reads the block b. It reports false for a block that is not a whole
// record: never written, torn, or somebody else's data.
func Decode(b []byte) (Record, bool) {
	if len(b) < BlockSize || string(b[:len(magic)]) != magic {
		return Record{}, false
	}
	if binary.LittleEndian.Uint32(b[crcOffset:]) != crc32.Checksum(b[:crcOffset], castagnoli) {
		return Record{}, false
	}
	r := Record{
		Number: binary.LittleEndian.Uint64(b[8:]),
		Ring:   binary.LittleEndian.Uint64(b[16:]),
		Writer: binary.LittleEndian.Uint64(b[24:]),
		First:  binary.LittleEndian.Uint64(b[32:]),
	}
	return r, r.Ring > 0 && r.Number > 0 && r.First > 0 && r.First <= r.Number
}

func (r Record) String() string {
	return fmt.Sprintf("record %d of writer %016x (from %d)", r.Number, r.Writer, r.First)
}
