package iscsi

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
	"reconciler/reconcile"
	"reconciler/spec"
)

// inventory is everything the records and the pools say.
type inventory struct {
	pools []poolState
	// broken are records of pools that cannot be read, by UID.
	broken map[string]error
	disks  map[string]diskRecord
	// unread are records of disks that cannot be read, by UID.
	unread map[string]error
}

type poolState struct {
	record *poolRecord
	pool   *pool // nil if err is set
	err    error // why it could not be read
	listing
}

func (d *Driver) inventory(ctx context.Context) (*inventory, error) {
	inv := &inventory{broken: map[string]error{}, disks: map[string]diskRecord{}, unread: map[string]error{}}
	uids, err := d.pools.Names(".json")
	if err != nil {
		return nil, err
	}
	for _, uid := range uids {
		r, err := d.poolRecord(uid)
		if missing(err) {
			continue
		}
		if err != nil {
			inv.broken[uid] = err
			continue
		}
		inv.pools = append(inv.pools, poolState{record: r})
	}
	var wg sync.WaitGroup // a pool that is silent holds up no other
	for i := range inv.pools {
		p := &inv.pools[i]
		wg.Go(func() {
			if p.pool, p.err = d.openPool(ctx, p.record); p.err == nil {
				p.listing, p.err = p.pool.list(ctx)
			}
		})
	}
	wg.Wait()
	// The index is read after the pools: a volume that was purged in between is
	// then in neither.
	uids, err = d.disks.Names(".json")
	if err != nil {
		return nil, err
	}
	for _, uid := range uids {
		var r diskRecord
		switch err := d.disks.ReadJSON(uid+".json", recordVersion, &r); {
		case missing(err):
		case err != nil:
			inv.unread[uid] = err
		default:
			inv.disks[uid] = r
		}
	}
	return inv, nil
}

// Observe reads what is there. It changes nothing.
func (d *Driver) Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	d.mu.Lock()
	d.cluster, d.iqnBase, d.known = want.Cluster, want.IQNBase, want.Known
	d.mu.Unlock()
	s := reconcile.NewState()
	inv, err := d.inventory(ctx)
	if err != nil {
		return s, fmt.Errorf("read the storage records: %w", err)
	}
	served, targetErr := d.served(ctx)
	up, err := d.cfg.Uptime()
	if err != nil {
		return s, err
	}
	o := observation{d: d, want: want, state: &s, inv: inv, served: served, targetErr: targetErr, up: up, exports: map[string]bool{}}
	for i := range inv.pools {
		o.pool(&inv.pools[i])
	}
	for uid, err := range inv.broken {
		s.Unknown[reconcile.Key{Kind: spec.KindStoragePool, UID: uid}] = err.Error()
	}
	o.indexed()
	o.wanted(d.newPools(ctx, want, inv, served))
	o.targets()
	if err := d.observeImages(&s); err != nil {
		return s, err
	}
	// Absence is known of what is neither in the index nor in a pool: the index
	// has every volume that was ever Ready, also those of a pool that is not mounted.
	s.Complete[spec.KindStoragePool] = true
	s.Complete[spec.KindDisk] = len(inv.broken) == 0
	s.Complete[spec.KindImage] = true
	sort.Slice(s.Unmanaged, func(i, j int) bool { return s.Unmanaged[i].Name < s.Unmanaged[j].Name })
	return s, nil
}

// newPools looks at the directories of pools that have no record, and says by UID
// why one is not to be made, or, of one that is there, that it is not taken over yet.
func (d *Driver) newPools(ctx context.Context, want *reconcile.Desired, inv *inventory, served map[string]target.Status) (refused map[string]error, there map[string]bool) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	refused, there = map[string]error{}, map[string]bool{}
	for k, o := range want.Objects {
		if k.Kind != spec.KindStoragePool || inv.has(k.UID) {
			continue
		}
		wg.Go(func() {
			mine, err := through(ctx, &d.lanes, k.UID, o.Name, d.lanes.look, func() (bool, error) {
				return d.checkNew(o, want.Known[k], served)
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused[k.UID] = err
			}
			there[k.UID] = mine
		})
	}
	wg.Wait()
	return refused, there
}

