package scsi

import (
	"bytes"
	"context"
	"encoding/binary"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// Limits of the Block Limits VPD page (SBC-4 §6.6.4).
const (
	maxUnmapBlocks      = 1 << 20
	maxUnmapDescriptors = 256
	// maxWriteSame bounds what one WRITE SAME writes, in bytes, and so how long
	// it takes.
	maxWriteSame = MaxTransfer
)

// zeroStep is how much is zeroed or unmapped between two looks at whether the
// command was aborted, in bytes.
const zeroStep = 128 << 20

// unmap is UNMAP, SBC-4 §5.35. All descriptors are checked before the first is
// carried out.
func (d *Device) unmap(ctx context.Context, c *Command) outcome {
	ctx = c.Nexus.abortable(ctx)
	o := outcome{want: allocation16(c.CDB, 7)}
	if c.CDB[1]&1 != 0 { // ANCHOR, which the provisioning page does not offer
		o.fault = invalidCDB(1)
		return o
	}
	if o.want == 0 {
		return o
	}
	list := c.Out[:min(len(c.Out), o.want)]
	if len(list) < 8 || len(list) < o.want {
		o.fault = illegal(gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
		return o
	}
	var spans []span
	spans, o.fault = d.unmapSpans(list)
	for _, s := range spans {
		if o.failed() {
			break
		}
		o.fault = d.zero(ctx, s, true)
	}
	return o
}

// unmapSpans decodes the descriptors of an UNMAP parameter list. A descriptor
// cut off by the block descriptor data length is ignored (SBC-4 §5.35).
func (d *Device) unmapSpans(list []byte) ([]span, fault) {
	n := min(int(binary.BigEndian.Uint16(list[2:])), len(list)-8) / 16
	if n > maxUnmapDescriptors {
		return nil, invalidParameter(2)
	}
	spans := make([]span, 0, n)
	var total uint64
	for i := range n {
		desc := list[8+16*i:]
		blocks := uint64(binary.BigEndian.Uint32(desc[8:]))
		lba := binary.BigEndian.Uint64(desc)
		if blocks == 0 && lba <= d.blocks() {
			continue // not an error, at the very end neither
		}
		s, f := d.blockSpan(lba, blocks)
		if f.failed() {
			return nil, f
		}
		if total += blocks; total > maxUnmapBlocks {
			return nil, invalidParameter(8 + 16*i + 8)
		}
		spans = append(spans, s)
	}
	return spans, good
}

// zero makes a range read as zeros.
func (d *Device) zero(ctx context.Context, s span, unmap bool) fault {
	for s.n > 0 {
		if ctx.Err() != nil {
			return fault{status: StatusTaskAborted}
		}
		n := min(s.n, zeroStep)
		if err := d.zeroAt(s.off, n, unmap); err != nil {
			return writeFault(err)
		}
		s.off, s.n = s.off+n, s.n-n
	}
	return good
}

// WRITE SAME flags (SBC-4): ANCHOR, UNMAP, the obsolete PBDATA and
// LBDATA, and of WRITE SAME(16) NDOB.
const (
	wsAnchor   = 0x10
	wsUnmap    = 0x08
	wsObsolete = 0x06
	wsNoData   = 0x01
)

// writeSame is WRITE SAME(10) and (16), SBC-4. With a length of
// zero it runs to the end of the medium.
func (d *Device) writeSame(ctx context.Context, c *Command) outcome {
	ctx = c.Nexus.abortable(ctx)
	flags := c.CDB[1]
	noData := c.CDB[0] == opWriteSame16 && flags&wsNoData != 0
	o := outcome{}
	if !noData {
		o.want = d.cfg.BlockSize
	}
	if flags&(protectBits|wsAnchor|wsObsolete) != 0 || flags&wsUnmap != 0 && !d.thin {
		o.fault = invalidCDB(1)
		return o
	}
	lba, blocks := extent(c.CDB)
	s, f := d.blockSpan(lba, blocks)
	if f.failed() {
		o.fault = f
		return o
	}
	if blocks == 0 {
		s.n = d.Size() - s.off
	}
	if s.n > maxWriteSame {
		o.fault = invalidCDB(lengthField(c.CDB))
		return o
	}
	if len(c.Out) != o.want {
		o.fault = illegal(ascIncompleteInitiatorData)
		return o
	}
	if len(bytes.TrimLeft(c.Out, "\x00")) == 0 {
		o.fault = d.zero(ctx, s, flags&wsUnmap != 0)
	} else {
		// UNMAP with data that unmapped blocks do not read as writes the data
		// (SBC-4, WRITE SAME and unmap).
		o.fault = d.fill(ctx, s, c.Out)
	}
	if !o.failed() {
		d.stats.writes.Add(1)
		d.stats.writeBytes.Add(uint64(s.n))
	}
	return o
}

// fill writes one block over a range.
func (d *Device) fill(ctx context.Context, s span, block []byte) fault {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	repeat(buf[:min(s.n, chunk)], block)
	for s.n > 0 {
		if ctx.Err() != nil {
			return fault{status: StatusTaskAborted}
		}
		n := min(s.n, chunk)
		if err := d.writeAt(buf[:n], s.off); err != nil {
			return writeFault(err)
		}
		s.off, s.n = s.off+n, s.n-n
	}
	return good
}
