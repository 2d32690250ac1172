package iscsi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"reconciler/deadline"
	"reconciler/drivers/iscsi/claims"
	"reconciler/drivers/iscsi/image"
	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
	"reconciler/internal/durable"
	"reconciler/internal/uptime"
	"reconciler/reconcile"
)

// Target is what serves the volumes; *target.Client is one. It persists a
// change before the change takes effect, and each may be repeated.
type Target interface {
	Ping(ctx context.Context) (pid int, err error)
	List(ctx context.Context) ([]target.Status, error)
	Put(ctx context.Context, e target.Export) error
	Remove(ctx context.Context, iqn string) error
	Grow(ctx context.Context, iqn string, size int64) error
	SetAccess(ctx context.Context, iqn string, list []target.Access) error
	// Fence returns nil when no command of the epoch can touch the volume any more.
	Fence(ctx context.Context, iqn string, epoch uint64) error
	ClearReservations(ctx context.Context, iqn string) error
}

// Config is what New needs.
type Config struct {
	StateDir     string
	ImageDir     string // where file sources of images are looked for
	AllowedRoots []Root
	Host         string // name of this host, for the owners of accesses
	// DiscoveryCHAP has initiators that list targets prove who they are.
	DiscoveryCHAP bool
	Target        Target
	// Start makes the target's process run, if it does not; nil where that is
	// somebody else's matter.
	Start  func(ctx context.Context) error
	Log    *slog.Logger
	Now    func() time.Time              // default time.Now
	Uptime func() (volume.Uptime, error) // default the kernel's
	Step   func(op string)               // called before each durable step; for tests of crashes
	Images func(*image.Config)           // adjusts the image store's limits
}

// Driver is the storage of one host. Its methods may be called concurrently.
type Driver struct {
	cfg      Config
	log      *slog.Logger
	pools    *durable.Dir // records of pools, UID.json
	disks    *durable.Dir // where each volume is, UID.json
	claims   *claims.Store
	images   *image.Store
	imageDir *durable.Dir // records of images, UID.json
	locks    locks
	probes   probes
	lanes    lanes

	mu       sync.Mutex
	cluster  string                   // of the last tree observed with
	iqnBase  string                   // likewise
	known    map[reconcile.Key]string // likewise
	open     map[string]*pool         // by UID of the pool
	bookings []*booking
	busy     map[string]string // disks that are being made or purged, and what is done
	warned   map[string]int    // last warning threshold, by pool
	unserved map[string]error  // why the target could not be made to serve a disk
}

// New opens the driver's records. It starts nothing.
func New(cfg Config) (*Driver, error) {
	if cfg.StateDir == "" || cfg.Target == nil || cfg.Log == nil {
		return nil, errors.New("the storage driver needs a state directory, a target and a logger")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Uptime == nil {
		cfg.Uptime = kernelUptime
	}
	d := &Driver{
		cfg: cfg, log: cfg.Log,
		lanes:    lanes{look: lookPatience, write: writePatience},
		open:     map[string]*pool{},
		busy:     map[string]string{},
		warned:   map[string]int{},
		unserved: map[string]error{},
	}
	base := filepath.Join(cfg.StateDir, "storage")
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, err
	}
	var err error
	if d.pools, err = durable.Open(filepath.Join(base, "pools"), 0o600); err != nil {
		return nil, err
	}
	if d.disks, err = durable.Open(filepath.Join(base, "disks"), 0o600); err != nil {
		return nil, err
	}
	if d.claims, err = claims.Open(filepath.Join(base, "claims")); err != nil {
		return nil, err
	}
	if d.imageDir, err = durable.Open(filepath.Join(base, "images"), 0o600); err != nil {
		return nil, err
	}
	ic := image.Config{Dir: filepath.Join(cfg.StateDir, "images"), FileRoot: cfg.ImageDir}
	if cfg.Images != nil {
		cfg.Images(&ic)
	}
	if d.images, err = image.Open(ic); err != nil {
		return nil, err
	}
	if cfg.Step != nil {
		d.pools.Step, d.disks.Step, d.imageDir.Step = cfg.Step, cfg.Step, cfg.Step
		d.claims.Trace(cfg.Step)
		d.images.Trace(cfg.Step)
	}
	return d, nil
}

// clock is what deadlines are held against; without the kernel's only the wall's.
func (d *Driver) clock() deadline.Clock {
	up, err := d.cfg.Uptime()
	if err != nil {
		return deadline.Clock{Now: d.cfg.Now()}
	}
	return deadline.Clock{Now: d.cfg.Now(), BootID: up.BootID, Up: up.Up}
}

// kernelUptime reads the boot's id and its monotonic clock.
func kernelUptime() (volume.Uptime, error) {
	id, err := uptime.Boot()
	return volume.Uptime{BootID: id, Up: uptime.Up()}, err
}

// Apply carries out one action.
func (d *Driver) Apply(ctx context.Context, a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	if in.Progress == nil {
		in.Progress = func(string, ...any) {}
	}
	unlock, err := d.locks.lock(ctx, a.UID)
	if err != nil {
		return reconcile.Outputs{}, err
	}
	defer unlock()
	apply := d.applier(a.Key().Kind)
	if apply == nil {
		return reconcile.Outputs{}, fmt.Errorf("the storage driver does not carry out %s", a.Kind)
	}
	return apply(ctx, &a, in)
}

// locks serialise what is done with one object.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[string]chan struct{}{}
		}
		wait, taken := l.held[key]
		if !taken {
			done := make(chan struct{})
			l.held[key] = done
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(done)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for what is being done with %s: %w", key, ctx.Err())
		}
	}
}

// try is lock where it can be had at once.
func (l *locks) try(key string) (unlock func(), ok bool) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	unlock, err := l.lock(ctx, key)
	return unlock, err == nil
}

func (d *Driver) setBusy(disk, what string) (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy[disk] = what
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.busy, disk)
	}
}

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
