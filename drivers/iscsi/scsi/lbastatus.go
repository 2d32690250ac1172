package scsi

import (
	"context"
	"encoding/binary"
)

// Provisioning status of an LBA status descriptor (SBC-4, GET LBA STATUS).
const (
	lbaMapped      = 0
	lbaDeallocated = 1
)

// maxLBADescriptors bounds what one GET LBA STATUS looks for.
const maxLBADescriptors = 1024

// getLBAStatus is GET LBA STATUS(16), SBC-4. A block is reported as
// deallocated only when no byte of it is backed by data.
func (d *Device) getLBAStatus(ctx context.Context, c *Command) outcome {
	lba := binary.BigEndian.Uint64(c.CDB[2:])
	s, f := d.blockSpan(lba, 0)
	if f.failed() {
		return fail(f)
	}
	allocation := allocation32(c.CDB, 10)
	room := min(max((allocation-8)/16, 1), maxLBADescriptors)
	data := make([]byte, 8, 8+16*min(room, 16))
	var last []byte
	for end := d.Size(); s.off < end; {
		if ctx.Err() != nil {
			return fail(fault{status: StatusTaskAborted})
		}
		mapped, next, err := d.run(s.off, end)
		if err != nil {
			return fail(readFault(err))
		}
		status := byte(lbaDeallocated)
		if mapped {
			status = lbaMapped
		}
		blocks := uint64(next-s.off) >> d.shift
		if last != nil && last[12] == status && uint64(binary.BigEndian.Uint32(last[8:]))+blocks <= 0xffffffff {
			binary.BigEndian.PutUint32(last[8:], binary.BigEndian.Uint32(last[8:])+uint32(blocks))
			s.off = next
			continue
		}
		if len(data) == 8+16*room {
			break
		}
		blocks = min(blocks, 0xffffffff)
		data = append(data, make([]byte, 16)...)
		last = data[len(data)-16:]
		binary.BigEndian.PutUint64(last, uint64(s.off)>>d.shift)
		binary.BigEndian.PutUint32(last[8:], uint32(blocks))
		last[12] = status
		s.off += int64(blocks << d.shift)
	}
	binary.BigEndian.PutUint32(data, uint32(len(data)-4))
	return reply(c, data, allocation)
}

// run finds where the run of whole blocks of one kind that begins at off ends.
// Runs are rounded so that a block with any data counts as mapped.
func (d *Device) run(off, end int64) (mapped bool, next int64, err error) {
	bs := int64(d.cfg.BlockSize)
	mapped, next, err = d.store.Extent(off)
	if err != nil {
		return false, 0, err
	}
	if mapped {
		next = (next + bs - 1) &^ (bs - 1)
	} else if next &^= bs - 1; next <= off {
		mapped, next = true, off+bs
	}
	return mapped, min(next, end), nil
}
