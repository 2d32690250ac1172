package scsi

import (
	"math/bits"
	"sync"
)

const (
	stripeShift = 20 // one lock per 1 MiB of the medium, modulo their number
	stripeCount = 64
)

// stripes makes COMPARE AND WRITE and ORWRITE one uninterrupted action on their
// LBA range (SBC-4, uninterrupted sequences on LBA ranges) while everything else
// runs concurrently: they lock the stripes of the range, other commands share
// them.
//
// Locks are taken in ascending order by everyone, so that two ranges cannot
// deadlock.
type stripes [stripeCount]sync.RWMutex

// mask returns the stripes that n bytes at off touch, one bit each.
func (*stripes) mask(off, n int64) uint64 {
	first, last := off>>stripeShift, (off+max(n, 1)-1)>>stripeShift
	if last-first >= stripeCount-1 {
		return ^uint64(0)
	}
	var m uint64
	for i := first; i <= last; i++ {
		m |= 1 << (i % stripeCount)
	}
	return m
}

func (s *stripes) each(m uint64, f func(*sync.RWMutex)) {
	for ; m != 0; m &= m - 1 {
		f(&s[bits.TrailingZeros64(m)])
	}
}

// share lets other commands share the range, but none that changes it in one action.
func (s *stripes) share(off, n int64) (mask uint64) {
	mask = s.mask(off, n)
	s.each(mask, (*sync.RWMutex).RLock)
	return mask
}

func (s *stripes) unshare(mask uint64) { s.each(mask, (*sync.RWMutex).RUnlock) }

// own keeps every other command out of the range.
func (s *stripes) own(off, n int64) (mask uint64) {
	mask = s.mask(off, n)
	s.each(mask, (*sync.RWMutex).Lock)
	return mask
}

func (s *stripes) disown(mask uint64) { s.each(mask, (*sync.RWMutex).Unlock) }

// readAt, writeAt and zeroAt are the backing's calls for commands that share
// their range.

func (d *Device) readAt(p []byte, off int64) error {
	m := d.stripes.share(off, int64(len(p)))
	defer d.stripes.unshare(m)
	_, err := d.store.ReadAt(p, off)
	return err
}

func (d *Device) writeAt(p []byte, off int64) error {
	m := d.stripes.share(off, int64(len(p)))
	defer d.stripes.unshare(m)
	_, err := d.store.WriteAt(p, off)
	return err
}

func (d *Device) zeroAt(off, n int64, unmap bool) error {
	m := d.stripes.share(off, n)
	defer d.stripes.unshare(m)
	return d.store.Zero(off, n, unmap)
}
