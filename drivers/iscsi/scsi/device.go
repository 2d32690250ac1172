package scsi

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// Config describes a logical unit.
type Config struct {
	// Path is a regular file or a block device.
	Path string
	// TargetName is the iSCSI name of the target, told in VPD page 83h.
	TargetName string
	// Serial is the unit serial number (VPD page 80h), printable ASCII of at
	// most 36 bytes; 20 hex digits by convention.
	Serial string
	// UID is the logical unit's UUID, told as a designator in VPD page 83h.
	UID [16]byte
	// Vendor (8 bytes at most), Product (16) and Revision (4) are what standard
	// INQUIRY says, printable ASCII. Without a vendor all three have defaults.
	Vendor, Product, Revision string
	// BlockSize is the logical block length: 512 (also when 0) or 4096.
	BlockSize int
	// ReadOnly opens the volume for reading and reports it write-protected.
	ReadOnly bool
	// Removable makes the medium one that START STOP UNIT can eject and load.
	Removable bool
	// ReservationFile keeps persistent reservations over a restart when an
	// initiator asks for it with APTPL. Without one APTPL is refused.
	ReservationFile string
	// OnPanic, where set, is told of a panic that Execute recovered from: the CDB,
	// what was panicked with and the stack. It must not block.
	OnPanic func(cdb []byte, value any, stack []byte)
}

// Device is a logical unit. Its methods may be called concurrently.
type Device struct {
	cfg   Config
	store backing
	shift uint
	// physical is the physical block length in bytes, a power of two and at
	// least the logical one: the unit in which space is given back.
	physical int64
	thin     bool
	gotgt    *gotgtUnit

	size    atomic.Int64 // bytes, a multiple of the block length
	stripes stripes
	stats   counters
	flusher flusher

	// ejected and guard are read on the data path, written under mu.
	ejected atomic.Bool
	guard   atomic.Pointer[guard]

	mu      sync.Mutex // what follows, and every change of guard
	nexuses map[*Nexus]struct{}
	closed  bool
}

// Stats counts what a Device has done since it was opened.
type Stats struct {
	Commands, Reads, Writes, ReadBytes, WriteBytes, Errors uint64
	// Unsynced is set by a failed flush: see ErrUnsynced.
	Unsynced bool
}

type counters struct {
	commands, reads, writes, readBytes, writeBytes, errors atomic.Uint64
}

// ErrInUse says that another process, or another Device, serves the volume.
var ErrInUse = errors.New("volume is in use")

// ErrShrink is returned by [Device.Grow] for a size below the present one.
var ErrShrink = errors.New("a volume does not shrink")

