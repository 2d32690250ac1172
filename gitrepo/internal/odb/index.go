package odb

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/go-git/go-git/v5/plumbing"
)

// maxPath bounds the bytes of objects held while one chain of deltas is resolved.
const maxPath = 2 * MaxObject

// Receive stores a pack that a peer sends, as it comes, and indexes it. Objects
// whose delta base only the database has (a thin pack) get that base appended.
// Memory is bounded: what is not a delta is hashed as a stream, and deltas that
// would need more than 256 MiB at once are refused.
func (db *DB) Receive(ctx context.Context, r io.Reader, limits Limits) (*Staged, error) {
	f, err := os.CreateTemp(db.packDirs[0], "tmp_pack_")
	if err != nil {
		return nil, err
	}
	s, err := db.receive(ctx, f, r, limits)
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return s, nil
}

func (db *DB) receive(ctx context.Context, f *os.File, r io.Reader, limits Limits) (*Staged, error) {
	size, err := store(f, r, limits.Bytes)
	if err != nil {
		return nil, err
	}
	ix := &indexer{
		db:      db,
		limits:  limits,
		cur:     db.NewCursor(),
		p:       &pack{base: f.Name(), f: f, size: size},
		byOff:   make(map[int64][]int32),
		byHash:  make(map[Hash][]int32),
		written: size - hashSize,
	}
	// A pack can inflate to a thousand times its size: the deadline holds there too.
	ix.cur.win.check = ctx.Err
	if err := ix.scan(); err != nil {
		return nil, corrupt(err)
	}
	if err := ix.resolve(); err != nil {
		return nil, corrupt(err)
	}
	if err := ix.complete(); err != nil {
		return nil, corrupt(err)
	}
	recs := make([]record, len(ix.entries))
	for i, e := range ix.entries {
		recs[i] = record{hash: e.hash, off: e.off}
	}
	return finish(db, f, ix.written, recs)
}

// store copies a pack to the file and checks its trailing checksum.
func store(f *os.File, r io.Reader, limit int64) (int64, error) {
	bw := bufio.NewWriterSize(f, 256<<10)
	sum := &tailHash{h: sha1.New()}
	n, err := io.Copy(io.MultiWriter(bw, sum), io.LimitReader(r, limit+1))
	if err == nil {
		err = bw.Flush()
	}
	switch {
	case err != nil:
		return n, err
	case n > limit:
		return n, fmt.Errorf("%w: pack over %d bytes", ErrTooLarge, limit)
	case n < 12+hashSize:
		return n, fmt.Errorf("%w: pack of %d bytes", ErrCorrupt, n)
	case !bytes.Equal(sum.h.Sum(nil), sum.tail):
		return n, fmt.Errorf("%w: pack checksum does not match, or the pack is cut short", ErrCorrupt)
	}
	return n, nil
}

// tailHash hashes a stream but for its last 20 bytes.
type tailHash struct {
	h    hash.Hash
	tail []byte
}

func (t *tailHash) Write(b []byte) (int, error) {
	t.tail = append(t.tail, b...)
	if k := len(t.tail) - hashSize; k > 0 {
		t.h.Write(t.tail[:k])
		t.tail = append(t.tail[:0], t.tail[k:]...)
	}
	return len(b), nil
}

type indexed struct {
	off  int64
	hash Hash
	done bool
}

type indexer struct {
	db      *DB
	limits  Limits
	cur     *Cursor
	p       *pack
	entries []indexed
	byOff   map[int64][]int32 // deltas waiting for the object at an offset
	byHash  map[Hash][]int32  // deltas waiting for a named object
	bases   []int32           // objects that are not deltas
	written int64
	held    int64
}

