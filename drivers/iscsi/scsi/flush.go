package scsi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// flusher makes data durable, once for all who wait.
//
// A failed flush is final. The kernel reports a failed write-back to one fsync
// and marks the pages clean: a second fsync would succeed, with the data gone.
// So every flush after it fails, too, until the volume is opened anew.
type flusher struct {
	begun  atomic.Uint64
	failed atomic.Bool
	mu     sync.Mutex
	err    error // under mu
}

// ErrUnsynced says that a flush failed since the volume was opened: writes that
// came before it may be lost.
var ErrUnsynced = errors.New("an earlier flush failed")

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
	err := b.Sync()
	if err != nil {
		// What is answered from now on does not invite to try again, as ENOSPC
		// would.
		f.err = fmt.Errorf("%w: %v", ErrUnsynced, err)
		f.failed.Store(true)
	}
	return err
}

// synchronize is FUA and SYNCHRONIZE CACHE: what was written before is on
// stable storage when it returns without a fault.
func (d *Device) synchronize() fault {
	err := d.flusher.flush(d.store)
	switch {
	case err == nil:
		return good
	case retry(err):
		// Trying again would be answered differently: see flusher.
		return check(gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR)
	}
	return writeFault(err)
}

// syncCache is SYNCHRONIZE CACHE(10) and (16), SBC-4 §5.33 and §5.34. The whole
// volume is flushed, whatever range is asked for. IMMED would allow to report
// GOOD first; the flush is waited for all the same, so that its failure has
// somebody to be reported to.
func (d *Device) syncCache(_ context.Context, c *Command) outcome {
	if _, f := d.inRange(c.CDB); f.failed() {
		return fail(f)
	}
	return fail(d.synchronize())
}
