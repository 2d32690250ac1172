package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"slices"
	"time"

	"reconciler/deadline"
	"reconciler/internal/durable"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
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
	Missed        map[string]spec.Kind         `json:"missed,omitempty"`   // by UID: had before the memory was lost, by the host's own report, and not found since
	LastContact   time.Time                    `json:"lastContact,omitzero"`
	Machine       string                       `json:"machine,omitempty"`   // id of the machine that this is the state of
	Instances     []string                     `json:"instances,omitempty"` // of the agent that may have reported, newest last
	Tips          []string                     `json:"tips,omitempty"`      // of the status ref that were about to be pushed, newest last
	Double        string                       `json:"double,omitempty"`    // which other machine reports as this host
	Takeover      bool                         `json:"takeover,omitempty"`  // an operator said that this machine is the host; until it has reported
}

// clone is a copy that shares nothing with m that anybody changes.
func (m memory) clone() memory {
	m.Accepted, m.Instances, m.Tips = slices.Clone(m.Accepted), slices.Clone(m.Instances), slices.Clone(m.Tips)
	m.Suspensions, m.Allowances, m.Ledger = slices.Clone(m.Suspensions), slices.Clone(m.Allowances), slices.Clone(m.Ledger)
	m.Restarts, m.Reverts, m.Missed = maps.Clone(m.Restarts), maps.Clone(m.Reverts), maps.Clone(m.Missed)
	return m
}

// remember changes what the agent must remember.
func (a *Agent) remember(change func(*memory)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keep(change)
}

// keep changes what the agent must remember: on the disk first, so that where
// that fails nothing has changed, and the next pass decides the same again.
// a.mu is held.
func (a *Agent) keep(change func(*memory)) error {
	next := a.mem.clone()
	change(&next)
	if err := a.store.save(stateFile, next); err != nil {
		return err
	}
	a.mem = next
	return nil
}

// account brings the uptime of deadlines forward, and gives one to what an
// earlier build wrote. a.mu is held.
func (a *Agent) account() error {
	now, next := a.clock(), a.mem.clone()
	if !next.account(now) {
		return nil
	}
	return a.keep(func(m *memory) { *m = next })
}

func (m *memory) account(now deadline.Clock) (changed bool) {
	const whatever = math.MaxInt64
	changed = m.Ledger.Adopt(now)
	for i := range m.Suspensions {
		d := &m.Suspensions[i].Deadline
		changed = d.Adopt(now, whatever) || d.Account(now) || changed
	}
	for i := range m.Allowances {
		changed = m.Allowances[i].Adopt(now, whatever) || changed
	}
	for uid, r := range m.Reverts {
		changed = r.Adopt(now, revertTime) || changed
		m.Reverts[uid] = r
	}
	return changed
}

// applications are what was last applied, and with which revision, by object.
type applications struct {
	base      reconcile.Base
	revisions map[reconcile.Key]string
}

// keepBase changes what was last applied: as keep, on the disk first. a.mu is
// held.
func (a *Agent) keepBase(change func(applications)) error {
	next := applications{maps.Clone(a.base), maps.Clone(a.revisions)}
	change(next)
	if err := a.store.saveBase(next.base, next.revisions); err != nil {
		return err
	}
	a.base, a.revisions = next.base, next.revisions
	return nil
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
	if err := s.Write(name, data); err != nil {
		return &recordError{err}
	}
	return nil
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

// recordError says that the agent cannot remember what it is about to do, and so
// must not begin it.
type recordError struct{ err error }

func (e *recordError) Error() string {
	return "the agent cannot write its own records: " + e.err.Error()
}
func (e *recordError) Unwrap() error { return e.err }

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
