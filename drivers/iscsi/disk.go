package iscsi

import (
	"context"
	"errors"
	"fmt"
	"os"

	"reconciler/drivers/iscsi/claims"
	"reconciler/drivers/iscsi/volume"
	"reconciler/reconcile"
	"reconciler/spec"
)

type applier func(context.Context, *reconcile.Action, reconcile.Inputs) (reconcile.Outputs, error)

func (d *Driver) applier(k spec.Kind) applier {
	switch k {
	case spec.KindStoragePool:
		return d.applyPool
	case spec.KindDisk:
		return d.applyDisk
	case spec.KindImage:
		return d.applyImage
	}
	return nil
}

func (d *Driver) applyDisk(ctx context.Context, a *reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	var err error
	switch a.Op {
	case reconcile.OpCreate:
		err = d.createDisk(ctx, a, in)
	case reconcile.OpUpdate:
		err = d.updateDisk(ctx, a)
	case reconcile.OpQuarantine:
		err = d.quarantineDisk(ctx, a)
	case reconcile.OpRestore:
		err = d.restoreDisk(ctx, a)
	case reconcile.OpPurge:
		err = d.purgeDisk(ctx, a.UID)
	default:
		err = fmt.Errorf("a disk has no %s", a.Op)
	}
	return reconcile.Outputs{}, err
}

// refer returns the object that a field of o refers to.
func refer(o *reconcile.Object, path string) *reconcile.Object {
	for _, r := range o.Refs {
		if r.Path == path {
			return r.To
		}
	}
	return nil
}

// place is a volume with the pool it is in.
type place struct {
	record *poolRecord
	pool   *pool
}

func (d *Driver) placeOf(ctx context.Context, poolUID string) (place, error) {
	r, err := d.poolRecord(poolUID)
	if err != nil {
		return place{}, err
	}
	p, err := d.openPool(ctx, r)
	return place{r, p}, err
}

// find returns a volume that is Ready and whose file is there.
func (d *Driver) find(ctx context.Context, disk string) (place, volume.Volume, error) {
	var none volume.Volume
	var r diskRecord
	if err := d.disks.ReadJSON(disk+".json", recordVersion, &r); err != nil {
		if missing(err) {
			err = fmt.Errorf("there is no volume of disk %s", disk)
		}
		return place{}, none, err
	}
	at, err := d.placeOf(ctx, r.Pool)
	if err != nil {
		return place{}, none, err
	}
	v, err := at.pool.get(ctx, disk)
	switch {
	case err != nil:
		return place{}, none, fmt.Errorf("volume of disk %s: %w", disk, err)
	case v.State != volume.Ready:
		return place{}, none, fmt.Errorf("volume of disk %s is in state %s", disk, v.State)
	case v.Lost:
		return place{}, none, lost(disk, at.pool)
	}
	return at, v, nil
}

func lost(disk string, p *pool) error {
	return fmt.Errorf("the volume file %s is gone", p.path(disk))
}

// index records where a volume is.
func (d *Driver) index(m *volume.Meta) error {
	return d.disks.WriteJSON(m.UID+".json", recordVersion, diskRecord{m.UID, m.Name, m.Incarnation, m.Pool, m.Target})
}

