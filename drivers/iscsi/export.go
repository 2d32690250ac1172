package iscsi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"reconciler/drivers/iscsi/claims"
	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
	"reconciler/spec"
)

// iqn names the target of a disk (RFC 7143 §4.2.7.2): base, cluster, UID.
func (d *Driver) iqn(cluster, disk string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.iqnBase + ":" + iqnPart(cluster) + ":" + disk
}

// iqnPart keeps what stringprep for iSCSI names leaves as it is (RFC 3722 §6).
func iqnPart(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
}

// baseOf is the base that the target of a volume was named with.
func baseOf(v *volume.Meta) string {
	return strings.TrimSuffix(v.Target, ":"+iqnPart(v.Cluster)+":"+v.UID)
}

func (d *Driver) exportOf(at place, v *volume.Meta) target.Export {
	return target.Export{
		IQN: v.Target, Path: at.pool.path(v.UID), Serial: spec.Serial(v.UID), UID: v.UID, Volume: v.ID, Portals: at.record.Portals,
		DiscoveryCHAP: d.cfg.DiscoveryCHAP,
	}
}

// export makes the target serve a volume to those who are recorded to have it,
// and to nobody else.
func (d *Driver) export(ctx context.Context, at place, disk string) error {
	v, err := at.pool.get(ctx, disk)
	if err != nil {
		return err
	}
	e := d.exportOf(at, &v.Meta)
	err = d.cfg.Target.Put(ctx, e)
	switch {
	case errors.Is(err, target.ErrConflict):
		err = d.replace(ctx, e)
	case errors.Is(err, target.ErrOther):
		err = d.exchange(ctx, disk, e, err)
	}
	if err != nil {
		return fmt.Errorf("export disk %s: %w", v.Name, err)
	}
	return d.admit(ctx, &v)
}

// exchange exports another volume than the one that was, once nobody has that
// any more: what its owner wrote last is not in this one. Who has this one gets it
// back. A launch of an earlier boot of this host has nothing any more.
func (d *Driver) exchange(ctx context.Context, disk string, e target.Export, why error) error {
	if err := d.releaseBefore(ctx, disk); err != nil {
		return errors.Join(why, err)
	}
	r, err := d.claims.Get(disk)
	if err != nil {
		return err
	}
	served, err := d.served(ctx)
	if err != nil {
		return err
	}
	was := served[e.IQN].Volume
	for _, a := range r.Admissions() {
		if was == "" || was == e.Volume || a.Volume != e.Volume {
			return errors.Join(why, inUse(disk, a))
		}
	}
	return d.replace(ctx, e)
}

// replace changes what an export says of its volume, such as the path after the
// state directory was moved; not under anybody's feet.
func (d *Driver) replace(ctx context.Context, e target.Export) error {
	served, err := d.served(ctx)
	if err != nil {
		return err
	}
	if s := served[e.IQN]; len(s.Sessions) > 0 {
		return fmt.Errorf("it is exported from %s, with a session of %s", s.Path, s.Sessions[0].Initiator)
	}
	if err := d.removeExport(ctx, e.IQN); err != nil {
		return err
	}
	return d.cfg.Target.Put(ctx, e)
}

// admit gives the target the admissions that are held of this volume.
func (d *Driver) admit(ctx context.Context, v *volume.Volume) error {
	disk, iqn := v.UID, v.Target
	r, err := d.claims.Get(disk)
	if err != nil {
		return err
	}
	for _, a := range r.Admissions() {
		if a.State == claims.Held && a.Other(v.ID, v.Inode) {
			return fmt.Errorf("epoch %d of disk %s was given for another volume (%s, inode %d) than the one at its path (%s, inode %d): mount or restore that one, or stop machine %s",
				a.Epoch, disk, a.Volume, a.Inode, v.ID, v.Inode, a.Owner.VM)
		}
	}
	list := accessOf(r)
	if adopted := slices.IndexFunc(list, func(a target.Access) bool { return a.Password.IsZero() }); adopted >= 0 {
		served, err := d.served(ctx)
		if err != nil {
			return err
		}
		if sameAccess(served[iqn].Access, list) {
			return nil
		}
		return fmt.Errorf("the claim record of disk %s was lost: access to it cannot change before epoch %d is released", disk, list[adopted].Epoch)
	}
	if err := d.cfg.Target.SetAccess(ctx, iqn, list); err != nil {
		return fmt.Errorf("set access to disk %s: %w", disk, err)
	}
	return nil
}

func accessOf(r claims.Record) []target.Access {
	list := []target.Access{}
	for _, a := range r.Admissions() {
		if a.State != claims.Held {
			continue
		}
		kind := "claim"
		if a.Owner.Access != "" {
			kind = "access"
		}
		owner, _ := json.Marshal(a.Owner) // a struct of strings
		list = append(list, target.Access{
			Epoch: a.Epoch, Initiators: a.Initiators, User: a.User, Password: a.Password, ReadOnly: a.ReadOnly,
			Kind: kind, Owner: string(owner),
		})
	}
	return list
}

// listTimeout bounds how long a target that hangs may hold up the agent.
const listTimeout = 5 * time.Second

// served lists what the target serves, by IQN.
func (d *Driver) served(ctx context.Context) (map[string]target.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := d.cfg.Target.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the target what it serves: %w", err)
	}
	m := make(map[string]target.Status, len(list))
	for _, s := range list {
		m[s.IQN] = s
	}
	return m, nil
}

func (d *Driver) removeExport(ctx context.Context, iqn string) error {
	if err := d.cfg.Target.Remove(ctx, iqn); err != nil && !errors.Is(err, target.ErrNotFound) {
		return fmt.Errorf("remove export %s: %w", iqn, err)
	}
	return nil
}

// upToDate says whether the target serves a volume as it should be.
func upToDate(s target.Status, v *volume.Volume, e target.Export, want []target.Access) bool {
	// A target that is still of an earlier build says neither.
	if earlier := s.Volume == "" && s.File == nil; !earlier && (s.Volume != e.Volume || otherFile(s, v)) {
		return false
	}
	if s.Error != "" || s.Path != e.Path || s.Serial != e.Serial || s.UID != e.UID || s.DiscoveryCHAP != e.DiscoveryCHAP || !slices.Equal(s.Portals, e.Portals) {
		return false
	}
	return sameAccess(s.Access, want)
}

// otherFile says that the target has another file open than the one at the path.
func otherFile(s target.Status, v *volume.Volume) bool {
	return s.File != nil && (s.File.Device != v.Device || s.File.Inode != v.Inode)
}

// sameAccess compares by number: an epoch never changes what it says.
func sameAccess(have, want []target.Access) bool {
	if len(have) != len(want) {
		return false
	}
	for _, w := range want {
		if !slices.ContainsFunc(have, func(a target.Access) bool { return a.Epoch == w.Epoch && a.ReadOnly == w.ReadOnly }) {
			return false
		}
	}
	return true
}
