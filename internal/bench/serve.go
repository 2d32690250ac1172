package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"reconciler/drivers/iscsi/target"
)

// serveEmbedded serves a file with the embedded target, in its own process as
// on a host.
func serveEmbedded(ctx context.Context, b *bench, dir, file string) (served, error) {
	portal, err := freePortal()
	if err != nil {
		return served{}, err
	}
	s := served{portal: portal, iqn: "iqn.2026-11.local.bench:embedded"}
	state, runs := filepath.Join(dir, "state"), filepath.Join(dir, "run")
	ended, err := background(exec.CommandContext(ctx, b.program, "target", "--state-dir", state, "--run-dir", runs), filepath.Join(dir, "embedded.log"))
	if err != nil {
		return s, err
	}
	c := target.NewClient(runs)
	defer c.Close()
	if err := poll(ctx, 20*time.Second, "the embedded target", func() (bool, error) {
		if err := over(ended); err != nil {
			return false, err
		}
		s.pid, err = c.Ping(ctx)
		return err == nil, nil
	}); err != nil {
		return s, err
	}
	if err := c.Put(ctx, target.Export{IQN: s.iqn, Path: file, Serial: "00112233445566778899", Portals: []string{portal}}); err != nil {
		return s, err
	}
	access := target.Access{Epoch: 1}
	for i := range idleSessions {
		access.Initiators = append(access.Initiators, initiatorName(i))
	}
	return s, c.SetAccess(ctx, s.iqn, []target.Access{access})
}

// serveTgtd serves the same file with tgtd, with a control socket apart from
// that of another tgtd on this machine.
func serveTgtd(ctx context.Context, dir, file string) (served, error) {
	portal, err := freePortal()
	if err != nil {
		return served{}, err
	}
	const control = "7361"
	s := served{portal: portal, iqn: "iqn.2026-11.local.bench:tgtd", lun: 1}
	cmd := exec.CommandContext(ctx, "tgtd", "-f", "-C", control, "--iscsi", "portal="+portal)
	cmd.Args[0] = filepath.Join(dir, "tgtd") // by its command line the run finds what it started
	ended, err := background(cmd, filepath.Join(dir, "tgtd.log"))
	if err != nil {
		return s, err
	}
	s.pid = cmd.Process.Pid
	admin := func(args ...string) error {
		out, err := exec.CommandContext(ctx, "tgtadm", append([]string{"-C", control, "--lld", "iscsi"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("tgtadm %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := poll(ctx, 20*time.Second, "tgtd", func() (bool, error) {
		if err := over(ended); err != nil {
			return false, err
		}
		return admin("--op", "new", "--mode", "target", "--tid", "1", "-T", s.iqn) == nil, nil
	}); err != nil {
		return s, err
	}
	if err := admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file); err != nil {
		return s, err
	}
	return s, admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
}

// background starts a program that writes to a log; it is ended with the
// suite. The channel is closed when it ends.
func background(cmd *exec.Cmd, log string) (<-chan struct{}, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, in the end
		close(ended)
	}()
	return ended, nil
}

// over is an error once a program has ended.
func over(ended <-chan struct{}) error {
	select {
	case <-ended:
		return errors.New("it ended")
	default:
		return nil
	}
}
