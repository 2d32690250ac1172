package iscsi

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"reconciler/claim"
	"reconciler/deadline"
	"reconciler/drivers/iscsi/claims"
	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
	"reconciler/reconcile"
)

// Claim gives a disk to one launch of a machine. It is idempotent: the owner
// that has the disk gets the same grant, after any restart. Any other gets a
// *claim.HeldError until that one is released.
func (d *Driver) Claim(ctx context.Context, disk string, o claim.Owner) (claim.Grant, error) {
	if o.VM == "" || o.Launch == "" {
		return claim.Grant{}, errors.New("a claim needs a machine and its launch")
	}
	a, err := d.acquire(ctx, disk, o, grantee{})
	if err != nil {
		return claim.Grant{}, err
	}
	return grantOf(disk, a), nil
}

func grantOf(disk string, a claims.Admission) claim.Grant {
	return claim.Grant{
		Disk: disk, Epoch: a.Epoch, Portal: a.Portal, Target: a.Target, LUN: a.LUN,
		Initiator: a.Initiators[0], User: a.User, Password: a.Password,
	}
}

// grantee says what an operator's access asks for; zero for a machine.
type grantee struct {
	initiators []string
	readOnly   bool
	until      time.Time
	by         string
}

func (d *Driver) acquire(ctx context.Context, disk string, o claim.Owner, g grantee) (claims.Admission, error) {
	var none claims.Admission
	unlock, err := d.locks.lock(ctx, disk)
	if err != nil {
		return none, err
	}
	defer unlock()
	at, v, err := d.find(ctx, disk)
	if err != nil {
		return none, err
	}
	if v.Quarantine != nil {
		return none, fmt.Errorf("disk %s is in quarantine", v.Name)
	}
	if len(at.record.Portals) == 0 {
		return none, fmt.Errorf("pool %s has no portal", at.record.Name)
	}
	if !d.claims.Knows(disk) {
		served, err := d.served(ctx)
		if err != nil {
			return none, err
		}
		if err := d.adopt(&v, at, served[v.Target]); err != nil {
			return none, err
		}
	}
	if err := d.finishReleases(ctx, disk); err != nil {
		return none, err
	}
	secret, err := newSecret()
	if err != nil {
		return none, err
	}
	a, err := d.claims.Acquire(disk, o, g.readOnly, func(epoch uint64) claims.Admission {
		n := claims.Admission{
			Initiators: g.initiators, By: g.by, Since: d.cfg.Now().UTC(), Password: secret,
			User:   v.UID[:8] + "-" + strconv.FormatUint(epoch, 10),
			Portal: at.record.Portals[0], Target: v.Target, Volume: v.ID, Inode: v.Inode,
		}
		if !g.until.IsZero() {
			n.Deadline = deadline.At(d.clock(), g.until)
		}
		if len(n.Initiators) == 0 {
			n.Initiators = []string{initiator(&v.Meta, o.Host, epoch)}
		}
		return n
	})
	if err != nil {
		return none, err
	}
	// The target may know of the export already, and the admission is to be
	// given back even if it could not be told: it is recorded.
	return a, d.export(ctx, at, disk)
}

// initiator names the owner of one epoch, so that a late login of an older one
// can be told apart, and the host can be read in a list of sessions.
func initiator(v *volume.Meta, host string, epoch uint64) string {
	return baseOf(v) + ":" + iqnPart(host) + ":" + v.UID + "." + strconv.FormatUint(epoch, 10)
}

// newSecret is a CHAP secret of 128 random bits; RFC 7143 §12.1.4 asks for 96.
func newSecret() (claim.Secret, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return claim.Secret{}, err
	}
	return claim.NewSecret(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])), nil
}

// Release takes a disk from its owner: access is removed and the session
// drained, then the disk is free. What the owner does not have is released.
func (d *Driver) Release(ctx context.Context, disk string, o claim.Owner) error {
	unlock, err := d.locks.lock(ctx, disk)
	if err != nil {
		return err
	}
	defer unlock()
	return d.release(ctx, disk, o)
}

func (d *Driver) release(ctx context.Context, disk string, o claim.Owner) error {
	mine, err := d.claims.BeginRelease(disk, o)
	if err != nil || len(mine) == 0 {
		return err
	}
	var errs []error
	for _, a := range mine {
		errs = append(errs, d.fence(ctx, disk, a))
	}
	return errors.Join(errs...)
}

// ReleaseMachine takes every disk from a machine whose process is gone, whatever
// launch has it: also those that cannot be observed, whose claims no plan releases.
func (d *Driver) ReleaseMachine(ctx context.Context, vm string) error {
	var errs []error
	for _, r := range d.claims.List() {
		for _, a := range r.Admissions() {
			if vm != "" && a.Owner.VM == vm {
				errs = append(errs, d.Release(ctx, r.Disk, a.Owner))
			}
		}
	}
	return errors.Join(errs...)
}

