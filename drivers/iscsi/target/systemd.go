package target

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// underSystemd reports whether systemd is the init (sd_booted(3)).
func underSystemd() bool {
	_, err := os.Lstat("/run/systemd/system")
	return !errors.Is(err, fs.ErrNotExist) && initIsSystemd()
}

func initIsSystemd() bool {
	b, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.TrimSpace(string(b)) == "systemd"
}

// startUnit runs the server as a transient unit that systemd restarts. A unit of
// that name that is there, active or between two starts, is left alone.
func startUnit(ctx context.Context, cfg EnsureConfig) error {
	unit := cfg.Unit + ".service"
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState", "--value", unit).Output()
	if err != nil {
		return fmt.Errorf("systemctl show %s: %w", unit, err)
	}
	switch strings.TrimSpace(string(out)) {
	case "active", "activating", "reloading", "deactivating":
		return nil
	case "failed":
		_ = exec.CommandContext(ctx, "systemctl", "reset-failed", unit).Run()
	}
	args := []string{
		"--quiet", "--collect", "--unit=" + unit, "--description=reconciler iSCSI target",
		"--property=Restart=always", "--property=RestartSec=100ms", "--property=StartLimitIntervalSec=0",
		"--property=OOMScoreAdjust=-900", "--property=KillMode=mixed", "--property=TimeoutStopSec=30s",
		"--property=LimitNOFILE=524288", "--", cfg.Exe,
	}
	if out, err := exec.CommandContext(ctx, "systemd-run", append(args, cfg.Args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemd-run: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func stopUnit(ctx context.Context, cfg EnsureConfig) error {
	unit := cfg.Unit + ".service"
	if out, err := exec.CommandContext(ctx, "systemctl", "stop", unit).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "not loaded") {
			return nil
		}
		return fmt.Errorf("systemctl stop %s: %w: %s", unit, err, strings.TrimSpace(string(out)))
	}
	return nil
}
