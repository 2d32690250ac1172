package scsi

import (
	"context"
	"sync"
	"sync/atomic"
)

// flusher makes data durable, once for all who wait.
//
// A failed flush is final. The kernel reports a failed write-back to one fsync
// and marks the pages clean: a second fsync would succeed, with the data gone.
// So every flush after it fails, too, until the volume is opened anew.
type flusher struct {
	begun atomic.Uint64
	mu    sync.Mutex
	err   error // under mu
}

func (f *flusher) flush(b backing) error {
	seen := f.begun.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	// With the lock held none is under way: one that began after this call did
	// has covered it.
	if f.begun.Load() != seen {
		return nil
	}
	f.begun.Add(1)
	f.err = b.Sync()
	return f.err
}

// synchronize is FUA and SYNCHRONIZE CACHE: what was written before is on
// stable storage when it returns without a fault.
func (d *Device) synchronize() fault {
	if err := d.flusher.flush(d.store); err != nil {
		return writeFault(err)
	}
	return good
}

// syncCache is SYNCHRONIZE CACHE(10) and (16), SBC-4 §5.24 and §5.25. The whole
// volume is flushed, whatever range is asked for. IMMED would allow to report
// GOOD first; the flush is waited for all the same, so that its failure has
// somebody to be reported to.
func (d *Device) syncCache(_ context.Context, c *Command) outcome {
	if _, f := d.inRange(c.CDB); f.failed() {
		return fail(f)
	}
	return fail(d.synchronize())
}
