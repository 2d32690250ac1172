package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

// machine carries out one action on a machine: claims before the driver acts,
// releases after. Killed at any point, what is left is a claim whose launch is
// not alive, which the next observation shows.
func (a *Agent) machine(ctx context.Context, want *reconcile.Desired, act *reconcile.Action, say func(string, ...any)) error {
	in := reconcile.Inputs{BootID: a.bootID, Progress: say}
	switch act.Op {
	case reconcile.OpStop, reconcile.OpDelete:
		return a.halt(ctx, act, in)
	case reconcile.OpUpdate:
		return a.update(ctx, act, in)
	case reconcile.OpRestart:
		var err error
		if in.Secrets, err = a.secrets(act.Want); err != nil {
			return err
		}
		start := *act
		start.Op = reconcile.OpStart
		if err := a.prove(ctx, &start, in); err != nil {
			return fmt.Errorf("the machine was left running, for it would not start again: %w", err)
		}
		stop := *act
		stop.Op = reconcile.OpStop
		if err := a.halt(ctx, &stop, in); err != nil {
			return err
		}
		return a.launch(ctx, want, &start, in)
	}
	if act.Want.Get("spec.powerState") == spec.PowerStopped {
		_, err := a.cfg.Hypervisor.Apply(ctx, *act, in)
		return err
	}
	if act.Have != nil {
		switch act.Have.VM.Power {
		case reconcile.PowerPaused, reconcile.PowerIOError:
			in.Launch = act.Have.VM.Launch
			_, err := a.cfg.Hypervisor.Apply(ctx, *act, in)
			return err
		}
	}
	var err error
	if in.Secrets, err = a.secrets(act.Want); err != nil {
		return err
	}
	if act.Have != nil {
		switch act.Have.VM.Power {
		case reconcile.PowerEnded, reconcile.PowerStarting:
			// The process of the launch that ended, or never began, must be gone
			// before its claims are: it could still write.
			stop := *act
			stop.Op = reconcile.OpStop
			if err := a.halt(ctx, &stop, in); err != nil {
				return err
			}
		}
	}
	return a.launch(ctx, want, act, in)
}

// prove gets what a start needs but its claims, and lets the driver find out
// whether that would do.
func (a *Agent) prove(ctx context.Context, act *reconcile.Action, in reconcile.Inputs) error {
	in.Networks, in.Files = map[string]*spec.Network{}, map[string]string{}
	for _, r := range act.Want.Refs {
		if r.To.Kind == spec.KindDisk {
			continue
		}
		if err := a.provide(ctx, r, claim.Owner{}, &in); err != nil {
			return err
		}
	}
	return a.cfg.Hypervisor.Prove(ctx, *act, in)
}

// launch claims every disk for a new launch and starts it.
func (a *Agent) launch(ctx context.Context, want *reconcile.Desired, act *reconcile.Action, in reconcile.Inputs) error {
	in.Launch = uuid.NewString()
	in.Grants, in.Networks, in.Files = map[string]claim.Grant{}, map[string]*spec.Network{}, map[string]string{}
	owner := a.owner(act.UID, in.Launch)
	for _, r := range act.Want.Refs {
		if err := a.provide(ctx, r, owner, &in); err != nil {
			return errors.Join(err, a.release(ctx, owner, claimed(in)))
		}
	}
	_, err := a.cfg.Hypervisor.Apply(ctx, *act, in)
	// A failed start may have left a process: the claims are released when the
	// next observation shows that there is none.
	return err
}

func (a *Agent) owner(vm, launch string) claim.Owner {
	return claim.Owner{Host: a.name(), BootID: a.bootID, VM: vm, Launch: launch}
}

func claimed(in reconcile.Inputs) []string {
	var disks []string
	for _, g := range in.Grants {
		disks = append(disks, g.Disk)
	}
	return disks
}

// provide gets what one reference of a machine stands for.
func (a *Agent) provide(ctx context.Context, r reconcile.Ref, owner claim.Owner, in *reconcile.Inputs) error {
	switch r.To.Kind {
	case spec.KindDisk:
		a.log.Debug("claim", "disk", r.To.Name, "launch", owner.Launch)
		g, err := a.cfg.Storage.Claim(ctx, r.To.UID, owner)
		if err != nil {
			return fmt.Errorf("claim Disk/%s: %w", r.To.Name, err)
		}
		a.log.Debug("claimed", "disk", r.To.Name, "epoch", g.Epoch)
		in.Grants[entryOf(r.Path)] = g
	case spec.KindNetwork:
		in.Networks[entryOf(r.Path)] = r.To.Spec.(*spec.Network)
	case spec.KindImage:
		file, err := a.cfg.Storage.ImageFile(ctx, r.To, in.Progress)
		if err != nil {
			return fmt.Errorf("image %s: %w", r.To.Name, err)
		}
		// spec.boot.kernel.image → kernel
		part := strings.TrimSuffix(strings.TrimPrefix(r.Path, "spec.boot."), ".image")
		in.Files[part] = file
	}
	return nil
}

