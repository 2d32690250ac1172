package odb

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

// Writer writes a new pack of the cache. Every object is written once; Add of
// one that the pack has already does nothing.
type Writer struct {
	db     *DB
	limits Limits
	f      *os.File
	bw     *bufio.Writer
	off    int64
	recs   []record
	seen   map[Hash]int // length of the object's chain of deltas
	zw     *zlib.Writer
	buf    []byte
}

// NewWriter starts a pack. The caller ends it with Finish or Abort.
func (db *DB) NewWriter(limits Limits) (*Writer, error) {
	f, err := os.CreateTemp(db.packDirs[0], "tmp_pack_")
	if err != nil {
		return nil, err
	}
	w := &Writer{db: db, limits: limits, f: f, bw: bufio.NewWriterSize(f, 256<<10), seen: make(map[Hash]int)}
	if w.zw, err = newDeflater(); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	var head [12]byte
	if _, err := w.Write(head[:]); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return w, nil
}

// newDeflater compresses at level 1: the default level clears 600 KiB of tables
// for every object.
func newDeflater() (*zlib.Writer, error) { return zlib.NewWriterLevel(nil, zlib.BestSpeed) }

// Write appends raw bytes; it is exported only for io.Copy.
func (w *Writer) Write(b []byte) (int, error) {
	if w.limits.Bytes > 0 && w.off+int64(len(b)) > w.limits.Bytes {
		return 0, fmt.Errorf("%w: pack over %d bytes", ErrTooLarge, w.limits.Bytes)
	}
	n, err := w.bw.Write(b)
	w.off += int64(n)
	return n, err
}

// Has reports whether the object is in this pack.
func (w *Writer) Has(h Hash) bool { _, ok := w.seen[h]; return ok }

// Abort removes the unfinished pack.
func (w *Writer) Abort() error {
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}

// Finish completes the pack. Even on error the writer is used up.
func (w *Writer) Finish() (*Staged, error) {
	if err := w.bw.Flush(); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	s, err := finish(w.db, w.f, w.off, w.recs)
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return s, nil
}

// keepDepth bounds the chains of deltas that copying keeps, as git gc does.
const keepDepth = 50

func (w *Writer) begin(h Hash, typ plumbing.ObjectType, size int64, depth int) error {
	if w.limits.Objects > 0 && len(w.recs) >= w.limits.Objects {
		return fmt.Errorf("%w: pack over %d objects", ErrTooLarge, w.limits.Objects)
	}
	w.seen[h] = depth
	w.recs = append(w.recs, record{hash: h, off: w.off})
	_, err := w.Write(entryHeader(typ, size))
	return err
}

func entryHeader(typ plumbing.ObjectType, size int64) []byte {
	c := byte(typ)<<4 | byte(size&15)
	var b []byte
	for size >>= 4; size > 0; size >>= 7 {
		b = append(b, c|0x80)
		c = byte(size & 0x7f)
	}
	return append(b, c)
}

func (w *Writer) deflate(data []byte) error {
	w.zw.Reset(w)
	if _, err := w.zw.Write(data); err != nil {
		return err
	}
	return w.zw.Close()
}

// Add writes an object and returns its name.
func (w *Writer) Add(typ plumbing.ObjectType, data []byte) (Hash, error) {
	h := plumbing.ComputeHash(typ, data)
	if w.Has(h) {
		return h, nil
	}
	if err := w.begin(h, typ, int64(len(data)), 0); err != nil {
		return h, err
	}
	return h, w.deflate(data)
}

// Copy writes an object of another database, checking that its content has its
// name. What is compressed already is copied as it is; a delta stays one if its
// base is in this pack, which copying in pack order (DB.Order) ensures.
func (w *Writer) Copy(c *Cursor, h Hash) error {
	if w.Has(h) {
		return nil
	}
	p, off, ok := c.db.find(h)
	if !ok {
		o, err := c.db.loose(h, MaxObject)
		if err != nil {
			return err
		}
		return w.addChecked(h, o)
	}
	c.win.seek(p, off)
	e, err := parseEntry(&c.win, off)
	if err != nil {
		return fmt.Errorf("object %s: %w", h, corrupt(err))
	}
	if e.typ.IsDelta() {
		return w.copyDelta(c, h, p, off, e)
	}
	if err := c.reset(); err != nil {
		return fmt.Errorf("object %s: %w", h, err)
	}
	hasher := plumbing.NewHasher(e.typ, e.size)
	if n, err := c.drain(hasher, e.size); err != nil {
		return fmt.Errorf("object %s: %w", h, corrupt(err))
	} else if n != e.size || hasher.Sum() != h {
		return fmt.Errorf("object %s: %w: content does not match its name", h, ErrCorrupt)
	}
	end := c.win.off
	if err := w.begin(h, e.typ, e.size, 0); err != nil {
		return err
	}
	return w.raw(p, e.data, end)
}