// releaseBefore takes a disk from launches of an earlier boot of this host.
func (d *Driver) releaseBefore(ctx context.Context, disk string) error {
	r, err := d.claims.Get(disk)
	if err != nil {
		return err
	}
	up, err := d.cfg.Uptime()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range r.Admissions() {
		if o := a.Owner; o.VM != "" && o.Host == d.cfg.Host && o.BootID != "" && o.BootID != up.BootID {
			errs = append(errs, d.release(ctx, disk, o))
		}
	}
	return errors.Join(errs...)
}

// fence ends an admission that is Releasing. It is free only once the target
// has said that no command of it can reach the volume any more.
func (d *Driver) fence(ctx context.Context, disk string, a claims.Admission) error {
	var err error
	if a.ReadOnly {
		err = d.admit(ctx, &volume.Volume{Meta: volume.Meta{UID: disk, Target: a.Target, ID: a.Volume}, Inode: a.Inode})
	} else {
		// For ever: an agent that was killed may have left a request to admit the
		// epoch, which the target reads only now. Of a reader that would be seen
		// by the next Ensure, and does no harm.
		err = d.cfg.Target.Fence(ctx, a.Target, a.Epoch)
	}
	// What is not exported has no sessions.
	if err != nil && !errors.Is(err, target.ErrNotFound) {
		return fmt.Errorf("fence epoch %d of disk %s: %w", a.Epoch, disk, err)
	}
	return d.claims.Free(disk, a.Epoch, d.cfg.Now().UTC())
}

// finishReleases ends what was interrupted, and accesses that are over.
func (d *Driver) finishReleases(ctx context.Context, disk string) error {
	r, err := d.claims.Get(disk)
	if err != nil {
		return err
	}
	for _, a := range r.Admissions() {
		over := a.Over(d.clock())
		if a.State == claims.Held && !over {
			continue
		}
		if err := d.release(ctx, disk, a.Owner); err != nil {
			return err
		}
		if over {
			d.log.Info("access is over", "disk", disk, "access", a.Owner.Access, "until", a.Until)
		}
	}
	return nil
}

// releaseLeaked releases the claims that an action names by their launch.
func (d *Driver) releaseLeaked(ctx context.Context, a *reconcile.Action) error {
	for _, c := range a.Changes {
		if c.Field != "claim" || c.Waits != "" {
			continue
		}
		r, err := d.claims.Get(a.UID)
		if err != nil {
			return err
		}
		for _, adm := range r.Admissions() {
			if adm.Owner.VM != "" && adm.Owner.Launch == c.From {
				if err := d.release(ctx, a.UID, adm.Owner); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// List returns every claim and access, with the sessions that are logged in.
func (d *Driver) List(ctx context.Context) ([]claim.Claim, error) {
	served, err := d.served(ctx)
	if err != nil {
		return nil, err
	}
	var list []claim.Claim
	for _, r := range d.claims.List() {
		list = append(list, claimsOf(r, served)...)
	}
	return list, nil
}

func claimsOf(r claims.Record, served map[string]target.Status) []claim.Claim {
	var list []claim.Claim
	for _, a := range r.Admissions() {
		list = append(list, claim.Claim{
			Disk: r.Disk, Epoch: a.Epoch, Owner: a.Owner, ReadOnly: a.ReadOnly, Sessions: len(sessionsOf(a, served)),
		})
	}
	return list
}

func sessionsOf(a claims.Admission, served map[string]target.Status) []target.Session {
	var list []target.Session
	for _, s := range served[a.Target].Sessions {
		if s.Epoch == a.Epoch {
			list = append(list, s)
		}
	}
	return list
}

// adopt makes a lost claim record anew from what the target remembers: a running
// machine keeps its disk, and no epoch is given twice. The password is gone; a
// machine needs it only to log in anew, and gets another with its next launch.
func (d *Driver) adopt(v *volume.Volume, at place, s target.Status) error {
	if len(s.Fenced) == 0 && len(s.Access) == 0 {
		return nil
	}
	var epoch uint64
	for _, e := range s.Fenced {
		epoch = max(epoch, e)
	}
	var inode uint64
	if s.File != nil {
		inode = s.File.Inode
	}
	var holders []claims.Admission
	for _, a := range s.Access {
		epoch = max(epoch, a.Epoch)
		var o claim.Owner
		if json.Unmarshal([]byte(a.Owner), &o) != nil || o.VM == "" || len(a.Initiators) == 0 {
			continue
		}
		holders = append(holders, claims.Admission{
			Epoch: a.Epoch, State: claims.Held, Owner: o, Initiators: a.Initiators, User: a.User, ReadOnly: a.ReadOnly,
			Portal: at.record.Portals[0], Target: v.Target, Volume: s.Volume, Inode: inode, Since: d.cfg.Now().UTC(),
		})
	}
	d.log.Warn("the claim record of a disk was lost", "disk", v.Name, "uid", v.UID, "epoch", epoch, "holders", len(holders))
	return d.claims.Adopt(v.UID, epoch, holders)
}
