package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// boot makes an initramfs into a system: file systems, modules, loopback.
func boot() error {
	var errs []error
	for _, m := range []struct{ fs, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"},
	} {
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.at, err))
		}
	}
	errs = append(errs, os.Setenv("PATH", "/bin:/sbin"), loadModules("/lib/modules"))

	// Hot-added memory and processors are of no use to the guest until
	// somebody says so.
	errs = append(errs, os.WriteFile("/sys/devices/system/memory/auto_online_blocks", []byte("online"), 0))
	return errors.Join(errs...)
}

// loadModules inserts the files named in dir/order, dependencies first.
func loadModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	var errs []error
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("load %s: %w", name, err))
		}
		f.Close()
	}
	return errors.Join(errs...)
}
