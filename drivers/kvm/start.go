package kvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/claim"
	"reconciler/drivers/kvm/qmp"
	"reconciler/internal/owndir"
	"reconciler/reconcile"
	"reconciler/spec"
)

// StorageError says that the storage of a machine does not answer, so that
// nothing was asked of QEMU that could hang it.
type StorageError struct{ Err error }

func (e *StorageError) Error() string { return "storage unavailable: " + e.Err.Error() }

func (e *StorageError) Unwrap() error { return e.Err }

// answers asks the storage for disks; within its own deadline.
func (d *Driver) answers(ctx context.Context, disks []string) error {
	if len(disks) == 0 {
		return nil
	}
	slices.Sort(disks)
	pctx, cancel := context.WithTimeout(ctx, d.cfg.StorageTimeout)
	defer cancel()
	// A prober that overlooks its context must not hold the machine up.
	result := make(chan error, 1)
	go func() { result <- d.cfg.Storage.Answers(pctx, disks) }()
	var err error
	select {
	case err = <-result:
	case <-pctx.Done():
		err = pctx.Err()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return &StorageError{err}
	}
	return nil
}

// start makes the machine run, from whatever state it is in.
func (d *Driver) start(ctx context.Context, m *machine, want *reconcile.Object, vm *spec.VirtualMachine, in reconcile.Inputs) error {
	p, err := d.findAny(ctx, m)
	if err != nil {
		return err
	}
	if p != nil {
		done, err := d.resume(ctx, m, *p, want, in)
		if done || err != nil {
			return err
		}
	} else if rec := m.snapshot(); rec.live() {
		// Its end goes into the record before the record is of a new launch.
		if err := d.settle(m, in.BootID); err != nil {
			return err
		}
	}
	b, err := d.prepare(ctx, m, want, vm, in)
	if err != nil {
		return err
	}
	return d.launch(ctx, m, b)
}

// resume takes care of a process that is there. done means that the machine
// runs; else there is no process any more.
func (d *Driver) resume(ctx context.Context, m *machine, p process, want *reconcile.Object, in reconcile.Inputs) (done bool, err error) {
	r, err := d.attach(m, p).readBack(ctx, true)
	if err != nil {
		return false, err
	}
	switch power := powerOf(r.status); power {
	case reconcile.PowerRunning:
		return true, nil
	case reconcile.PowerPaused, reconcile.PowerIOError:
		return true, d.letRun(ctx, m, p)
	case reconcile.PowerMigrating:
		return false, errors.New("a migration is under way")
	case reconcile.PowerStarting:
		rec := m.snapshot()
		if rec.live() && rec.Launch.ID == p.launch && (in.Launch == "" || in.Launch == p.launch) {
			in.Progress("finishing the start of process %d", p.pid)
			return true, d.finish(ctx, m, p)
		}
	}
	// It ended, or its guest has never run: nothing is lost with the process.
	in.Progress("removing process %d of the last launch", p.pid)
	return false, d.end(ctx, m, p)
}

// letRun is cont for a guest that was paused.
func (d *Driver) letRun(ctx context.Context, m *machine, p process) error {
	conn, err := d.attach(m, p).connection(ctx)
	if err != nil {
		return err
	}
	if rec := m.snapshot(); rec != nil && rec.Intent != "" {
		if err := d.record(m, func(r *record) { r.Intent = "" }); err != nil {
			return err
		}
	}
	return conn.Raw(ctx).Cont()
}

