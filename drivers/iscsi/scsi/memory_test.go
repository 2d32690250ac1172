package scsi

import (
	"errors"
	"sync"
)

// memory is a medium in memory, whose calls a test may intercept.
type memory struct {
	data []byte
	// runs are the bounds at which hole and data alternate, a hole first; without
	// any all is data.
	runs []int64
	// before, where set, is called ahead of each call: an error is its outcome.
	before func(call string, off, n int64) error

	mu    sync.Mutex
	calls []string
}

func (m *memory) call(name string, off, n int64) error {
	m.mu.Lock()
	m.calls = append(m.calls, name)
	before := m.before
	m.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(name, off, n)
}

func (m *memory) intercept(f func(call string, off, n int64) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = f
}

func (m *memory) count(name string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.calls {
		if c == name {
			n++
		}
	}
	return n
}

func (m *memory) Info() (backingInfo, error) {
	return backingInfo{size: int64(len(m.data)), logical: 1, physical: 4096, punches: true}, nil
}

var errOutside = errors.New("access outside the medium")

func (m *memory) at(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off+n > int64(len(m.data)) {
		return nil, errOutside
	}
	return m.data[off : off+n], nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := m.call("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	b, err := m.at(off, int64(len(p)))
	return copy(p, b), err
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := m.call("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	b, err := m.at(off, int64(len(p)))
	return copy(b, p), err
}

func (m *memory) Sync() error { return m.call("sync", 0, 0) }

func (m *memory) Zero(off, n int64, _ bool) error {
	if err := m.call("zero", off, n); err != nil {
		return err
	}
	b, err := m.at(off, n)
	clear(b)
	return err
}

func (m *memory) Extent(off int64) (bool, int64, error) {
	if err := m.call("extent", off, 0); err != nil {
		return false, 0, err
	}
	data := len(m.runs) == 0
	for _, end := range m.runs {
		if off < end {
			return data, end, nil
		}
		data = !data
	}
	return data, int64(len(m.data)), nil
}

func (m *memory) Prefetch(off, n int64) error { return m.call("prefetch", off, n) }

func (m *memory) Grow(size int64) error {
	if err := m.call("grow", 0, size); err != nil {
		return err
	}
	m.data = append(m.data, make([]byte, size-int64(len(m.data)))...)
	return nil
}

func (m *memory) Close() error { return m.call("close", 0, 0) }
