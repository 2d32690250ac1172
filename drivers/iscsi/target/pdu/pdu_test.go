package pdu

import (
	"bytes"
	"testing"
)

// The vectors of RFC 7143 appendix A.4 (RFC 3720 B.4).
func TestDigest(t *testing.T) {
	up, down := make([]byte, 32), make([]byte, 32)
	for i := range up {
		up[i], down[i] = byte(i), byte(31-i)
	}
	for _, c := range []struct {
		in   []byte
		want []byte
	}{
		{make([]byte, 32), []byte{0xaa, 0x36, 0x91, 0x8a}},
		{bytes.Repeat([]byte{0xff}, 32), []byte{0x43, 0xab, 0xa8, 0x62}},
		{up, []byte{0x4e, 0x79, 0xdd, 0x46}},
		{down, []byte{0x5c, 0xdb, 0x3f, 0x11}},
	} {
		var got [4]byte
		PutDigest(got[:], Digest(c.in))
		if !bytes.Equal(got[:], c.want) || !CheckDigest(c.want, Digest(c.in[:7], c.in[7:])) {
			t.Errorf("digest of %x…: %x, expected %x", c.in[:2], got, c.want)
		}
	}
	if Digest([]byte{1}) != Digest([]byte{1, 0, 0, 0}) {
		t.Error("padding is not part of the digest")
	}
}

func TestBinary(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []byte
		ok   bool
	}{
		{"0x0102", []byte{1, 2}, true},
		{"0X102", []byte{1, 2}, true},
		{"0bAQI=", []byte{1, 2}, true},
		{"258", []byte{1, 2}, true},
		{"0x", nil, false},
		{"0xzz", nil, false},
		{"0b?", nil, false},
		{"", nil, false},
		{"-1", nil, false},
		{"0x010203040506070809", nil, false},
	} {
		got, ok := Binary(c.in, 8)
		if ok != c.ok || ok && !bytes.Equal(got, c.want) {
			t.Errorf("Binary(%q) = %x, %v", c.in, got, ok)
		}
	}
}

func TestFlatLUN(t *testing.T) {
	for _, c := range []struct {
		lun  uint64
		want uint64
		ok   bool
	}{
		{0, 0, true},
		{0x0001 << 48, 1, true},
		{0x4001 << 48, 1, true},
		{0x0101 << 48, 0, false}, // bus 1
		{0xc101 << 48, 0, false}, // well-known
		{1, 0, false},            // a second level
	} {
		if got, ok := FlatLUN(c.lun); ok != c.ok || ok && got != c.want {
			t.Errorf("FlatLUN(%#x) = %d, %v", c.lun, got, ok)
		}
	}
}

func TestExtendedCDB(t *testing.T) {
	ahs := []byte{0, 5, 1, 0, 1, 2, 3, 4}
	if rest, ok := ExtendedCDB(ahs); !ok || !bytes.Equal(rest, []byte{1, 2, 3, 4}) {
		t.Errorf("%x, %v", rest, ok)
	}
	for _, bad := range [][]byte{{0}, {0, 0, 1, 0}, {0, 5, 2, 0, 1, 2, 3, 4}, {0, 99, 1, 0}, append(ahs, ahs...)} {
		if _, ok := ExtendedCDB(bad); ok {
			t.Errorf("%x was taken", bad)
		}
	}
}