// prepare decides everything about a new process, and records it, before
// anything is done.
func (d *Driver) prepare(ctx context.Context, m *machine, want *reconcile.Object, vm *spec.VirtualMachine, in reconcile.Inputs) (*birth, error) {
	if in.Launch == "" || strings.ContainsAny(in.Launch, "., \x00") {
		return nil, fmt.Errorf("%q is no launch id", in.Launch)
	}
	b, err := d.conceive(ctx, m, want, vm, in)
	if err == nil {
		err = fitsMemory(vm.Memory.Size)
	}
	if err != nil {
		return nil, err
	}
	boot := in.BootID
	if boot == "" {
		if boot, err = d.bootID(); err != nil {
			return nil, err
		}
	}
	argv, err := b.argv()
	if err != nil {
		return nil, err
	}
	return b, d.record(m, func(r *record) {
		r.adopt(want)
		r.Machine, r.Slots = b.machine, b.slots
		r.Intent = ""
		r.Launch = &launch{
			ID: b.launch, BootID: boot, At: time.Now(), Accel: b.accel, Ports: b.ports,
			Argv: d.command(m.uid, argv), Disks: map[string]diskEntry{}, NICs: map[string]nicEntry{}, Seed: b.seed != nil,
		}
		for _, e := range b.disks {
			r.Launch.Disks[e.entry] = diskEntry{UID: e.grant.Disk, Name: e.name}
		}
		for _, n := range b.nics {
			r.Launch.NICs[n.name] = n.network
		}
	})
}

// conceive decides everything about a new process, and fails where it could not
// be started.
func (d *Driver) conceive(ctx context.Context, m *machine, want *reconcile.Object, vm *spec.VirtualMachine, in reconcile.Inputs) (*birth, error) {
	b := &birth{
		uid: m.uid, name: want.Name, launch: in.Launch, owner: d.owner, vm: vm,
		kernel: in.Files["kernel"], initrd: in.Files["initrd"],
		secret:  func(disk string) string { return d.secretPath(m.uid, disk) },
		console: d.consolePath(m.uid), consoleLog: d.consoleLog(m.uid), user: d.cfg.User, diskTimeout: d.diskTimeout(),
		slots: map[string]int{},
	}
	if vm.Boot.Kernel != nil && b.kernel == "" || vm.Boot.Initrd != nil && b.initrd == "" {
		return nil, errNoKernel
	}
	for _, file := range []string{b.kernel, b.initrd} {
		if file == "" {
			continue
		}
		if err := readable(file); err != nil {
			return nil, err
		}
	}
	if err := d.qemu.knowsModel(ctx, vm.CPU.Model); err != nil {
		return nil, err
	}
	var err error
	if b.disks, err = disks(vm, want, in.Grants); err != nil {
		return nil, err
	}
	if b.nics, err = d.nics(m.uid, vm, want, in.Networks); err != nil {
		return nil, err
	}
	if b.seed, err = seedOf(m.uid, want, vm, in); err != nil {
		return nil, err
	}
	if b.accel, err = d.chooseAccel(ctx); err != nil {
		return nil, err
	}
	rec := m.snapshot()
	had, pinned := 0, ""
	if rec != nil {
		rec = rec.clone()
		rec.follow(want)
		pinned = rec.Machine
		for id, port := range rec.Slots {
			b.slots[id] = port
		}
		if rec.Launch != nil {
			had = rec.Launch.Ports
		}
	}
	if b.machine, err = d.qemu.pin(ctx, vm.Machine, pinned); err != nil {
		return nil, err
	}
	var devices []string
	for _, e := range b.disks {
		devices = append(devices, diskDevice(e.entry))
	}
	for _, n := range b.nics {
		devices = append(devices, nicDevice(n.name))
	}
	if b.ports, err = plan(b.slots, devices, had); err != nil {
		return nil, err
	}
	var uids []string
	for _, e := range b.disks {
		uids = append(uids, e.grant.Disk)
	}
	return b, d.answers(ctx, uids)
}

func (d *Driver) diskTimeout() int { return max(1, int(d.cfg.DiskTimeout/time.Second)) }

// disks pairs the machine's entries with their grants. A machine never starts
// with a disk missing.
func disks(vm *spec.VirtualMachine, want *reconcile.Object, grants map[string]claim.Grant) ([]disk, error) {
	var list []disk
	for _, e := range vm.Disks {
		g, ok := grants[e.Name]
		if !ok || g.Disk == "" {
			return nil, fmt.Errorf("there is no grant for disk %s", e.Name)
		}
		if id := fieldID(want, "spec.disks["+e.Name+"].disk"); id != "" && id != g.Disk {
			return nil, fmt.Errorf("the grant for disk %s is for another disk", e.Name)
		}
		list = append(list, disk{entry: e.Name, name: e.Disk, grant: g})
	}
	return list, nil
}