func (d *Driver) createDisk(ctx context.Context, a *reconcile.Action, in reconcile.Inputs) error {
	s, ok := a.Want.Spec.(*spec.Disk)
	pool := refer(a.Want, "spec.pool")
	if !ok || pool == nil {
		return fmt.Errorf("disk %s: its pool is not known", a.Name)
	}
	at, err := d.placeOf(ctx, pool.UID)
	if err != nil {
		return err
	}
	var known diskRecord
	if err := d.disks.ReadJSON(a.UID+".json", recordVersion, &known); !missing(err) {
		return errors.Join(fmt.Errorf("disk %s has a volume in pool %s already", a.Name, known.Pool), err)
	}
	defer d.setBusy(a.UID, "its volume is being made")()
	release, err := d.reserve(ctx, at.pool, at.record, a.UID, int64(s.Size))
	if err != nil {
		return err
	}
	defer release()
	now := d.cfg.Now().UTC()
	m := volume.Meta{
		UID: a.UID, ID: volume.NewID(), Name: a.Name, Incarnation: a.Want.Incarnation,
		Cluster: at.record.Cluster, Pool: at.record.UID, Target: d.iqn(at.record.Cluster, a.UID), Size: int64(s.Size),
		Fields: a.Want.Fields, Created: now, Written: now,
	}
	var fill volume.Fill
	if s.Source.Image != "" {
		img := refer(a.Want, "spec.source.image")
		if img == nil {
			return fmt.Errorf("disk %s: image %s is not known", a.Name, s.Source.Image)
		}
		want, ok := img.Spec.(*spec.Image)
		if !ok {
			return fmt.Errorf("disk %s: image %s is not known", a.Name, s.Source.Image)
		}
		m.Source = want.SHA256
		if err := d.ensureImage(ctx, img, want, in.Progress); err != nil {
			return fmt.Errorf("image %s: %w", img.Name, err)
		}
		fill = func(ctx context.Context, f *os.File) error {
			return d.images.Copy(ctx, want, f, int64(s.Size), in.Progress)
		}
	}
	if err := at.pool.make(ctx, m, fill); err != nil {
		return err
	}
	if err := d.index(&m); err != nil {
		return err
	}
	return d.export(ctx, at, a.UID)
}

// updateDisk releases the claims that the action names, records the fields, and
// grows volume and LUN, each only as far as it is behind.
func (d *Driver) updateDisk(ctx context.Context, a *reconcile.Action) error {
	if err := d.releaseLeaked(ctx, a); err != nil {
		return err
	}
	at, v, err := d.find(ctx, a.UID)
	if err != nil {
		return err
	}
	if v.Quarantine != nil {
		return fmt.Errorf("disk %s is in quarantine", v.Name)
	}
	return d.follow(ctx, a, at, v)
}

// follow makes a volume what the action wants of it.
func (d *Driver) follow(ctx context.Context, a *reconcile.Action, at place, v volume.Volume) error {
	s, ok := a.Want.Spec.(*spec.Disk)
	if !ok {
		return fmt.Errorf("disk %s: its spec is not known", a.Name)
	}
	m := v.Meta
	if !waits(a, "spec.size") {
		if int64(s.Size) < v.Size {
			return fmt.Errorf("disk %s cannot shrink: its volume has %d bytes; say spec.size: %s, or more", a.Name, v.Size, spec.Size(reconcile.MiBs(v.Size)))
		}
		if int64(s.Size) > v.Size {
			release, err := d.reserve(ctx, at.pool, at.record, a.UID, int64(s.Size))
			if err != nil {
				return err
			}
			defer release()
			// The record before the file: a volume is never larger than what is
			// counted as provisioned.
			m.Size = int64(s.Size)
			if err := at.pool.put(ctx, m); err != nil {
				return err
			}
			if err := at.pool.grow(ctx, a.UID, m.Size); err != nil {
				return err
			}
		}
	}
	m.State, m.Quarantine = volume.Ready, nil
	// What would weaken the protection may have to wait while the rest goes on.
	m.Fields = a.Reached()
	m.Name, m.Incarnation = a.Want.Name, a.Want.Incarnation
	if err := at.pool.put(ctx, m); err != nil {
		return err
	}
	if err := d.index(&m); err != nil {
		return err
	}
	if err := d.export(ctx, at, a.UID); err != nil {
		return err
	}
	return d.growLUN(ctx, at, a.UID)
}

// growLUN makes the target serve the whole volume.
func (d *Driver) growLUN(ctx context.Context, at place, disk string) error {
	v, err := at.pool.get(ctx, disk)
	if err != nil {
		return err
	}
	served, err := d.served(ctx)
	if err != nil {
		return err
	}
	if s, ok := served[v.Target]; ok && s.Size >= v.Size {
		return nil
	}
	return d.cfg.Target.Grow(ctx, v.Target, v.Size)
}