// has says whether there is a record of a pool, be it one that cannot be read.
func (inv *inventory) has(pool string) bool {
	return inv.broken[pool] != nil || slices.ContainsFunc(inv.pools, func(p poolState) bool { return p.record.UID == pool })
}

type observation struct {
	d         *Driver
	want      *reconcile.Desired
	state     *reconcile.State
	inv       *inventory
	served    map[string]target.Status
	targetErr error
	up        volume.Uptime
	exports   map[string]bool // IQNs that are ours
}

func (o *observation) unknown(kind spec.Kind, uid, format string, args ...any) {
	k := reconcile.Key{Kind: kind, UID: uid}
	if _, ok := o.state.Unknown[k]; !ok {
		o.state.Unknown[k] = fmt.Sprintf(format, args...)
	}
}

func (o *observation) pool(p *poolState) {
	r := p.record
	if p.err != nil {
		o.unknown(spec.KindStoragePool, r.UID, "%v", p.err)
		return
	}
	live := &reconcile.LivePool{Free: p.free}
	for i := range p.volumes {
		v := &p.volumes[i]
		live.Provisioned += provisioned(v)
		live.Allocated += v.Allocated
		if v.Quarantine != nil {
			live.Quarantined += provisioned(v)
		}
		o.disk(p, v)
	}
	for uid, err := range p.broken {
		o.unknown(spec.KindDisk, uid, "%v", err)
	}
	for _, stray := range p.strays {
		o.state.Unmanaged = append(o.state.Unmanaged, reconcile.Unmanaged{Kind: "Volume", Name: stray.Path, Reason: stray.Reason})
	}
	l := &reconcile.Live{Pool: live}
	l.Kind, l.Name, l.UID, l.Incarnation, l.Fields = spec.KindStoragePool, r.Name, r.UID, r.Incarnation, r.Fields
	o.state.Objects[l.Key()] = l
}

func (o *observation) disk(p *poolState, v *volume.Volume) {
	d := o.d
	o.exports[v.Target] = true
	d.mu.Lock()
	busy, unserved := d.busy[v.UID], d.unserved[v.UID]
	d.mu.Unlock()
	switch {
	case busy != "":
		o.unknown(spec.KindDisk, v.UID, "%s", busy)
		return
	case v.State != volume.Ready:
		// What a crash left, and Ensure removes: nobody ever had it.
		return
	case v.Lost:
		o.unknown(spec.KindDisk, v.UID, "%v", lost(v.UID, p.pool))
		return
	case o.targetErr != nil:
		o.unknown(spec.KindDisk, v.UID, "%v", o.targetErr)
		return
	}
	at, exported := o.served[v.Target]
	if !exported && unserved != nil && v.Quarantine == nil {
		o.unknown(spec.KindDisk, v.UID, "%v", unserved)
		return
	}
	if at.Error != "" {
		hint := ""
		if strings.Contains(at.Error, scsi.ErrReservations.Error()) {
			hint = fmt.Sprintf(" (reconciler access --clear-reservations disk/%s drops them)", v.Name)
		}
		o.unknown(spec.KindDisk, v.UID, "the target does not serve it: %s%s", at.Error, hint)
		return
	}
	if len(at.Portals) > 0 && at.PortalErrors[at.Portals[0]] != "" {
		o.unknown(spec.KindDisk, v.UID, "portal %s is not listened on: %s", at.Portals[0], at.PortalErrors[at.Portals[0]])
		return
	}
	if otherFile(at, v) {
		o.unknown(spec.KindDisk, v.UID, "the target has another file open than the one that is at %s: a file system was mounted or unmounted there, or the file was replaced; undo that, or stop the machine that has the disk to go on with what is there now", p.pool.path(v.UID))
		return
	}
	if at.Size > v.Size {
		o.unknown(spec.KindDisk, v.UID, "the volume file %s has %d bytes and is served as %d: it was cut, and what was in the rest is gone; restore it, or raise metadata.incarnation for a fresh disk", p.pool.path(v.UID), v.Size, at.Size)
		return
	}
	rec, err := d.claims.Get(v.UID)
	if err != nil {
		o.unknown(spec.KindDisk, v.UID, "%v", err)
		return
	}
	ld := &reconcile.LiveDisk{
		Volume: v.Size, LUN: at.Size, Allocated: v.Allocated, Written: v.Written,
		Claims: claimsOf(rec, o.served), Reservations: reservationsOf(at),
	}
	switch {
	case rec.Writer != nil:
		ld.Written = d.cfg.Now().UTC()
	case rec.Written.After(ld.Written):
		ld.Written = rec.Written
	}
	if q := v.Quarantine; q != nil {
		ld.Quarantined, ld.Until, ld.Elapsed = true, q.Until, q.Elapsed(d.cfg.Now(), o.up)
	}
	l := &reconcile.Live{Disk: ld}
	l.Kind, l.Name, l.UID, l.Incarnation = spec.KindDisk, v.Name, v.UID, v.Incarnation
	l.Fields = slices.Clone(v.Fields)
	size := ld.Volume
	if ld.LUN != 0 {
		size = min(size, ld.LUN)
	}
	if w := o.want.Objects[l.Key()]; w != nil && sizeOf(w) < ld.Volume {
		size = reconcile.MiBs(ld.Volume) // it was made larger by hand, or the tree went back
	}
	for i := range l.Fields {
		if l.Fields[i].Path == "spec.size" {
			l.Fields[i].Value = spec.Size(size).String()
		}
	}
	o.state.Objects[l.Key()] = l
}

