package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"reconciler/spec"
)

// vm compares a machine that is recorded here.
func (d *differ) vm(a *Action, b *Applied) {
	w, h := a.Want, a.Have
	a.Changes = d.fields(w, h, b)
	a.keepSizes()
	d.bootOrder(a, b)
	again := d.restartAsked(a, b)
	// What was done by hand to a process ends with it: a machine that is off, or
	// is restarted because somebody asks for it, starts as it is declared.
	if power := h.VM.Power; again == "" && power != PowerStopped && power != PowerEnded && power != PowerStarting {
		d.leave(a, b)
	}
	d.renames(a)
	cannot := d.cannotStart(a)
	wantRunning := w.Get("spec.powerState") != spec.PowerStopped

	switch power := h.VM.Power; {
	case power == PowerMigrating:
		a.Op, a.State, a.Reason = OpUpdate, Waiting, "a migration is under way"
	case !wantRunning && power == PowerStopped:
		a.soften()
	case !wantRunning && power != PowerEnded && power != PowerStarting && d.leavePower(a, b, string(power), spec.PowerStopped):
		d.running(a, b, again, cannot)
	case !wantRunning:
		a.soften()
		a.Op = OpStop
		if power != PowerEnded {
			a.Impact = ImpactStop
		}
		d.power(a, b, string(power), spec.PowerStopped, a.Impact)
	case power == PowerStopped || power == PowerEnded:
		d.start(a, b, again)
		if a.Op == OpStart && cannot != "" {
			a.block("%s", cannot)
		}
	case power == PowerStarting:
		a.Op, a.Cause, a.Reason = OpStart, CauseRetry, "an earlier start did not finish"
		a.deferRestart("the machine is being started")
	case power == PowerPaused && again == "" && d.leavePower(a, b, string(power), spec.PowerRunning):
		a.deferRestart("the machine is paused")
	case (power == PowerPaused || power == PowerIOError) && (again == "" || cannot != ""):
		d.resume(a, b)
	case again != "" && cannot != "":
		d.running(a, b, "", cannot)
		a.Reason = "it is not restarted, for it would not start again: " + cannot
	default:
		d.running(a, b, again, cannot)
	}
	a.conclude()
}

// cannotStart says why a machine as it is declared cannot start on this host.
// The changes that ask for that are not done, and the machine goes on without.
func (d *differ) cannotStart(a *Action) string {
	first := ""
	for _, p := range impossible(a.Want, d.have.Facts) {
		if first == "" {
			first = p.why
		}
		for i := range a.Changes {
			if c := &a.Changes[i]; c.Field == p.path {
				c.Waits, c.never, c.Impact = p.why, true, ImpactNone
			}
		}
	}
	return first
}

type impossibility struct{ path, why string }

// CannotStart says why a machine as it is declared cannot start on a host; empty
// if nothing is known against it.
func CannotStart(w *Object, f Facts) string {
	if list := impossible(w, f); len(list) > 0 {
		return list[0].why
	}
	return ""
}

// impossible compares what a machine is to have with what the host can do.
func impossible(w *Object, f Facts) (list []impossibility) {
	not := func(path, format string, args ...any) {
		list = append(list, impossibility{path, fmt.Sprintf("%s: "+format, append([]any{path}, args...)...)})
	}
	if m := w.Get("spec.machine"); m != "" && m != "q35" && len(f.Machines) > 0 && !slices.Contains(f.Machines, m) {
		not("spec.machine", "this host's QEMU has no machine type %s; it has %s", m, strings.Join(f.Machines, ", "))
	}
	// The accelerator decides what these two are.
	if m := w.Get("spec.cpu.model"); m != "" && m != "host" && m != "max" && len(f.CPUs) > 0 && !slices.Contains(f.CPUs, m) {
		not("spec.cpu.model", "this host's QEMU has no CPU model %s%s", m, spec.DidYouMean(m, f.CPUs))
	}
	if size := bytesOf(w.Get("spec.memory.size")); f.Memory > 0 && size > f.Memory {
		not("spec.memory.size", "this host can give a machine %s of memory at most", spec.Size(f.Memory/(1<<20)<<20))
	}
	return list
}