// Open opens the volume and takes an exclusive lock on it, held until Close.
// It returns an error that wraps ErrInUse when the lock is not free.
func Open(cfg Config) (*Device, error) {
	b, err := openBacking(cfg.Path, cfg.ReadOnly)
	if err != nil {
		return nil, err
	}
	d, err := newDevice(cfg, b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return d, nil
}

func newDevice(cfg Config, b backing) (*Device, error) {
	if cfg.BlockSize == 0 {
		cfg.BlockSize = 512
	}
	if cfg.Vendor == "" {
		cfg.Vendor, cfg.Product, cfg.Revision = "RECNCLR", "VIRTUAL DISK", "1"
	}
	shift := uint(9)
	switch cfg.BlockSize {
	case 512:
	case 4096:
		shift = 12
	default:
		return nil, fmt.Errorf("block size %d: only 512 and 4096 are supported", cfg.BlockSize)
	}
	for _, s := range []struct {
		name, value string
		limit       int
	}{
		{"serial", cfg.Serial, 36}, {"vendor", cfg.Vendor, 8}, {"product", cfg.Product, 16},
		{"revision", cfg.Revision, 4}, {"target name", cfg.TargetName, 223},
	} {
		if len(s.value) > s.limit {
			return nil, fmt.Errorf("%s %q is longer than %d bytes", s.name, s.value, s.limit)
		}
	}
	info, err := b.Info()
	if err != nil {
		return nil, err
	}
	if info.logical > int64(cfg.BlockSize) {
		return nil, fmt.Errorf("%s: its sectors of %d bytes are larger than blocks of %d", cfg.Path, info.logical, cfg.BlockSize)
	}
	size := info.size &^ (int64(cfg.BlockSize) - 1)
	if size == 0 {
		return nil, fmt.Errorf("%s: holds no block", cfg.Path)
	}
	d := &Device{
		cfg:      cfg,
		store:    b,
		shift:    shift,
		physical: max(info.physical, int64(cfg.BlockSize)),
		thin:     info.punches,
		nexuses:  make(map[*Nexus]struct{}),
	}
	d.size.Store(size)
	d.gotgt = newGotgtUnit(d)
	if err := d.loadReservations(); err != nil {
		return nil, err
	}
	return d, nil
}

// Size returns the capacity in bytes.
func (d *Device) Size() int64 { return d.size.Load() }

// blocks returns the capacity in logical blocks.
func (d *Device) blocks() uint64 { return uint64(d.size.Load()) >> d.shift }

// Stats returns the counters as they are now.
func (d *Device) Stats() Stats {
	return Stats{
		Commands: d.stats.commands.Load(), Errors: d.stats.errors.Load(), Unsynced: d.flusher.failed.Load(),
		Reads: d.stats.reads.Load(), ReadBytes: d.stats.readBytes.Load(),
		Writes: d.stats.writes.Load(), WriteBytes: d.stats.writeBytes.Load(),
	}
}

// Grow makes the volume at least size bytes long and takes over its real
// length, which may have grown by other hands; with size 0 it only looks. Every
// nexus is told CAPACITY DATA HAS CHANGED when the capacity did.
func (d *Device) Grow(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.size.Load()
	if size != 0 && size < now {
		return fmt.Errorf("%w: it has %d bytes, asked for %d", ErrShrink, now, size)
	}
	if size > now {
		if err := d.store.Grow(size); err != nil {
			return err
		}
	}
	info, err := d.store.Info()
	if err != nil {
		return err
	}
	grown := info.size &^ (int64(d.cfg.BlockSize) - 1)
	if grown < now {
		return fmt.Errorf("%w: it had %d bytes, now %d", ErrShrink, now, grown)
	}
	if grown == now {
		return nil
	}
	d.size.Store(grown)
	for n := range d.nexuses {
		n.raise(unitAttention(ascCapacityChanged))
	}
	return nil
}

// Attach begins the nexus's life on this logical unit.
func (d *Device) Attach(n *Nexus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nexuses[n] = struct{}{}
	n.raise(unitAttention(gotgt.ASC_POWERON_RESET))
}

// Detach is I_T nexus loss (SAM-5 §6.3.4): RESERVE and PREVENT of the nexus
// end, its persistent registration stays. No command of it may be under way.
func (d *Device) Detach(n *Nexus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.nexuses, n)
	n.prevent = false
	n.clearAttentions()
	d.releaseLegacy(n)
}

// ResetKind is which condition a task management function causes.
type ResetKind uint8

const (
	LUReset      ResetKind = iota // LOGICAL UNIT RESET (SAM-5 §6.3.3)
	TargetReset                   // a warm or cold target reset: a hard reset (SAM-5 §6.3.2)
	ClearTaskSet                  // CLEAR TASK SET (SAM-5 §7.4): only tells the others
	NexusReset                    // I_T NEXUS RESET (SAM-5 §7.6): of the one nexus
)

// Reset carries out a reset that from asked for. Reservations by RESERVE,
// PREVENT and changed mode parameters go back to their defaults, persistent
// reservations stay; the nexuses concerned are told by unit attentions. The
// transport aborts the commands itself, before it calls this.
func (d *Device) Reset(from *Nexus, kind ResetKind) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch kind {
	case ClearTaskSet:
		d.raiseOthers(from, gotgt.ASC_CMDS_CLEARED_BY_ANOTHER_INI)
	case NexusReset:
		d.releaseLegacy(from)
		from.prevent = false
		from.mode.reset()
		from.raise(unitAttention(gotgt.ASC_I_T_NEXUS_LOSS_OCCURRED))
	default:
		d.releaseLegacy(nil)
		for n := range d.nexuses {
			n.prevent = false
			n.mode.reset()
			n.raise(unitAttention(gotgt.ASC_POWERON_RESET))
		}
	}
}

// Close flushes the volume, gives up its lock and closes it. No command may be
// under way. The error is that of the flush or of the close; it wraps
// ErrUnsynced when a flush failed before.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	var err error
	if !d.cfg.ReadOnly {
		if err = d.flusher.flush(d.store); err != nil {
			err = fmt.Errorf("flush %s: %w", d.cfg.Path, err)
		}
	}
	return errors.Join(err, d.store.Close())
}

// raiseOthers tells every attached nexus but n. It is called with mu held.
func (d *Device) raiseOthers(n *Nexus, asc additionalSense) {
	for o := range d.nexuses {
		if o != n {
			o.raise(unitAttention(asc))
		}
	}
}