func fieldID(o *reconcile.Object, path string) string {
	for _, f := range o.Fields {
		if f.Path == path {
			return f.ID
		}
	}
	return ""
}

// launch starts the process of a recorded launch and lets its guest run. If it
// fails, no process is left.
func (d *Driver) launch(ctx context.Context, m *machine, b *birth) (err error) {
	d.step("recorded")
	rec := m.snapshot()
	files, err := d.setUp(ctx, m, b)
	defer func() {
		for _, f := range files {
			f.Close()
		}
		d.removeSecrets(m.uid)
	}()
	if err != nil {
		return err
	}
	d.step("prepared")
	p, err := d.exec(rec, files)
	if err != nil {
		return err
	}
	for _, f := range files { // else a socket would stay open after QEMU
		f.Close()
	}
	d.step("executed")
	if err := d.finish(ctx, m, p); err != nil {
		// Its guest has not run: nothing is lost with it.
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return errors.Join(err, d.kill(kctx, m, p))
	}
	return nil
}

// finish checks a process whose guest has not run yet, and lets it run.
func (d *Driver) finish(ctx context.Context, m *machine, p process) error {
	sctx, cancel := context.WithTimeout(ctx, d.cfg.StartTimeout)
	defer cancel()
	l := d.attach(m, p)
	conn, err := l.connection(sctx)
	if err == nil {
		err = d.inspectNew(sctx, conn, m.snapshot())
	}
	if err != nil {
		if l.ended() {
			d.awaitEnd(p.pid)
			return fmt.Errorf("QEMU ended at its start: %s", d.lastMessage(m.uid))
		}
		return err
	}
	d.step("verified")
	if err := d.record(m, func(r *record) {
		r.Launch.Started, r.Exit, r.Intent = true, nil, ""
	}); err != nil {
		return err
	}
	d.step("committed")
	if err := conn.Raw(sctx).Cont(); err != nil {
		return err
	}
	d.step("running")
	return nil
}

// inspectNew compares a new process with its record.
func (d *Driver) inspectNew(ctx context.Context, conn *qmp.Conn, rec *record) error {
	r, err := readMachine(ctx, conn)
	if err != nil {
		return err
	}
	if r.status != "prelaunch" {
		return fmt.Errorf("QEMU is %s and should not have run yet", r.status)
	}
	for entry, e := range rec.Launch.Disks {
		if r.disks[rec.Launch.device(entry)].node != nodeName(e.UID) {
			return fmt.Errorf("QEMU started without disk %s", entry)
		}
	}
	for name := range rec.Launch.NICs {
		if _, ok := r.nics[name]; !ok {
			return fmt.Errorf("QEMU started without NIC %s", name)
		}
	}
	if rec.Launch.Seed && !r.devices[seedDevice] {
		return errors.New("QEMU started without the seed of cloud-init")
	}
	return nil
}

