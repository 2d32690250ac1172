package target

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"reconciler/drivers/iscsi/target/pdu"
)

// recvBuffer is how much is read from a connection at once. It holds a header,
// its additional segments and a small data segment, so that those are used in
// place. A peer that has not proved who it is makes us hold loginBuffer, which is
// enough for the first two.
const (
	recvBuffer  = 64 << 10
	loginBuffer = 4 << 10
)

var (
	errProtocol     = errors.New("protocol error")
	errHeaderDigest = errors.New("header digest error")
	errDataDigest   = errors.New("data digest error")
)

// framer cuts a connection's byte stream into PDUs. It holds no receive buffer
// while it waits for a peer that is idle.
type framer struct {
	raw     syscall.RawConn
	pool    *bufferPool
	room    int // size of the receive buffer
	maxData int // longest data segment accepted: our MaxRecvDataSegmentLength

	headerDigest bool
	dataDigest   bool

	buf  *buffer
	r, w int // buf.b[r:w] is received and not consumed

	hdr pdu.Header
	ahs []byte // of hdr; valid until the next call of next
	// unread is set until the data segment of hdr is taken.
	unread bool

	attempt func(fd uintptr) bool // try, bound once so that a read allocates nothing
	into    []byte                // where try reads to; nil is the receive buffer
	n       int
	err     error
}

// newFramer returns the framer of a connection that is not logged in.
func newFramer(nc *net.TCPConn, pool *bufferPool) (*framer, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	f := &framer{raw: raw, pool: pool, room: loginBuffer, maxData: loginMaxRecv}
	f.attempt = f.try
	return f, nil
}

// widened returns the framer of a session, in the place of that of its login.
func (f *framer) widened() *framer {
	g := f.resized(recvBuffer)
	g.maxData = ourMaxRecv
	f.release()
	return g
}

// successor returns a framer that goes on where f stands, with a buffer of its
// own: whoever still uses f's may go on doing so.
func (f *framer) successor() *framer { return f.resized(f.room) }

func (f *framer) resized(room int) *framer {
	g := &framer{raw: f.raw, pool: f.pool, room: room, maxData: f.maxData, headerDigest: f.headerDigest, dataDigest: f.dataDigest}
	g.attempt = g.try
	if f.w > f.r {
		g.buf = f.pool.get(room)
		g.w = copy(g.buf.b, f.buf.b[f.r:f.w])
	}
	return g
}

// release gives the receive buffer back.
func (f *framer) release() {
	f.pool.put(f.buf)
	f.buf, f.r, f.w = nil, 0, 0
}

// try makes one attempt at reading; false asks to be called again when the
// connection is readable.
func (f *framer) try(fd uintptr) bool {
	dst := f.into
	if dst == nil {
		if f.buf == nil {
			f.buf = f.pool.get(f.room)
		}
		dst = f.buf.b[f.w:]
	}
	for {
		n, err := unix.Read(int(fd), dst)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			if f.into == nil && f.w == 0 {
				f.release()
			}
			return false
		case err != nil:
			f.n, f.err = 0, err
		case n == 0:
			f.n, f.err = 0, io.EOF
		default:
			f.n, f.err = n, nil
		}
		return true
	}
}

func (f *framer) read(into []byte) (int, error) {
	f.into = into
	if err := f.raw.Read(f.attempt); err != nil {
		return 0, err
	}
	return f.n, f.err
}

