package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"reconciler/api"
	"reconciler/drivers/kvm"
	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

// hostSuite brings up a host with many running machines, each with a disk in
// an iSCSI session of its own and a NIC, and measures what the agent costs
// there: passes that find nothing to do, live changes, memory, and the
// read-back of every machine.
func hostSuite(ctx context.Context, b *bench) ([]row, error) {
	machines := b.pick(50, 4)
	h, err := newWorld(ctx, b, "host")
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for i := range machines {
		files["vms/"+machineName(i)+".yaml"] = machineText(machineName(i), machineName(i), "{name: front, network: front}")
		files["disks/"+machineName(i)+".yaml"] = diskText(machineName(i), 4)
	}
	if err := h.commit(ctx, files); err != nil {
		return nil, err
	}
	if err := h.start(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := h.converge(ctx); err != nil {
		return nil, err
	}
	rows := []row{within(fmt.Sprintf("%d machines and disks, from the start of the agent to all running", machines), spread{time.Since(began)}, 0)}
	if err := h.idle(ctx); err != nil {
		return rows, err
	}
	for _, measure := range []func(context.Context, *bench, *world, int) ([]row, error){passes, pushes, footprint, readBack} {
		more, err := measure(ctx, b, h, machines)
		if rows = append(rows, more...); err != nil {
			return rows, fmt.Errorf("%w\n%s", err, h.lastWords())
		}
	}
	return rows, nil
}

func machineName(i int) string { return fmt.Sprintf("vm-%02d", i) }

// converge has the agent carry out the newest commit, and fails if anything is
// left to do.
func (h *world) converge(ctx context.Context) error {
	plan, err := h.Reconcile(ctx, api.ReconcileRequest{Wait: true}, nil)
	if err != nil {
		return err
	}
	for i := range plan.Actions {
		if a := &plan.Actions[i]; a.Op != reconcile.OpUnchanged {
			return fmt.Errorf("%s/%s: %s is %s: %s", a.Kind, a.Name, a.Op, a.State, a.Reason)
		}
	}
	return nil
}

// idle waits until the firmware of every machine has found nothing to boot.
func (h *world) idle(ctx context.Context) error {
	const look = 500 * time.Millisecond
	before, err := h.guestTime()
	if err != nil {
		return err
	}
	return poll(ctx, 3*time.Minute, "the guests' firmware to end", func() (bool, error) {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(look):
		}
		now, err := h.guestTime()
		if err != nil {
			return false, err
		}
		calm := now-before < look/5
		before = now
		return calm, nil
	})
}

// guestTime is the processor time of all guests so far.
func (h *world) guestTime() (time.Duration, error) {
	list, err := testbed.Processes(h.dir)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, p := range list {
		if !strings.HasPrefix(p.Cmdline, "qemu-system-") {
			continue
		}
		took, err := processorTime(p.PID)
		if err != nil {
			return 0, err
		}
		sum += took
	}
	return sum, nil
}

