package odb

import "crypto/sha1"

// resum makes the last 20 bytes of a pack its checksum.
func resum(b []byte) []byte {
	sum := sha1.Sum(b[:len(b)-hashSize])
	return append(b[:len(b)-hashSize], sum[:]...)
}
