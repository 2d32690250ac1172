package claims

import (
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"sync"
	"time"

	"github.com/google/uuid"

	"reconciler/claim"
	"reconciler/internal/durable"
)

const (
	version   = 1
	suffix    = ".json"
	floorName = ".floor.json"
)

// Store keeps a Record a disk. It is the only writer of its directory.
type Store struct {
	dir     *durable.Dir
	mu      sync.Mutex
	records map[string]Record
	broken  map[string]error
	floor   uint64 // no disk that is forgotten ever had a higher epoch
	noFloor error  // why it is not known
}

type floorFile struct {
	Epoch uint64 `json:"epoch"`
}

// Open reads the records. One that cannot be read makes its own disk unusable
// and no other. Without the floor, those disks cannot be used that have no record.
func Open(path string) (*Store, error) {
	dir, err := durable.Open(path, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, records: map[string]Record{}, broken: map[string]error{}}
	var floor floorFile
	if err := dir.ReadJSON(floorName, version, &floor); err == nil {
		s.floor = floor.Epoch
	} else if !errors.Is(err, fs.ErrNotExist) {
		s.noFloor = fmt.Errorf("no disk can be given out for the first time, for the highest epoch of those that were purged is not known: %w", err)
	}
	files, broken, err := durable.ReadAll(dir, suffix, version, checkFile)
	if err != nil {
		return nil, err
	}
	s.broken = broken
	for disk, f := range files {
		s.records[disk] = f.record()
	}
	return s, nil
}

func checkFile(disk string, f *recordFile) error {
	if f.Disk != disk {
		return fmt.Errorf("it is the claim record of disk %q", f.Disk)
	}
	return nil
}

// Trace sets a function that is called before each durable step.
func (s *Store) Trace(step func(op string)) { s.dir.Step = step }

// Get returns what is known of a disk; an unknown one is free.
func (s *Store) Get(disk string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(disk)
}

func (s *Store) get(disk string) (Record, error) {
	if err := uuid.Validate(disk); err != nil {
		return Record{}, fmt.Errorf("disk %q: %w", disk, err)
	}
	if err := s.broken[disk]; err != nil {
		return Record{}, err
	}
	r, ok := s.records[disk]
	if !ok && s.noFloor != nil {
		return Record{}, s.noFloor
	}
	if !ok {
		return Record{Disk: disk, Epoch: s.floor}, nil
	}
	return r.clone(), nil
}

// List returns all records that can be read, sorted by disk.
func (s *Store) List() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Record, 0, len(s.records))
	for _, r := range s.records {
		all = append(all, r.clone())
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Disk < all[j].Disk })
	return all
}

// Knows says whether there is a record of a disk, be it one that cannot be read.
func (s *Store) Knows(disk string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.records[disk]
	return ok || s.broken[disk] != nil
}

// Adopt makes the record of a disk that has none from what is known elsewhere:
// the highest epoch that was ever given, and who has it.
func (s *Store) Adopt(disk string, epoch uint64, holders []Admission) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.get(disk)
	if err != nil {
		return err
	}
	if _, known := s.records[disk]; known {
		return fmt.Errorf("disk %s has a claim record", disk)
	}
	r.Epoch = max(r.Epoch, epoch)
	for _, a := range holders {
		switch {
		case a.ReadOnly:
			r.Readers = append(r.Readers, a)
		case r.Writer != nil:
			return fmt.Errorf("disk %s has two writers, epochs %d and %d", disk, r.Writer.Epoch, a.Epoch)
		default:
			r.Writer = &a
		}
		r.Epoch = max(r.Epoch, a.Epoch)
	}
	return s.put(r)
}

// Acquire gives the disk to an owner. The one who has it gets the same admission
// again; if another has it, the error is a *claim.HeldError. make is called
// with the next epoch to say how a new admission is reached. An admission that
// only reads is given beside others.
func (s *Store) Acquire(disk string, o claim.Owner, readOnly bool, make func(epoch uint64) Admission) (Admission, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.get(disk)
	if err != nil {
		return Admission{}, err
	}
	for _, a := range r.Admissions() {
		if a.Owner.Same(o) && a.ReadOnly == readOnly && a.State == Held {
			return a, nil
		}
	}
	if !readOnly && r.Writer != nil {
		return Admission{}, &claim.HeldError{Disk: disk, Owner: r.Writer.Owner}
	}
	r.Epoch++
	a := make(r.Epoch)
	a.Epoch, a.State, a.Owner, a.ReadOnly = r.Epoch, Held, o, readOnly
	if readOnly {
		r.Readers = append(r.Readers, a)
	} else {
		r.Writer = &a
	}
	return a, s.put(r)
}

// BeginRelease marks an owner's admissions as Releasing and returns them. None
// means that the owner has nothing.
func (s *Store) BeginRelease(disk string, o claim.Owner) ([]Admission, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.get(disk)
	if err != nil {
		return nil, err
	}
	var mine []Admission
	changed := false
	for _, a := range r.Admissions() {
		if !a.Owner.Same(o) {
			continue
		}
		p := r.find(a.Epoch)
		changed = changed || p.State != Releasing
		p.State = Releasing
		mine = append(mine, *p)
	}
	if !changed {
		return mine, nil
	}
	return mine, s.put(r)
}

// Free ends an admission that is Releasing, now. The caller knows that no
// command of its epoch can reach the disk any more.
func (s *Store) Free(disk string, epoch uint64, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.get(disk)
	if err != nil {
		return err
	}
	a := r.find(epoch)
	if a == nil {
		return nil
	}
	if a.State != Releasing {
		return fmt.Errorf("epoch %d of disk %s is in state %s, not released", epoch, disk, a.State)
	}
	if !a.ReadOnly {
		r.Written = now
	}
	r.drop(epoch)
	return s.put(r)
}

// Forget removes the record of a disk that is gone. A disk made later with the
// same UID begins above every epoch that was ever forgotten.
func (s *Store) Forget(disk string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.get(disk)
	if err != nil {
		return err
	}
	if !r.Idle() {
		return fmt.Errorf("disk %s is in use", disk)
	}
	if s.noFloor != nil {
		return s.noFloor
	}
	if r.Epoch > s.floor {
		if err := s.dir.WriteJSON(floorName, version, floorFile{r.Epoch}); err != nil {
			return err
		}
		s.floor = r.Epoch
	}
	delete(s.records, disk)
	return s.dir.Remove(disk + suffix)
}

// put writes the record first: nothing is admitted that is not on stable
// storage. When the write fails, the file may hold either, so memory follows it.
func (s *Store) put(r Record) error {
	if err := s.dir.WriteJSON(r.Disk+suffix, version, r.file()); err != nil {
		s.reload(r.Disk)
		return err
	}
	s.records[r.Disk] = r
	return nil
}

func (s *Store) reload(disk string) {
	var f recordFile
	switch err := s.dir.ReadJSON(disk+suffix, version, &f); {
	case errors.Is(err, fs.ErrNotExist):
		delete(s.records, disk)
	case err != nil:
		s.broken[disk] = err
	default:
		s.records[disk] = f.record()
	}
}
