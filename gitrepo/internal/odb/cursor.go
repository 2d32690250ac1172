package odb

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/go-git/go-git/v5/plumbing"
)

const (
	windowSize    = 32 << 10
	baseCacheSize = 16 << 20
	// maxDeltaDepth is git's own ceiling (OE_DEPTH_BITS).
	maxDeltaDepth = 4095
	// MaxObject bounds what is ever held in memory of one object.
	MaxObject = 128 << 20
)

// window reads a pack through a buffer that is kept between objects, so that
// reading in pack order costs one pread per windowSize.
type window struct {
	p   *pack
	off int64 // pack offset of buf[pos]
	buf []byte
	pos int
	// check, if set, is asked before each read of the file.
	check func() error
	fill  [windowSize]byte
}

func (w *window) seek(p *pack, off int64) {
	start := w.off - int64(w.pos)
	if w.p == p && off >= start && off < start+int64(len(w.buf)) {
		w.pos = int(off - start)
	} else {
		w.p, w.buf, w.pos = p, nil, 0
	}
	w.off = off
}

func (w *window) more() error {
	if w.check != nil {
		if err := w.check(); err != nil {
			return err
		}
	}
	// The trailing checksum is not part of any object.
	left := w.p.size - hashSize - w.off
	if left <= 0 {
		return io.ErrUnexpectedEOF
	}
	n, err := w.p.f.ReadAt(w.fill[:min(left, windowSize)], w.off)
	if n == 0 {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	w.buf, w.pos = w.fill[:n], 0
	return nil
}

func (w *window) ReadByte() (byte, error) {
	if w.pos == len(w.buf) {
		if err := w.more(); err != nil {
			return 0, err
		}
	}
	c := w.buf[w.pos]
	w.pos++
	w.off++
	return c, nil
}

func (w *window) Read(b []byte) (int, error) {
	if w.pos == len(w.buf) {
		if err := w.more(); err != nil {
			return 0, err
		}
	}
	n := copy(b, w.buf[w.pos:])
	w.pos += n
	w.off += int64(n)
	return n, nil
}

type place struct {
	p   *pack
	off int64
}

// Object is an object's type and content. The content is shared with a cache
// and must not be changed.
type Object struct {
	Type plumbing.ObjectType
	Data []byte
}

// Cursor reads objects from a DB. It is not safe for concurrent use; many
// cursors may read one DB.
type Cursor struct {
	db     *DB
	win    window
	zr     io.ReadCloser
	bases  map[place]Object
	cached int
	buf    []byte
}

// NewCursor returns a cursor that sees the packs db has when each object is read.
func (db *DB) NewCursor() *Cursor {
	return &Cursor{db: db, bases: make(map[place]Object)}
}

func (c *Cursor) inflate(size int64) ([]byte, error) {
	if size > MaxObject {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, MaxObject)
	}
	if err := c.reset(); err != nil {
		return nil, err
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(c.zr, out); err != nil {
		return nil, corrupt(err)
	}
	// The read after the last byte makes zlib compare its checksum.
	var one [1]byte
	if n, err := c.zr.Read(one[:]); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("%w: object longer than it says, or bad checksum", ErrCorrupt)
	}
	return out, nil
}

func (c *Cursor) reset() (err error) {
	if c.zr == nil {
		c.zr, err = zlib.NewReader(&c.win)
	} else {
		err = c.zr.(zlib.Resetter).Reset(&c.win, nil)
	}
	return corrupt(err)
}

// drain copies the rest of an object to w without holding it, at most one byte
// more than size.
func (c *Cursor) drain(w io.Writer, size int64) (int64, error) {
	if c.buf == nil {
		c.buf = make([]byte, windowSize)
	}
	return io.CopyBuffer(w, io.LimitReader(c.zr, size+1), c.buf)
}

