package iscsi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"reconciler/claim"
	"reconciler/drivers/iscsi/claims"
	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target"
)

// AccessRequest asks for a disk on behalf of an operator.
type AccessRequest struct {
	Disk string // UID
	// Initiators are the iSCSI names that may log in; one at least. They share
	// the grant, one session each.
	Initiators []string
	Until      time.Time // when it ends by itself
	ReadOnly   bool
	By         string // who asks, for the audit
}

// Access is a disk lent to an operator. One that writes is a claim: it is not
// given while a machine has the disk, and no machine gets the disk before it is
// over. One that reads stands beside a claim.
type Access struct {
	ID         string
	Disk       string // UID
	Epoch      uint64
	Portal     string // ADDRESS:PORT
	Target     string // IQN
	LUN        int
	Initiators []string
	User       string // CHAP
	Password   claim.Secret
	ReadOnly   bool
	Since      time.Time
	Until      time.Time
	By         string
	// Ending says that its end has begun and not been finished.
	Ending   bool
	Sessions []target.Session // logged in now
}

// URL is the access in the notation of libiscsi and QEMU. It holds the password.
func (a Access) URL() string {
	return "iscsi://" + url.PathEscape(a.User) + "%" + url.PathEscape(a.Password.Reveal()) + "@" + a.Portal + "/" + a.Target + "/" + strconv.Itoa(a.LUN)
}

// ErrNoAccess means that there is no access of an id.
var ErrNoAccess = errors.New("there is no such access")

// Access lends a disk until a time. If another owner has it and it is to be
// written, the error is a *claim.HeldError.
func (d *Driver) Access(ctx context.Context, r AccessRequest) (Access, error) {
	switch {
	case len(r.Initiators) == 0:
		return Access{}, errors.New("an access needs the name of an initiator")
	case !r.Until.After(d.cfg.Now()):
		return Access{}, errors.New("an access needs an end in the future")
	}
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return Access{}, err
	}
	o := claim.Owner{Host: d.cfg.Host, Access: hex.EncodeToString(id[:])}
	// Names that differ in case are one, and each has one session.
	var initiators []string
	for _, n := range r.Initiators {
		if !target.ValidName(n) {
			return Access{}, fmt.Errorf("%q is no name of an initiator: it begins with iqn., eui. or naa. and has no space, as in iqn.2026-11.org.example:backup", n)
		}
		initiators = append(initiators, scsi.FoldName(n))
	}
	slices.Sort(initiators)
	initiators = slices.Compact(initiators)
	a, err := d.acquire(ctx, r.Disk, o, grantee{initiators, r.ReadOnly, r.Until.UTC(), r.By})
	if err != nil {
		if a.Epoch == 0 {
			return Access{}, err
		}
		// Nobody was told of it: take it back. Where that fails, too, it stands
		// in the list and ends by itself.
		return Access{}, errors.Join(err, d.Release(context.WithoutCancel(ctx), r.Disk, o))
	}
	d.log.Info("access given", "disk", r.Disk, "access", o.Access, "by", r.By, "initiators", initiators, "readOnly", r.ReadOnly, "until", a.Until)
	return accessTo(r.Disk, a, nil), nil
}

func accessTo(disk string, a claims.Admission, sessions []target.Session) Access {
	return Access{
		ID: a.Owner.Access, Disk: disk, Epoch: a.Epoch, Portal: a.Portal, Target: a.Target, LUN: a.LUN,
		Initiators: a.Initiators, User: a.User, Password: a.Password, ReadOnly: a.ReadOnly,
		Since: a.Since, Until: a.Until, By: a.By, Ending: a.State == claims.Releasing, Sessions: sessions,
	}
}

// ListAccess returns the accesses that are not over.
func (d *Driver) ListAccess(ctx context.Context) ([]Access, error) {
	served, err := d.served(ctx)
	if err != nil {
		return nil, err
	}
	var list []Access
	for _, r := range d.claims.List() {
		for _, a := range r.Admissions() {
			if a.Owner.Access != "" {
				list = append(list, accessTo(r.Disk, a, sessionsOf(a, served)))
			}
		}
	}
	return list, nil
}

// EndAccess ends an access now: when it returns, its sessions are drained and
// the disk is free.
func (d *Driver) EndAccess(ctx context.Context, id string) error {
	for _, r := range d.claims.List() {
		for _, a := range r.Admissions() {
			if a.Owner.Access != id || id == "" {
				continue
			}
			if err := d.Release(ctx, r.Disk, a.Owner); err != nil {
				return err
			}
			d.log.Info("access ended", "disk", r.Disk, "access", id)
			return nil
		}
	}
	return fmt.Errorf("%w: %s", ErrNoAccess, id)
}

// ClearReservations ends what initiators reserved of a disk, whoever they are, and
// says what that was.
func (d *Driver) ClearReservations(ctx context.Context, disk string) ([]string, error) {
	unlock, err := d.locks.lock(ctx, disk)
	if err != nil {
		return nil, err
	}
	defer unlock()
	_, v, err := d.find(ctx, disk)
	if err != nil {
		return nil, err
	}
	served, err := d.served(ctx)
	if err != nil {
		return nil, err
	}
	at, ok := served[v.Target]
	if !ok {
		return nil, fmt.Errorf("disk %s is not exported: nothing reserves it", v.Name)
	}
	if err := d.cfg.Target.ClearReservations(ctx, v.Target); err != nil {
		return nil, fmt.Errorf("clear the reservations of disk %s: %w", v.Name, err)
	}
	gone := reservationsOf(at)
	d.log.Info("reservations cleared", "disk", v.Name, "uid", disk, "reservations", gone)
	return gone, nil
}

// reservationsOf says in words what initiators reserved.
func reservationsOf(s target.Status) []string {
	var list []string
	for _, r := range s.Reservations {
		words := []string{"registration"}
		if r.Type != "" {
			words[0] = r.Type
		}
		words = append(words, "of "+r.Initiator)
		if r.Owner != 0 {
			words = append(words, fmt.Sprintf("(epoch %d)", r.Owner))
		}
		if r.Kept {
			words = append(words, "kept over restarts")
		}
		list = append(list, strings.Join(words, " "))
	}
	return list
}
