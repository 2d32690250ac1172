package pdu

import (
	"encoding/binary"
	"hash/crc32"
)

// castagnoli is the polynomial of RFC 7143 §13.1 (CRC32C).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var padding [4]byte

// Digest is the CRC32C of the parts one after another, padded to four bytes.
func Digest(parts ...[]byte) uint32 {
	var crc uint32
	n := 0
	for _, p := range parts {
		crc = crc32.Update(crc, castagnoli, p)
		n += len(p)
	}
	return crc32.Update(crc, castagnoli, padding[:Pad(n)])
}

// PutDigest stores a digest as it travels: the CRC's bytes from the lowest
// (RFC 7143 §11.2.3, §13.1).
func PutDigest(b []byte, crc uint32) { binary.LittleEndian.PutUint32(b, crc) }

// CheckDigest reports whether b holds the digest crc.
func CheckDigest(b []byte, crc uint32) bool { return binary.LittleEndian.Uint32(b) == crc }
