package odb

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Limits bound what a peer can make us store.
type Limits struct {
	Bytes   int64 // of one pack
	Objects int   // in one pack
}

// record is what an index says of one object.
type record struct {
	hash Hash
	crc  uint32
	off  int64
}

// Staged is a complete, indexed pack that the database does not show yet. It is
// published or discarded, never both.
type Staged struct {
	db *DB
	p  *pack
}

// Objects is the number of objects in the pack.
func (s *Staged) Objects() int { return s.p.n }

// View returns the database as it will be once the pack is published.
func (s *Staged) View() *DB {
	v := &DB{objects: s.db.objects, looseDirs: s.db.looseDirs}
	v.setPacks(append(slices.Clone(s.db.list()), s.p))
	return v
}

// Alone returns a database of the pack only.
func (s *Staged) Alone() *DB {
	v := &DB{objects: s.db.objects}
	v.setPacks([]*pack{s.p})
	return v
}

// Discard removes the pack.
func (s *Staged) Discard() error {
	return errors.Join(s.p.f.Close(), os.Remove(s.p.f.Name()))
}

// Publish makes the pack durable and visible. The index is renamed into place
// last, and a pack counts only with its index, so a crash leaves either nothing
// or the whole pack.
func (s *Staged) Publish() error {
	db := s.db
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := s.commit(); err != nil {
		return errors.Join(err, s.Discard())
	}
	packs := slices.DeleteFunc(slices.Clone(db.list()), func(p *pack) bool { return p.base == s.p.base })
	db.setPacks(append(packs, s.p))
	return nil
}

func (s *Staged) commit() error {
	p, dir := s.p, s.db.packDirs[0]
	if err := p.f.Chmod(0o400); err != nil {
		return err
	}
	if err := p.f.Sync(); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "tmp_idx_")
	if err != nil {
		return err
	}
	_, err = tmp.Write(p.idx)
	err = errors.Join(err, tmp.Chmod(0o400), tmp.Sync(), tmp.Close())
	base := filepath.Join(dir, fmt.Sprintf("pack-%x", p.idx[len(p.idx)-idxTrailer:][:hashSize]))
	if err == nil {
		err = os.Rename(p.f.Name(), base+".pack")
	}
	if err == nil {
		err = os.Rename(tmp.Name(), base+".idx")
	}
	if err != nil {
		os.Remove(tmp.Name())
		return err
	}
	p.base = base
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// finish writes the count into the pack's header, appends the checksum and
// builds the index. The pack's content must be complete and flushed.
func finish(db *DB, f *os.File, size int64, recs []record) (*Staged, error) {
	var head [12]byte
	copy(head[:], "PACK\x00\x00\x00\x02")
	binary.BigEndian.PutUint32(head[8:], uint32(len(recs)))
	if _, err := f.WriteAt(head[:], 0); err != nil {
		return nil, err
	}
	sum, err := checksum(f, size, recs)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(sum, size); err != nil {
		return nil, err
	}
	p := &pack{base: f.Name(), f: f, size: size + hashSize, idx: buildIdx(recs, sum)}
	if err := p.checkIdx(); err != nil {
		return nil, err
	}
	return &Staged{db: db, p: p}, nil
}

// checksum reads the pack once for its SHA-1 and every entry's CRC. recs must be
// in the order of their offsets.
func checksum(f *os.File, size int64, recs []record) ([]byte, error) {
	h := sha1.New()
	r := io.TeeReader(bufio.NewReaderSize(io.NewSectionReader(f, 0, size), 1<<20), h)
	if _, err := io.CopyN(io.Discard, r, 12); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	for i := range recs {
		end := size
		if i+1 < len(recs) {
			end = recs[i+1].off
		}
		crc := uint32(0)
		for left := end - recs[i].off; left > 0; {
			n, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
			if err != nil {
				return nil, err
			}
			crc = crc32.Update(crc, crc32.IEEETable, buf[:n])
			left -= int64(n)
		}
		recs[i].crc = crc
	}
	return h.Sum(nil), nil
}

// buildIdx encodes a version 2 index.
func buildIdx(recs []record, packSum []byte) []byte {
	sorted := slices.Clone(recs)
	slices.SortFunc(sorted, func(a, b record) int {
		return cmp.Or(bytes.Compare(a.hash[:], b.hash[:]), cmp.Compare(a.off, b.off))
	})
	b := make([]byte, 0, idxHeader+idxFanout+len(recs)*(hashSize+8)+idxTrailer)
	b = append(b, 0xff, 't', 'O', 'c', 0, 0, 0, 2)
	i := 0
	for c := range 256 {
		for i < len(sorted) && int(sorted[i].hash[0]) == c {
			i++
		}
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	for _, r := range sorted {
		b = append(b, r.hash[:]...)
	}
	for _, r := range sorted {
		b = binary.BigEndian.AppendUint32(b, r.crc)
	}
	var large []int64
	for _, r := range sorted {
		if r.off < 1<<31 {
			b = binary.BigEndian.AppendUint32(b, uint32(r.off))
			continue
		}
		b = binary.BigEndian.AppendUint32(b, 1<<31|uint32(len(large)))
		large = append(large, r.off)
	}
	for _, off := range large {
		b = binary.BigEndian.AppendUint64(b, uint64(off))
	}
	b = append(b, packSum...)
	sum := sha1.Sum(b)
	return append(b, sum[:]...)
}

// Replace publishes the pack and removes all others. Readers that have them open
// go on reading; a crash in between leaves objects twice, which is harmless.
func (s *Staged) Replace() error {
	old := s.db.list()
	if err := s.Publish(); err != nil {
		return err
	}
	db := s.db
	db.mu.Lock()
	defer db.mu.Unlock()
	db.setPacks([]*pack{s.p})
	for _, p := range old {
		if p.base == s.p.base {
			continue
		}
		// The index first: a pack without one does not count.
		if err := errors.Join(os.Remove(p.base+".idx"), os.Remove(p.base+".pack")); err != nil {
			return err
		}
	}
	return nil
}

// DropDamaged reads every pack whole and removes those whose content is not what
// their checksums say.
func (db *DB) DropDamaged(ctx context.Context) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	var good []*pack
	for _, p := range db.list() {
		ok, err := p.intact(ctx)
		if err != nil {
			return err
		}
		if ok {
			good = append(good, p)
		} else if err := errors.Join(os.Remove(p.base+".idx"), os.Remove(p.base+".pack")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	db.setPacks(good)
	return nil
}

func (p *pack) intact(ctx context.Context) (bool, error) {
	body := len(p.idx) - hashSize
	if sum := sha1.Sum(p.idx[:body]); !bytes.Equal(sum[:], p.idx[body:]) {
		return false, nil
	}
	h := sha1.New()
	for off := int64(0); off < p.size-hashSize; off += 8 << 20 {
		n := min(8<<20, p.size-hashSize-off)
		if _, err := io.Copy(h, io.NewSectionReader(p.f, off, n)); err != nil {
			return false, err
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
	return bytes.Equal(h.Sum(nil), p.idx[body-hashSize:body]), nil
}
