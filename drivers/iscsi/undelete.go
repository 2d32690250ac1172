package iscsi

import (
	"context"
	"fmt"
	"strings"

	"reconciler/drivers/iscsi/volume"
	"reconciler/spec"
)

// Undelete keeps a disk in quarantine without a deadline, and returns the Disk
// that brings it back once it is committed.
func (d *Driver) Undelete(ctx context.Context, disk string) (*spec.Object, error) {
	unlock, err := d.locks.lock(ctx, disk)
	if err != nil {
		return nil, err
	}
	defer unlock()
	at, v, err := d.find(ctx, disk)
	if err != nil {
		return nil, err
	}
	if v.Quarantine == nil {
		return nil, fmt.Errorf("disk %s is not in quarantine", v.Name)
	}
	o, err := declaration(at.record.Name, &v)
	if err != nil {
		return nil, err
	}
	v.Quarantine.Keep()
	if err := at.pool.put(ctx, v.Meta); err != nil {
		return nil, err
	}
	d.log.Info("disk is kept in quarantine without a deadline", "disk", v.Name, "uid", v.UID)
	return o, nil
}

// declaration writes the Disk that a volume was made from.
func declaration(pool string, v *volume.Volume) (*spec.Object, error) {
	m := spec.Meta{Name: v.Name, Incarnation: v.Incarnation}
	if former := fieldAt(v.Fields, "metadata.movedFrom").Value; former != "" {
		m.MovedFrom = strings.Split(former, ",")
	}
	if got := spec.UID(v.Cluster, spec.KindDisk, m); got != v.UID {
		return nil, fmt.Errorf("the recorded names of disk %s do not make its identity %s", v.Name, v.UID)
	}
	policy, retention := v.Protection()
	return &spec.Object{
		Kind: spec.KindDisk, Meta: m, UID: v.UID,
		Spec: &spec.Disk{
			Pool: pool, Size: spec.Size(v.Size), Source: spec.DiskSource{Image: fieldAt(v.Fields, "spec.source.image").Value},
			DeletionPolicy: policy, Retention: spec.Duration(retention),
		},
	}, nil
}
