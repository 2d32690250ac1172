package scsi

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// loopDevice returns a block device of size bytes.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	img, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if err := img.Truncate(size); err != nil {
		t.Fatal(err)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	// Between asking for a free device and configuring it somebody else may take it.
	for range 20 {
		i, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("/dev/loop%d", i)
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{Fd: uint32(img.Fd()), Size: 512})
		if errors.Is(err, unix.EBUSY) {
			dev.Close()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := unix.IoctlRetInt(int(dev.Fd()), unix.LOOP_CLR_FD); err != nil {
				t.Error(err)
			}
			dev.Close()
		})
		return path
	}
	t.Fatal("no loop device was free in 20 attempts")
	return ""
}

// Volumes on a real block device: capacity, locks, discard by zeroing.
func TestBlockDevice(t *testing.T) {
	dev := loopDevice(t, testSize)
	cfg := testConfig()
	cfg.Path = dev
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	u := wrap(t, d, dev)
	if u.Size() != testSize {
		t.Fatalf("size %d", u.Size())
	}
	if _, err := Open(cfg); !errors.Is(err, ErrInUse) {
		t.Errorf("a second Open: %v, want ErrInUse", err)
	}
	u.wantGood(u.do(block10(opWrite10, fuaBit, 3, 2), pattern('x', 2), 0))
	u.wantGood(u.do(block10(opWriteSame10, 0, 3, 1), pattern(0, 1), 0))
	u.wantGood(u.do(block10(opSyncCache10, 0, 0, 0), nil, 0))
	if got := u.file(3*512, 1024); !bytes.Equal(got, append(pattern(0, 1), pattern('x', 1)...)) {
		t.Error("the device holds something else")
	}
	if got := u.lbaStatus(0, 24); len(got) != 1 || got[0] != (lbaRun{0, testSize / 512, lbaMapped}) {
		t.Errorf("LBA status %v", got)
	}
	if err := u.Grow(2 * testSize); err == nil {
		t.Error("a block device was grown")
	}
}
