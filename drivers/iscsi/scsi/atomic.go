package scsi

import "context"

// maxCompareAndWrite is MAXIMUM COMPARE AND WRITE LENGTH (SBC-4 §6.6.4), in blocks.
const maxCompareAndWrite = 255

// compareAndWrite is COMPARE AND WRITE, SBC-4 §5.3: the first half of the
// data-out is compared with the range, and when it is equal the second half is
// written, with no other command on that range in between.
func (d *Device) compareAndWrite(_ context.Context, c *Command) outcome {
	if c.CDB[1]&protectBits != 0 {
		return fail(invalidCDB(1))
	}
	lba, _ := extent(c.CDB)
	s, f := d.blockSpan(lba, uint64(c.CDB[13]))
	o := outcome{fault: f, want: int(c.CDB[13]) << (d.shift + 1)}
	switch {
	case f.failed():
	case len(c.Out) != o.want:
		// 256 blocks of data, with the length's low byte alone in the CDB, come
		// by here as well.
		o.fault = invalidCDB(13)
	case s.n > 0:
		o.fault = d.swap(s, c.Out[:s.n], c.Out[s.n:])
	}
	if !o.failed() && fua(c.CDB) {
		o.fault = d.synchronize()
	}
	return o
}

func (d *Device) swap(s span, old, data []byte) fault {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	m := d.stripes.own(s.off, s.n)
	defer d.stripes.disown(m)
	if _, err := d.store.ReadAt(buf[:s.n], s.off); err != nil {
		return readFault(err)
	}
	if i := mismatch(old, buf[:s.n]); i >= 0 {
		return miscompare(i)
	}
	if _, err := d.store.WriteAt(data, s.off); err != nil {
		return writeFault(err)
	}
	d.stats.writes.Add(1)
	d.stats.writeBytes.Add(uint64(s.n))
	return good
}

// orWrite is ORWRITE(16), SBC-4: the range becomes the bitwise OR of what
// it was and the data-out, with no other command on it in between.
func (d *Device) orWrite(_ context.Context, c *Command) outcome {
	s, f := d.transferRange(c.CDB)
	o := outcome{fault: f, want: d.OutLen(c.CDB)}
	switch {
	case f.failed():
	case int64(len(c.Out)) < s.n:
		o.fault = illegal(ascIncompleteInitiatorData)
	case s.n > 0:
		o.fault = d.or(s, c.Out[:s.n])
	}
	if !o.failed() && fua(c.CDB) {
		o.fault = d.synchronize()
	}
	return o
}

func (d *Device) or(s span, data []byte) fault {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	m := d.stripes.own(s.off, s.n)
	defer d.stripes.disown(m)
	for at := 0; at < len(data); {
		part := data[at:min(len(data), at+chunk)]
		old := buf[:len(part)]
		if _, err := d.store.ReadAt(old, s.off+int64(at)); err != nil {
			return readFault(err)
		}
		for i, b := range part {
			old[i] |= b
		}
		if _, err := d.store.WriteAt(old, s.off+int64(at)); err != nil {
			return writeFault(err)
		}
		at += len(part)
	}
	d.stats.writes.Add(1)
	d.stats.writeBytes.Add(uint64(s.n))
	return good
}