// entryOf is the key in a path: spec.disks[root].disk → root.
func entryOf(path string) string {
	_, rest, _ := strings.Cut(path, "[")
	name, _, _ := strings.Cut(rest, "]")
	return name
}

// halt stops a machine, or deletes it, and frees its disks.
func (a *Agent) halt(ctx context.Context, act *reconcile.Action, in reconcile.Inputs) error {
	_, err := a.end(ctx, act, in)
	return err
}

// end is halt for who wants to know whether there was anything to end.
func (a *Agent) end(ctx context.Context, act *reconcile.Action, in reconcile.Inputs) (out reconcile.Outputs, err error) {
	in.Force = in.Force || a.forced(act.UID)
	launch, disks := "", []string(nil)
	if act.Have != nil && act.Have.VM != nil && act.Have.VM.Launch != "" {
		launch = act.Have.VM.Launch
		disks = a.claimedBy(act, a.owner(act.UID, launch))
	}
	in.Launch = launch
	if out, err = a.cfg.Hypervisor.Apply(ctx, *act, in); err != nil {
		return out, err
	}
	if launch == "" {
		if in.Force {
			err = a.cfg.Storage.ReleaseMachine(ctx, act.UID)
		}
		return out, err
	}
	return out, a.release(ctx, a.owner(act.UID, launch), disks)
}

// claimedBy are the disks that a launch of the machine may have a claim on: those
// it has, those it was to get, and whatever else was seen to be claimed by it. To
// release what it does not have does nothing.
func (a *Agent) claimedBy(act *reconcile.Action, owner claim.Owner) []string {
	var disks []string
	for _, d := range act.Have.VM.Disks {
		disks = append(disks, d)
	}
	if act.Want != nil {
		for _, r := range act.Want.Refs {
			if r.To.Kind == spec.KindDisk {
				disks = append(disks, r.To.UID)
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, h := range a.have.Objects {
		if h.Disk == nil {
			continue
		}
		for _, c := range h.Disk.Claims {
			if c.Owner.VM == owner.VM && c.Owner.Launch == owner.Launch {
				disks = append(disks, k.UID)
			}
		}
	}
	slices.Sort(disks)
	return slices.Compact(disks)
}

func (a *Agent) release(ctx context.Context, owner claim.Owner, disks []string) error {
	var errs []error
	for _, d := range disks {
		a.log.Debug("release", "disk", d, "launch", owner.Launch)
		errs = append(errs, a.cfg.Storage.Release(ctx, d, owner))
		a.log.Debug("released", "disk", d)
	}
	return errors.Join(errs...)
}

func refersTo(o *reconcile.Object, disk string) bool {
	for _, r := range o.Refs {
		if r.To.Kind == spec.KindDisk && r.To.UID == disk {
			return true
		}
	}
	return false
}

// update changes a running machine, or the record of one that is off.
func (a *Agent) update(ctx context.Context, act *reconcile.Action, in reconcile.Inputs) error {
	if act.Have.VM.Launch == "" {
		_, err := a.cfg.Hypervisor.Apply(ctx, *act, in)
		return err
	}
	in.Launch = act.Have.VM.Launch
	in.Grants, in.Networks, in.Files = map[string]claim.Grant{}, map[string]*spec.Network{}, map[string]string{}
	owner := a.owner(act.UID, in.Launch)
	attach, detached := map[string]bool{}, []string(nil)
	for _, c := range act.Changes {
		if c.Waits != "" || !strings.HasPrefix(c.Field, "spec.disks[") {
			continue
		}
		name := entryOf(c.Field)
		if strings.HasSuffix(c.Field, "].disk") {
			attach[name] = c.To != ""
			// An attach that a crash left half done is finished with the same disk:
			// only one that goes for good loses its claim.
			if uid := act.Have.VM.Disks[name]; uid != "" && !refersTo(act.Want, uid) {
				detached = append(detached, uid)
			}
		}
	}
	had := slices.Collect(maps.Values(act.Have.VM.Disks))
	for _, r := range act.Want.Refs {
		if r.To.Kind == spec.KindNetwork || r.To.Kind == spec.KindDisk && attach[entryOf(r.Path)] {
			if err := a.provide(ctx, r, owner, &in); err != nil {
				return errors.Join(err, a.release(ctx, owner, without(claimed(in), had)))
			}
		}
	}
	out, err := a.cfg.Hypervisor.Apply(ctx, *act, in)
	switch {
	case err == nil:
		return a.release(ctx, owner, detached)
	case out.Disks == nil: // what was attached, or not, shows the next observation
		return err
	}
	// An attach that failed gives its claim back.
	return errors.Join(err, a.release(ctx, owner, without(append(claimed(in), detached...), out.Disks)))
}

// without are the disks of a list that are not in another one.
func without(disks, others []string) []string {
	return slices.DeleteFunc(disks, func(d string) bool { return slices.Contains(others, d) })
}
