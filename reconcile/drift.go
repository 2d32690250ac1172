package reconcile

import (
	"fmt"
	"strings"

	"reconciler/spec"
)

// Drift is what somebody changed behind the repository's back: a field that is
// read from the world and differs, although the tree asks for what was last
// applied. What ended by itself, what an action of ours left half done, and
// what our own records lost is no drift but a failure, and is put right
// whatever the mode.

// mode says what becomes of an object's drift: what it says itself, else what
// its host says. An operator's revert stands above both, until it is done.
func (d *differ) mode(w *Object) string {
	if _, asked := d.want.Revert[w.Key()]; asked {
		return spec.DriftCorrect
	}
	if m := w.Get("metadata.drift"); m != "" {
		return m
	}
	if d.hostDrift == "" {
		return spec.DriftCorrect
	}
	return d.hostDrift
}

// readBack says whether a field is read from the world, where somebody may
// have changed it; of the others our own records are all there is.
func readBack(kind spec.Kind, path string) bool {
	switch kind {
	case spec.KindDisk:
		return path == "spec.size"
	case spec.KindVirtualMachine:
		switch generic(path) {
		case "spec.powerState", "spec.cpu.sockets", "spec.cpu.cores", "spec.cpu.threads", "spec.memory.size",
			"spec.disks[].disk", "spec.disks[].size", "spec.nics[].network", "spec.nics[].backend", "spec.nics[].mac":
			return true
		}
	}
	return false
}

// drifted says that a difference at a path is not the commit's: it asks for
// what was last applied. An attempt that did not finish changes nothing about
// that, as it had no business with the field.
func (d *differ) drifted(w *Object, b *Applied, path string) bool {
	if b == nil || !b.Done || !readBack(w.Kind, path) {
		return false
	}
	wf, bf := w.at(path), b.at(path)
	return wf == nil && bf == nil || wf != nil && bf != nil && wf.same(*bf)
}

// leave keeps drift from being corrected where the mode says so. The rest of
// the action goes on, but for what cannot be done to a list's entry without
// undoing the drift in it.
func (d *differ) leave(a *Action, b *Applied) {
	mode := d.mode(a.Want)
	if mode == spec.DriftCorrect {
		return
	}
	entries := map[string]bool{}
	for i := range a.Changes {
		c := &a.Changes[i]
		if !d.drifted(a.Want, b, c.Field) {
			continue
		}
		c.leave(mode, a)
		a.Drift = mode
		if at, _, ok := strings.Cut(c.Field, "]."); ok {
			entries[at] = true
		}
	}
	for i := range a.Changes {
		c := &a.Changes[i]
		if at, _, ok := strings.Cut(c.Field, "]."); ok && entries[at] && !c.Drift {
			c.Waits, c.never = fmt.Sprintf("%s] was changed behind the repository, which is not corrected (mode %s)", at, mode), false
		}
	}
}

// leave makes one change drift that stays.
func (c *Change) leave(mode string, a *Action) {
	c.Drift, c.never, c.cause = true, false, CauseDrift
	c.needs, c.follows = nil, false
	c.Waits = leaveReason(mode, a)
}

func leaveReason(mode string, a *Action) string {
	if mode == spec.DriftOff {
		return "drift is ignored (mode Off)"
	}
	return fmt.Sprintf("drift is reported, not corrected (mode %s); accept it in the repository, or: reconciler revert %s --reason …", mode, argument(a.Kind, a.Name))
}

// argument names an object as people type it.
func argument(k spec.Kind, name string) string {
	if k == spec.KindVirtualMachine {
		return "vm/" + name
	}
	return strings.ToLower(string(k)) + "/" + name
}

// leavePower is leave for the power state: the machine stays as somebody made
// it, and what else the commit asks for is done to it as it is.
func (d *differ) leavePower(a *Action, b *Applied, from, to string) bool {
	mode := d.mode(a.Want)
	if mode == spec.DriftCorrect || !d.drifted(a.Want, b, "spec.powerState") {
		return false
	}
	c := Change{Field: "spec.powerState", From: from, To: to}
	c.leave(mode, a)
	a.Drift = mode
	a.Changes = append(a.Changes, c)
	return true
}

// restartUndoesDrift makes changes wait whose restart nobody asked for by name:
// it would start the machine as it is declared.
func (a *Action) restartUndoesDrift() bool {
	if a.Drift == "" {
		return false
	}
	for i := range a.Changes {
		if c := &a.Changes[i]; c.Impact == ImpactRestart && c.Waits == "" {
			c.Waits = fmt.Sprintf("a restart would undo drift that is not to be corrected (mode %s); to restart all the same: reconciler restart vm/%s", a.Drift, a.Name)
		}
	}
	return true
}

// Settled says that there is nothing to do for the object: it is as wanted, or
// differs by nothing but drift that stays.
func (a *Action) Settled() bool {
	if a.Op != OpUnchanged && a.Op != OpUpdate || a.Op == OpUpdate && len(a.Changes) == 0 {
		return false
	}
	for _, c := range a.Changes {
		if !c.Drift {
			return false
		}
	}
	return true
}