// corrupt marks errors of the data itself; an I/O error stays what it is.
func corrupt(err error) error {
	var perr *os.PathError
	if err == nil || errors.As(err, &perr) {
		return err
	}
	for _, own := range []error{ErrCorrupt, ErrTooLarge, ErrNotFound, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, own) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// Get reads an object of at most max bytes (capped at MaxObject).
func (c *Cursor) Get(h Hash, max int64) (Object, error) {
	return c.get(h, min(max, MaxObject), 0)
}

func (c *Cursor) get(h Hash, max int64, depth int) (Object, error) {
	if p, off, ok := c.db.find(h); ok {
		o, err := c.at(p, off, max, depth)
		if err != nil {
			return Object{}, fmt.Errorf("object %s: %w", h, err)
		}
		return o, nil
	}
	return c.db.loose(h, max)
}

// at reads the object at off, following deltas of the same pack without recursion.
func (c *Cursor) at(p *pack, off, max int64, depth int) (Object, error) {
	type step struct {
		off   int64
		delta []byte
	}
	var chain []step
	var o Object
	for {
		if b, ok := c.bases[place{p, off}]; ok {
			if len(chain) == 0 && int64(len(b.Data)) > max {
				return Object{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b.Data), max)
			}
			o = b
			break
		}
		c.win.seek(p, off)
		e, err := parseEntry(&c.win, off)
		if err != nil {
			return Object{}, corrupt(err)
		}
		limit := max
		if len(chain) > 0 {
			limit = MaxObject
		}
		if depth+len(chain) > maxDeltaDepth {
			return Object{}, fmt.Errorf("%w: delta chain too deep", ErrCorrupt)
		}
		if !e.typ.IsDelta() {
			if e.size > limit {
				return Object{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, e.size, limit)
			}
			data, err := c.inflate(e.size)
			if err != nil {
				return Object{}, err
			}
			o = Object{e.typ, data}
			break
		}
		d, err := c.inflate(e.size)
		if err != nil {
			return Object{}, err
		}
		// Refused before the base is read: a small delta can ask for a huge object.
		if _, size, _, err := deltaSizes(d); err != nil {
			return Object{}, err
		} else if size > limit {
			return Object{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, limit)
		}
		chain = append(chain, step{off, d})
		if e.typ == plumbing.OFSDeltaObject {
			off = e.baseOff
			continue
		}
		if bo, ok := p.find(e.baseHash); ok {
			off = bo
			continue
		}
		if o, err = c.get(e.baseHash, MaxObject, depth+len(chain)); err != nil {
			return Object{}, err
		}
		off = -1
		break
	}
	if len(chain) > 0 && off >= 0 {
		c.keep(place{p, off}, o)
	}
	for i := len(chain) - 1; i >= 0; i-- {
		data, err := applyDelta(o.Data, chain[i].delta, MaxObject)
		if err != nil {
			return Object{}, err
		}
		o.Data = data
		if i > 0 {
			c.keep(place{p, chain[i].off}, o)
		}
	}
	return o, nil
}

func (c *Cursor) keep(at place, o Object) {
	if _, ok := c.bases[at]; ok || len(o.Data) > baseCacheSize/4 {
		return
	}
	if c.cached+len(o.Data) > baseCacheSize {
		clear(c.bases)
		c.cached = 0
	}
	c.bases[at] = o
	c.cached += len(o.Data)
}

// Size is the inflated size of an object, without reading all of it.
func (c *Cursor) Size(h Hash) (int64, error) {
	p, off, ok := c.db.find(h)
	if !ok {
		o, err := c.db.loose(h, MaxObject)
		return int64(len(o.Data)), err
	}
	c.win.seek(p, off)
	e, err := parseEntry(&c.win, off)
	if err != nil {
		return 0, corrupt(err)
	}
	if !e.typ.IsDelta() {
		return e.size, nil
	}
	if err := c.reset(); err != nil {
		return 0, err
	}
	var head [20]byte
	n, err := io.ReadFull(c.zr, head[:min(e.size, int64(len(head)))])
	if err != nil {
		return 0, corrupt(err)
	}
	_, size, _, err := deltaSizes(head[:n])
	return size, err
}

// loose reads an object of its own file: "TYPE SIZE\x00" and content, one zlib stream.
func (db *DB) loose(h Hash, max int64) (Object, error) {
	name := h.String()
	for _, dir := range db.looseDirs {
		f, err := os.Open(filepath.Join(dir, name[:2], name[2:]))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Object{}, err
		}
		defer f.Close()
		o, err := readLoose(f, max)
		if err != nil {
			return Object{}, fmt.Errorf("object %s: %w", h, err)
		}
		return o, nil
	}
	return Object{}, fmt.Errorf("object %s: %w", h, ErrNotFound)
}

func readLoose(r io.Reader, max int64) (Object, error) {
	zr, err := zlib.NewReader(r)
	if err != nil {
		return Object{}, corrupt(err)
	}
	br := bufio.NewReader(zr)
	head := make([]byte, 0, 32)
	for {
		c, err := br.ReadByte()
		if err != nil {
			return Object{}, corrupt(err)
		}
		if c == 0 {
			break
		}
		if head = append(head, c); len(head) > 31 {
			return Object{}, fmt.Errorf("%w: loose object header", ErrCorrupt)
		}
	}
	kind, num, _ := bytes.Cut(head, []byte(" "))
	typ, err := plumbing.ParseObjectType(string(kind))
	if err != nil || typ.IsDelta() {
		return Object{}, fmt.Errorf("%w: loose object header", ErrCorrupt)
	}
	size, err := strconv.ParseInt(string(num), 10, 64)
	if err != nil || size < 0 {
		return Object{}, fmt.Errorf("%w: loose object header", ErrCorrupt)
	}
	if size > max {
		return Object{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, max)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(br, data); err != nil {
		return Object{}, corrupt(err)
	}
	if _, err := br.ReadByte(); err != io.EOF {
		return Object{}, fmt.Errorf("%w: loose object longer than it says, or bad checksum", ErrCorrupt)
	}
	return Object{typ, data}, nil
}
