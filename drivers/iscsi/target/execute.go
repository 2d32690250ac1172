package target

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"reconciler/drivers/iscsi/scsi"
)

// A command that will hardly block, a READ or WRITE through the page cache, runs
// on the goroutine that read it: handing it to another costs more than doing it.
// Two things keep that from holding up the session when it does block. A command
// that takes long while the reader runs it is watched: another goroutine takes
// the reading over and the first one becomes a worker (inlineState). And a
// session whose commands turn out slow has its next ones run by workers (pace):
// reads as soon as they miss the page cache, in parallel; writes, which file
// systems do one after the other anyway, once one has really been stuck.

var errTakenOver = errors.New("reading was taken over")

// inlineState is shared by a session's reader and the server's watch. seq is odd
// while the reader runs a command; whoever makes it even again reads on.
type inlineState struct {
	seq      atomic.Uint64
	framer   atomic.Pointer[framer]
	handover sync.Mutex
	watched  uint64 // the watch's: seq when it last looked
	pace     pace   // the reader's
}

// pace decides between running inline and by workers, apart for reads and writes:
// how many of the next ones are for workers.
type pace struct{ reads, writes int }

const (
	slowCommand = 150 * time.Microsecond // beyond a memory copy: it waited for something
	slowRun     = 64                     // commands given to workers before inline is tried again
)

// inlineKind sorts commands by whether the reader may run them.
func inlineKind(cdb []byte) (ok, isWrite bool) {
	switch cdb[0] {
	case 0x08, 0x28, 0xa8, 0x88: // READ
		return true, false
	case 0x0a: // WRITE(6)
		return true, true
	case 0x2a, 0xaa, 0x8a: // WRITE; with FUA it waits for the medium
		return cdb[1]&0x08 == 0, true
	case 0x00, 0x03, 0x12, 0x1a, 0x25, 0xa0: // no medium access
		return true, false
	}
	return false, false
}

// execute runs a task whose data-out is complete, here or by a worker.
func (s *session) execute(t *task, f *framer) error {
	ok, isWrite := inlineKind(t.cmd.CDB)
	slow := &s.inline.pace.reads
	if isWrite {
		slow = &s.inline.pace.writes
	}
	if ok && *slow > 0 {
		*slow--
		ok = false
	}
	s.mu.Lock()
	t.reading = false
	if t.aborted || s.closed {
		s.endLocked(t)
		s.mu.Unlock()
		return nil
	}
	if s.orderLocked(t) {
		s.mu.Unlock()
		return nil
	}
	var room int
	if ok {
		room, ok = s.roomLocked(t)
	}
	if !ok {
		s.enqueueLocked(t)
		s.mu.Unlock()
		return nil
	}
	s.runLocked(t)
	s.mu.Unlock()

	in := &s.inline
	seq := in.seq.Load()
	in.framer.Store(f)
	in.seq.Store(seq + 1)
	s.srv.watch.wake()
	begin, moved := time.Now(), room+len(t.cmd.Out)
	r := s.run(s.ctx, t, room)
	s.respond(t, r)
	if !in.seq.CompareAndSwap(seq+1, seq+2) {
		in.handover.Lock() // the successor has copied what f holds
		f.release()
		in.handover.Unlock()
		s.flush()
		return errTakenOver
	}
	if took := time.Since(begin); !isWrite && took > slowCommand && took > time.Duration(moved) {
		*slow = slowRun
	}
	s.mu.Lock()
	full := s.outBytes >= flushBytes
	s.mu.Unlock()
	if full {
		s.flush()
	}
	return nil
}

// takeOver makes another goroutine the session's reader, if the present one is
// still running the command that seq was seen with.
func (s *session) takeOver(seq uint64) {
	in := &s.inline
	in.handover.Lock()
	defer in.handover.Unlock()
	f := in.framer.Load()
	if !in.seq.CompareAndSwap(seq, seq+1) {
		return
	}
	in.pace = pace{slowRun, slowRun} // the former reader does not look at it any more
	go s.readLoop(f.successor())
}

// roomLocked takes memory for data-in from the session's credit. Without enough
// a worker has to wait for it.
func (s *session) roomLocked(t *task) (int, bool) {
	if !t.read || t.edtl == 0 {
		return 0, true
	}
	n := min(t.edtl, s.lu.InLen(t.cmd.CDB), scsi.MaxTransfer)
	if n > s.inFree {
		return n, false
	}
	s.inFree -= n
	return n, true
}

func (s *session) runLocked(t *task) {
	t.state = running
	s.running++
}

// keepLocked copies the data-out that lies in the receive buffer, which the
// reader goes on to use.
func (s *session) keepLocked(t *task) {
	if t.outBuf == nil && len(t.cmd.Out) > 0 {
		t.outBuf = s.srv.pool.get(len(t.cmd.Out))
		t.cmd.Out = t.outBuf.b[:copy(t.outBuf.b, t.cmd.Out)]
	}
}

// enqueueLocked gives the task to the session's workers.
func (s *session) enqueueLocked(t *task) {
	t.state = queued
	s.queue = append(s.queue, t)
	s.keepLocked(t)
	if s.workers < s.srv.limits.Workers {
		s.workers++
		go s.work()
	}
}

// work runs queued tasks until there are none.
func (s *session) work() {
	s.mu.Lock()
	for len(s.queue) > 0 {
		t := s.queue[0]
		s.queue = s.queue[1:]
		s.runLocked(t)
		room, fits := s.roomLocked(t)
		for !fits && !s.closed && !t.aborted {
			s.inCond.Wait()
			room, fits = s.roomLocked(t)
		}
		if !fits || s.closed {
			if fits {
				s.inFree += room
			}
			s.endLocked(t)
			continue
		}
		ctx, cancel := context.WithCancel(s.ctx)
		t.cancel = cancel
		if t.aborted {
			cancel()
		}
		s.mu.Unlock()
		r := s.run(ctx, t, room)
		cancel()
		s.respond(t, r)
		s.flush()
		s.mu.Lock()
	}
	s.workers--
	s.mu.Unlock()
}

// outcome is what came of a task: the logical unit's result and the buffer that
// holds the data-in.
type outcome struct {
	scsi.Result
	in   *buffer
	room int
}

func (s *session) run(ctx context.Context, t *task, room int) outcome {
	o := outcome{room: room}
	if room > 0 {
		o.in = s.srv.pool.get(room)
		t.cmd.In = o.in.b[:room]
	}
	o.Result = s.lu.Execute(ctx, &t.cmd)
	return o
}
