package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"reconciler/internal/durable"
	"reconciler/policy"
	"reconciler/reconcile"
)

// memory is what the agent itself must remember over a restart. Losing it
// loses no machine and no disk: without a base nothing is deleted.
type memory struct {
	Cluster       string                       `json:"cluster"` // id the host belongs to
	IQNBase       string                       `json:"iqnBase"`
	Good          string                       `json:"good"`                // revision in force
	Witnessed     string                       `json:"witnessed,omitempty"` // in force before the memory was lost, by the host's own report; until Good is known
	LastAttempted string                       `json:"lastAttempted"`       // newest seen, refused or not
	LastApplied   string                       `json:"lastApplied"`
	Tracked       string                       `json:"tracked,omitempty"` // the last revision that changed what this host is to be
	Refused       string                       `json:"refused,omitempty"` // why LastAttempted is not in force
	Accepted      []string                     `json:"accepted,omitempty"`
	Suspensions   []policy.Suspension          `json:"suspensions,omitempty"`
	Allowances    []policy.Allowance           `json:"allowances,omitempty"`
	Ledger        policy.Ledger                `json:"ledger,omitempty"`
	Restarts      map[string]reconcile.Restart `json:"restarts,omitempty"` // by machine UID
	Reverts       map[string]reversion         `json:"reverts,omitempty"`  // drift that is to be corrected, by UID
	LastContact   time.Time                    `json:"lastContact,omitzero"`
}

// applied is the form of base on disk.
type applied struct {
	Objects []entry `json:"objects"`
}

type entry struct {
	*reconcile.Applied
	Revision string `json:"revision"`
}

// recordVersion is of every file of the agent.
const recordVersion = 1

// The two files of the agent.
const (
	stateFile = "agent.json"
	baseFile  = "base.json"
)

// store keeps the two files, in a directory with space set aside for them.
type store struct{ *durable.Dir }

func (s store) load(name string, out any) error {
	err := s.ReadJSON(name, recordVersion, out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s store) save(name string, v any) error {
	data, err := durable.Marshal(recordVersion, v)
	if err != nil {
		return err
	}
	return s.Write(name, data)
}

// mapRecord is a record that is one map. The first builds wrote the map alone,
// without a version.
type mapRecord[V any] struct {
	Entries map[string]V `json:"entries"`
}

func (m *mapRecord[V]) UnmarshalJSON(data []byte) error {
	v, err := durable.Version(data)
	if err != nil {
		return err
	}
	var r struct {
		Entries map[string]V `json:"entries"`
	}
	if v == 0 {
		err = json.Unmarshal(data, &r.Entries)
	} else {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && r.Entries != nil {
		m.Entries = r.Entries
	}
	return err
}

func (f applied) maps() (reconcile.Base, map[reconcile.Key]string) {
	base, revisions := make(reconcile.Base, len(f.Objects)), make(map[reconcile.Key]string, len(f.Objects))
	for _, e := range f.Objects {
		base[e.Key()], revisions[e.Key()] = e.Applied, e.Revision
	}
	return base, revisions
}

func (s store) saveBase(base reconcile.Base, revisions map[reconcile.Key]string) error {
	f := applied{Objects: make([]entry, 0, len(base))}
	for _, k := range reconcile.SortedKeys(base) {
		f.Objects = append(f.Objects, entry{base[k], revisions[k]})
	}
	return s.save(baseFile, f)
}
