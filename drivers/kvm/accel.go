package kvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Accel is what runs guest code.
type Accel string

// The accelerators. AccelAuto is KVM where it proves itself, else TCG.
const (
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
	AccelAuto Accel = "auto"
)

// NoKVMError says that KVM does not run guests on this host, and why.
type NoKVMError struct{ Reason string }

func (e *NoKVMError) Error() string { return "KVM does not work on this host: " + e.Reason }

const (
	proofTimeout = 10 * time.Second // a vCPU that runs shows SeaBIOS within 0.3 s
	proofRetry   = time.Minute      // after which a failed proof is tried again
)

type accelProof struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

// choose returns the accelerator for a new process.
func (d *Driver) chooseAccel(ctx context.Context) (Accel, error) {
	if d.cfg.Accel == AccelTCG {
		return AccelTCG, nil
	}
	err := d.ProveKVM(ctx)
	var no *NoKVMError
	if d.cfg.Accel == AccelAuto && errors.As(err, &no) {
		return AccelTCG, nil
	}
	if err != nil {
		return "", err
	}
	return AccelKVM, nil
}

// ProveKVM runs a guest that does nothing but its firmware, with KVM. That
// /dev/kvm opens proves nothing: QEMU can abort over a model-specific register
// or the vCPU never return. Success is remembered, a failure for a minute. The
// error is a *NoKVMError, or ctx's.
func (d *Driver) ProveKVM(ctx context.Context) error {
	p := &d.accel
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.at.IsZero() && (p.err == nil || time.Since(p.at) < proofRetry) {
		return p.err
	}
	err := proveKVM(ctx, d.cfg.QEMU, proofTimeout)
	if ctx.Err() != nil {
		return fmt.Errorf("prove KVM: %w", ctx.Err())
	}
	p.at, p.err = time.Now(), err
	return err
}

func proveKVM(ctx context.Context, qemu string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// SeaBIOS tells its version on I/O port 0x402 as its first act.
	cmd := exec.CommandContext(ctx, qemu, "-accel", "kvm", "-machine", "q35", "-cpu", "host", "-m", "16",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=out,signal=off", "-device", "isa-debugcon,iobase=0x402,chardev=out")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second // a vCPU can hang in the kernel
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return &NoKVMError{err.Error()}
	}
	ran := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "SeaBIOS") {
				ran <- true
				return
			}
		}
		ran <- false
	}()
	ok, silent := false, false
	select {
	case ok = <-ran:
	case <-ctx.Done():
		silent = true
	}
	cancel()
	dead := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed: it does not end well
		close(dead)
	}()
	select {
	case <-dead:
	case <-time.After(2 * time.Second):
		return &NoKVMError{fmt.Sprintf("a test guest hangs in the kernel (process %d)", cmd.Process.Pid)}
	}
	switch {
	case ok:
		return nil
	case silent:
		return &NoKVMError{fmt.Sprintf("a test guest did not run within %v", timeout)}
	}
	return &NoKVMError{"a test guest failed: " + firstLine(stderr.String())}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(line)
}
