package iscsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"reconciler/drivers/iscsi/volume"
	"reconciler/internal/durable"
	"reconciler/reconcile"
	"reconciler/spec"
)

const recordVersion = 1

// poolRecord is a pool as it was last applied. It says that the pool must be
// there when its directory does not.
type poolRecord struct {
	UID         string            `json:"uid"`
	Name        string            `json:"name"`
	Incarnation int               `json:"incarnation,omitempty"`
	Cluster     string            `json:"cluster"`
	Dir         string            `json:"dir"`
	Capacity    int64             `json:"capacity"` // bytes
	Overcommit  float64           `json:"overcommit"`
	Portals     []string          `json:"portals"`
	Fields      []reconcile.Field `json:"fields"`
}

// limit is how much the disks' sizes may add up to.
func (r *poolRecord) limit() int64 { return int64(float64(r.Capacity) * r.Overcommit) }

// diskRecord says where a volume is, and that it is not to be taken for absent.
type diskRecord struct {
	UID         string `json:"uid"`
	Name        string `json:"name"`
	Incarnation int    `json:"incarnation,omitempty"`
	Pool        string `json:"pool"` // UID
	Target      string `json:"target"`
}

func (d *Driver) poolRecord(uid string) (*poolRecord, error) {
	var r poolRecord
	if err := d.pools.ReadJSON(uid+".json", recordVersion, &r); err != nil {
		return nil, err
	}
	if r.UID != uid {
		return nil, fmt.Errorf("the record of pool %s is of %q", uid, r.UID)
	}
	return &r, nil
}

// openPool returns a pool that is mounted.
func (d *Driver) openPool(ctx context.Context, r *poolRecord) (*pool, error) {
	return through(ctx, &d.lanes, r.UID, r.Name, d.lanes.look, func() (*pool, error) {
		d.mu.Lock()
		p := d.open[r.UID]
		d.mu.Unlock()
		if p != nil {
			m, err := p.volumes.Marker()
			if err == nil {
				err = d.checkMount(r.Dir, m)
			}
			if err == nil {
				return p, nil
			}
			// The reserve of the directory is to be looked at again when it is back.
			d.setOpen(r.UID, nil)
			return nil, err
		}
		if err := d.checkMount(r.Dir, volume.Marker{}); err != nil {
			return nil, err // before anything is written there
		}
		v, err := volume.Open(r.Dir, r.UID, r.Cluster)
		if err != nil {
			return nil, err
		}
		m, err := v.Marker()
		if err == nil {
			err = d.checkMount(r.Dir, m)
		}
		if err == nil {
			err = d.recall(v, m)
		}
		if err != nil {
			return nil, err
		}
		return d.setOpen(r.UID, d.guard(r.UID, r.Name, v)), nil
	})
}

func (d *Driver) guard(uid, name string, v *volume.Pool) *pool {
	if d.cfg.Step != nil {
		v.Trace(d.cfg.Step)
	}
	return &pool{&d.lanes, uid, name, v}
}

func (d *Driver) setOpen(uid string, p *pool) *pool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p == nil {
		delete(d.open, uid)
	} else {
		d.open[uid] = p
	}
	return p
}

// poolDir resolves the path of a pool as the tree says it.
func (d *Driver) poolDir(path string) (string, error) {
	if !filepath.IsAbs(path) {
		if !filepath.IsLocal(path) || filepath.Clean(path) == "." {
			return "", fmt.Errorf("pool path %q leaves the state directory", path)
		}
		return filepath.Join(d.cfg.StateDir, path), nil
	}
	// Resolve links of what is there: a link below an allowed root may lead anywhere.
	dir, rest := filepath.Clean(path), ""
	for {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			dir = filepath.Join(real, rest)
			break
		}
		if !missing(err) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(dir), rest)
		dir = filepath.Dir(dir)
	}
	if _, ok := d.rootOf(dir); ok {
		return dir, nil
	}
	return "", fmt.Errorf("pool path %s is not below a root that this host's configuration allows", path)
}

func (d *Driver) applyPool(ctx context.Context, a *reconcile.Action, _ reconcile.Inputs) (reconcile.Outputs, error) {
	var err error
	switch a.Op {
	case reconcile.OpCreate, reconcile.OpAdopt:
		err = d.createPool(ctx, a)
	case reconcile.OpUpdate:
		err = d.updatePool(ctx, a)
	case reconcile.OpDelete:
		err = d.deletePool(ctx, a)
	default:
		err = fmt.Errorf("a pool has no %s", a.Op)
	}
	return reconcile.Outputs{}, err
}

