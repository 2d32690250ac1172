package record

import (
	"errors"
	"fmt"
	"io"
)

// Ack says that the writer printed every number up to Last, and so had been
// told by its disk that they are durable.
type Ack struct {
	Writer uint64 // 0: not known which
	Last   uint64
}

// Scan is what a disk holds.
type Scan struct {
	Ring    uint64
	Last    uint64            // highest whole record, 0 where there is none
	Records map[uint64]Record // by block
	Blank   bool              // no record, and the first block is all zero
}

// Read scans the records of a disk, from offset 0. The ring's length comes
// from the records themselves, limit is the ring to look through before one is
// found.
func Read(r io.ReaderAt, limit uint64) (Scan, error) {
	s := Scan{Ring: limit, Records: map[uint64]Record{}}
	const perRead = 256
	buf := make([]byte, perRead*BlockSize)
	for base := uint64(0); base < s.Ring; base += perRead {
		n := min(perRead, s.Ring-base)
		got, err := r.ReadAt(buf[:n*BlockSize], int64(base)*BlockSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return s, fmt.Errorf("read %d blocks at block %d: %w", n, base, err)
		}
		if base == 0 {
			s.Blank = allZero(buf[:min(got, BlockSize)])
		}
		for i := range uint64(got) / BlockSize {
			rec, ok := Decode(buf[i*BlockSize : (i+1)*BlockSize])
			if !ok {
				continue
			}
			if len(s.Records) == 0 {
				s.Ring = rec.Ring
			}
			s.Records[base+i] = rec
			s.Last = max(s.Last, rec.Number)
		}
		if got < int(n)*BlockSize {
			break
		}
	}
	if len(s.Records) > 0 {
		s.Blank = false
	}
	return s, nil
}

// Check reads the disk and reports everything that an honest disk with one
// writer at a time cannot show: an acknowledged number that is gone, a hole,
// a record of one writer among those of another, a writer that began before
// what another had been told is durable. One unfinished record after the last
// is allowed: it was never acknowledged.
func Check(r io.ReaderAt, acks ...Ack) error {
	s, err := Read(r, DefaultRing)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range acks {
		if a.Last > s.Last {
			errs = append(errs, fmt.Errorf("lost acknowledged writes: %d was printed, the disk ends at %d", a.Last, s.Last))
		}
	}
	errs = append(errs, s.checkRun()...)
	errs = append(errs, s.checkWriters(acks)...)
	return errors.Join(errs...)
}

// checkRun walks the window of the ring that must be whole, oldest to newest.
func (s Scan) checkRun() []error {
	if s.Last == 0 {
		return nil
	}
	// The block after the last may hold a write that was under way, in place
	// of the oldest record.
	oldest := uint64(1)
	if s.Last+2 > s.Ring {
		oldest = s.Last + 2 - s.Ring
	}
	var errs []error
	var prev Record
	for i := oldest; i <= s.Last; i++ {
		rec, ok := s.Records[i%s.Ring]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("gap: record %d is not on the disk, which goes on to %d", i, s.Last))
		case rec.Ring != s.Ring:
			errs = append(errs, fmt.Errorf("%v is of a ring of %d blocks, the disk's is %d", rec, rec.Ring, s.Ring))
		case rec.Number != i:
			errs = append(errs, fmt.Errorf("gap: block %d should hold record %d and holds %v", i%s.Ring, i, rec))
		case prev.Number != 0 && rec.Writer == prev.Writer && rec.First != prev.First:
			errs = append(errs, fmt.Errorf("%v contradicts %v", rec, prev))
		case prev.Number != 0 && rec.Writer != prev.Writer && rec.First != i:
			errs = append(errs, fmt.Errorf("two writers: %v follows %v", rec, prev))
		case prev.Number == 0 && i == 1 && rec.First != 1:
			errs = append(errs, fmt.Errorf("two writers: the disk begins with %v", rec))
		}
		prev = rec
		if len(errs) == 10 {
			return append(errs, errors.New("and more"))
		}
	}
	return errs
}

// checkWriters finds acknowledged records that a later writer wrote over
// because it did not find them: they are numbered on the disk, by another.
func (s Scan) checkWriters(acks []Ack) []error {
	first := map[uint64]uint64{}
	for _, rec := range s.Records {
		first[rec.Writer] = rec.First
	}
	var errs []error
	for _, a := range acks {
		if a.Writer == 0 {
			continue
		}
		mine, present := first[a.Writer]
		for w, f := range first {
			later := w != a.Writer && (!present || f > mine)
			if later && f <= a.Last {
				errs = append(errs, fmt.Errorf("lost acknowledged writes: writer %016x printed %d, writer %016x found only %d", a.Writer, a.Last, w, f-1))
			}
		}
	}
	return errs
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
