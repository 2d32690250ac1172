package scsi

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
	"golang.org/x/sys/unix"
)

// faulty is a unit over a medium in memory.
func faulty(t *testing.T) (*unit, *memory) {
	t.Helper()
	m := &memory{data: make([]byte, testSize)}
	d, err := newDevice(testConfig(), m)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, d, ""), m
}

// failing makes one kind of call fail.
func failing(call string, err error) func(string, int64, int64) error {
	return func(c string, _, _ int64) error {
		if c == call {
			return err
		}
		return nil
	}
}

// SBC-4, medium errors: every error of the medium reaches the initiator.
func TestMediumErrors(t *testing.T) {
	list := unmapList(0, 8)
	x2 := append(pattern(0, 1), pattern('x', 1)...)
	reads := []Command{
		{CDB: []byte{opRead6, 0, 0, 0, 1, 0}}, {CDB: block10(opRead10, 0, 0, 1)}, {CDB: block12(opRead12, 0, 0, 1)}, {CDB: block16(opRead16, 0, 0, 1)},
		{CDB: block10(opVerify10, 0, 0, 1)}, {CDB: block10(opVerify10, 2, 0, 1), Out: pattern(0, 1)},
		{CDB: cawCDB(0, 0, 1), Out: x2}, {CDB: block16(opOrWrite16, 0, 0, 1), Out: pattern(1, 1)},
		{CDB: block10(opWriteVerify10, 2, 0, 1), Out: pattern(1, 1)},
	}
	writes := []Command{
		{CDB: []byte{opWrite6, 0, 0, 0, 1, 0}, Out: pattern(1, 1)}, {CDB: block10(opWrite10, 0, 0, 1), Out: pattern(1, 1)},
		{CDB: block12(opWrite12, 0, 0, 1), Out: pattern(1, 1)}, {CDB: block16(opWrite16, fuaBit, 0, 1), Out: pattern(1, 1)},
		{CDB: block16(opWriteVerify16, 0, 0, 1), Out: pattern(1, 1)}, {CDB: block16(opWriteSame16, 0, 0, 1), Out: pattern(1, 1)},
		{CDB: cawCDB(0, 0, 1), Out: x2}, {CDB: block16(opOrWrite16, 0, 0, 1), Out: pattern(1, 1)},
	}
	zeros := []Command{
		{CDB: unmapCDB(list), Out: list}, {CDB: block16(opWriteSame16, wsUnmap, 0, 8), Out: pattern(0, 1)},
		{CDB: block10(opWriteSame10, 0, 0, 8), Out: pattern(0, 1)}, {CDB: block16(opWriteSame16, wsNoData, 0, 8)},
	}
	for _, c := range []struct {
		call string
		err  error
		cmds []Command
		key  byte
		asc  additionalSense
	}{
		{"read", unix.EIO, reads, gotgt.MEDIUM_ERROR, gotgt.ASC_UNRECOVERED_READ},
		{"read", io.ErrUnexpectedEOF, reads, gotgt.MEDIUM_ERROR, gotgt.ASC_UNRECOVERED_READ},
		{"extent", unix.EIO, []Command{{CDB: block16(opServiceActionIn16, saGetLBAStatus, 0, 24)}, {CDB: block10(opVerify10, 0, 0, 1)}}, gotgt.MEDIUM_ERROR, gotgt.ASC_UNRECOVERED_READ},
		{"prefetch", unix.EIO, []Command{{CDB: block10(opPrefetch10, 0, 0, 1)}}, gotgt.MEDIUM_ERROR, gotgt.ASC_UNRECOVERED_READ},
		{"write", unix.EIO, writes, gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR},
		{"write", unix.EFBIG, writes, gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR},
		{"write", &os.PathError{Op: "write", Err: unix.ENOSPC}, writes, gotgt.DATA_PROTECT, ascSpaceAllocationFailed},
		{"write", unix.EDQUOT, writes, gotgt.DATA_PROTECT, ascSpaceAllocationFailed},
		{"write", unix.EROFS, writes, gotgt.DATA_PROTECT, gotgt.ASC_WRITE_PROTECT},
		{"zero", unix.EIO, zeros, gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR},
		{"zero", unix.ENOSPC, zeros, gotgt.DATA_PROTECT, ascSpaceAllocationFailed},
	} {
		u, m := faulty(t)
		m.intercept(failing(c.call, c.err))
		for _, cmd := range c.cmds {
			a := u.do(cmd.CDB, cmd.Out, 512)
			u.wantSense(a, c.key, c.asc)
			if a.N != 0 {
				t.Errorf("% x: %d bytes of data with an error", cmd.CDB, a.N)
			}
		}
		m.intercept(failing(c.call, unix.ENOMEM))
		for _, cmd := range c.cmds {
			u.wantStatus(u.do(cmd.CDB, cmd.Out, 512), StatusBusy)
		}
		m.intercept(nil)
		for _, cmd := range c.cmds {
			if cmd.CDB[0] == opCompareAndWrite || cmd.CDB[0] == opVerify10 {
				continue // the block may hold something else by now
			}
			u.wantGood(u.do(cmd.CDB, cmd.Out, 512))
		}
	}
}

