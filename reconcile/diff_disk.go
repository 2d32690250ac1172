package reconcile

import (
	"fmt"
	"time"

	"reconciler/claim"
	"reconciler/spec"
)

// disk compares a disk whose volume is there.
func (d *differ) disk(a *Action, b *Applied) {
	w, h := a.Want, a.Have
	if h.quarantined() {
		d.restore(a, b)
		return
	}
	a.Changes = d.fields(w, h, b)
	d.resize(a, b)
	d.protection(a, b)
	d.leave(a, b)
	for _, c := range h.Disk.Claims {
		if why := d.leaked(h.UID, c); why != "" {
			a.Changes = append(a.Changes, Change{Field: "claim", From: c.Owner.Launch, Impact: ImpactNone, cause: CauseRetry})
			a.Reason = why
		}
	}
	a.conclude()
}

// resize compares the size. The observed one is the smaller of volume and LUN,
// so that growing is one diff after the other until both have it; of a volume that
// is larger than it is wanted, it is the volume's, which no LUN can hide.
func (d *differ) resize(a *Action, b *Applied) {
	const path = "spec.size"
	h := a.Have.Disk
	to, from := bytesOf(a.Want.Get(path)), bytesOf(a.Have.Get(path))
	if to == from && (h.LUN == 0 || h.LUN == h.Volume) && (h.Volume == 0 || h.Volume == to) {
		return
	}
	c := Change{Field: path, From: a.Have.Get(path), To: a.Want.Get(path), Impact: ImpactLive, cause: d.changeCause(a.Want, b, path)}
	switch has := max(from, MiBs(h.Volume)); {
	case to < has:
		c.From = spec.Size(has).String()
		c.Waits, c.never, c.Impact = cannotShrink+"; its volume has "+c.From+": say so in spec.size", true, ImpactNone
	case to == from:
		c.From = spec.Size(h.Volume).String()
		if h.LUN != 0 {
			c.From = spec.Size(min(h.Volume, h.LUN)).String()
		}
	}
	a.Changes = append(a.Changes, c)
}

// MiBs rounds a number of bytes up to a size that a disk can be declared with.
func MiBs(n int64) int64 {
	const mi = int64(spec.MiB)
	return (n + mi - 1) / mi * mi
}

const cannotShrink = "a disk cannot shrink"

func bytesOf(s string) int64 {
	n, err := spec.ParseSize(s)
	if err != nil {
		var raw spec.Size
		_ = raw.UnmarshalText([]byte(s)) // a plain number of bytes, or zero
		return int64(raw)
	}
	return int64(n)
}

// protection compares what guards the data after a removal. To weaken it has
// the impact of what it enables.
func (d *differ) protection(a *Action, b *Applied) {
	for _, path := range []string{"spec.deletionPolicy", "spec.retention"} {
		to, from := a.Want.Get(path), a.Have.Get(path)
		if to == from {
			continue
		}
		c := Change{Field: path, From: from, To: to, cause: d.changeCause(a.Want, b, path)}
		if to == spec.DeletionDelete || path == "spec.retention" && durationOf(to) < durationOf(from) {
			c.Impact = ImpactDestroy
		}
		a.Changes = append(a.Changes, c)
	}
}

func durationOf(s string) time.Duration {
	t, _ := time.ParseDuration(s) // validated when it was loaded; else zero, which is shortest
	return t
}

// leaked says why a claim belongs to nobody: its launch is gone, or the launch
// neither has the disk nor is about to get it.
func (d *differ) leaked(disk string, c claim.Claim) string {
	if c.Owner.VM == "" || !d.want.isHere(c.Owner.Host) {
		return ""
	}
	k := Key{spec.KindVirtualMachine, c.Owner.VM}
	if _, unknown := d.have.Unknown[k]; unknown || !d.have.Complete[spec.KindVirtualMachine] {
		return ""
	}
	vm := d.have.Objects[k]
	if vm == nil || vm.VM.Launch != c.Owner.Launch {
		return "a claim is left of a launch that is gone"
	}
	for _, has := range vm.VM.Disks {
		if has == disk {
			return ""
		}
	}
	if w := d.want.Objects[k]; w != nil {
		for _, r := range w.Refs {
			if r.To.Kind == spec.KindDisk && r.To.UID == disk {
				return ""
			}
		}
	}
	return fmt.Sprintf("VirtualMachine/%s holds a claim on the disk and does not use it", vm.Name)
}

// restore is for a disk that is wanted again while it is in quarantine. It is
// the same disk with its old data only if it is declared as it was.
func (d *differ) restore(a *Action, b *Applied) {
	w, h := a.Want, a.Have
	a.Op, a.Cause = OpRestore, CauseRevision
	if b != nil && b.Attempted != "" && b.Attempted == w.Generation() {
		a.Cause = CauseRetry
	}
	a.Changes = d.fields(w, h, b)
	d.resize(a, b)
	d.protection(a, b)
	for i := range a.Changes {
		c := &a.Changes[i]
		if c.never {
			a.State = Held
			a.Reason = fmt.Sprintf("the name belongs to a disk in quarantine, and %s is %q here and %q there; declare it as it was, or raise metadata.incarnation for a fresh disk", c.Field, c.To, c.From)
		}
		c.Impact = ImpactNone
		c.cause = a.Cause
	}
	if a.State == Ready {
		a.Reason = "its volume comes back from quarantine"
		if age := d.now.Sub(h.Disk.Written); !h.Disk.Written.IsZero() && age >= 0 {
			a.Reason += fmt.Sprintf(" with data of %s (%s old)", h.Disk.Written.UTC().Format(time.RFC3339), age.Truncate(time.Second))
		}
	}
}

