package kvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/drivers/kvm/qmp"
	"reconciler/reconcile"
	"reconciler/spec"
)

const (
	quitTimeout = 5 * time.Second  // for QEMU to close its disks and end
	killTimeout = 20 * time.Second // for the kernel to end a killed process
)

// stopMachine ends the machine's process: by the guest, then by QEMU, then by
// the kernel. It returns when the process is gone; idle says that there was none.
func (d *Driver) stopMachine(ctx context.Context, m *machine, want *reconcile.Object, in reconcile.Inputs) (idle bool, err error) {
	if m.snapshot() != nil || want != nil {
		if err := d.intend(m, intentStop, want); err != nil {
			return false, err
		}
	}
	return d.bringDown(ctx, m, in)
}

// delete stops the machine and removes every trace of it.
func (d *Driver) delete(ctx context.Context, m *machine, in reconcile.Inputs) error {
	if m.snapshot() != nil {
		if err := d.intend(m, intentDelete, nil); err != nil {
			return err
		}
	}
	if _, err := d.bringDown(ctx, m, in); err != nil {
		return err
	}
	d.step("stopped")
	return d.forget(m)
}

func (d *Driver) intend(m *machine, intent string, want *reconcile.Object) error {
	err := d.record(m, func(r *record) {
		r.Intent, r.IntentAt = intent, time.Now()
		if want != nil && r.Name == "" { // its record was lost
			r.adopt(want)
		}
		if want != nil {
			// How long the guest has is the newest word.
			if vm, ok := want.Spec.(*spec.VirtualMachine); ok {
				r.setField(reconcile.Field{Path: "spec.shutdown.timeout", Value: vm.Shutdown.Timeout.String()})
			}
		}
	})
	d.step("intended")
	return err
}

func (d *Driver) bringDown(ctx context.Context, m *machine, in reconcile.Inputs) (idle bool, err error) {
	p, err := d.find(ctx, m)
	if err != nil {
		return false, err
	}
	asked := true // false: it had ended by itself before, and that stays on record
	if p != nil {
		h, err := p.open()
		if err != nil {
			return false, err
		}
		if h != nil {
			defer h.close()
			if asked, err = d.shutDown(ctx, m, h, in); err != nil {
				return false, err
			}
		}
	} else if rec := m.snapshot(); rec != nil {
		asked = rec.Exit == nil
	}
	return p == nil, d.gone(m, asked)
}

// gone cleans up after a process that has ended.
func (d *Driver) gone(m *machine, asked bool) error {
	d.drop(m)
	if err := os.RemoveAll(d.runDir(m.uid)); err != nil {
		return fmt.Errorf("remove the run directory of the machine: %w", err)
	}
	if m.snapshot() == nil {
		return nil
	}
	return d.record(m, func(r *record) {
		if r.Launch != nil {
			r.Launch.Over = true
		}
		if asked {
			r.calm()
		}
		if r.Intent == intentStop {
			r.Intent = ""
		}
	})
}

// shutDown ends the process and returns when it is gone. asked is false if the
// guest had ended before it was asked to.
func (d *Driver) shutDown(ctx context.Context, m *machine, h *handle, in reconcile.Inputs) (asked bool, err error) {
	timeout := time.Duration(spec.DefaultShutdownTimeout)
	if rec := m.snapshot(); rec != nil {
		timeout = rec.shutdownTimeout()
	}
	if in.Force {
		timeout = 0
	}
	deadline, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	l := d.attach(m, h.process)
	ended, err := d.askGuest(deadline, l, h, in)
	if ctx.Err() != nil {
		return true, fmt.Errorf("stop process %d: %w", h.pid, ctx.Err())
	}
	if err != nil {
		in.Progress("the guest did not shut down: %v", err)
	}
	d.step("asked")
	rec := m.snapshot()
	asked = !ended || rec == nil || rec.Exit == nil
	return asked, d.end(ctx, m, h.process)
}