// A failed flush stays failed: the kernel has dropped the data that a second
// fsync would report as safe.
func TestFailedFlushSticks(t *testing.T) {
	for name, cmd := range map[string]Command{
		"SYNCHRONIZE CACHE(10)": {CDB: block10(opSyncCache10, 0, 0, 0)},
		"SYNCHRONIZE CACHE(16)": {CDB: block16(opSyncCache16, 2, 5, 1)},
		"WRITE with FUA":        {CDB: block10(opWrite10, fuaBit, 0, 1), Out: pattern('x', 1)},
		"READ with FUA":         {CDB: block10(opRead10, fuaBit, 0, 1)},
		"COMPARE AND WRITE":     {CDB: cawCDB(fuaBit, 0, 1), Out: pattern(0, 2)},
		"ORWRITE":               {CDB: block16(opOrWrite16, fuaBit, 0, 1), Out: pattern(0, 1)},
		"WRITE AND VERIFY":      {CDB: block10(opWriteVerify10, 0, 0, 1), Out: pattern('x', 1)},
		"START STOP UNIT":       {CDB: []byte{opStartStopUnit, 0, 0, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			u, m := faulty(t)
			m.intercept(failing("sync", unix.EIO))
			u.wantSense(u.do(cmd.CDB, cmd.Out, 512), gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR)
			m.intercept(nil)
			u.wantSense(u.do(block10(opSyncCache10, 0, 0, 0), nil, 0), gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR)
			u.wantSense(u.do(cmd.CDB, cmd.Out, 512), gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR)
			u.wantGood(u.do(block10(opRead10, 0, 0, 1), nil, 512))
			if err := u.Close(); !errors.Is(err, ErrUnsynced) || !u.Stats().Unsynced {
				t.Errorf("Close: %v, want ErrUnsynced", err)
			}
		})
	}
}

// No room at write-back: said once, with what it was; by then the data is gone,
// and room alone does not bring it back.
func TestFlushWithoutRoom(t *testing.T) {
	for _, c := range []struct {
		err error
		key byte
		asc additionalSense
	}{{unix.ENOSPC, gotgt.DATA_PROTECT, ascSpaceAllocationFailed}, {unix.ENOMEM, gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR}} {
		u, m := faulty(t)
		m.intercept(failing("sync", c.err))
		u.wantSense(u.do(block10(opSyncCache10, 0, 0, 0), nil, 0), c.key, c.asc)
		m.intercept(nil)
		u.wantSense(u.do(block10(opSyncCache10, 0, 0, 0), nil, 0), gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR)
	}
}

// A flush covers what was written before it was asked for, and no caller is told
// of success by one that began earlier.
func TestFlushesAreShared(t *testing.T) {
	u, m := faulty(t)
	first, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.intercept(func(call string, _, _ int64) error {
		if call == "sync" {
			once.Do(func() { close(first); <-release })
		}
		return nil
	})
	const late = 8
	done := make(chan answer, late+1)
	sync := func() { done <- u.do(block10(opSyncCache10, 0, 0, 0), nil, 0) }
	go sync()
	await(t, first, "the first flush")
	for range late {
		go sync()
	}
	// All of them have asked when they all wait for the lock, which cannot be
	// seen from here; what must hold does so however many came too late.
	close(release)
	for range late + 1 {
		u.wantGood(await(t, done, "a flush"))
	}
	if n := m.count("sync"); n < 2 || n > late+1 {
		t.Errorf("%d flushes for one and %d late callers", n, late)
	}
}

