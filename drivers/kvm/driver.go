package kvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"reconciler/internal/durable"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Prober asks the storage side whether it serves disks at this moment. QEMU
// must not be told to open, close, resize or drain a disk whose target is
// silent: its main loop would hang, and with it the guest.
type Prober interface {
	Answers(ctx context.Context, disks []string) error
}

// User is who QEMU runs as once its files are open.
type User struct{ UID, GID int }

// Config is what a Driver is made from. StateDir, RunDir and Storage are
// required.
type Config struct {
	StateDir string // must survive a reboot: records, rescue sockets, logs
	RunDir   string // may be lost at any time: sockets, secrets
	// Owner says whose processes are ours, such as CLUSTER/HOST. Another
	// owner's are never touched. Default: StateDir.
	Owner string
	Accel Accel  // default AccelKVM
	QEMU  string // binary, default qemu-system-x86_64
	// AllowedBridges are the only bridges a NIC may join.
	AllowedBridges []string
	User           *User // nil: as the agent; it must be able to pass RunDir and to read kernels
	Storage        Prober
	Log            *slog.Logger

	MaxAge         time.Duration // of state read back, default 30s
	ObserveTimeout time.Duration // for one machine, default 3s
	StartTimeout   time.Duration // exec to QMP, default 60s
	UnplugTimeout  time.Duration // for the guest to release a device, default 10s
	StorageTimeout time.Duration // for Storage to answer, default 3s
	// DiskTimeout is QEMU's for one iSCSI request, in whole seconds, default
	// 15s. It bounds how long opening a disk can hold QEMU.
	DiskTimeout time.Duration
}

func (c *Config) fill() error {
	if c.StateDir == "" || c.RunDir == "" || c.Storage == nil {
		return errors.New("kvm: StateDir, RunDir and Storage are required")
	}
	for _, dir := range []*string{&c.StateDir, &c.RunDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("kvm: %w", err)
		}
		*dir = abs
	}
	if c.Owner == "" {
		c.Owner = c.StateDir
	}
	if c.Accel == "" {
		c.Accel = AccelKVM
	}
	if c.QEMU == "" {
		c.QEMU = "qemu-system-x86_64"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		p   *time.Duration
		def time.Duration
	}{
		{&c.MaxAge, 30 * time.Second}, {&c.ObserveTimeout, 3 * time.Second},
		{&c.StartTimeout, time.Minute}, {&c.UnplugTimeout, 10 * time.Second},
		{&c.StorageTimeout, 3 * time.Second}, {&c.DiskTimeout, 15 * time.Second},
	} {
		if *d.p <= 0 {
			*d.p = d.def
		}
	}
	return nil
}

// Event says that something happened to a machine, so that it is worth
// observing again. Name is QEMU's event, or Disconnected.
type Event struct {
	UID  string
	Name string
}

// Disconnected is the Event of a machine whose QEMU closed its monitor: it ended.
const Disconnected = "DISCONNECTED"

// Driver is the machines of one host. Its methods may be called concurrently;
// actions on one machine run one after the other.
type Driver struct {
	cfg     Config
	owner   string // short digest of Config.Owner, in the command line of our processes
	dir     string // StateDir/vms
	run     string // RunDir/vms
	qemu    qemuBinary
	accel   accelProof
	records *durable.Dir // in dir
	events  chan Event
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	bootID  func() (string, error)

	turning  sync.Mutex // held while a log is turned over
	children sync.Map   // chan closed once a process of this agent is reaped, by pid

	mu       sync.Mutex
	machines map[string]*machine

	// step is called between the steps of an action; tests die there.
	step func(name string)
}

// machine is what the driver knows of one virtual machine.
type machine struct {
	uid  string
	op   *semaphore.Weighted // all of it for an action, one for an observation
	acts atomic.Uint64       // actions begun

	mu     sync.Mutex
	rec    *record // nil: none
	broken error   // the record is there and cannot be read
	link   *link   // nil: no process, as far as is known
	past   history
}