func sizeOf(disk *reconcile.Object) int64 {
	if s, ok := disk.Spec.(*spec.Disk); ok {
		return int64(s.Size)
	}
	return math.MaxInt64
}

// indexed finds the volumes that must be there and are not.
func (o *observation) indexed() {
	pools := map[string]*poolState{}
	for i := range o.inv.pools {
		pools[o.inv.pools[i].record.UID] = &o.inv.pools[i]
	}
	for uid, r := range o.inv.disks {
		o.exports[r.Target] = true
		k := reconcile.Key{Kind: spec.KindDisk, UID: uid}
		if _, ok := o.state.Objects[k]; ok {
			continue
		}
		p := pools[r.Pool]
		switch {
		case p == nil:
			why := o.inv.broken[r.Pool]
			if why == nil {
				why = fmt.Errorf("there is no record of its pool %s", r.Pool)
			}
			o.unknown(spec.KindDisk, uid, "%v", why)
		case p.err != nil:
			o.unknown(spec.KindDisk, uid, "%v", p.err)
		default:
			o.unknown(spec.KindDisk, uid, "%v", lost(uid, p.pool))
		}
	}
	for uid, err := range o.inv.unread {
		o.unknown(spec.KindDisk, uid, "%v", err)
	}
}

// wanted marks pools that are not to be made, and disks of which nothing can be
// said because their pool could not be read, or that are missed.
func (o *observation) wanted(refused map[string]error, there map[string]bool) {
	for uid, why := range refused {
		o.unknown(spec.KindStoragePool, uid, "%v", why)
	}
	for k, w := range o.want.Objects {
		if k.Kind != spec.KindDisk {
			continue
		}
		pool := refer(w, "spec.pool")
		if pool == nil {
			continue
		}
		at := reconcile.Key{Kind: spec.KindStoragePool, UID: pool.UID}
		if why, ok := o.state.Unknown[at]; ok {
			o.unknown(spec.KindDisk, k.UID, "%s", why)
		}
		if there[pool.UID] {
			o.unknown(spec.KindDisk, k.UID, "pool %s is there and is not taken over yet", pool.Name)
		}
		s, _ := pool.Spec.(*spec.StoragePool)
		known := o.want.Known[k]
		if known == "" || o.state.Objects[k] != nil || o.state.Objects[at] == nil || s == nil || s.Volumes.File == nil || !filepath.IsAbs(s.Volumes.File.Path) {
			continue
		}
		o.unknown(spec.KindDisk, k.UID, "pool %s has no volume of it, and %s; restore the volume, or raise metadata.incarnation for a fresh one", pool.Name, known)
	}
}

// targets reports exports that no record of ours speaks of.
func (o *observation) targets() {
	for iqn, s := range o.served {
		if !o.exports[iqn] {
			o.state.Unmanaged = append(o.state.Unmanaged, reconcile.Unmanaged{Kind: "Target", Name: iqn, Reason: "exports " + s.Path + ", which is no volume of ours"})
		}
	}
}