func (w *Writer) copyDelta(c *Cursor, h Hash, p *pack, off int64, e entry) error {
	base := e.baseHash
	if e.typ == plumbing.OFSDeltaObject {
		var ok bool
		if base, ok = p.nameAt(e.baseOff); !ok {
			return fmt.Errorf("object %s: %w: delta base is no object", h, ErrCorrupt)
		}
	}
	o, err := c.at(p, off, MaxObject, 0)
	if err != nil {
		return fmt.Errorf("object %s: %w", h, err)
	}
	if !w.canBase(base) {
		return w.addChecked(h, o)
	}
	if plumbing.ComputeHash(o.Type, o.Data) != h {
		return fmt.Errorf("object %s: %w: content does not match its name", h, ErrCorrupt)
	}
	// The object may have come from the cache of bases: find its end again.
	c.win.seek(p, e.data)
	if err := c.reset(); err != nil {
		return err
	}
	if _, err := c.drain(io.Discard, e.size); err != nil {
		return fmt.Errorf("object %s: %w", h, corrupt(err))
	}
	end := c.win.off
	if err := w.begin(h, plumbing.REFDeltaObject, e.size, w.seen[base]+1); err != nil {
		return err
	}
	if _, err := w.Write(base[:]); err != nil {
		return err
	}
	return w.raw(p, e.data, end)
}

// canBase reports whether deltas on an object may be written.
func (w *Writer) canBase(h Hash) bool {
	depth, ok := w.seen[h]
	return ok && depth < keepDepth
}

// minDelta is the size from which CopyOn looks for a delta.
const minDelta = 512

// CopyOn is Copy for an object that is probably much like another, which must
// have been written before to be of use: it is stored as a delta on that one if
// it is not a delta already.
func (w *Writer) CopyOn(c *Cursor, h, base Hash) error {
	p, off, ok := c.db.find(h)
	if w.Has(h) || !ok || !w.canBase(base) {
		return w.Copy(c, h)
	}
	c.win.seek(p, off)
	e, err := parseEntry(&c.win, off)
	if err != nil {
		return fmt.Errorf("object %s: %w", h, corrupt(err))
	}
	if e.typ.IsDelta() || e.size < minDelta || e.size > baseCacheSize {
		return w.Copy(c, h)
	}
	o, err := c.Get(h, MaxObject)
	if err != nil {
		return err
	}
	like, err := c.Get(base, MaxObject)
	if err != nil {
		return err
	}
	delta := packfile.DiffDelta(like.Data, o.Data)
	if o.Type != like.Type || len(delta) > len(o.Data)/2 {
		return w.Copy(c, h)
	}
	// What is read back must be the object, whatever made the delta.
	if again, err := applyDelta(like.Data, delta, MaxObject); err != nil || plumbing.ComputeHash(o.Type, again) != h {
		return w.Copy(c, h)
	}
	if err := w.begin(h, plumbing.REFDeltaObject, int64(len(delta)), w.seen[base]+1); err != nil {
		return err
	}
	if _, err := w.Write(base[:]); err != nil {
		return err
	}
	return w.deflate(delta)
}

func (w *Writer) raw(p *pack, from, to int64) error {
	if w.buf == nil {
		w.buf = make([]byte, windowSize)
	}
	for from < to {
		n, err := p.f.ReadAt(w.buf[:min(to-from, windowSize)], from)
		if n == 0 {
			return err
		}
		if _, err := w.Write(w.buf[:n]); err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

func (w *Writer) addChecked(h Hash, o Object) error {
	got, err := w.Add(o.Type, o.Data)
	if err == nil && got != h {
		return fmt.Errorf("object %s: %w: content does not match its name", h, ErrCorrupt)
	}
	return err
}

// reverse finds names by offset; built on first use, for one Copy of many.
type reverse struct {
	once sync.Once
	pos  []int32 // positions in hash order, sorted by offset
}

// nameAt is the name of the object whose entry starts at off.
func (p *pack) nameAt(off int64) (Hash, bool) {
	p.rev.once.Do(func() {
		p.rev.pos = make([]int32, p.n)
		for i := range p.rev.pos {
			p.rev.pos[i] = int32(i)
		}
		slices.SortFunc(p.rev.pos, func(a, b int32) int { return int(p.offsetAt(int(a)) - p.offsetAt(int(b))) })
	})
	i, ok := slices.BinarySearchFunc(p.rev.pos, off, func(i int32, off int64) int { return int(p.offsetAt(int(i)) - off) })
	if !ok {
		return Hash{}, false
	}
	return Hash(bytes.Clone(p.hashAt(int(p.rev.pos[i])))), true
}

// Encode makes a pack in memory, for a push of a few objects.
func Encode(objects []Object) ([]byte, error) {
	zw, err := newDeflater()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("PACK\x00\x00\x00\x02")
	_ = binary.Write(&b, binary.BigEndian, uint32(len(objects)))
	for _, o := range objects {
		b.Write(entryHeader(o.Type, int64(len(o.Data))))
		zw.Reset(&b)
		if _, err := zw.Write(o.Data); err != nil {
			return nil, err
		}
		if err := zw.Close(); err != nil {
			return nil, err
		}
	}
	sum := sha1.Sum(b.Bytes())
	b.Write(sum[:])
	return b.Bytes(), nil
}