// quarantineDisk takes a disk away: no claim, no session, no access is left, it
// is not exported any more, and then the deadline is written. Where it is
// interrupted before that, the disk is merely not exported.
func (d *Driver) quarantineDisk(ctx context.Context, a *reconcile.Action) error {
	if err := d.releaseLeaked(ctx, a); err != nil {
		return err
	}
	at, v, err := d.find(ctx, a.UID)
	if err != nil {
		return err
	}
	if v.Quarantine != nil {
		return nil
	}
	if err := d.withdraw(ctx, &v); err != nil {
		return err
	}
	up, err := d.cfg.Uptime()
	if err != nil {
		return err
	}
	policy, retention := v.Protection()
	if policy == spec.DeletionDelete {
		retention = 0
	}
	m := v.Meta
	if r, err := d.claims.Get(v.UID); err == nil && r.Written.After(m.Written) {
		m.Written = r.Written
	}
	m.Quarantine = volume.NewQuarantine(d.cfg.Now().UTC(), retention, up)
	if err := at.pool.put(ctx, m); err != nil {
		return err
	}
	d.log.Info("disk is in quarantine", "disk", v.Name, "uid", v.UID, "until", m.Quarantine.Until)
	return nil
}

// withdraw removes the export of a disk that nobody has.
func (d *Driver) withdraw(ctx context.Context, v *volume.Volume) error {
	r, err := d.claims.Get(v.UID)
	if err != nil {
		return err
	}
	if !r.Idle() {
		return inUse(v.Name, r.Admissions()[0])
	}
	served, err := d.served(ctx)
	if err != nil {
		return err
	}
	s, ok := served[v.Target]
	if !ok {
		return nil
	}
	if len(s.Sessions) > 0 {
		return fmt.Errorf("disk %s has a session of %s", v.Name, s.Sessions[0].Initiator)
	}
	return d.removeExport(ctx, v.Target)
}

func inUse(name string, a claims.Admission) error {
	if a.Owner.Access != "" {
		return fmt.Errorf("disk %s is in use by access %s", name, a.Owner.Access)
	}
	return fmt.Errorf("disk %s is claimed by machine %s", name, a.Owner.VM)
}

// restoreDisk brings a disk back from quarantine, if it is declared as it was.
func (d *Driver) restoreDisk(ctx context.Context, a *reconcile.Action) error {
	at, v, err := d.find(ctx, a.UID)
	if err != nil {
		return err
	}
	for _, path := range []string{"spec.pool", "spec.source.image"} {
		was, is := fieldAt(v.Fields, path), fieldAt(a.Want.Fields, path)
		if was.Value != is.Value && (was.ID == "" || was.ID != is.ID) {
			return fmt.Errorf("disk %s was made with %s %q and is declared with %q: not restored", a.Name, path, was.Value, is.Value)
		}
	}
	// follow ends the quarantine with the same write that records the fields.
	return d.follow(ctx, a, at, v)
}

func fieldAt(fields []reconcile.Field, path string) reconcile.Field {
	for _, f := range fields {
		if f.Path == path {
			return f
		}
	}
	return reconcile.Field{}
}

// purgeDisk removes the data of a disk. The record of the volume decides again
// that it may, whatever was planned.
func (d *Driver) purgeDisk(ctx context.Context, disk string) error {
	at, v, err := d.find(ctx, disk)
	if err != nil {
		return err
	}
	up, err := d.cfg.Uptime()
	if err != nil {
		return err
	}
	if v.Quarantine == nil || !v.Quarantine.Elapsed(d.cfg.Now(), up) {
		return fmt.Errorf("the quarantine of disk %s is not over", v.Name)
	}
	if err := d.withdraw(ctx, &v); err != nil {
		return err
	}
	defer d.setBusy(disk, "its volume is being purged")()
	if err := at.pool.purge(ctx, v.Meta, func() error { return d.forget(disk) }); err != nil {
		return err
	}
	d.log.Info("disk is purged", "disk", v.Name, "uid", v.UID)
	return nil
}

// forget removes what the state directory holds of a disk.
func (d *Driver) forget(disk string) error {
	if err := d.disks.Remove(disk + ".json"); err != nil {
		return err
	}
	return d.claims.Forget(disk)
}