// passes measures passes that find nothing to do. The state of the machines is
// what was read back before, as long as no event of QEMU makes it invalid.
func passes(ctx context.Context, b *bench, h *world, machines int) ([]row, error) {
	var took spread
	for range b.pick(100, 5) {
		began := time.Now()
		if err := h.converge(ctx); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	what := fmt.Sprintf("no-op reconcile with %d machines: fetch, observe, plan, report, asked for over the socket", machines)
	return []row{within(what, took, 50*time.Millisecond)}, nil
}

// pushes measures live changes from the moment the branch moves in the bare
// repository to the agent's event that the revision is applied, which it writes
// after it has observed that nothing is left to do.
func pushes(ctx context.Context, b *bench, h *world, machines int) ([]row, error) {
	rounds := b.pick(20, 2)
	grow := func(i int) map[string]string {
		name := machineName(i % machines)
		return map[string]string{"disks/" + name + ".yaml": diskText(name, 5+i/machines)}
	}
	plug := func(i int) map[string]string {
		name := machineName(i % machines)
		nics := "{name: front, network: front}"
		for n := range 1 + i/machines {
			nics += fmt.Sprintf(", {name: more%d, network: front}", n)
		}
		return map[string]string{"vms/" + name + ".yaml": machineText(name, name, nics)}
	}
	var rows []row
	for _, change := range []struct {
		what string
		edit func(int) map[string]string
	}{{"a disk grows (volume, LUN, guest's device)", grow}, {"a NIC is added", plug}} {
		var took spread
		for i := range rounds {
			d, err := h.push(ctx, change.edit(i))
			if err == nil {
				err = h.converge(ctx) // nothing waits or is blocked either
			}
			if err != nil {
				return rows, err
			}
			took = append(took, d)
		}
		rows = append(rows, within("push to converged: "+change.what, took, 300*time.Millisecond))
	}
	return rows, nil
}

// push commits files and waits until the agent has applied them.
func (h *world) push(ctx context.Context, files map[string]string) (time.Duration, error) {
	events, err := h.Events(ctx, 0, false)
	if err != nil {
		return 0, err
	}
	last := events[len(events)-1].Seq
	if err := h.commit(ctx, files); err != nil {
		return 0, err
	}
	ref, err := os.Stat(filepath.Join(h.bare(), "refs", "heads", "main"))
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		events, err := h.Events(ctx, last, true)
		if err != nil {
			return 0, fmt.Errorf("wait for the revision to be applied: %w", err)
		}
		for _, e := range events {
			last = e.Seq
			if e.Type == "Warning" {
				return 0, errors.New(e.Message)
			}
			if e.Reason == "Applied" {
				return e.Time.Sub(ref.ModTime()), nil
			}
		}
	}
}

// footprint is the memory of the agent after all that.
func footprint(_ context.Context, _ *bench, h *world, machines int) ([]row, error) {
	pid := strconv.Itoa(h.agent.Process.Pid)
	var rows []row
	for _, f := range []struct {
		field, what string
		aim         int64
	}{
		{"VmRSS", fmt.Sprintf("resident memory of the agent with %d machines", machines), 50 << 20},
		{"RssAnon", "— of that, heap, stacks and the Go runtime", 0},
		{"RssFile", "— of that, pages of the program's file, which the target's process shares", 0},
	} {
		n, err := memoryOf(pid, f.field)
		if err != nil {
			return rows, err
		}
		rows = append(rows, weighs(f.what, n, f.aim))
	}
	return rows, nil
}

// readBack ends the agent and takes its place at the machines.
func readBack(ctx context.Context, b *bench, h *world, machines int) ([]row, error) {
	if err := h.stop(ctx); err != nil {
		return nil, err
	}
	d, err := kvm.New(kvm.Config{StateDir: h.state(), RunDir: h.runs(), Accel: kvm.AccelTCG, Storage: noDisks{}})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	observe := func(what string, aim time.Duration, rounds int, f func(context.Context, *reconcile.Desired) (reconcile.State, error)) (row, error) {
		var took spread
		for range rounds {
			began := time.Now()
			state, err := f(ctx, nil)
			if err != nil {
				return row{}, err
			}
			took = append(took, time.Since(began))
			running := 0
			for _, o := range state.Objects {
				if o.Kind == spec.KindVirtualMachine && o.VM.Power == reconcile.PowerRunning {
					running++
				}
			}
			if running != machines {
				return row{}, fmt.Errorf("%d of %d machines run: %v", running, machines, state.Unknown)
			}
		}
		return within(what, took, aim), nil
	}
	adopt, err := observe(fmt.Sprintf("first look at %d machines by a new driver, connections included", machines), 0, 1, d.Observe)
	if err != nil {
		return nil, err
	}
	full, err := observe(fmt.Sprintf("full read-back of %d running machines", machines), 250*time.Millisecond, b.pick(50, 5), d.ObserveFresh)
	if err != nil {
		return nil, err
	}
	known, err := observe("the same where no event came since the last", 0, b.pick(50, 5), d.Observe)
	return []row{full, known, adopt}, err
}
