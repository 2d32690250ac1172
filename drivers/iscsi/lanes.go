package iscsi

import (
	"context"
	"fmt"
	"sync"
	"time"

	"reconciler/drivers/iscsi/volume"
)

// How long a call at a pool's file system may take. A file system can be silent
// for ever, a call that went into it cannot be taken back, and neither may hold
// up what does not need it.
const (
	lookPatience  = 10 * time.Second // a large directory, read for the first time
	writePatience = 20 * time.Second // with all of it synced, on a busy disk
)

// SilentError says that a pool's file system does not answer.
type SilentError struct {
	Pool string
	For  time.Duration // since the call began that has not come back
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("the file system of pool %s does not answer: a call has not come back for %s", e.Pool, e.For.Round(time.Second))
}

// lanes lead to file systems: a call in each at a time, in a goroutine of its
// own. What waits behind a call that does not come back is told so, and no second
// one goes in.
type lanes struct {
	look, write time.Duration // how long a call may take

	mu       sync.Mutex
	inFlight map[string]*call
}

type call struct {
	since time.Time
	done  chan struct{}
}

// enter takes the lane, or says why not.
func (l *lanes) enter(ctx context.Context, lane, pool string, patience time.Duration) (*call, error) {
	for {
		l.mu.Lock()
		c := l.inFlight[lane]
		if c == nil {
			c = &call{time.Now(), make(chan struct{})}
			if l.inFlight == nil {
				l.inFlight = map[string]*call{}
			}
			l.inFlight[lane] = c
			l.mu.Unlock()
			return c, nil
		}
		l.mu.Unlock()
		if err := c.wait(ctx, pool, patience); err != nil {
			return nil, err
		}
	}
}

func (l *lanes) leave(lane string, c *call) {
	l.mu.Lock()
	delete(l.inFlight, lane)
	l.mu.Unlock()
	close(c.done)
}

// wait waits for the end of a call, as long as it may take.
func (c *call) wait(ctx context.Context, pool string, patience time.Duration) error {
	late := time.NewTimer(patience - time.Since(c.since))
	defer late.Stop()
	select {
	case <-c.done:
		return nil
	case <-late.C:
		return &SilentError{pool, time.Since(c.since)}
	case <-ctx.Done():
		return fmt.Errorf("wait for the file system of pool %s: %w", pool, ctx.Err())
	}
}

// through makes a call in a lane. After an error the call may still go on; the
// lane is not free before its end.
func through[T any](ctx context.Context, l *lanes, lane, pool string, patience time.Duration, f func() (T, error)) (T, error) {
	var none T
	c, err := l.enter(ctx, lane, pool, patience)
	if err != nil {
		return none, err
	}
	var out T
	var failed error
	go func() {
		out, failed = f()
		l.leave(lane, c)
	}()
	if err := c.wait(ctx, pool, patience); err != nil {
		return none, err
	}
	return out, failed
}

// pool is an open pool. Whatever touches its file system is a method here and
// goes through a lane; but for Make, which takes minutes and holds up its own
// action only.
type pool struct {
	*lanes
	uid, name string
	volumes   *volume.Pool
}

func (p *pool) path(disk string) string { return p.volumes.Path(disk) }

func (p *pool) get(ctx context.Context, disk string) (volume.Volume, error) {
	return through(ctx, p.lanes, p.uid, p.name, p.look, func() (volume.Volume, error) { return p.volumes.Get(disk) })
}

// listing is all that is read of a pool at once.
type listing struct {
	volumes []volume.Volume
	strays  []volume.Stray
	broken  map[string]error // volumes whose record cannot be read, by UID
	free    int64            // bytes
}

func (p *pool) list(ctx context.Context) (listing, error) {
	return through(ctx, p.lanes, p.uid, p.name, p.look, func() (l listing, err error) {
		if l.volumes, l.strays, l.broken, err = p.volumes.List(); err != nil {
			return l, err
		}
		l.free, err = p.volumes.Free()
		return l, err
	})
}

// change makes a change of the pool that is over soon. Changes of different
// volumes do not wait for each other, nor do looks for them.
func (p *pool) change(ctx context.Context, disk string, f func() error) error {
	_, err := through(ctx, p.lanes, p.uid+"/"+disk, p.name, p.write, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

func (p *pool) put(ctx context.Context, m volume.Meta) error {
	return p.change(ctx, m.UID, func() error { return p.volumes.Put(m) })
}

func (p *pool) grow(ctx context.Context, disk string, size int64) error {
	return p.change(ctx, disk, func() error { return p.volumes.Grow(disk, size) })
}

func (p *pool) discard(ctx context.Context, disk string) error {
	return p.change(ctx, disk, func() error { return p.volumes.Discard(disk) })
}

func (p *pool) purge(ctx context.Context, m volume.Meta, forget func() error) error {
	return p.change(ctx, m.UID, func() error { return p.volumes.Purge(m, forget) })
}

func (p *pool) make(ctx context.Context, m volume.Meta, fill volume.Fill) error {
	return p.volumes.Make(ctx, m, fill)
}
