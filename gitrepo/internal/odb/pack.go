// Package odb reads and writes Git object databases: packs in the cache, and
// packs, loose objects and alternates of local repositories. It exists because
// a hundred thousand small blobs must be read in seconds, hostile packs must be
// indexed in bounded memory, and a pack must appear whole or not at all; the
// object formats are those of gitformat-pack(5).
package odb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sort"

	"github.com/go-git/go-git/v5/plumbing"
)

// Hash is a SHA-1 object name.
type Hash = plumbing.Hash

// Errors callers branch on.
var (
	ErrNotFound = errors.New("object not found")
	ErrCorrupt  = errors.New("object database is damaged")
	ErrTooLarge = errors.New("object too large")
)

const (
	idxHeader  = 8
	idxFanout  = 256 * 4
	idxTrailer = 40
	hashSize   = 20
)

// pack is one packfile with its version-2 index. The index is held in memory
// (about 29 bytes an object), the pack is read with pread: a mapping would turn
// a truncated file into SIGBUS, which no error path survives.
type pack struct {
	base string // path without ".pack"
	f    *os.File
	size int64
	idx  []byte
	n    int
	rev  reverse
}

// openPack opens base.pack and base.idx and checks what can be checked without
// reading the pack: both headers, sizes, and that the index belongs to this pack.
func openPack(base string) (*pack, error) {
	idx, err := os.ReadFile(base + ".idx")
	if err != nil {
		return nil, err
	}
	p := &pack{base: base, idx: idx}
	if err := p.checkIdx(); err != nil {
		return nil, fmt.Errorf("%s.idx: %w", base, err)
	}
	f, err := os.Open(base + ".pack")
	if err != nil {
		return nil, err
	}
	p.f = f
	if err := p.checkPack(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s.pack: %w", base, err)
	}
	return p, nil
}

func (p *pack) checkIdx() error {
	b := p.idx
	if len(b) < idxHeader+idxFanout+idxTrailer || !bytes.Equal(b[:8], []byte{0xff, 't', 'O', 'c', 0, 0, 0, 2}) {
		return fmt.Errorf("%w: not a version 2 index", ErrCorrupt)
	}
	var last uint32
	for i := range 256 {
		v := binary.BigEndian.Uint32(b[idxHeader+4*i:])
		if v < last {
			return fmt.Errorf("%w: index fan-out decreases", ErrCorrupt)
		}
		last = v
	}
	p.n = int(last)
	min := idxHeader + idxFanout + p.n*(hashSize+8) + idxTrailer
	if len(b) < min || len(b) > min+8*p.n {
		return fmt.Errorf("%w: index of %d objects has %d bytes", ErrCorrupt, p.n, len(b))
	}
	return nil
}

func (p *pack) checkPack() error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	p.size = st.Size()
	var head [12]byte
	var tail [hashSize]byte
	if p.size < int64(len(head)+len(tail)) {
		return fmt.Errorf("%w: pack has %d bytes", ErrCorrupt, p.size)
	}
	if _, err := p.f.ReadAt(head[:], 0); err != nil {
		return err
	}
	if _, err := p.f.ReadAt(tail[:], p.size-hashSize); err != nil {
		return err
	}
	want := p.idx[len(p.idx)-idxTrailer:][:hashSize]
	switch {
	case string(head[:4]) != "PACK" || binary.BigEndian.Uint32(head[4:]) != 2:
		return fmt.Errorf("%w: not a version 2 pack", ErrCorrupt)
	case int(binary.BigEndian.Uint32(head[8:])) != p.n:
		return fmt.Errorf("%w: pack and index disagree on the number of objects", ErrCorrupt)
	case !bytes.Equal(tail[:], want):
		return fmt.Errorf("%w: the index is of another pack, or the pack is cut short", ErrCorrupt)
	}
	return nil
}

func (p *pack) hashAt(i int) []byte {
	return p.idx[idxHeader+idxFanout+i*hashSize:][:hashSize]
}

// offsetAt is the pack offset of the i-th object in hash order; -1 if the index lies.
func (p *pack) offsetAt(i int) int64 {
	offs := p.idx[idxHeader+idxFanout+p.n*(hashSize+4):]
	v := binary.BigEndian.Uint32(offs[4*i:])
	off := int64(v)
	if v&(1<<31) != 0 {
		large := offs[4*p.n:]
		j := int(v &^ (1 << 31))
		if 8*(j+1) > len(large)-idxTrailer {
			return -1
		}
		off = int64(binary.BigEndian.Uint64(large[8*j:]))
	}
	if off < 12 || off >= p.size-hashSize {
		return -1
	}
	return off
}

// search returns the position of the first object whose name is not below key,
// where key may be a prefix of a name.
func (p *pack) search(key []byte) int {
	lo, hi := 0, p.n
	if len(key) > 0 {
		fan := p.idx[idxHeader:]
		if key[0] > 0 {
			lo = int(binary.BigEndian.Uint32(fan[4*(int(key[0])-1):]))
		}
		hi = int(binary.BigEndian.Uint32(fan[4*int(key[0]):]))
	}
	return lo + sort.Search(hi-lo, func(i int) bool { return bytes.Compare(p.hashAt(lo+i), key) >= 0 })
}

func (p *pack) find(h Hash) (off int64, ok bool) {
	i := p.search(h[:])
	if i >= p.n || !bytes.Equal(p.hashAt(i), h[:]) {
		return 0, false
	}
	off = p.offsetAt(i)
	return off, off >= 0
}

// entry is the header of one object in a pack.
type entry struct {
	typ      plumbing.ObjectType // OFSDelta and REFDelta included
	size     int64               // inflated size; of a delta, the size of the delta
	data     int64               // offset of the zlib stream
	baseOff  int64               // OFSDelta
	baseHash Hash                // REFDelta
}

// parseEntry decodes the header at off; r must be positioned there and is left
// at the zlib stream.
func parseEntry(r io.ByteReader, off int64) (entry, error) {
	pos := off
	next := func() (byte, error) {
		pos++
		return r.ReadByte()
	}
	c, err := next()
	if err != nil {
		return entry{}, err
	}
	e := entry{typ: plumbing.ObjectType(c >> 4 & 7), size: int64(c & 15)}
	for shift := 4; c&0x80 != 0; shift += 7 {
		if c, err = next(); err != nil {
			return entry{}, err
		}
		if shift > 56 {
			return entry{}, fmt.Errorf("%w: object size overflows", ErrCorrupt)
		}
		e.size |= int64(c&0x7f) << shift
	}
	switch e.typ {
	case plumbing.CommitObject, plumbing.TreeObject, plumbing.BlobObject, plumbing.TagObject:
	case plumbing.OFSDeltaObject:
		if c, err = next(); err != nil {
			return entry{}, err
		}
		back := int64(c & 0x7f)
		for c&0x80 != 0 {
			if c, err = next(); err != nil {
				return entry{}, err
			}
			if bits.LeadingZeros64(uint64(back+1)) < 9 {
				return entry{}, fmt.Errorf("%w: delta offset overflows", ErrCorrupt)
			}
			back = (back+1)<<7 | int64(c&0x7f)
		}
		if back <= 0 || back > off-12 {
			return entry{}, fmt.Errorf("%w: delta base outside of the pack", ErrCorrupt)
		}
		e.baseOff = off - back
	case plumbing.REFDeltaObject:
		for i := range e.baseHash {
			if e.baseHash[i], err = next(); err != nil {
				return entry{}, err
			}
		}
	default:
		return entry{}, fmt.Errorf("%w: object type %d", ErrCorrupt, e.typ)
	}
	e.data = pos
	return e, nil
}
