package iscsi

import (
	"context"
	"fmt"
	"reflect"

	"reconciler/reconcile"
	"reconciler/spec"
)

// imageRecord is an image as it was last applied.
type imageRecord struct {
	Version     int               `json:"version"`
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
	file, err := d.images.Ensure(ctx, img, in.Progress)
	if err != nil {
		return reconcile.Outputs{}, fmt.Errorf("image %s: %w", a.Name, err)
	}
	old, err := d.imageRecords()
	if err != nil {
		return reconcile.Outputs{}, err
	}
	r := imageRecord{recordVersion, a.UID, a.Name, a.Want.Incarnation, img.SHA256, a.Reached()}
	if reflect.DeepEqual(old[a.UID], r) {
		return reconcile.Outputs{File: file}, nil
	}
	if err := d.imageDir.WriteJSON(a.UID+".json", r); err != nil {
		return reconcile.Outputs{}, err
	}
	if was, ok := old[a.UID]; ok && was.SHA256 != img.SHA256 {
		if err := d.dropImage(was.SHA256); err != nil {
			return reconcile.Outputs{}, err
		}
	}
	return reconcile.Outputs{File: file}, nil
}

// ImageFile returns the path of a verified copy of an image, and gets it if
// there is none.
func (d *Driver) ImageFile(ctx context.Context, img *spec.Image, progress func(format string, args ...any)) (string, error) {
	if progress == nil {
		progress = func(string, ...any) {}
	}
	return d.images.Ensure(ctx, img, progress)
}

func (d *Driver) imageRecords() (map[string]imageRecord, error) {
	uids, err := d.imageDir.Names(".json")
	if err != nil {
		return nil, err
	}
	all := map[string]imageRecord{}
	for _, uid := range uids {
		var r imageRecord
		if err := d.imageDir.ReadJSON(uid+".json", &r); err != nil {
			if missing(err) {
				continue
			}
			return nil, err
		}
		all[uid] = r
	}
	return all, nil
}

func (d *Driver) forgetImage(uid string) error {
	all, err := d.imageRecords()
	if err != nil {
		return err
	}
	r, ok := all[uid]
	if !ok {
		return nil
	}
	if err := d.imageDir.Remove(uid + ".json"); err != nil {
		return err
	}
	return d.dropImage(r.SHA256)
}

// dropImage removes a copy that no image needs any more.
func (d *Driver) dropImage(sha string) error {
	all, err := d.imageRecords()
	if err != nil {
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
	all, err := d.imageRecords()
	if err != nil {
		return err
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