// setUp makes what QEMU inherits: sockets, the lock, taps; its console, and its
// secrets.
func (d *Driver) setUp(ctx context.Context, m *machine, b *birth) (files []*os.File, err error) {
	lock, err := d.lock(ctx, m.uid)
	if err != nil {
		return nil, err
	}
	defer func() { files = append(files, lock) }()
	if err := makeRunDir(d.run, d.runDir(m.uid)); err != nil {
		return nil, err
	}
	// In the order of the fd constants.
	for _, path := range []string{d.qmpPath(m.uid), d.rescuePath(m.uid)} {
		f, err := listen(path)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	if err := makeConsole(b.console); err != nil {
		return files, err
	}
	for _, n := range b.nics {
		if n.bridge == "" {
			continue
		}
		tap, err := newTap(m.uid, n)
		if err != nil {
			return files, err
		}
		files = append(files, tap)
	}
	if b.seed != nil {
		seed, err := seedFile(b.seed)
		if err != nil {
			return files, err
		}
		files = append(files, seed)
	}
	for _, e := range b.disks {
		if err := d.writeSecret(m.uid, e.grant); err != nil {
			return files, err
		}
	}
	return files, turnOver(b.consoleLog)
}

// makeRunDir makes directories that QEMU's user can pass and nobody can list.
func makeRunDir(dirs ...string) error {
	for _, dir := range dirs {
		if err := owndir.Make(dir, 0o711); err != nil {
			return fmt.Errorf("make the run directory: %w", err)
		}
	}
	return nil
}

// lockTimeout is for a process that has left the process table, and with it
// its command line, to close its files.
const lockTimeout = 10 * time.Second

// lock takes the machine's lock. QEMU inherits it and holds it while it lives,
// so that a second process cannot be started even if the first was overlooked
// in the process table, or is not quite dead.
func (d *Driver) lock(ctx context.Context, uid string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	f, err := os.OpenFile(d.lockPath(uid), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the machine's lock: %w", err)
	}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("a process of this machine still holds its lock %s: %w", d.lockPath(uid), err)
		}
	}
}

// exec starts QEMU detached, in its own session, without the agent's
// environment.
func (d *Driver) exec(rec *record, files []*os.File) (process, error) {
	messages, err := os.OpenFile(d.messageLog(rec.UID), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return process{}, fmt.Errorf("open QEMU's message log: %w", err)
	}
	defer messages.Close()
	argv := rec.Launch.Argv
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "HOME=/"}
	cmd.Stdout, cmd.Stderr = messages, messages
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("start QEMU: %w", err)
	}
	p := process{pid: cmd.Process.Pid, uuid: rec.UID, name: rec.Name, owner: d.owner, launch: rec.Launch.ID}
	// It cannot be reaped, and its number used anew, before it is waited for.
	p.start, _, err = lifeOf(p.pid)
	reaped := make(chan struct{})
	d.children.Store(p.pid, reaped)
	go func() {
		_ = cmd.Wait() // the state says more than the error
		d.noteEnd(rec.UID, cmd.ProcessState)
		close(reaped)
		d.children.CompareAndDelete(p.pid, reaped)
	}()
	if err != nil {
		return process{}, fmt.Errorf("QEMU (pid %d): %w", p.pid, err)
	}
	return p, nil
}

// noteEnd adds to QEMU's messages what only its parent learns: the signal that
// ended it.
func (d *Driver) noteEnd(uid string, state *os.ProcessState) {
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return
	}
	f, err := os.OpenFile(d.messageLog(uid), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil { // its machine was deleted
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "process %d ended by signal %d (%v)\n", state.Pid(), status.Signal(), status.Signal())
}

// awaitEnd waits a moment for the last word on a child that has ended.
func (d *Driver) awaitEnd(pid int) {
	reaped, ok := d.children.Load(pid)
	if !ok {
		return
	}
	select {
	case <-reaped.(chan struct{}):
	case <-time.After(lockTimeout):
	}
}

func (d *Driver) secretPath(uid, disk string) string {
	return filepath.Join(d.runDir(uid), secretID(disk))
}

// writeSecret hands a password to QEMU by a file that only QEMU's user reads.
func (d *Driver) writeSecret(uid string, g claim.Grant) error {
	path := d.secretPath(uid, g.Disk)
	_ = os.Remove(path) // an old one may have another owner
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the disk's secret: %w", err)
	}
	_, err = f.WriteString(g.Password.Reveal())
	if err == nil && d.cfg.User != nil {
		err = f.Chown(d.cfg.User.UID, d.cfg.User.GID)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write the disk's secret: %w", err)
	}
	return nil
}

// removeSecrets removes the files once QEMU has read them, or at the next
// chance after a crash.
func (d *Driver) removeSecrets(uid string) {
	paths, _ := filepath.Glob(filepath.Join(d.runDir(uid), "chap-*")) // the pattern is well formed
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			d.cfg.Log.Warn("remove a disk's secret", "vm", uid, "error", err)
		}
	}
}
