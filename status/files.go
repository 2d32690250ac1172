package status

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"gopkg.in/yaml.v3"

	"reconciler/reconcile"
	"reconciler/spec"
)

// Recorded is state.json: what a host reported of itself, so that a plan can
// be made without reaching it. It is an allow-list: nothing gets in but the
// fields named here, and none of them is sensitive.
type Recorded struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"` // HostState
	Host       string    `json:"host"`
	Cluster    string    `json:"cluster"` // id
	Revision   string    `json:"revision"`
	ObservedAt time.Time `json:"observedAt"`
	// Machine is the id of the machine that reports, Instance that of the process.
	Machine  string           `json:"machine,omitempty"`
	Instance string           `json:"instance,omitempty"`
	Complete []spec.Kind      `json:"complete"`
	Objects  []RecordedObject `json:"objects"`
	Unknown  []RecordedKey    `json:"unknown,omitempty"`
	// Applied is what was last applied to each object, against which the host
	// attributes changes. nil of a build that did not write it.
	Applied []RecordedApplied `json:"applied"`
}

// RecordedApplied is one object as it was last applied.
type RecordedApplied struct {
	reconcile.Object
	Attempted string `json:"attempted,omitempty"`
	Done      bool   `json:"done"`
}

// RecordedKey is an object that could not be observed.
type RecordedKey struct {
	Kind   spec.Kind `json:"kind"`
	UID    string    `json:"uid"`
	Reason string    `json:"reason"`
}

// RecordedObject is one object of state.json.
type RecordedObject struct {
	reconcile.Object
	Power       reconcile.Power   `json:"power,omitempty"`
	Exit        string            `json:"exit,omitempty"`
	Failed      bool              `json:"failed,omitempty"` // Exit was no orderly shutdown
	Asked       bool              `json:"asked,omitempty"`  // somebody asked QEMU for Exit
	Disks       map[string]string `json:"disks,omitempty"`  // of a running machine: entry to UID
	Ports       int               `json:"ports,omitempty"`  // of a running machine: PCI slots for disks and NICs
	Volume      int64             `json:"volume,omitempty"`
	LUN         int64             `json:"lun,omitempty"`
	Quarantined bool              `json:"quarantined,omitempty"`
	Until       time.Time         `json:"until,omitzero"`
	Free        int64             `json:"free,omitempty"`
}

// Record writes down a state, and what was last applied.
func Record(host, cluster, revision string, have reconcile.State, base reconcile.Base, at time.Time) Recorded {
	r := Recorded{
		APIVersion: spec.APIVersion, Kind: recordedKind, Host: host, Cluster: cluster, Revision: revision,
		ObservedAt: at, Objects: []RecordedObject{}, Applied: []RecordedApplied{},
	}
	for _, k := range spec.Kinds {
		if have.Complete[k] {
			r.Complete = append(r.Complete, k)
		}
	}
	for _, k := range reconcile.SortedKeys(have.Objects) {
		h := have.Objects[k]
		o := RecordedObject{Object: h.Object}
		if h.VM != nil {
			o.Power, o.Exit, o.Failed, o.Asked, o.Disks, o.Ports = h.VM.Power, h.VM.Exit, h.VM.Failed, h.VM.Asked, h.VM.Disks, h.VM.Ports
		}
		if h.Disk != nil {
			o.Volume, o.LUN, o.Quarantined, o.Until = h.Disk.Volume, h.Disk.LUN, h.Disk.Quarantined, h.Disk.Until
		}
		if h.Pool != nil {
			o.Free = h.Pool.Free
		}
		r.Objects = append(r.Objects, o)
	}
	for _, k := range reconcile.SortedKeys(have.Unknown) {
		r.Unknown = append(r.Unknown, RecordedKey{k.Kind, k.UID, have.Unknown[k]})
	}
	for _, k := range reconcile.SortedKeys(base) {
		b := base[k]
		o := b.Object
		o.Spec, o.Refs = nil, nil
		r.Applied = append(r.Applied, RecordedApplied{o, b.Attempted, b.Done})
	}
	return r
}

// Base reads back what was last applied. ok is false where the report does not
// say: nothing can then be attributed, and that is not the same as nothing applied.
func (r Recorded) Base() (base reconcile.Base, ok bool) {
	if r.Applied == nil {
		return nil, false
	}
	base = make(reconcile.Base, len(r.Applied))
	for _, a := range r.Applied {
		base[a.Key()] = &reconcile.Applied{Object: a.Object, Attempted: a.Attempted, Done: a.Done}
	}
	return base, true
}

// State reads back what Record wrote.
func (r Recorded) State() reconcile.State {
	s := reconcile.NewState()
	for _, k := range r.Complete {
		s.Complete[k] = true
	}
	for _, o := range r.Objects {
		h := &reconcile.Live{Object: o.Object}
		switch o.Kind {
		case spec.KindVirtualMachine:
			h.VM = &reconcile.LiveVM{Power: o.Power, Exit: o.Exit, Failed: o.Failed, Asked: o.Asked, Disks: o.Disks, Ports: o.Ports, Launch: "recorded"}
		case spec.KindDisk:
			h.Disk = &reconcile.LiveDisk{Volume: o.Volume, LUN: o.LUN, Quarantined: o.Quarantined, Until: o.Until}
		case spec.KindStoragePool:
			h.Pool = &reconcile.LivePool{Free: o.Free}
		}
		s.Objects[h.Key()] = h
	}
	for _, u := range r.Unknown {
		s.Unknown[reconcile.Key{Kind: u.Kind, UID: u.UID}] = u.Reason
	}
	return s
}

// Files are the files of the status ref: status.yaml for people, state.json
// for programs.
func Files(h Host, objects []Object, r Recorded) (map[string][]byte, error) {
	h.PID = 0 // changes with every start and says nothing elsewhere
	people, err := yaml.Marshal(struct {
		Host    `yaml:",inline"`
		Objects []Object `yaml:"objects"`
	}{h, objects})
	if err != nil {
		return nil, fmt.Errorf("write status.yaml: %w", err)
	}
	state, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("write state.json: %w", err)
	}
	return map[string][]byte{StatusFile: people, StateFile: append(state, '\n')}, nil
}

// Digest tells whether a report says anything new. When it was made, and how
// much space is in use at the moment, is nothing new.
func Digest(h Host, objects []Object, r Recorded) ([sha256.Size]byte, error) {
	h.ObservedAt, r.ObservedAt = time.Time{}, time.Time{}
	steady := make([]Object, len(objects))
	for i, o := range objects {
		o.Status = maps.Clone(o.Status)
		delete(o.Status, allocated)
		delete(o.Status, free)
		steady[i] = o
	}
	r.Objects = slices.Clone(r.Objects)
	for i := range r.Objects {
		r.Objects[i].Free = 0
	}
	sum := sha256.New()
	err := json.NewEncoder(sum).Encode([]any{h, steady, r})
	return [sha256.Size]byte(sum.Sum(nil)), err
}

// The files of the status ref.
const (
	StatusFile = "status.yaml"
	StateFile  = "state.json"
)

// ReadState reads state.json.
func ReadState(data []byte) (Recorded, error) {
	var r Recorded
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", StateFile, err)
	}
	if r.APIVersion != spec.APIVersion || r.Kind != recordedKind {
		return r, fmt.Errorf("%s: %s %s is not what this build reads", StateFile, r.APIVersion, r.Kind)
	}
	return r, nil
}

const recordedKind = "HostState"