// createPool writes the marker first and the record after it: once there is a
// record, a directory without the marker is a pool that is not mounted, in which
// nothing is made.
func (d *Driver) createPool(ctx context.Context, a *reconcile.Action) error {
	s, ok := a.Want.Spec.(*spec.StoragePool)
	if !ok || s.Volumes.File == nil || s.Target.Embedded == nil {
		return fmt.Errorf("pool %s: only file volumes on the embedded target are carried out", a.Name)
	}
	d.mu.Lock()
	cluster, known := d.cluster, d.known[a.Key()]
	d.mu.Unlock()
	if cluster == "" {
		return errors.New("the cluster is not known before the first observation")
	}
	served, err := d.served(ctx)
	if err != nil {
		return err
	}
	p, err := through(ctx, &d.lanes, a.UID, a.Name, d.lanes.write, func() (*pool, error) {
		if _, err := d.checkNew(a.Want, known, served); err != nil {
			return nil, err
		}
		dir, err := d.poolDir(s.Volumes.File.Path)
		if err != nil {
			return nil, err
		}
		if err := vacant(dir, a.UID); err != nil {
			return nil, err
		}
		m := volume.Marker{UID: a.UID, Cluster: cluster, Name: a.Name}
		if _, ok := d.rootOf(dir); ok {
			on, err := apart(dir)
			if err != nil {
				return nil, err
			}
			m.Mount = &on
		}
		v, err := volume.Create(dir, m)
		if err != nil {
			return nil, err
		}
		return d.guard(a.UID, a.Name, v), nil
	})
	if err != nil {
		return err
	}
	r := poolRecord{UID: a.UID, Cluster: cluster, Dir: p.volumes.Dir()}
	if err := d.putPool(r, a); err != nil {
		return err
	}
	d.setOpen(a.UID, p)
	return nil
}

// vacant refuses a directory with anything in it that is not this pool.
func vacant(dir, uid string) error {
	if m, err := volume.ReadMarker(dir); err == nil && m.UID == uid {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lost+found" && !durable.Owns(e.Name()) {
			return fmt.Errorf("pool directory %s is not empty (%s) and is not this pool's", dir, e.Name())
		}
	}
	return nil
}

// putPool records what the action reached.
func (d *Driver) putPool(r poolRecord, a *reconcile.Action) error {
	s := a.Want.Spec.(*spec.StoragePool)
	r.Name, r.Incarnation, r.Fields = a.Want.Name, a.Want.Incarnation, a.Reached()
	r.Capacity, r.Overcommit = int64(s.Capacity), s.Overcommit
	if !waits(a, "spec.target.embedded.portals") {
		r.Portals = s.Target.Embedded.Portals
	}
	return d.pools.WriteJSON(r.UID+".json", recordVersion, r)
}

// waits says whether a change of the action is not to be carried out now.
func waits(a *reconcile.Action, field string) bool {
	for _, c := range a.Changes {
		if c.Field == field && c.Waits != "" {
			return true
		}
	}
	return false
}

func (d *Driver) updatePool(ctx context.Context, a *reconcile.Action) error {
	r, err := d.poolRecord(a.UID)
	if err != nil {
		return err
	}
	before := strings.Join(r.Portals, " ")
	if err := d.putPool(*r, a); err != nil {
		return err
	}
	if r, err = d.poolRecord(a.UID); err != nil {
		return err
	}
	if strings.Join(r.Portals, " ") == before {
		return nil
	}
	return d.servePool(ctx, a.UID)
}

func (d *Driver) deletePool(ctx context.Context, a *reconcile.Action) error {
	r, err := d.poolRecord(a.UID)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := d.openPool(ctx, r)
	if err != nil {
		return err
	}
	all, err := p.list(ctx)
	if err != nil {
		return err
	}
	if n := len(all.volumes) + len(all.broken); n > 0 {
		return fmt.Errorf("pool %s holds %d volumes, quarantine counted", r.Name, n)
	}
	// The record first: without it the marker alone makes no pool, and a crash
	// leaves a directory that a pool of this identity may take again.
	if err := d.pools.Remove(a.UID + ".json"); err != nil {
		return err
	}
	d.setOpen(a.UID, nil)
	return p.change(ctx, "", p.volumes.Destroy)
}

// CapacityError says that a pool's limit does not allow a disk.
type CapacityError struct {
	Pool         string
	Wanted, Have int64 // bytes: what would be provisioned, and the limit
}

func (e *CapacityError) Error() string {
	return fmt.Sprintf("pool %s would hold %s of %s, quarantine counted", e.Pool, spec.Size(e.Wanted), spec.Size(e.Have))
}

// booking is what a disk is about to have.
type booking struct {
	pool, disk string
	size       int64
}

// reserve books size bytes for a disk, so that two disks made at once are both
// counted. release ends the booking, when the volume itself is counted. Of two
// bookings, the earlier counts for the later one.
func (d *Driver) reserve(ctx context.Context, p *pool, r *poolRecord, disk string, size int64) (release func(), err error) {
	mine := &booking{r.UID, disk, size}
	earlier := map[string]int64{}
	d.mu.Lock()
	for _, b := range d.bookings {
		if b.pool == r.UID && b.disk != disk {
			earlier[b.disk] = b.size
		}
	}
	d.bookings = append(d.bookings, mine)
	d.mu.Unlock()
	release = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.bookings = slices.DeleteFunc(d.bookings, func(b *booking) bool { return b == mine })
	}
	all, err := p.list(ctx)
	if err != nil {
		release()
		return nil, err
	}
	total := size
	for i := range all.volumes {
		if v := &all.volumes[i]; v.UID != disk && earlier[v.UID] == 0 {
			total += provisioned(v)
		}
	}
	for _, n := range earlier {
		total += n
	}
	if total > r.limit() {
		release()
		return nil, &CapacityError{r.Name, total, r.limit()}
	}
	return release, nil
}

func provisioned(v *volume.Volume) int64 { return max(v.Meta.Size, v.Size) }
