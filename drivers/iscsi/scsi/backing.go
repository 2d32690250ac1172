package scsi

// backing is the medium. Its methods may be called concurrently and transfer
// everything or fail.
type backing interface {
	Info() (backingInfo, error)
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync returns when everything written before is on stable storage.
	Sync() error
	// Zero makes n bytes at off read as zeros; with unmap it gives their space
	// back where the medium can.
	Zero(off, n int64, unmap bool) error
	// Extent says whether the byte at off is backed by data, and where the run
	// of bytes of its kind ends. end is above off.
	Extent(off int64) (data bool, end int64, err error)
	// Prefetch begins to read n bytes at off into memory.
	Prefetch(off, n int64) error
	Grow(size int64) error
	Close() error
}

type backingInfo struct {
	size     int64 // bytes
	logical  int64 // smallest addressable unit, bytes
	physical int64 // unit in which space is given back, bytes, a power of two
	punches  bool  // space can be given back, and then reads as zeros
}