// askGuest presses the power button and waits for the guest to be done. ended
// says that it was done already.
func (d *Driver) askGuest(ctx context.Context, l *link, h *handle, in reconcile.Inputs) (ended bool, err error) {
	conn, err := l.connection(ctx)
	if err != nil {
		return false, err
	}
	sub := conn.Subscribe(64)
	defer sub.Close()
	status, err := conn.Raw(ctx).QueryStatus()
	if err != nil {
		return false, err
	}
	switch powerOf(status.Status.String()) {
	case reconcile.PowerEnded:
		return true, nil
	case reconcile.PowerStarting:
		return false, nil // there is no guest yet
	case reconcile.PowerPaused, reconcile.PowerIOError:
		// A paused guest hears nothing.
		if err := conn.Raw(ctx).Cont(); err != nil {
			return false, err
		}
	}
	in.Progress("asking the guest to shut down")
	if err := conn.Raw(ctx).SystemPowerdown(); err != nil {
		return false, err
	}
	return false, waitEnd(ctx, conn, sub)
}

// pressAgain is how often the power button is pressed anew: a guest that is
// still booting loses the first.
const pressAgain = 3 * time.Second

func waitEnd(ctx context.Context, conn *qmp.Conn, sub *qmp.Subscription) error {
	again := time.NewTicker(pressAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			if err := conn.Raw(ctx).SystemPowerdown(); err != nil {
				return err
			}
		case e, ok := <-sub.C():
			if !ok {
				return nil // QEMU is gone, which is more than was asked for
			}
			if e.Name == "SHUTDOWN" || e.Name == "GUEST_PANICKED" {
				return nil
			}
			if !e.Lost {
				continue
			}
			status, err := conn.Raw(ctx).QueryStatus()
			if err != nil || powerOf(status.Status.String()) == reconcile.PowerEnded {
				return err
			}
		}
	}
}

// end makes QEMU quit and returns when its process is gone. A QEMU that does
// not, or whose storage is silent and which would hang closing its disks, is
// killed: for the disks that is the same as pulling the plug.
func (d *Driver) end(ctx context.Context, m *machine, p process) error {
	if err := d.quit(ctx, m, p); err == nil {
		return nil
	} else if ctx.Err() != nil {
		return fmt.Errorf("stop process %d: %w", p.pid, ctx.Err())
	}
	return d.kill(ctx, m, p)
}

func (d *Driver) quit(ctx context.Context, m *machine, p process) error {
	ctx, cancel := context.WithTimeout(ctx, quitTimeout)
	defer cancel()
	h, err := p.open()
	if h == nil || err != nil {
		return err
	}
	defer h.close()
	if rec := m.snapshot(); rec != nil && rec.Launch != nil {
		if err := d.answers(ctx, rec.Launch.disks()); err != nil {
			return err
		}
	}
	conn, err := d.attach(m, p).connection(ctx)
	if err != nil && !errors.Is(err, errEnded) {
		return err
	}
	if err == nil {
		// QEMU may close the connection before its answer is read.
		if err := conn.Raw(ctx).Quit(); err != nil && !errors.Is(err, qmp.ErrClosed) {
			return err
		}
	}
	return h.wait(ctx)
}

// kill ends a process the hard way, and returns when it is gone.
func (d *Driver) kill(ctx context.Context, m *machine, p process) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	h, err := p.open()
	if h == nil || err != nil {
		return err
	}
	defer h.close()
	d.cfg.Log.Warn("killing QEMU", "vm", m.uid, "pid", p.pid)
	if err := h.signal(unix.SIGKILL); err != nil {
		return err
	}
	return h.wait(ctx)
}

// disks are the UIDs of every disk the process has, or may have, open.
func (l *launch) disks() []string {
	var list []string
	for _, e := range l.Disks {
		list = append(list, e.UID)
	}
	return list
}
