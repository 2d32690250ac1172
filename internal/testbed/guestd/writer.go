package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/internal/testbed/record"
)

var errStopped = errors.New("stopped")

// write goes on with the records of a disk for as long as it and the guest are
// there. A number is printed only after fsync returned.
func (g *guest) write(d *disk) {
	err := g.writeRecords(d)
	g.say("WRITER stop %s serial=%s: %v", d.name, d.serial, err)
}

func (g *guest) writeRecords(d *disk) error {
	// O_DIRECT, so that what is read back at the start is the disk's and not
	// the page cache's, and a failed write is never retried from memory.
	f, err := os.OpenFile(d.path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()

	found, err := record.Read(directReader{f}, g.cfg.blocks)
	if err != nil {
		return err
	}
	if found.Last == 0 && !found.Blank {
		return errors.New("refused: the disk holds other data")
	}
	rec := record.Record{Ring: found.Ring, First: found.Last + 1}
	if found.Last == 0 {
		size, err := f.Seek(0, 2)
		if err != nil {
			return err
		}
		rec.Ring = min(g.cfg.blocks, uint64(size)/record.BlockSize)
	}
	if rec.Ring < 2 {
		return errors.New("refused: the disk is too small")
	}
	var id [8]byte
	rand.Read(id[:])
	rec.Writer = binary.LittleEndian.Uint64(id[:])
	g.say("WRITER start %s serial=%s writer=%016x from=%d", d.name, d.serial, rec.Writer, found.Last)

	block, err := alignedBuffer(record.BlockSize)
	if err != nil {
		return err
	}
	defer unix.Munmap(block)
	tick := time.NewTicker(g.cfg.interval)
	defer tick.Stop()
	for rec.Number = rec.First; ; rec.Number++ {
		rec.Encode(block)
		if err := g.put(d, f, block, rec); err != nil {
			return err
		}
		g.say("REC %d %s %s", rec.Number, d.name, d.serial)
		select {
		case <-tick.C:
		case <-g.stopping:
			return errStopped
		}
	}
}

// put writes a record until the disk takes it. An error leaves it unknown what
// the disk holds, so the same record is written again, whole.
func (g *guest) put(d *disk, f *os.File, block []byte, rec record.Record) error {
	const retry = time.Second
	for {
		_, err := f.WriteAt(block, int64(rec.Number%rec.Ring)*record.BlockSize)
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			return nil
		}
		g.say("WRITER error %s serial=%s: record %d: %v", d.name, d.serial, rec.Number, err)
		select {
		case <-d.gone:
			return fmt.Errorf("the disk is gone: %w", err)
		case <-g.stopping:
			return errStopped
		case <-time.After(retry):
		}
	}
}

// directReader reads through an aligned buffer, as O_DIRECT needs.
type directReader struct{ f *os.File }

func (r directReader) ReadAt(p []byte, off int64) (int, error) {
	buf, err := alignedBuffer(len(p))
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buf)
	n, err := r.f.ReadAt(buf, off)
	return copy(p, buf[:n]), err
}

func alignedBuffer(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}
