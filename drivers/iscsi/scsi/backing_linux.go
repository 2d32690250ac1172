package scsi

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// volume is a regular file or a block device, used through the page cache: that
// is the volatile write cache which the caching mode page declares.
type volume struct {
	f     *os.File
	block bool
	ro    bool
}

func openBacking(path string, readOnly bool) (*volume, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	v := &volume{ro: readOnly}
	switch {
	case st.Mode().IsRegular():
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		v.block = true
		// On a block device O_EXCL claims it against mounts, device-mapper and
		// every node of the same device, which a lock on one inode does not.
		flags |= unix.O_EXCL
	default:
		return nil, fmt.Errorf("%s: neither a regular file nor a block device", path)
	}
	v.f, err = os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	if err := v.lock(); err != nil {
		return nil, errors.Join(err, v.f.Close())
	}
	return v, nil
}

// lock takes the locks that exclude a second server. The open file description
// lock is the one QEMU and qemu-img honour; a write lock needs a descriptor
// open for writing, so flock, which does not, excludes readers of each other.
func (v *volume) lock() error {
	if err := unix.Flock(int(v.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return v.lockError(err)
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if v.ro {
		lk.Type = unix.F_RDLCK
	}
	if err := unix.FcntlFlock(v.f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		return v.lockError(err)
	}
	return nil
}

func (v *volume) lockError(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%s: %w", v.f.Name(), ErrInUse)
	}
	return fmt.Errorf("lock %s: %w", v.f.Name(), err)
}

func (v *volume) Info() (backingInfo, error) {
	if v.block {
		return v.blockInfo()
	}
	st, err := v.f.Stat()
	if err != nil {
		return backingInfo{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(v.f.Fd()), &fs); err != nil {
		return backingInfo{}, fmt.Errorf("statfs %s: %w", v.f.Name(), err)
	}
	info := backingInfo{size: st.Size(), logical: 1, physical: 4096}
	if fs.Bsize >= 512 && fs.Bsize <= 64<<10 && fs.Bsize&(fs.Bsize-1) == 0 {
		info.physical = fs.Bsize
	}
	// Beyond the end there is nothing to punch, so this only asks.
	err = unix.Fallocate(int(v.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, st.Size(), info.physical)
	info.punches = err == nil || v.ro
	return info, nil
}

func (v *volume) blockInfo() (backingInfo, error) {
	var info backingInfo
	fd := int(v.f.Fd())
	size, err := unix.Seek(fd, 0, io.SeekEnd)
	if err != nil {
		return info, fmt.Errorf("size of %s: %w", v.f.Name(), err)
	}
	logical, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return info, fmt.Errorf("sector size of %s: %w", v.f.Name(), err)
	}
	physical, err := unix.IoctlGetInt(fd, unix.BLKPBSZGET)
	if err != nil {
		return info, fmt.Errorf("physical block size of %s: %w", v.f.Name(), err)
	}
	info = backingInfo{size: size, logical: int64(logical), physical: int64(physical)}
	info.punches = v.discards()
	return info, nil
}

// discards says whether the queue of a block device can give space back.
func (v *volume) discards() bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(v.f.Fd()), &st); err != nil {
		return false
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d/queue/", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, name := range []string{"discard_max_bytes", "write_zeroes_max_bytes"} {
		s, err := os.ReadFile(dir + name)
		if err != nil || len(s) == 0 || s[0] == '0' {
			return false
		}
	}
	return true
}

func (v *volume) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.f.ReadAt(p, off)
	if err == io.EOF {
		// The volume is shorter than its capacity: somebody cut it. Zeros would
		// be a lie.
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (v *volume) WriteAt(p []byte, off int64) (int, error) { return v.f.WriteAt(p, off) }

func (v *volume) Sync() error {
	for {
		err := unix.Fdatasync(int(v.f.Fd()))
		if err != unix.EINTR {
			return err
		}
	}
}

func (v *volume) Zero(off, n int64, unmap bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	if unmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	for {
		err := unix.Fallocate(int(v.f.Fd()), mode, off, n)
		switch err {
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
			// EINVAL is a block device's answer to a range that does not fit its
			// sectors.
			return v.writeZeros(off, n)
		}
		return err
	}
}

func (v *volume) writeZeros(off, n int64) error {
	zeros := make([]byte, min(n, chunk))
	for n > 0 {
		w, err := v.f.WriteAt(zeros[:min(n, chunk)], off)
		if err != nil {
			return err
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}

func (v *volume) Extent(off int64) (bool, int64, error) {
	if v.block {
		size, err := unix.Seek(int(v.f.Fd()), 0, io.SeekEnd)
		return true, size, err
	}
	// SEEK_DATA moves the descriptor's position, which nothing else uses:
	// concurrent callers only read their own return value.
	data, err := unix.Seek(int(v.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		st, err := v.f.Stat()
		if err != nil {
			return false, 0, err
		}
		if st.Size() <= off {
			return false, 0, io.ErrUnexpectedEOF
		}
		return false, st.Size(), nil
	case err != nil:
		return false, 0, err
	case data > off:
		return false, data, nil
	}
	hole, err := unix.Seek(int(v.f.Fd()), off, unix.SEEK_HOLE)
	if err != nil {
		return false, 0, err
	}
	if hole <= off {
		// Punched between the two calls: a hole now, of at least this byte.
		return false, off + 1, nil
	}
	return true, hole, nil
}

func (v *volume) Prefetch(off, n int64) error {
	return unix.Fadvise(int(v.f.Fd()), off, n, unix.FADV_WILLNEED)
}

func (v *volume) Grow(size int64) error {
	if v.block {
		return fmt.Errorf("%s: a block device is grown where it comes from", v.f.Name())
	}
	if err := v.f.Truncate(size); err != nil {
		return err
	}
	return v.Sync()
}

func (v *volume) Close() error { return v.f.Close() }

// File is the file that is open, by device and inode; zero for a block device.
func (d *Device) File() (device, inode uint64, err error) {
	v, ok := d.store.(*volume)
	if !ok || v.block {
		return 0, 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(v.f.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", v.f.Name(), err)
	}
	return st.Dev, st.Ino, nil
}
