package cidata

import (
	"encoding/binary"
	"unicode/utf16"
)

// The image has two volume descriptors for the same files: one of ECMA-119
// (ISO 9660) with names of eight letters, and one of its extension Joliet with
// the names as they are, which every system that knows cloud-init prefers.

// file is a file of the root directory, the only one.
type file struct {
	name  string
	short string // as ECMA-119 level 1 allows
	data  []byte
}

const (
	sector = 2048

	// Places, in sectors. The first sixteen belong to whoever boots from it.
	primaryAt    = 16
	jolietAt     = 17
	terminatorAt = 18
	pathsAt      = 19 // for each descriptor, in both byte orders
	rootsAt      = 23 // for each descriptor
	dataAt       = 25
)

// image lays out a volume with files, which are sorted by both names.
func image(label string, files []file) []byte {
	size := dataAt
	for _, f := range files {
		size += sectors(f.data)
	}
	b := make([]byte, size*sector)
	at := dataAt
	extents := make([]int, len(files))
	for i, f := range files {
		extents[i] = at
		copy(b[at*sector:], f.data)
		at += sectors(f.data)
	}
	for i, joliet := range []bool{false, true} {
		root, paths := rootsAt+i, pathsAt+2*i
		descriptor(b[(primaryAt+i)*sector:][:sector], label, joliet, size, root, paths)
		pathTables(b[paths*sector:][:2*sector], root)
		dir := b[root*sector:][:0:sector]
		dir = record(dir, "\x00", root, sector, true)
		dir = record(dir, "\x01", root, sector, true)
		for j, f := range files {
			name := f.short
			if joliet {
				name = ucs2(f.name + ";1")
			}
			dir = record(dir, name, extents[j], len(f.data), false)
		}
	}
	copy(b[terminatorAt*sector:], "\xffCD001\x01")
	return b
}

func sectors(data []byte) int { return (len(data) + sector - 1) / sector }

// descriptor is the primary (ECMA-119 section 8.4) or supplementary (8.5)
// volume descriptor.
func descriptor(d []byte, label string, joliet bool, size, root, paths int) {
	kind, text, blank := byte(1), func(s string) string { return s }, " "
	if joliet {
		kind, text, blank = 2, ucs2, "\x00 "
	}
	fill := func(from, to int, s string) {
		n := from + copy(d[from:to], text(s))
		for n < to {
			n += copy(d[n:to], blank)
		}
	}
	d[0] = kind
	copy(d[1:], "CD001\x01")
	fill(8, 40, "")
	fill(40, 72, label)
	both32(d[80:], size)
	if joliet {
		copy(d[88:], "%/E") // UCS-2 level 3
	}
	both16(d[120:], 1)
	both16(d[124:], 1)
	both16(d[128:], sector)
	both32(d[132:], pathTableSize)
	binary.LittleEndian.PutUint32(d[140:], uint32(paths))
	binary.BigEndian.PutUint32(d[148:], uint32(paths+1))
	record(d[156:156:190], "\x00", root, sector, true)
	for _, span := range [][2]int{{190, 318}, {318, 446}, {446, 574}, {574, 702}, {702, 739}, {739, 776}, {776, 813}} {
		fill(span[0], span[1], "")
	}
	for at := 813; at < 881; at += 17 {
		copy(d[at:], "0000000000000000\x00") // no date
	}
	d[881] = 1
}

const pathTableSize = 10

// pathTables are the root's entry (section 9.4) in both byte orders.
func pathTables(b []byte, root int) {
	for i, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		t := b[i*sector:]
		t[0] = 1
		order.PutUint32(t[2:], uint32(root))
		order.PutUint16(t[6:], 1)
	}
}

// record appends a directory record (section 9.1).
func record(dir []byte, name string, at, size int, isDir bool) []byte {
	length := 33 + len(name)
	length += length % 2
	r := make([]byte, length)
	r[0] = byte(length)
	both32(r[2:], at)
	both32(r[10:], size)
	copy(r[18:], []byte{80, 1, 1, 0, 0, 0, 0}) // 1980: a seed has no date of its own
	if isDir {
		r[25] = 2
	}
	both16(r[28:], 1)
	r[32] = byte(len(name))
	copy(r[33:], name)
	return append(dir, r...)
}

func both16(b []byte, n int) {
	binary.LittleEndian.PutUint16(b, uint16(n))
	binary.BigEndian.PutUint16(b[2:], uint16(n))
}

func both32(b []byte, n int) {
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.BigEndian.PutUint32(b[4:], uint32(n))
}

// ucs2 writes text as Joliet does, two bytes a letter, the high one first.
func ucs2(s string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return string(b)
}
