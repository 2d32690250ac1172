package iscsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/drivers/iscsi/target"
)

// answerTimeout is how long a healthy target may take to say that it is there.
const answerTimeout = 1500 * time.Millisecond

// Answers asks that these disks are served now: the target's process answers
// and has their volumes open, the portals that their claims use accept, and the
// storage below the volumes returns a block. It returns within answerTimeout.
func (d *Driver) Answers(ctx context.Context, disks []string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	served, err := d.served(ctx)
	if err != nil {
		return err
	}
	var portals []string
	for _, uid := range disks {
		var r diskRecord
		if err := d.disks.ReadJSON(uid+".json", recordVersion, &r); err != nil {
			if missing(err) {
				err = errors.New("there is no volume of it")
			}
			return fmt.Errorf("disk %s: %w", uid, err)
		}
		s, ok := served[r.Target]
		if !ok {
			return fmt.Errorf("disk %s is not exported", r.Name)
		}
		if s.Error != "" {
			return fmt.Errorf("disk %s is not served: %s", r.Name, s.Error)
		}
		portals = append(portals, d.portalOf(uid, s))
		if err := d.probes.read(ctx, s.Path); err != nil {
			return fmt.Errorf("volume of disk %s: %w", r.Name, err)
		}
	}
	slices.Sort(portals)
	return d.knock(ctx, slices.Compact(portals))
}

// portalOf is the portal that the disk's owner uses.
func (d *Driver) portalOf(disk string, s target.Status) string {
	if r, err := d.claims.Get(disk); err == nil && r.Writer != nil {
		return r.Writer.Portal
	}
	return s.Portals[0]
}

// knock connects to each portal.
func (d *Driver) knock(ctx context.Context, portals []string) error {
	errs := make([]error, len(portals))
	var wg sync.WaitGroup
	for i, p := range portals {
		wg.Go(func() {
			var dialer net.Dialer
			c, err := dialer.DialContext(ctx, "tcp", p)
			if err != nil {
				errs[i] = fmt.Errorf("portal %s does not answer: %w", p, err)
				return
			}
			_ = c.Close()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// probes reads volumes. A read that never returns cannot be taken back, so at
// most one is under way for each.
type probes struct {
	mu    sync.Mutex
	stuck map[string]chan struct{}
}

// read reads the first block of a volume past the page cache.
func (p *probes) read(ctx context.Context, path string) error {
	p.mu.Lock()
	done, stuck := p.stuck[path]
	result := make(chan error, 1)
	if !stuck {
		if p.stuck == nil {
			p.stuck = map[string]chan struct{}{}
		}
		done = make(chan struct{})
		p.stuck[path] = done
		go func() {
			result <- readBlock(path)
			p.mu.Lock()
			delete(p.stuck, path)
			p.mu.Unlock()
			close(done)
		}()
	}
	p.mu.Unlock()
	select {
	case err := <-result:
		return err
	case <-done:
		if stuck { // another asked at the same time, and it came back
			return nil
		}
		return <-result
	case <-ctx.Done():
		return fmt.Errorf("a read does not come back: %w", ctx.Err())
	}
}

const block = 4096

func readBlock(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.EINVAL) { // the file system has no direct I/O
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buf) }()
	_, err = f.ReadAt(buf, 0)
	return err
}
