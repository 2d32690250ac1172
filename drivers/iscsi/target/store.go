package target

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"reconciler/internal/durable"
)

const (
	recordSuffix  = ".json"
	recordVersion = 1
)

// saved is the record of an export.
type saved struct {
	Export Export `json:"export"`
	// File is the one that was opened last; earlier builds did not say.
	File   *File        `json:"file,omitempty"`
	Access []accessJSON `json:"access,omitempty"`
	// Fenced lists the epochs that were fenced, FencedBelow stands for those that
	// fell off the list: neither is admitted again.
	Fenced      []uint64 `json:"fenced,omitempty"`
	FencedBelow uint64   `json:"fencedBelow,omitempty"`
}

const maxFenced = 64

// fence records an epoch as fenced.
func (s *saved) fence(epoch uint64) {
	s.Access = slices.DeleteFunc(slices.Clone(s.Access), func(a accessJSON) bool { return a.Epoch == epoch })
	if s.isFenced(epoch) {
		return
	}
	s.Fenced = append(slices.Clone(s.Fenced), epoch)
	slices.Sort(s.Fenced)
	if n := len(s.Fenced) - maxFenced; n > 0 {
		// An access that reads may outlive many epochs that write.
		below := s.Fenced[n-1] + 1
		for _, a := range s.Access {
			below = min(below, a.Epoch)
		}
		s.FencedBelow = max(s.FencedBelow, below)
		s.Fenced = slices.DeleteFunc(s.Fenced, func(e uint64) bool { return e < s.FencedBelow })
	}
}

func (s *saved) isFenced(epoch uint64) bool {
	return epoch < s.FencedBelow || slices.Contains(s.Fenced, epoch)
}

func (s *saved) access() []Access {
	list := make([]Access, 0, len(s.Access))
	for _, a := range s.Access {
		list = append(list, a.access())
	}
	return list
}

// store holds a record for each export. A change is on stable storage before
// update returns; who admits anybody does so after that.
type store struct {
	dir *durable.Dir

	mu      sync.Mutex
	exports map[string]saved
}

// openStore reads the records. One that is damaged is set aside and named in
// damaged: its export is not served until somebody who keeps the claims puts it
// again and says whom to admit, so that nothing is admitted which it had fenced.
func openStore(path string) (st *store, damaged []error, err error) {
	dir, err := durable.Open(path, 0o600)
	if err != nil {
		return nil, nil, err
	}
	good, broken, err := durable.ReadAll(dir, recordSuffix, recordVersion, checkSaved)
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	for name, why := range broken {
		aside, err := dir.SetAside(name+recordSuffix, why)
		switch later := (*durable.VersionError)(nil); {
		case errors.As(err, &later): // it stays, and cannot be written over
		case err != nil:
			return nil, nil, errors.Join(err, dir.Close())
		default:
			why = fmt.Errorf("%w; it is now %s", why, aside)
		}
		damaged = append(damaged, why)
	}
	st = &store{dir: dir, exports: make(map[string]saved, len(good))}
	for _, e := range good {
		st.exports[e.Export.IQN] = e
	}
	return st, damaged, nil
}

func checkSaved(name string, e *saved) error {
	if err := e.Export.validate(); err != nil {
		return err
	}
	if want := recordName(e.Export.IQN); name+recordSuffix != want {
		return fmt.Errorf("it is of %s, whose record is %s", e.Export.IQN, want)
	}
	if err := validateAccess(e.access()); err != nil {
		return fmt.Errorf("%s: %w", e.Export.IQN, err)
	}
	return nil
}

func (st *store) get(iqn string) (saved, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	e, ok := st.exports[iqn]
	return e, ok
}

func (st *store) all() []saved {
	st.mu.Lock()
	defer st.mu.Unlock()
	list := make([]saved, 0, len(st.exports))
	for _, iqn := range slices.Sorted(maps.Keys(st.exports)) {
		list = append(list, st.exports[iqn])
	}
	return list
}

// update changes an export's record; nil removes it. After an error what is in
// force is unchanged, and the record may be either.
func (st *store) update(iqn string, e *saved) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	var err error
	if e == nil {
		err = st.dir.Remove(recordName(iqn))
	} else {
		err = st.dir.WriteJSON(recordName(iqn), recordVersion, e)
	}
	if err != nil {
		return fmt.Errorf("state of %s is not persisted: %w", iqn, err)
	}
	if e == nil {
		delete(st.exports, iqn)
	} else {
		st.exports[iqn] = *e
	}
	return nil
}

// recordName names a record after its export: an IQN may be longer than a file
// name and hold a slash.
func recordName(iqn string) string {
	sum := sha256.Sum256([]byte(iqn))
	return hex.EncodeToString(sum[:10]) + recordSuffix
}

// lockFile takes an exclusive lock that ends with the process, whatever ends it.
// ok is false when another holds it.
func lockFile(path string) (f *os.File, ok bool, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		return f, true, nil
	case unix.EWOULDBLOCK:
		return nil, false, f.Close()
	default:
		return nil, false, errors.Join(err, f.Close())
	}
}
