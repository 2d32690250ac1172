package iscsi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"reconciler/drivers/iscsi/claims"
	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
)

// Ensure makes the world follow the records, without any plan: the target's
// process runs and serves what is recorded to those who are recorded; what a
// crash interrupted is finished or taken back; accesses that are over end;
// uptime is counted for what is in quarantine. The agent calls it before it
// observes. What is being changed at the moment is left to who changes it.
func (d *Driver) Ensure(ctx context.Context) error {
	var errs []error
	away := false
	if d.cfg.Start != nil {
		if err := d.start(ctx); err != nil {
			errs, away = append(errs, err), true
		}
	}
	inv, err := d.inventory(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, d.tidyAll(ctx, inv))
	if away { // to ask it more would only take longer
		return errors.Join(errs...)
	}
	served, err := d.served(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, d.endAllDue(ctx), d.repairAll(ctx, inv, served))...)
}

// stepTimeout bounds what one disk may take of Ensure: the target waits for
// commands that are stuck at a volume. What was begun goes on from there next time.
const stepTimeout = 5 * time.Second

// endAllDue ends what is due, all at once: what is stuck holds up no other.
func (d *Driver) endAllDue(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	all := d.claims.List()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, r := range all {
		if d.due(r) {
			wg.Go(func() { errs[i] = d.endDue(ctx, r) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// tidyAll tidies every pool that could be read; one that falls silent meanwhile is
// left until the next time.
func (d *Driver) tidyAll(ctx context.Context, inv *inventory) error {
	errs := make([]error, len(inv.pools))
	var wg sync.WaitGroup
	for i := range inv.pools {
		p := &inv.pools[i]
		if p.err != nil {
			continue // Observe says so
		}
		d.warn(p)
		wg.Go(func() {
			for j := range p.volumes {
				err := d.tidy(ctx, place{p.record, p.pool}, &p.volumes[j], inv)
				errs[i] = errors.Join(errs[i], err)
				var silent *SilentError
				if errors.As(err, &silent) {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// repairAll makes the target serve every volume as recorded. A pool in which one
// takes too long is left until the next time.
func (d *Driver) repairAll(ctx context.Context, inv *inventory, served map[string]target.Status) error {
	errs := make([]error, len(inv.pools))
	var wg sync.WaitGroup
	for i := range inv.pools {
		p := &inv.pools[i]
		wg.Go(func() {
			for j := range p.volumes {
				step, cancel := context.WithTimeout(ctx, stepTimeout)
				errs[i] = errors.Join(errs[i], d.repair(step, place{p.record, p.pool}, &p.volumes[j], served))
				late := step.Err() != nil
				cancel()
				if late {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startTimeout bounds how long a start may take. What is not there then is
// unknown, not waited for.
const startTimeout = 15 * time.Second

func (d *Driver) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return d.cfg.Start(ctx)
}

// tidy finishes or takes back what a crash left of a volume, and counts the
// uptime of a quarantine.
func (d *Driver) tidy(ctx context.Context, at place, v *volume.Volume, inv *inventory) error {
	_, indexed := inv.disks[v.UID]
	if v.State == volume.Ready && indexed && v.Quarantine == nil {
		return nil
	}
	unlock, free := d.locks.try(v.UID)
	if !free {
		return nil
	}
	defer unlock()
	now, err := at.pool.get(ctx, v.UID)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	switch now.State {
	case volume.Creating:
		d.log.Info("removing an unfinished volume", "disk", now.Name, "uid", now.UID)
		return at.pool.discard(ctx, now.UID)
	case volume.Purging:
		return at.pool.purge(ctx, now.Meta, func() error { return d.forget(now.UID) })
	}
	if !indexed && !now.Lost {
		if err := d.index(&now.Meta); err != nil {
			return err
		}
	}
	if now.Quarantine == nil {
		return nil
	}
	up, err := d.cfg.Uptime()
	if err != nil {
		return err
	}
	if now.Quarantine.Account(up) {
		return at.pool.put(ctx, now.Meta)
	}
	return nil
}

// due says whether a release was interrupted or an access is over.
func (d *Driver) due(r claims.Record) bool {
	return slices.ContainsFunc(r.Admissions(), func(a claims.Admission) bool {
		return a.State == claims.Releasing || a.Over(d.clock())
	})
}

// endDue finishes interrupted releases and ends accesses that are over.
func (d *Driver) endDue(ctx context.Context, r claims.Record) error {
	unlock, free := d.locks.try(r.Disk)
	if !free {
		return nil
	}
	defer unlock()
	return d.finishReleases(ctx, r.Disk)
}

// repair makes the target serve one volume as recorded.
func (d *Driver) repair(ctx context.Context, at place, v *volume.Volume, served map[string]target.Status) error {
	if v.ID == "" && v.State == volume.Ready && !v.Lost {
		if err := d.name(ctx, at, v, served[v.Target]); err != nil {
			return err
		}
	}
	if d.asRecorded(at, v, served) {
		return nil
	}
	unlock, free := d.locks.try(v.UID)
	if !free {
		return nil
	}
	defer unlock()
	if !d.claims.Knows(v.UID) {
		if err := d.adopt(v, at, served[v.Target]); err != nil {
			return err
		}
	}
	err := d.serveOne(ctx, at, v.UID)
	d.mu.Lock()
	defer d.mu.Unlock()
	if delete(d.unserved, v.UID); err != nil {
		d.unserved[v.UID] = err
	}
	return err
}

// name gives an id to a volume that has none, of an earlier build: the one that
// it is exported under, if such a build took it away.
func (d *Driver) name(ctx context.Context, at place, v *volume.Volume, s target.Status) error {
	unlock, free := d.locks.try(v.UID)
	if !free {
		return nil
	}
	defer unlock()
	now, err := at.pool.get(ctx, v.UID)
	if err != nil || now.ID != "" {
		return err
	}
	if now.ID = volume.NewID(); s.Volume != "" && s.File != nil && !otherFile(s, &now) {
		now.ID = s.Volume
	}
	v.ID = now.ID
	return at.pool.put(ctx, now.Meta)
}

func (d *Driver) asRecorded(at place, v *volume.Volume, served map[string]target.Status) bool {
	s, exported := served[v.Target]
	switch {
	case v.State != volume.Ready || v.Lost:
		return true
	case v.Quarantine != nil:
		return !exported
	}
	r, err := d.claims.Get(v.UID)
	return err != nil || exported && upToDate(s, v, d.exportOf(at, &v.Meta), accessOf(r))
}

// serveOne makes the target follow the record of a volume, as it is now.
func (d *Driver) serveOne(ctx context.Context, at place, disk string) error {
	v, err := at.pool.get(ctx, disk)
	switch {
	case missing(err):
		return nil
	case err != nil:
		return err
	case v.State != volume.Ready || v.Lost:
		return nil
	case v.Quarantine != nil:
		return d.withdraw(ctx, &v)
	}
	return d.export(ctx, at, disk)
}

// servePool makes the target follow a pool whose portals changed.
func (d *Driver) servePool(ctx context.Context, uid string) error {
	at, err := d.placeOf(ctx, uid)
	if err != nil {
		return err
	}
	all, err := at.pool.list(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range all.volumes {
		disk := all.volumes[i].UID
		unlock, err := d.locks.lock(ctx, disk)
		if err != nil {
			return err
		}
		errs = append(errs, d.serveOne(ctx, at, disk))
		unlock()
	}
	return errors.Join(errs...)
}

// thresholds, in percent, at which a pool is spoken of.
var thresholds = []int{80, 90, 95}

// PoolUse is how full a pool is, in percent of what it may really use: its
// capacity, or the file system below where that is smaller.
func PoolUse(capacity, allocated, free int64) int {
	room := min(capacity, allocated+free)
	if room <= 0 {
		return 100
	}
	return int(float64(allocated) * 100 / float64(room))
}

// warn logs when a pool passes a threshold, either way.
func (d *Driver) warn(p *poolState) {
	var allocated int64
	for i := range p.volumes {
		allocated += p.volumes[i].Allocated
	}
	use, level := PoolUse(p.record.Capacity, allocated, p.free), 0
	for _, t := range thresholds {
		if use >= t {
			level = t
		}
	}
	d.mu.Lock()
	before := d.warned[p.record.UID]
	d.warned[p.record.UID] = level
	d.mu.Unlock()
	switch {
	case level > before:
		d.log.Warn("pool is filling up", "pool", p.record.Name, "used", fmt.Sprintf("%d%%", use), "allocated", allocated, "free", p.free)
	case level < before:
		d.log.Info("pool has room again", "pool", p.record.Name, "used", fmt.Sprintf("%d%%", use), "allocated", allocated, "free", p.free)
	}
}