// slots makes what does not fit into the process any more wait for a restart: a
// new process has more PCI slots.
func (a *Action) slots() {
	vm, ok := a.Want.Spec.(*spec.VirtualMachine)
	if !ok || a.Have.VM.Ports == 0 {
		return
	}
	here := map[string]bool{}
	for _, f := range a.Have.Fields {
		at, _, isEntry := strings.Cut(f.Path, "].")
		if isEntry && (strings.HasPrefix(at, diskList) || strings.HasPrefix(at, nicList)) {
			here[at+"]"] = true
		}
	}
	var wanted []string
	for _, e := range vm.Disks {
		wanted = append(wanted, diskList+e.Name+"]")
	}
	for _, e := range vm.NICs {
		wanted = append(wanted, nicList+e.Name+"]")
	}
	free, left := a.Have.VM.Ports, map[string]bool{}
	for _, at := range wanted {
		if here[at] {
			free--
		} else {
			left[at] = true
		}
	}
	for i := range a.Changes { // what somebody attached, and stays
		c := &a.Changes[i]
		at, leaf, _ := strings.Cut(c.Field, "].")
		if here[at+"]"] && !slices.Contains(wanted, at+"]") && c.Waits != "" && (leaf == "disk" || leaf == "network") {
			free--
		}
	}
	for _, at := range wanted {
		if left[at] && free > 0 {
			free--
			delete(left, at)
		}
	}
	for i := range a.Changes {
		c := &a.Changes[i]
		if at, _, isEntry := strings.Cut(c.Field, "]."); isEntry && left[at+"]"] && c.Waits == "" {
			c.Impact, c.because = ImpactRestart, fmt.Sprintf("all %d PCI slots of the process are in use or spoken for; ", a.Have.VM.Ports)
		}
	}
}

const nicList = "spec.nics["

// keepSizes blocks the shrinking of a disk as the machine sees it. Another disk
// under the entry's name may be smaller.
func (a *Action) keepSizes() {
	replaced := map[string]bool{}
	for _, c := range a.Changes {
		if name, field, ok := entry(c.Field, "spec.disks"); ok && field == "disk" {
			replaced[name] = true
		}
	}
	for i := range a.Changes {
		c := &a.Changes[i]
		name, field, ok := entry(c.Field, "spec.disks")
		if ok && field == "size" && !replaced[name] && c.To != "" && bytesOf(c.To) < bytesOf(c.From) {
			c.Waits, c.never, c.Impact = cannotShrink, true, ImpactNone
		}
	}
}

// bootOrder compares the disk that firmware boots from. One that comes or goes
// is seen as an attach or a detach; this is for disks that change places.
func (d *differ) bootOrder(a *Action, b *Applied) {
	const path = "spec.boot.disk"
	to, from := a.Want.at(path), a.Have.at(path)
	if to == nil || from == nil || to.same(*from) {
		return
	}
	for _, r := range a.Want.Refs {
		if r.To.UID == from.ID {
			a.Changes = append(a.Changes, Change{
				Field: path, From: from.Value, To: to.Value, Impact: ImpactRestart, cause: d.changeCause(a.Want, b, path), id: to.ID,
			})
			return
		}
	}
}

// soften takes the impact from changes to a machine that does not run.
func (a *Action) soften() {
	for i := range a.Changes {
		if !a.Changes[i].never {
			a.Changes[i].Impact = ImpactNone
		}
	}
}

// power adds the change of the power state.
func (d *differ) power(a *Action, b *Applied, from, to string, impact Impact) {
	a.Changes = append(a.Changes, Change{
		Field: "spec.powerState", From: from, To: to, Impact: impact,
		cause: d.changeCause(a.Want, b, "spec.powerState"),
	})
}

// restartAsked says why the machine is to be restarted; empty if nobody asked.
func (d *differ) restartAsked(a *Action, b *Applied) string {
	const path = "spec.restartedAt"
	why := ""
	if r, ok := d.want.Restart[a.Key()]; ok && r.Launch == a.Have.VM.Launch {
		why = r.Why
	}
	if to, from := a.Want.Get(path), a.Have.Get(path); to != from {
		a.Changes = append(a.Changes, Change{
			Field: path, From: from, To: to, Impact: ImpactRestart, cause: d.changeCause(a.Want, b, path),
		})
		if to != "" && why == "" {
			why = "restartedAt asks for it"
		}
		if to == "" { // taking the request away asks for nothing
			a.Changes[len(a.Changes)-1].Impact = ImpactNone
		}
	}
	return why
}

