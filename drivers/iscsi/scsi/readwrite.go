package scsi

import (
	"context"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// span is a byte range of the medium.
type span struct{ off, n int64 }

// inRange decodes the range of a CDB and checks it against the capacity
// (SBC-4: LOGICAL BLOCK ADDRESS OUT OF RANGE).
func (d *Device) inRange(cdb []byte) (span, fault) {
	lba, blocks := extent(cdb)
	return d.blockSpan(lba, blocks)
}

func (d *Device) blockSpan(lba, blocks uint64) (span, fault) {
	capacity := d.blocks()
	if lba >= capacity || blocks > capacity-lba {
		return span{}, illegal(gotgt.ASC_LBA_OUT_OF_RANGE)
	}
	return span{int64(lba << d.shift), int64(blocks << d.shift)}, good
}

// transferRange is inRange for a command that moves all of its range: the
// volume has no protection information (SBC-4, protection information) and transfers are bounded.
func (d *Device) transferRange(cdb []byte) (span, fault) {
	if cdb[0]>>5 != 0 && cdb[1]&protectBits != 0 {
		return span{}, invalidCDB(1)
	}
	s, f := d.inRange(cdb)
	if !f.failed() && s.n > MaxTransfer {
		f = invalidCDB(lengthField(cdb))
	}
	return s, f
}

// fua is the FUA bit of a READ or WRITE; the six-byte kind has none.
func fua(cdb []byte) bool { return cdb[0]>>5 != 0 && cdb[1]&fuaBit != 0 }

// read is READ(6), (10), (12) and (16), SBC-4.
func (d *Device) read(_ context.Context, c *Command) outcome {
	s, f := d.transferRange(c.CDB)
	if f.failed() {
		return fail(f)
	}
	// What is read with FUA comes from the medium, so what the cache has must be
	// there first (SBC-4, caches).
	if fua(c.CDB) {
		if f := d.synchronize(); f.failed() {
			return fail(f)
		}
	}
	buf := c.In[:min(int64(len(c.In)), s.n)]
	if err := d.readAt(buf, s.off); err != nil {
		return fail(readFault(err))
	}
	d.stats.reads.Add(1)
	d.stats.readBytes.Add(uint64(len(buf)))
	return outcome{n: len(buf), want: int(s.n)}
}

// write is WRITE(6), (10), (12) and (16), SBC-4 §5.40 to §5.42.
func (d *Device) write(_ context.Context, c *Command) outcome {
	s, f := d.transferRange(c.CDB)
	if f.failed() {
		return outcome{fault: f, want: d.OutLen(c.CDB)}
	}
	f = d.storeData(c, s)
	if !f.failed() && fua(c.CDB) {
		f = d.synchronize()
	}
	return outcome{fault: f, want: int(s.n)}
}

// storeData writes the data-out of a command to its range. Of an initiator that
// announced less than its CDB says the whole blocks are written (RFC 7143
// §11.4.5.1 makes the rest a residual); part of a block is refused.
func (d *Device) storeData(c *Command, s span) fault {
	data := c.Out[:min(int64(len(c.Out)), s.n)]
	if len(data)&(d.cfg.BlockSize-1) != 0 {
		return illegal(ascIncompleteInitiatorData)
	}
	if len(data) == 0 {
		return good
	}
	if err := d.writeAt(data, s.off); err != nil {
		return writeFault(err)
	}
	d.stats.writes.Add(1)
	d.stats.writeBytes.Add(uint64(len(data)))
	return good
}

// writeVerify is WRITE AND VERIFY(10), (12) and (16), SBC-4 §5.44 to §5.46: the
// write reaches the medium, and with BYTCHK 01b is compared with it.
func (d *Device) writeVerify(_ context.Context, c *Command) outcome {
	s, f := d.transferRange(c.CDB)
	if f.failed() {
		return outcome{fault: f, want: d.OutLen(c.CDB)}
	}
	bytchk := c.CDB[1] >> 1 & 3
	if bytchk > 1 {
		return outcome{fault: invalidCDB(1), want: int(s.n)}
	}
	f = d.storeData(c, s)
	if !f.failed() {
		f = d.synchronize()
	}
	if !f.failed() && bytchk == 1 {
		f = d.compare(context.Background(), c.Out[:min(int64(len(c.Out)), s.n)], s.off)
	}
	return outcome{fault: f, want: int(s.n)}
}

// prefetch is PRE-FETCH(10) and (16), SBC-4. It answers GOOD,
// never CONDITION MET: nobody can promise that all of it stays in the cache.
func (d *Device) prefetch(_ context.Context, c *Command) outcome {
	s, f := d.inRange(c.CDB)
	if f.failed() {
		return fail(f)
	}
	if s.n == 0 {
		s.n = d.Size() - s.off
	}
	if err := d.store.Prefetch(s.off, min(s.n, MaxTransfer)); err != nil {
		return fail(readFault(err))
	}
	return outcome{}
}
