package scsi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"reconciler/internal/durable"
)

const reservationVersion = 1 // of the file

// ErrReservations is returned by [Open] when Config.ReservationFile cannot be read.
var ErrReservations = errors.New("its persistent reservations cannot be read")

// savedReservations is the content of Config.ReservationFile. PRGENERATION is
// not in it: it starts anew with each power-on (SPC-5 §5.14).
type savedReservations struct {
	Registrations []registration `json:"registrations"`
	Type          byte           `json:"type,omitempty"`
	Holder        *nexusID       `json:"holder,omitempty"`
}

// saveReservations keeps next over a restart while APTPL is in force, and
// forgets what was kept when it no longer is.
func (d *Device) saveReservations(old, next *registrations) error {
	if !next.aptpl {
		if !old.aptpl {
			return nil
		}
		if err := os.Remove(d.cfg.ReservationFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(d.cfg.ReservationFile)
	}
	saved := savedReservations{Registrations: next.all, Type: next.kind}
	if next.kind != 0 && !allRegistrants(next.kind) {
		saved.Holder = &next.holder
	}
	data, err := durable.Marshal(reservationVersion, saved)
	if err != nil {
		return err
	}
	return replaceFile(d.cfg.ReservationFile, data)
}

func (d *Device) loadReservations() error {
	if d.cfg.ReservationFile == "" {
		return nil
	}
	data, err := os.ReadFile(d.cfg.ReservationFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var saved savedReservations
	if err := durable.Unmarshal(data, reservationVersion, &saved); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrReservations, d.cfg.ReservationFile, err)
	}
	r := &registrations{all: saved.Registrations, kind: saved.Type, aptpl: true}
	for i := range r.all {
		r.all[i].Nexus.Initiator = FoldName(r.all[i].Nexus.Initiator)
	}
	if saved.Holder != nil {
		r.holder = *saved.Holder
		r.holder.Initiator = FoldName(r.holder.Initiator)
	}
	if r.kind != 0 && (!validKind(r.kind) || !allRegistrants(r.kind) && r.key(r.holder) == 0) {
		return fmt.Errorf("%w: %s: a reservation that nobody holds", ErrReservations, d.cfg.ReservationFile)
	}
	d.setGuard(guard{pr: r})
	return nil
}

// replaceFile gives path new content that survives a crash at any instant: the
// old or the new, whole.
func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(path)
}

func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