// start is for a machine that is to run and does not.
func (d *differ) start(a *Action, b *Applied, again string) {
	h := a.Have.VM
	a.soften()
	asked := b == nil || !b.Done || b.Get("spec.powerState") == spec.PowerStopped || again != ""
	if policy := a.Want.Get("spec.restartPolicy"); h.Exit != "" && !asked &&
		(policy == spec.RestartNever || policy == spec.RestartOnFailure && !h.Failed) {
		if h.Power == PowerEnded {
			a.Op = OpStop
			a.Cause = CauseDrift
		}
		a.Reason = fmt.Sprintf("%s; restartPolicy %s leaves it off", h.Exit, policy)
		return
	}
	if h.Asked && !asked && d.leavePower(a, b, spec.PowerStopped, spec.PowerRunning) {
		a.Reason = h.Exit
		if h.Power == PowerEnded { // the process is of no use any more, and holds on to the disks
			a.Op, a.Cause = OpStop, CauseDrift
		}
		return
	}
	d.power(a, b, spec.PowerStopped, spec.PowerRunning, ImpactNone)
	a.Op = OpStart
	if h.Exit != "" {
		a.Reason = h.Exit
		// Who asks for it by name does not wait for a back-off.
		if again == "" && h.RetryAt.After(d.now) {
			a.State = Waiting
			a.Reason += "; starts again at " + h.RetryAt.UTC().Format(time.RFC3339)
		}
	}
}

// resume is for a machine whose vCPUs are stopped.
func (d *differ) resume(a *Action, b *Applied) {
	a.Op = OpStart
	a.deferRestart("the machine is paused")
	d.power(a, b, string(a.Have.VM.Power), spec.PowerRunning, ImpactLive)
	a.Reason = "the guest is paused"
	if a.Have.VM.Power != PowerIOError {
		return
	}
	a.Reason = "a disk returned an error and QEMU paused the guest"
	for _, disk := range a.Have.VM.Disks {
		if pool := d.poolOf(disk); pool != nil && pool.Pool != nil && pool.Pool.Free < resumeRoom {
			a.State, a.Reason = Waiting, fmt.Sprintf("the guest is paused because StoragePool/%s is full; it goes on when there is room", pool.Name)
		}
	}
}

// resumeRoom is the free space, in bytes, from which a paused writer may go on.
const resumeRoom = 16 << 20

func (d *differ) poolOf(disk string) *Live {
	h := d.have.Objects[Key{spec.KindDisk, disk}]
	if h == nil {
		return nil
	}
	if f := h.at("spec.pool"); f != nil {
		return d.have.Objects[Key{spec.KindStoragePool, f.ID}]
	}
	return nil
}

// deferRestart makes every change wait that cannot be done right now.
func (a *Action) deferRestart(why string) {
	for i := range a.Changes {
		if c := &a.Changes[i]; c.Impact > ImpactNone && c.Waits == "" {
			c.Waits = why
		}
	}
}

// commitFirst makes the restart that corrects drift wait for the commit's own
// work, where that takes none: under the commit's id nothing happens that was
// not asked for, and the restart comes next, as what it is.
func (d *differ) commitFirst(a *Action, b *Applied) bool {
	if b == nil || !b.Done {
		return false
	}
	work := false
	for i := range a.Changes {
		c := &a.Changes[i]
		asked := !sameField(a.Want.at(c.Field), b.at(c.Field))
		if asked && c.Impact == ImpactRestart {
			return false
		}
		work = work || asked && c.Waits == ""
	}
	if !work {
		return false
	}
	for i := range a.Changes {
		if c := &a.Changes[i]; c.Impact == ImpactRestart && c.Waits == "" {
			c.Waits = "restarts when what the commit asks for is done"
		}
	}
	return true
}

// running is for a machine that is to run and does.
func (d *differ) running(a *Action, b *Applied, again, cannot string) {
	a.slots()
	restarts := false
	for _, c := range a.Changes {
		restarts = restarts || c.Impact == ImpactRestart && !c.never && !c.Drift
	}
	if restarts && again == "" && cannot == "" && a.Want.Get("spec.updatePolicy.restart") == spec.UpdateAutomatic && !a.restartUndoesDrift() {
		if d.commitFirst(a, b) {
			return
		}
		again = "updatePolicy asks for it"
		a.outOfSlots = slices.ContainsFunc(a.Changes, func(c Change) bool { return c.because != "" })
	}
	if again != "" {
		a.Op, a.Impact, a.Reason = OpRestart, ImpactRestart, again
		if len(a.Changes) == 0 {
			a.Cause = CauseRevision
		}
		return
	}
	for i := range a.Changes {
		if c := &a.Changes[i]; c.Impact == ImpactRestart && c.Waits == "" {
			c.Waits = fmt.Sprintf("%sneeds a restart: reconciler restart vm/%s", c.because, a.Name)
			if cannot != "" {
				c.Waits = fmt.Sprintf("%sneeds a restart, and the machine would not start again: %s", c.because, cannot)
			}
		}
	}
}