// removeDisk takes a disk away. The policy recorded with the volume decides.
func (d *differ) removeDisk(a *Action) {
	h := a.Have
	a.Op, a.Impact = OpQuarantine, ImpactRemove
	keep := durationOf(h.Get("spec.retention"))
	a.Reason = fmt.Sprintf("removed from the tree; kept in quarantine for %s", spec.Duration(keep))
	if h.Get("spec.deletionPolicy") == spec.DeletionDelete {
		a.Impact, a.Reason = ImpactDestroy, "removed from the tree; deletionPolicy Delete purges its data"
	}
	for _, c := range h.Disk.Claims {
		if c.Owner.Access != "" {
			a.State, a.Reason = Waiting, "an access to the disk is open: "+c.Owner.Access
		} else if d.leaked(h.UID, c) != "" {
			a.Changes = append(a.Changes, Change{Field: "claim", From: c.Owner.Launch, cause: CauseRetry})
		}
	}
}

// quarantined is for a volume that nobody wants.
func (d *differ) quarantined(a *Action) {
	q := a.Have.Disk
	a.Op = OpUnchanged
	switch {
	case q.Elapsed:
		a.Op, a.Cause, a.Impact = OpPurge, CauseExpiry, ImpactDestroy
		a.Reason = "its quarantine is over"
	case q.Until.IsZero():
		a.Reason = "kept in quarantine without a deadline"
	default:
		a.Reason = "in quarantine until " + q.Until.UTC().Format(time.RFC3339)
	}
}

// portals compares what a pool listens on. Sessions hold on to the portal they
// came through, so it stays while any disk of the pool is in use.
func (d *differ) portals(a *Action, b *Applied) {
	const path = "spec.target.embedded.portals"
	to, from := a.Want.Get(path), a.Have.Get(path)
	if to == from {
		return
	}
	c := Change{Field: path, From: from, To: to, Impact: ImpactLive, cause: d.changeCause(a.Want, b, path)}
	for _, h := range d.have.Objects {
		if h.Disk != nil && len(h.Disk.Claims) > 0 && d.poolOf(h.UID) == a.Have {
			c.Waits = "disks of the pool are in use through the present portals; stop their machines first"
		}
	}
	a.Changes = append(a.Changes, c)
}

// removePool takes a pool away once it is empty.
func (d *differ) removePool(a *Action) {
	n := 0
	for _, h := range d.have.Objects {
		if h.Disk != nil && d.poolOf(h.UID) == a.Have {
			n++
		}
	}
	a.Reason = "removed from the tree"
	if n > 0 {
		a.block("%d volumes are in the pool, quarantine counted", n)
	}
}

// capacity blocks what would fill a pool beyond its limit, quarantine counted.
func (d *differ) capacity(p *Plan) {
	used := map[string]int64{}
	for _, h := range d.have.Objects {
		if h.Disk == nil {
			continue
		}
		if f := h.at("spec.pool"); f != nil {
			used[f.ID] += max(h.Disk.Volume, bytesOf(h.Get("spec.size")))
		}
	}
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Kind != spec.KindDisk || a.Want == nil || a.State != Ready {
			continue
		}
		pool := a.Want.ref("spec.pool")
		if pool == nil || pool.Spec == nil {
			continue
		}
		grow := bytesOf(a.Want.Get("spec.size"))
		if a.Have != nil {
			grow -= max(a.Have.Disk.Volume, bytesOf(a.Have.Get("spec.size")))
		}
		if grow <= 0 {
			continue
		}
		s := pool.Spec.(*spec.StoragePool)
		limit := int64(float64(s.Capacity) * s.Overcommit)
		if used[pool.UID]+grow > limit {
			a.overCapacity(fmt.Sprintf("StoragePool/%s would hold %s of %s, quarantine counted", pool.Name, spec.Size(used[pool.UID]+grow), spec.Size(limit)))
			continue
		}
		used[pool.UID] += grow
	}
}

// overCapacity blocks the growth, and the whole action where growth is all of it.
func (a *Action) overCapacity(why string) {
	if a.Op != OpUpdate {
		a.block("%s", why)
		return
	}
	for i := range a.Changes {
		if a.Changes[i].Field == "spec.size" {
			a.Changes[i].Waits, a.Changes[i].never = why, true
		}
	}
}

func (o *Object) ref(path string) *Object {
	for _, r := range o.Refs {
		if r.Path == path {
			return r.To
		}
	}
	return nil
}