// scan finds where each entry starts, which only inflating can tell, and names
// those that are not deltas.
func (ix *indexer) scan() error {
	var head [12]byte
	if _, err := ix.p.f.ReadAt(head[:], 0); err != nil {
		return err
	}
	if string(head[:4]) != "PACK" || binary.BigEndian.Uint32(head[4:]) != 2 {
		return fmt.Errorf("%w: not a version 2 pack", ErrCorrupt)
	}
	count := binary.BigEndian.Uint32(head[8:])
	if int64(count) > int64(ix.limits.Objects) {
		return fmt.Errorf("%w: pack of %d objects, at most %d", ErrTooLarge, count, ix.limits.Objects)
	}
	win := &ix.cur.win
	off := int64(12)
	for i := range count {
		win.seek(ix.p, off)
		e, err := parseEntry(win, off)
		if err != nil {
			return err
		}
		if err := ix.cur.reset(); err != nil {
			return err
		}
		it := indexed{off: off}
		n := int64(0)
		switch e.typ {
		case plumbing.OFSDeltaObject:
			ix.byOff[e.baseOff] = append(ix.byOff[e.baseOff], int32(i))
			n, err = ix.cur.drain(io.Discard, e.size)
		case plumbing.REFDeltaObject:
			ix.byHash[e.baseHash] = append(ix.byHash[e.baseHash], int32(i))
			n, err = ix.cur.drain(io.Discard, e.size)
		default:
			hasher := plumbing.NewHasher(e.typ, e.size)
			n, err = ix.cur.drain(hasher, e.size)
			it.hash, it.done = hasher.Sum(), true
			ix.bases = append(ix.bases, int32(i))
		}
		if err != nil {
			return err
		}
		if n != e.size {
			return fmt.Errorf("%w: object at %d is not of the size it says", ErrCorrupt, off)
		}
		ix.entries = append(ix.entries, it)
		off = win.off
	}
	if off != ix.p.size-hashSize {
		return fmt.Errorf("%w: bytes after the last object", ErrCorrupt)
	}
	return nil
}

// resolve names every delta whose base is in the pack.
func (ix *indexer) resolve() error {
	for _, i := range ix.bases {
		e := ix.entries[i]
		if len(ix.byOff[e.off]) == 0 && len(ix.byHash[e.hash]) == 0 {
			continue
		}
		ix.cur.win.seek(ix.p, e.off)
		h, err := parseEntry(&ix.cur.win, e.off)
		if err != nil {
			return err
		}
		data, err := ix.cur.inflate(h.size)
		if err != nil {
			return err
		}
		if err := ix.children(e.off, e.hash, Object{h.typ, data}, 0); err != nil {
			return err
		}
	}
	return nil
}

// children resolves all deltas on an object, depth first. Recursion is bounded
// by git's own ceiling on chains.
func (ix *indexer) children(off int64, h Hash, base Object, depth int) error {
	kids := ix.byOff[off]
	delete(ix.byOff, off)
	kids = append(kids, ix.byHash[h]...)
	delete(ix.byHash, h)
	if len(kids) == 0 {
		return nil
	}
	if depth > maxDeltaDepth {
		return fmt.Errorf("%w: delta chain too deep", ErrCorrupt)
	}
	if ix.held += int64(len(base.Data)); ix.held > maxPath {
		return fmt.Errorf("%w: a chain of deltas needs over %d bytes", ErrTooLarge, maxPath)
	}
	defer func() { ix.held -= int64(len(base.Data)) }()
	for _, k := range kids {
		e := &ix.entries[k]
		if e.done {
			continue
		}
		ix.cur.win.seek(ix.p, e.off)
		eh, err := parseEntry(&ix.cur.win, e.off)
		if err != nil {
			return err
		}
		d, err := ix.cur.inflate(eh.size)
		if err != nil {
			return err
		}
		data, err := applyDelta(base.Data, d, MaxObject)
		if err != nil {
			return err
		}
		e.hash, e.done = plumbing.ComputeHash(base.Type, data), true
		if err := ix.children(e.off, e.hash, Object{base.Type, data}, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// complete appends the bases that only the database has.
func (ix *indexer) complete() error {
	for len(ix.byHash) > 0 {
		progress := false
		for h := range ix.byHash {
			base, err := ix.cur.Get(h, MaxObject)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			progress = true
			off := ix.written
			if err := ix.append(h, base); err != nil {
				return err
			}
			if err := ix.children(off, h, base, 0); err != nil {
				return err
			}
		}
		if !progress {
			for h := range ix.byHash {
				return fmt.Errorf("delta base %s: %w", h, ErrNotFound)
			}
		}
	}
	for off := range ix.byOff {
		return fmt.Errorf("%w: no object at delta base %d", ErrCorrupt, off)
	}
	return nil
}

func (ix *indexer) append(h Hash, o Object) error {
	w := &Writer{limits: ix.limits, off: ix.written, seen: make(map[Hash]int)}
	w.bw = bufio.NewWriter(io.NewOffsetWriter(ix.p.f, ix.written))
	var err error
	if w.zw, err = newDeflater(); err != nil {
		return err
	}
	if err := w.addChecked(h, o); err != nil {
		return err
	}
	if err := w.bw.Flush(); err != nil {
		return err
	}
	ix.entries = append(ix.entries, indexed{off: ix.written, hash: h, done: true})
	ix.written = w.off
	return nil
}
