package iscsi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"

	"reconciler/drivers/iscsi/image"
	"reconciler/internal/durable"
	"reconciler/reconcile"
	"reconciler/spec"
)

// imageRecord is an image as it was last applied.
type imageRecord struct {
	UID         string            `json:"uid"`
	Name        string            `json:"name"`
	Incarnation int               `json:"incarnation,omitempty"`
	SHA256      string            `json:"sha256"`
	Fields      []reconcile.Field `json:"fields"`
}

func (d *Driver) applyImage(ctx context.Context, a *reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	switch a.Op {
	case reconcile.OpCreate, reconcile.OpUpdate, reconcile.OpAdopt:
	case reconcile.OpDelete:
		return reconcile.Outputs{}, d.forgetImage(a.UID)
	default:
		return reconcile.Outputs{}, fmt.Errorf("an image has no %s", a.Op)
	}
	img, ok := a.Want.Spec.(*spec.Image)
	if !ok {
		return reconcile.Outputs{}, fmt.Errorf("image %s: its spec is not known", a.Name)
	}
	old, _, err := d.imageRecords()
	if err != nil {
		return reconcile.Outputs{}, err
	}
	was, known := old[a.UID]
	file, err := d.images.Ensure(ctx, img, prover(a.UID, img, old), in.Progress)
	if err != nil {
		return reconcile.Outputs{}, fmt.Errorf("image %s: %w", a.Name, err)
	}
	r := imageRecord{a.UID, a.Name, a.Want.Incarnation, img.SHA256, a.Reached()}
	if known && reflect.DeepEqual(was, r) {
		return reconcile.Outputs{File: file}, nil
	}
	if err := d.imageDir.WriteJSON(a.UID+".json", recordVersion, r); err != nil {
		return reconcile.Outputs{}, err
	}
	if known && was.SHA256 != img.SHA256 {
		if err := d.dropImage(a.UID, was.SHA256); err != nil {
			return reconcile.Outputs{}, err
		}
	}
	return reconcile.Outputs{File: file}, nil
}

// prover says whether an image has proved that its source has the content: its
// record is written after the proof.
func prover(uid string, img *spec.Image, records map[string]imageRecord) image.Prover {
	return image.Prover{UID: uid, Proved: img.SHA256 != "" && records[uid].SHA256 == img.SHA256}
}

// ensureImage gets the content of an image that a disk is to be made from.
func (d *Driver) ensureImage(ctx context.Context, o *reconcile.Object, img *spec.Image, progress func(format string, args ...any)) error {
	records, _, err := d.imageRecords()
	if err != nil {
		return err
	}
	_, err = d.images.Ensure(ctx, img, prover(o.UID, img, records), progress)
	return err
}

// imageRecords reads the records, and says which cannot be read. One that is
// damaged counts as none: the image proves its source again, and it is made anew.
func (d *Driver) imageRecords() (all map[string]imageRecord, unread map[string]error, err error) {
	all, unread, err = durable.ReadAll(d.imageDir, ".json", recordVersion, func(uid string, r *imageRecord) error {
		if r.UID != uid {
			return fmt.Errorf("it is the record of image %q", r.UID)
		}
		return nil
	})
	maps.DeleteFunc(unread, func(_ string, why error) bool {
		_, damaged := errors.AsType[*durable.DamagedError](why)
		return damaged
	})
	return all, unread, err
}

func (d *Driver) forgetImage(uid string) error {
	all, unread, err := d.imageRecords()
	if err != nil || unread[uid] != nil {
		return errors.Join(err, unread[uid])
	}
	r, ok := all[uid]
	if !ok {
		return nil
	}
	if err := d.imageDir.Remove(uid + ".json"); err != nil {
		return err
	}
	return d.dropImage(uid, r.SHA256)
}

// dropImage removes a copy that no image needs any more, and what the image had
// got of another.
func (d *Driver) dropImage(uid, sha string) error {
	if err := d.images.Abandon(sha, image.Prover{UID: uid}); err != nil {
		return err
	}
	all, unread, err := d.imageRecords()
	if err != nil || len(unread) > 0 { // an image that cannot be read may need it
		return err
	}
	for _, r := range all {
		if r.SHA256 == sha {
			return nil
		}
	}
	return d.images.Drop(sha)
}

func (d *Driver) observeImages(s *reconcile.State) error {
	all, unread, err := d.imageRecords()
	if err != nil {
		return err
	}
	for uid, err := range unread {
		s.Unknown[reconcile.Key{Kind: spec.KindImage, UID: uid}] = err.Error()
	}
	for uid, r := range all {
		if _, ok := d.images.Have(r.SHA256); !ok {
			continue // to be fetched again
		}
		l := &reconcile.Live{}
		l.Kind, l.Name, l.UID, l.Incarnation, l.Fields = spec.KindImage, r.Name, uid, r.Incarnation, r.Fields
		s.Objects[l.Key()] = l
	}
	return nil
}