// need waits until n bytes, which fit the receive buffer, are received and not consumed.
func (f *framer) need(n int) error {
	if f.w-f.r >= n {
		return nil
	}
	if f.r == f.w {
		f.r, f.w = 0, 0
	} else if f.r+n > f.room {
		f.w = copy(f.buf.b, f.buf.b[f.r:f.w])
		f.r = 0
	}
	for f.w-f.r < n {
		m, err := f.read(nil)
		if err != nil {
			if err == io.EOF && f.w > f.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		f.w += m
	}
	return nil
}

// ready reports whether a whole PDU that needs no further reading is there.
func (f *framer) ready() bool {
	have := f.w - f.r
	if have < pdu.HeaderLen {
		return false
	}
	h := (*pdu.Header)(f.buf.b[f.r:])
	n := pdu.HeaderLen + h.AHSLen() + h.DataLen() + pdu.Pad(h.DataLen())
	if f.headerDigest {
		n += pdu.DigestLen
	}
	if f.dataDigest && h.DataLen() > 0 {
		n += pdu.DigestLen
	}
	return have >= n
}

// next reads a header with its additional segments. A data segment not taken is
// skipped.
func (f *framer) next() error {
	if f.unread {
		if _, own, err := f.segment(); err != nil {
			return err
		} else if own != nil {
			f.pool.put(own)
		}
	}
	if err := f.need(pdu.HeaderLen); err != nil {
		return err
	}
	f.hdr = pdu.Header(f.buf.b[f.r:])
	n := pdu.HeaderLen + f.hdr.AHSLen()
	digest := 0
	if f.headerDigest {
		digest = pdu.DigestLen
	}
	if f.hdr.AHSLen() > 0 || f.headerDigest {
		if err := f.need(n + digest); err != nil {
			return err
		}
	}
	all := f.buf.b[f.r : f.r+n]
	f.ahs = all[pdu.HeaderLen:]
	if f.headerDigest && !pdu.CheckDigest(f.buf.b[f.r+n:], pdu.Digest(all)) {
		return errHeaderDigest
	}
	f.r += n + digest
	if f.hdr.DataLen() > f.maxData {
		return fmt.Errorf("%w: data segment of %d bytes, %d declared", errProtocol, f.hdr.DataLen(), f.maxData)
	}
	f.unread = f.hdr.DataLen() > 0
	return nil
}

// trailer is the padding and digest that follow the data segment.
func (f *framer) trailer() int {
	t := pdu.Pad(f.hdr.DataLen())
	if f.dataDigest {
		t += pdu.DigestLen
	}
	return t
}

// segment returns the data segment of the current PDU: in place, valid until the
// next call of next, or in a buffer that is the caller's to put back.
func (f *framer) segment() (data []byte, own *buffer, err error) {
	n := f.hdr.DataLen()
	if !f.unread {
		return nil, nil, nil
	}
	if total := n + f.trailer(); total <= f.room/2 {
		// need may move what is buffered; the additional segments lie before it.
		f.ahs = append([]byte(nil), f.ahs...)
		if err := f.need(total); err != nil {
			return nil, nil, err
		}
		f.unread = false
		data = f.buf.b[f.r : f.r+n : f.r+n]
		rest := f.buf.b[f.r+n : f.r+total]
		f.r += total
		return data, nil, f.check(data, rest)
	}
	own = f.pool.get(n)
	if err := f.segmentInto(own.b[:n]); err != nil {
		f.pool.put(own)
		return nil, nil, err
	}
	return own.b[:n], own, nil
}

// segmentInto reads the data segment of the current PDU, which is of dst's
// length, without a copy where it is long.
func (f *framer) segmentInto(dst []byte) error {
	f.unread = false
	n := copy(dst, f.buf.b[f.r:f.w])
	f.r += n
	for n < len(dst) {
		m, err := f.read(dst[n:])
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		n += m
	}
	t := f.trailer()
	if err := f.need(t); err != nil {
		return err
	}
	var rest []byte
	if t > 0 {
		rest = f.buf.b[f.r : f.r+t]
	}
	f.r += t
	return f.check(dst, rest)
}

// check verifies the data digest, which covers the padding as it came.
func (f *framer) check(data, rest []byte) error {
	if !f.dataDigest {
		return nil
	}
	p := len(rest) - pdu.DigestLen
	if !pdu.CheckDigest(rest[p:], pdu.Digest(data, rest[:p])) {
		return errDataDigest
	}
	return nil
}
