package kvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"reconciler/deadline"
	"reconciler/internal/uptime"
	"reconciler/reconcile"
	"reconciler/spec"
)

// record is what must be known of a machine over a restart of the agent and of
// the host. It is on disk before the act it describes.
type record struct {
	UID         string            `json:"uid"`
	Name        string            `json:"name"`
	Incarnation int               `json:"incarnation,omitempty"`
	Machine     string            `json:"machine,omitempty"` // pinned machine type
	Slots       map[string]int    `json:"slots,omitempty"`   // root port by the id of the entry's device; kept after the entry is gone
	Fields      []reconcile.Field `json:"fields"`            // of the spec, as last carried out

	Launch   *launch   `json:"launch,omitempty"`
	Intent   string    `json:"intent,omitempty"` // what was begun and not finished
	IntentAt time.Time `json:"intentAt,omitzero"`
	Exit     *exit     `json:"exit,omitempty"`
	Failures int       `json:"failures,omitempty"` // ends in a row, for the back-off
	RetryAt  time.Time `json:"retryAt,omitzero"`
	// Backoff is RetryAt for a clock that was wrong; records of the first builds
	// have only the other.
	Backoff deadline.Deadline `json:"backoff,omitzero"`
}

const (
	intentStop   = "stop"
	intentDelete = "delete"
)

// launch is one QEMU process, from before its exec.
type launch struct {
	ID      string    `json:"id"`
	BootID  string    `json:"bootId"`
	At      time.Time `json:"at"`
	Accel   Accel     `json:"accel"`
	Ports   int       `json:"ports"` // root ports
	Argv    []string  `json:"argv"`
	Started bool      `json:"started,omitempty"` // the guest was, or is just being, let run
	Over    bool      `json:"over,omitempty"`    // its process is known to be gone
	// Disks and NICs are those that are, or are just being, attached or
	// detached, by entry name.
	Disks map[string]diskEntry `json:"disks,omitempty"`
	NICs  map[string]nicEntry  `json:"nics,omitempty"`
	Seed  bool                 `json:"seed,omitempty"` // it was given a seed of cloud-init
}

type diskEntry struct {
	UID  string `json:"uid"`
	Name string `json:"name"`
	// Device is the id of the device in QEMU, where it is not the entry's: the
	// entry was renamed since it was plugged in.
	Device string `json:"device,omitempty"`
}

type nicEntry struct {
	Network   string `json:"network"` // name
	NetworkID string `json:"networkId,omitempty"`
}

// exit is how a guest or its QEMU ended without having been asked to.
type exit struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	Failed bool      `json:"failed,omitempty"`
	Asked  bool      `json:"asked,omitempty"` // somebody asked for it, past the agent
}

func (r *record) clone() *record {
	c := *r
	b, err := json.Marshal(r)
	if err == nil {
		c = record{}
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		panic("kvm: a record does not survive JSON: " + err.Error())
	}
	return &c
}

// adopt takes over everything the spec says.
func (r *record) adopt(want *reconcile.Object) {
	r.Name, r.Incarnation = want.Name, want.Incarnation
	r.Fields = slices.Clone(want.Fields)
}

func (r *record) object() reconcile.Object {
	return reconcile.Object{
		Kind: spec.KindVirtualMachine, Name: r.Name, UID: r.UID, Incarnation: r.Incarnation, Fields: r.Fields,
	}
}

// shutdownTimeout is the guest's time to shut down, as recorded.
func (r *record) shutdownTimeout() time.Duration {
	o := r.object()
	var d spec.Duration
	if v := o.Get("spec.shutdown.timeout"); v == "" || d.UnmarshalText([]byte(v)) != nil {
		d = spec.DefaultShutdownTimeout
	}
	return time.Duration(d)
}

// live says that the recorded launch may have a process.
func (r *record) live() bool { return r != nil && r.Launch != nil && !r.Launch.Over }

const (
	recordSuffix = ".json"
	// recordVersion 2 says that a device may be called otherwise than its entry: a
	// build that does not know would attach the disk a second time.
	recordVersion = 2
)

// version is the lowest that says all of the record.
func (r *record) version() int {
	if r.Launch != nil {
		for _, e := range r.Launch.Disks {
			if e.Device != "" {
				return recordVersion
			}
		}
	}
	return 1
}

func (d *Driver) file(uid, suffix string) string { return filepath.Join(d.dir, uid+suffix) }

func (d *Driver) rescuePath(uid string) string  { return d.file(uid, ".qmp") }
func (d *Driver) consoleLog(uid string) string  { return d.file(uid, ".console.log") }
func (d *Driver) messageLog(uid string) string  { return d.file(uid, ".qemu.log") }
func (d *Driver) lockPath(uid string) string    { return d.file(uid, ".lock") }
func (d *Driver) runDir(uid string) string      { return filepath.Join(d.run, uid) }
func (d *Driver) qmpPath(uid string) string     { return filepath.Join(d.runDir(uid), "qmp") }
func (d *Driver) consolePath(uid string) string { return filepath.Join(d.runDir(uid), "console") }

// load reads every record. One that cannot be read makes its machine unknown,
// not absent.
func (d *Driver) load() error {
	uids, err := d.records.Names(recordSuffix)
	if err != nil {
		return fmt.Errorf("kvm: list the records: %w", err)
	}
	for _, uid := range uids {
		m, r := d.machine(uid), &record{}
		if err := d.records.ReadJSON(uid+recordSuffix, recordVersion, r); err != nil {
			m.broken = fmt.Errorf("the record cannot be read: %w", err)
		} else if r.UID != uid {
			m.broken = fmt.Errorf("the record %s%s is of machine %q", uid, recordSuffix, r.UID)
		} else {
			m.rec = r
		}
	}
	return nil
}

// snapshot returns the record, which is never changed in place; nil if there
// is none.
func (m *machine) snapshot() *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec
}

// record changes the record, a new one if there is none, and returns when it
// is on disk.
func (d *Driver) record(m *machine, change func(*record)) error {
	return d.recordIf(m, func(r *record) bool {
		change(r)
		return true
	})
}

// recordIf is record for a change that finds out whether there is one.
func (d *Driver) recordIf(m *machine, change func(*record) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &record{UID: m.uid}
	if m.rec != nil {
		r = m.rec.clone()
	}
	if !change(r) {
		return nil
	}
	if err := d.records.WriteJSON(m.uid+recordSuffix, r.version(), r); err != nil {
		return fmt.Errorf("keep the record: %w", err)
	}
	m.rec = r
	return nil
}

// forget removes every file of the machine, its record last.
func (d *Driver) forget(m *machine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, path := range []string{
		d.rescuePath(m.uid), d.consoleLog(m.uid), d.consoleLog(m.uid) + ".1", d.consoleLog(m.uid) + ".1.new",
		d.messageLog(m.uid), d.messageLog(m.uid) + ".1", d.messageLog(m.uid) + ".1.new", d.lockPath(m.uid),
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the machine's files: %w", err)
		}
	}
	if err := d.records.Remove(m.uid + recordSuffix); err != nil {
		return fmt.Errorf("remove the record: %w", err)
	}
	m.rec = nil
	return nil
}

func readBootID() (string, error) { return uptime.Boot() }
