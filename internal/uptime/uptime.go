// Package uptime reads the clock of the kernel that nobody can set wrong.
package uptime

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Boot is the kernel's id of this boot.
func Boot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Up is the monotonic clock of this boot. It does not run while the host is
// suspended.
func Up() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("uptime: there is no monotonic clock: " + err.Error()) // there is one on every Linux
	}
	return time.Duration(ts.Nano())
}
