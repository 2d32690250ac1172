package target

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	stateName    = "target.json"
	stateVersion = 1
)

// saved is an export in the state file.
type saved struct {
	Export Export       `json:"export"`
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
		s.FencedBelow = s.Fenced[n-1] + 1
		s.Fenced = s.Fenced[n:]
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

// store is the state file. A change is on stable storage before update returns;
// who admits anybody does so after that.
type store struct {
	dir string

	mu      sync.Mutex
	exports map[string]saved
}

type stateFile struct {
	Version int     `json:"version"`
	Exports []saved `json:"exports"`
}

// loadStore reads the state file. None is an empty state; one that cannot be
// read is an error, never an empty state.
func loadStore(dir string) (*store, error) {
	st := &store{dir: dir, exports: make(map[string]saved)}
	b, err := os.ReadFile(filepath.Join(dir, stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return nil, err
	}
	var f stateFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", stateName, err)
	}
	if f.Version != stateVersion {
		return nil, fmt.Errorf("%s: version %d, this program reads %d", stateName, f.Version, stateVersion)
	}
	for _, e := range f.Exports {
		if err := e.Export.validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", stateName, err)
		}
		if err := validateAccess(e.access()); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", stateName, e.Export.IQN, err)
		}
		st.exports[e.Export.IQN] = e
	}
	return st, nil
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
	var list []saved
	for _, iqn := range slices.Sorted(maps.Keys(st.exports)) {
		list = append(list, st.exports[iqn])
	}
	return list
}

// update changes one export's entry; nil removes it. When it fails nothing has
// changed.
func (st *store) update(iqn string, e *saved) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	next := maps.Clone(st.exports)
	if e == nil {
		delete(next, iqn)
	} else {
		next[iqn] = *e
	}
	f := stateFile{Version: stateVersion}
	for _, iqn := range slices.Sorted(maps.Keys(next)) {
		f.Exports = append(f.Exports, next[iqn])
	}
	b, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(st.dir, stateName), append(b, '\n')); err != nil {
		return fmt.Errorf("state is not persisted: %w", err)
	}
	st.exports = next
	return nil
}

// writeSynced puts data in the place of the file at path: after a crash there is
// the old contents or the new. The new file takes its space before the old one
// is given up, so that a full file system loses neither.
func writeSynced(path string, data []byte) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
