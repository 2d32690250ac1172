package scsi

import (
	"context"
	"sync"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// chunk is how much of the medium a long command handles at a time, in bytes:
// between two of them it looks whether it was aborted.
const chunk = 1 << 20

// chunks are scratch buffers of that size.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// verify is VERIFY(10), (12) and (16), SBC-4 §5.36 to §5.38. BYTCHK 00b reads
// the range, 01b compares it with the data-out, 11b each block of it with the
// one block of data-out.
func (d *Device) verify(ctx context.Context, c *Command) outcome {
	if c.CDB[1]&protectBits != 0 {
		return fail(invalidCDB(1))
	}
	ctx = c.Nexus.abortable(ctx)
	s, f := d.inRange(c.CDB)
	want := d.OutLen(c.CDB)
	if f.failed() {
		return outcome{fault: f, want: want}
	}
	switch c.CDB[1] >> 1 & 3 {
	case 0:
		f = d.readable(ctx, s)
	case 1:
		switch {
		case s.n > MaxTransfer:
			f = invalidCDB(lengthField(c.CDB))
		case int64(len(c.Out)) < s.n:
			f = illegal(ascIncompleteInitiatorData)
		default:
			f = d.compare(ctx, c.Out[:s.n], s.off)
		}
	case 3:
		if len(c.Out) < d.cfg.BlockSize {
			f = illegal(ascIncompleteInitiatorData)
			break
		}
		f = d.compareSame(ctx, c.Out[:d.cfg.BlockSize], s)
	default:
		f = invalidCDB(1)
	}
	return outcome{fault: f, want: want}
}

// readable reads what of the range holds data and drops it.
func (d *Device) readable(ctx context.Context, s span) fault {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for end := s.off + s.n; s.off < end; {
		if ctx.Err() != nil {
			return fault{status: StatusTaskAborted}
		}
		data, next, err := d.store.Extent(s.off)
		if err != nil {
			return readFault(err)
		}
		next = min(next, end)
		if data {
			next = min(next, s.off+chunk)
			if _, err := d.store.ReadAt(buf[:next-s.off], s.off); err != nil {
				return readFault(err)
			}
		}
		s.off = next
	}
	return good
}

// compare compares data with the medium at off. A MISCOMPARE says in its
// INFORMATION field at which byte of data they differ (SBC-4 §5.36).
func (d *Device) compare(ctx context.Context, data []byte, off int64) fault {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for at := 0; at < len(data); {
		if ctx.Err() != nil {
			return fault{status: StatusTaskAborted}
		}
		part := data[at:min(len(data), at+chunk)]
		if err := d.readAt(buf[:len(part)], off+int64(at)); err != nil {
			return readFault(err)
		}
		if i := mismatch(part, buf[:len(part)]); i >= 0 {
			return miscompare(at + i)
		}
		at += len(part)
	}
	return good
}

// compareSame compares each block of a range with one. A MISCOMPARE says at
// which byte of the block.
func (d *Device) compareSame(ctx context.Context, block []byte, s span) fault {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	repeat(buf[:min(s.n, chunk)], block)
	for s.n > 0 {
		n := min(s.n, chunk)
		f := d.compare(ctx, buf[:n], s.off)
		if f.failed() {
			f.info %= uint64(len(block))
			return f
		}
		s.off, s.n = s.off+n, s.n-n
	}
	return good
}

// repeat fills buf with copies of block.
func repeat(buf, block []byte) {
	for n := copy(buf, block); n < len(buf); {
		n += copy(buf[n:], buf[:n])
	}
}

// mismatch returns the index of the first byte in which a and b, of one length,
// differ; -1 when they are equal.
func mismatch(a, b []byte) int {
	if string(a) == string(b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func miscompare(at int) fault {
	return check(gotgt.MISCOMPARE, gotgt.ASC_MISCOMPARE_DURING_VERIFY_OPERATION).withInfo(uint64(at))
}
