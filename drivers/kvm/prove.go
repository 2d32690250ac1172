package kvm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Prove finds out whether a machine would start as the action wants it, without
// its disks' grants: before its present process is stopped. It changes nothing.
func (d *Driver) Prove(ctx context.Context, a reconcile.Action, in reconcile.Inputs) error {
	vm, err := wanted(&a)
	if err != nil {
		return err
	}
	in.Grants = map[string]claim.Grant{}
	for _, e := range vm.Disks {
		in.Grants[e.Name] = claim.Grant{Disk: fieldID(a.Want, "spec.disks["+e.Name+"].disk")}
	}
	m := d.machine(a.UID)
	b, err := d.conceive(ctx, m, a.Want, vm, in)
	if err == nil {
		_, err = b.argv()
	}
	if err != nil {
		return err
	}
	// What the present process has comes back.
	var has spec.Size
	if rec := m.snapshot(); rec.live() {
		o := rec.object()
		_ = has.UnmarshalText([]byte(o.Get("spec.memory.size"))) // else nothing
	}
	return fitsMemory(vm.Memory.Size - has)
}

// fitsMemory asks the kernel for memory as QEMU will, and gives it back.
func fitsMemory(size spec.Size) error {
	if size <= 0 {
		return nil
	}
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return fmt.Errorf("this host cannot give a machine %s of memory: %w", size, err)
	}
	return unix.MunmapPtr(p, uintptr(size))
}

// readable is for a kernel or an initrd.
func readable(path string) error {
	f, err := os.Open(path)
	if err == nil {
		err = f.Close()
	}
	return err
}

// facts tells the plan what this host can do, as far as a wanted machine asks
// for more than every host has.
func (d *Driver) facts(ctx context.Context, want *reconcile.Desired) reconcile.Facts {
	f := reconcile.Facts{Memory: memoryLimit()}
	if want == nil {
		return f
	}
	for k, o := range want.Objects {
		if k.Kind != spec.KindVirtualMachine {
			continue
		}
		if m := o.Get("spec.machine"); f.Machines == nil && m != "" && m != "q35" {
			if known, err := d.qemu.known(ctx); err == nil {
				f.Machines = slices.Sorted(maps.Keys(known))
			}
		}
		switch m := o.Get("spec.cpu.model"); {
		case f.CPUs != nil || m == "" || m == "host" || m == "max" || m == spec.DefaultCPUModel:
		default:
			f.CPUs, _ = d.qemu.models(ctx) // not known: it is found out at the start
		}
	}
	return f
}

// memoryLimit is what the kernel lets one process ask for, by its rule for
// overcommitting (proc(5)); 0 where it sets no limit.
func memoryLimit() int64 {
	rule, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
	if err != nil {
		return 0
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	of := func(name string) int64 {
		for line := range strings.Lines(string(meminfo)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == name+":" {
				kib, _ := strconv.ParseInt(f[1], 10, 64) // 0: not known
				return kib << 10
			}
		}
		return 0
	}
	switch strings.TrimSpace(string(rule)) {
	case "0":
		return of("MemTotal") + of("SwapTotal")
	case "2":
		return of("CommitLimit")
	}
	return 0
}

// models are the names of the CPU models that QEMU knows.
func (q *qemuBinary) models(ctx context.Context) ([]string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.refresh(); err != nil || q.cpus != nil {
		return q.cpus, err
	}
	out, err := exec.CommandContext(ctx, q.path, "-cpu", "help").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its CPU models: %w", q.path, err)
	}
	list, _, _ := strings.Cut(string(out), "\n\n") // then come the features
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "x86" {
			q.cpus = append(q.cpus, f[1])
		}
	}
	if len(q.cpus) == 0 {
		return nil, fmt.Errorf("%s names no CPU model", q.path)
	}
	return q.cpus, nil
}

// knowsModel checks a CPU model before QEMU is started with it.
func (q *qemuBinary) knowsModel(ctx context.Context, model string) error {
	if model == "" || model == "host" || model == "max" || model == spec.DefaultCPUModel {
		return nil
	}
	known, err := q.models(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(known, model) {
		return fmt.Errorf("spec.cpu.model: %s has no CPU model %s%s", q.path, model, spec.DidYouMean(model, known))
	}
	return nil
}

// refresh forgets what an older file of the same name could do: QEMU is upgraded
// under a running agent.
func (q *qemuBinary) refresh() error {
	path, err := exec.LookPath(q.path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if q.file != nil && os.SameFile(q.file, info) && q.file.ModTime().Equal(info.ModTime()) && q.file.Size() == info.Size() {
		return nil
	}
	q.file, q.machines, q.cpus = info, nil, nil
	return nil
}

var errNoKernel = errors.New("the kernel's files are not there")