// New loads the records. It starts and touches nothing.
func New(cfg Config) (*Driver, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(cfg.Owner))
	d := &Driver{
		cfg:      cfg,
		owner:    hex.EncodeToString(sum[:4]),
		dir:      filepath.Join(cfg.StateDir, "vms"),
		run:      filepath.Join(cfg.RunDir, "vms"),
		qemu:     qemuBinary{path: cfg.QEMU},
		events:   make(chan Event, 256),
		bootID:   readBootID,
		machines: map[string]*machine{},
		step:     func(string) {},
	}
	var err error
	if d.records, err = durable.Open(d.dir, 0o600); err != nil {
		return nil, fmt.Errorf("kvm: %w", err)
	}
	d.ctx, d.stop = context.WithCancel(context.Background())
	if err := d.load(); err != nil {
		return nil, err
	}
	return d, nil
}

// Close ends the connections to QEMU. The machines run on.
func (d *Driver) Close() error {
	d.stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.machines {
		m.mu.Lock()
		if m.link != nil {
			m.link.close()
		}
		m.mu.Unlock()
	}
	return nil
}

// Events tells when to look again. When nobody reads, the oldest are dropped.
func (d *Driver) Events() <-chan Event { return d.events }

func (d *Driver) tell(e Event) {
	for {
		select {
		case d.events <- e:
			return
		default:
		}
		select {
		case <-d.events:
		default:
		}
	}
}

// machine returns the machine, known or new.
func (d *Driver) machine(uid string) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.machines[uid]
	if m == nil {
		m = &machine{uid: uid, op: semaphore.NewWeighted(allOps)}
		d.machines[uid] = m
	}
	return m
}

const allOps = 1 << 30

// acquire takes the right to act on the machine.
func (m *machine) acquire(ctx context.Context) error {
	if err := m.op.Acquire(ctx, allOps); err != nil {
		return fmt.Errorf("another action on the machine is under way: %w", err)
	}
	m.acts.Add(1)
	return nil
}

// Apply carries out one action on a machine. What it did before an error stays
// done, is seen by the next Observe and finished by the next action.
func (d *Driver) Apply(ctx context.Context, a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	var out reconcile.Outputs
	if err := d.apply(ctx, a, in, &out); err != nil {
		return out, fmt.Errorf("%s %s: %w", a.Op, a.Name, err)
	}
	return out, nil
}

func (d *Driver) apply(ctx context.Context, a reconcile.Action, in reconcile.Inputs, out *reconcile.Outputs) (err error) {
	if a.Kind != spec.KindVirtualMachine {
		return fmt.Errorf("the kvm driver does not know kind %s", a.Kind)
	}
	m := d.machine(a.UID)
	if err := m.acquire(ctx); err != nil {
		return err
	}
	defer m.op.Release(allOps)
	m.begin()
	defer m.done()
	m.mu.Lock()
	broken := m.broken
	m.mu.Unlock()
	if broken != nil {
		return broken
	}
	if in.Progress == nil {
		in.Progress = func(string, ...any) {}
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.link != nil {
			m.link.invalidate()
		}
	}()
	switch a.Op {
	case reconcile.OpCreate, reconcile.OpStart:
		vm, err := wanted(&a)
		if err != nil {
			return err
		}
		if vm.PowerState == spec.PowerStopped {
			return d.keep(m, a.Want)
		}
		return d.start(ctx, m, a.Want, vm, in)
	case reconcile.OpStop:
		out.Idle, err = d.stopMachine(ctx, m, a.Want, in)
		return err
	case reconcile.OpUpdate, reconcile.OpAdopt:
		err = d.update(ctx, m, &a, in)
		if rec := m.snapshot(); rec.live() {
			out.Disks = append([]string{}, rec.Launch.disks()...)
		}
		return err
	case reconcile.OpDelete:
		return d.delete(ctx, m, in)
	}
	return fmt.Errorf("the kvm driver does not carry out %s", a.Op)
}

func wanted(a *reconcile.Action) (*spec.VirtualMachine, error) {
	if a.Want != nil {
		if vm, ok := a.Want.Spec.(*spec.VirtualMachine); ok {
			return vm, nil
		}
	}
	return nil, errors.New("the action says nothing of the machine that is wanted")
}

// keep records a machine that is not to run.
func (d *Driver) keep(m *machine, want *reconcile.Object) error {
	return d.record(m, func(r *record) { r.adopt(want) })
}