// A real volume without room, a sparse file on a tmpfs that is smaller than it.
func TestVolumeFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	u := newUnit(t, func(c *Config) {
		c.Path = filepath.Join(dir, "disk")
		if err := errors.Join(os.WriteFile(c.Path, nil, 0o600), os.Truncate(c.Path, testSize)); err != nil {
			t.Fatal(err)
		}
	})
	data := pattern('x', chunk/512)
	u.wantGood(u.do(block16(opWrite16, 0, 0, 1024), data[:1024*512], 0))
	u.wantSense(u.do(block16(opWrite16, 0, 4096, chunk/512), data, 0), gotgt.DATA_PROTECT, ascSpaceAllocationFailed)
	u.wantSense(u.do(block16(opWriteSame16, 0, 4096, 4096), pattern('x', 1), 0), gotgt.DATA_PROTECT, ascSpaceAllocationFailed)
	u.wantGood(u.do(block10(opSyncCache10, 0, 0, 0), nil, 0))
	// The data that got GOOD is there, and room made by UNMAP is used.
	if a := u.wantGood(u.do(block16(opRead16, 0, 0, 1024), nil, 1024*512)); !bytes.Equal(a.data, data[:1024*512]) {
		t.Error("acknowledged data was lost")
	}
	list := unmapList(0, testSize/512)
	u.wantGood(u.do(unmapCDB(list), list, 0))
	u.wantGood(u.do(block16(opWrite16, 0, 8192, 1024), data[:1024*512], 0))
	// Zeroing a range that has no room for blocks of its own falls back to
	// writing on a tmpfs, and says so.
	u.wantSense(u.do(block16(opWriteSame16, 0, 0, 4096), pattern(0, 1), 0), gotgt.DATA_PROTECT, ascSpaceAllocationFailed)
}

// Somebody cut the file: what is missing is an error, not zeros.
func TestTruncatedVolume(t *testing.T) {
	u := newUnit(t)
	truncate(t, u.path, 4096)
	u.wantSense(u.do(block10(opRead10, 0, 8, 1), nil, 512), gotgt.MEDIUM_ERROR, gotgt.ASC_UNRECOVERED_READ)
	u.wantSense(u.do(block16(opServiceActionIn16, saGetLBAStatus, 8, 24), nil, 24), gotgt.MEDIUM_ERROR, gotgt.ASC_UNRECOVERED_READ)
	if err := u.Grow(0); !errors.Is(err, ErrShrink) {
		t.Errorf("Grow: %v, want ErrShrink", err)
	}
}

// A panic ends one command, and is reported.
func TestPanicIsOneCommandsMatter(t *testing.T) {
	m := &memory{data: make([]byte, testSize)}
	cfg := testConfig()
	var reported []any
	cfg.OnPanic = func(cdb []byte, v any, stack []byte) { reported = append(reported, v, cdb[0], len(stack) > 0) }
	d, err := newDevice(cfg, m)
	if err != nil {
		t.Fatal(err)
	}
	u := wrap(t, d, "")
	m.intercept(func(call string, _, _ int64) error {
		if call == "read" {
			panic("boom")
		}
		return nil
	})
	u.wantSense(u.do(block10(opRead10, 0, 0, 1), nil, 512), gotgt.HARDWARE_ERROR, gotgt.ASC_INTERNAL_TGT_FAILURE)
	m.intercept(nil)
	if len(reported) != 3 || reported[0] != "boom" || reported[1] != byte(opRead10) || reported[2] != true {
		t.Errorf("reported %v", reported)
	}
	// No lock was left behind.
	u.wantGood(u.do(cawCDB(0, 0, 1), pattern(0, 2), 0))
	u.wantGood(u.do(block10(opRead10, 0, 0, 1), nil, 512))
	u.n.drain()
}
