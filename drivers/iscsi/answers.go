package iscsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"reconciler/drivers/iscsi/target"
)

// answerTimeout is how long a healthy target may take to say that it is there.
const answerTimeout = 1500 * time.Millisecond

// Answers asks the target that it serves these disks now: its process answers,
// has their volumes open and listens, and the portals that their claims use
// accept. It returns within answerTimeout.
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
		if err := d.disks.ReadJSON(uid+".json", &r); err != nil {
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
