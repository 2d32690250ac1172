package kvm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

// wantedDisk returns the UID of the disk an entry is to have, empty for none.
func (l *live) wantedDisk(entry string) (uid, name string) {
	for _, e := range l.vm.Disks {
		if e.Name == entry {
			return fieldID(l.want, "spec.disks["+entry+"].disk"), e.Disk
		}
	}
	return "", ""
}

// releaseDisk detaches the entry's disk if it is not the one that is wanted,
// and finishes a detach that was cut off.
func (l *live) releaseDisk(ctx context.Context, entry string) error {
	uid, _ := l.wantedDisk(entry)
	have, known := l.m.snapshot().Launch.Disks[entry]
	device := l.deviceOf(entry)
	node := l.now.disks[device].node
	if !known && node == "" {
		return nil
	}
	if known && uid == have.UID && (node == nodeName(uid) || node == "" && !l.now.devices[device]) {
		return nil
	}
	l.in.Progress("detaching disk %s", entry)
	return l.detach(ctx, entry, device, have)
}

// detach takes a disk from the guest and closes it. The entry stays in the
// record until QEMU has let go of it.
func (l *live) detach(ctx context.Context, entry, device string, have diskEntry) error {
	if err := l.answers(ctx); err != nil {
		return err
	}
	nodes := map[string]bool{}
	if have.UID != "" {
		nodes[nodeName(have.UID)] = true
	}
	if n := l.now.disks[device].node; n != "" {
		nodes[n] = true
	}
	if err := l.unplug(ctx, device); err != nil {
		return err
	}
	l.d.step("unplugged")
	if err := l.refresh(ctx); err != nil {
		return err
	}
	for node := range nodes {
		if err := l.closeNode(ctx, node); err != nil {
			return err
		}
	}
	l.d.step("closed")
	return l.d.record(l.m, func(r *record) { delete(r.Launch.Disks, entry) })
}

// closeNode removes a block node and its secret, if they are there.
func (l *live) closeNode(ctx context.Context, node string) error {
	if _, ok := l.now.nodes[node]; ok {
		if err := l.answers(ctx); err != nil {
			return err
		}
		if err := l.blockdevDel(ctx, node); err != nil {
			return err
		}
		delete(l.now.nodes, node)
	}
	return dropped(l.conn.Raw(ctx).ObjectDel("chap-" + node[1:]))
}

// releaseTime is how long QEMU may take to let go of a node after it told that
// the device is deleted: the device is freed later than it is unplugged.
const releaseTime = 5 * time.Second

func (l *live) blockdevDel(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := l.conn.Raw(ctx).BlockdevDel(node)
		if !refused(err) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		}
	}
}

// haveDisk attaches the wanted disk of an entry, or grows it unless that waits.
func (l *live) haveDisk(ctx context.Context, entry string) error {
	uid, name := l.wantedDisk(entry)
	if uid == "" {
		return nil
	}
	if l.now.disks[l.deviceOf(entry)].node != nodeName(uid) {
		l.in.Progress("attaching disk %s", entry)
		if err := l.attach(ctx, entry, name, uid); err != nil {
			return err
		}
	} else if _, ok := l.m.snapshot().Launch.Disks[entry]; !ok {
		if err := l.recordDisk(entry, diskEntry{UID: uid, Name: name}, nil); err != nil {
			return err
		}
	}
	if l.waits["spec.disks["+entry+"].size"] {
		return nil
	}
	return l.grow(ctx, entry, uid)
}

func (l *live) recordDisk(entry string, e diskEntry, slots map[string]int) error {
	return l.d.record(l.m, func(r *record) {
		if r.Launch.Disks == nil {
			r.Launch.Disks = map[string]diskEntry{}
		}
		r.Launch.Disks[entry] = e
		if slots != nil {
			r.Slots = slots
		}
	})
}

func (l *live) attach(ctx context.Context, entry, name, uid string) (err error) {
	grant, ok := l.in.Grants[entry]
	if !ok || grant.Disk != uid {
		return errors.New("there is no grant for the disk")
	}
	node := nodeName(uid)
	device := l.newDevice(entry)
	for other, dr := range l.now.disks {
		if other != device && dr.node == node {
			return fmt.Errorf("the disk is still attached as %s", other)
		}
	}
	slots, port, err := l.slot(diskDevice(entry))
	if err != nil {
		return err
	}
	if err := l.answers(ctx, uid); err != nil {
		return err
	}
	have := diskEntry{UID: uid, Name: name}
	if device != diskDevice(entry) {
		have.Device = device
	}
	if err := l.recordDisk(entry, have, slots); err != nil {
		return err
	}
	l.d.step("attach recorded")
	// What an attach that was cut off has left behind.
	if err := l.closeNode(ctx, node); err != nil {
		return err
	}
	if err := makeRunDir(l.d.run, l.d.runDir(l.m.uid)); err != nil {
		return err
	}
	defer l.d.removeSecrets(l.m.uid)
	if err := l.d.writeSecret(l.m.uid, grant); err != nil {
		return err
	}
	if err := l.conn.Do(ctx, "object-add", secretArgs(uid, l.d.secretPath(l.m.uid, uid)), nil); err != nil {
		return err
	}
	defer func() {
		if refused(err) { // QEMU is well: leave nothing half done
			uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.d.cfg.StorageTimeout+quitTimeout)
			defer cancel()
			if uerr := l.undoAttach(uctx, entry, node); uerr != nil {
				err = errors.Join(err, fmt.Errorf("undo: %w", uerr))
			}
		}
	}()
	d := disk{entry: entry, name: name, grant: grant}
	if err := l.conn.Do(ctx, "blockdev-add", blockdev(d, l.d.diskTimeout()), nil); err != nil {
		return err
	}
	l.d.step("opened")
	if err := l.conn.Do(ctx, "device_add", diskArgs(d, device, port, 0), nil); err != nil {
		return err
	}
	l.d.step("plugged")
	return l.refresh(ctx)
}

func (l *live) undoAttach(ctx context.Context, entry, node string) error {
	if err := l.refresh(ctx); err != nil {
		return err
	}
	if err := l.closeNode(ctx, node); err != nil {
		return err
	}
	return l.d.record(l.m, func(r *record) { delete(r.Launch.Disks, entry) })
}

// grow tells QEMU, and the guest, that the disk's LUN has become larger.
func (l *live) grow(ctx context.Context, entry, uid string) error {
	o := reconcile.Object{Fields: l.want.Fields}
	var size spec.Size
	if v := o.Get("spec.disks[" + entry + "].size"); v == "" {
		return nil
	} else if err := size.UnmarshalText([]byte(v)); err != nil {
		return err
	}
	if l.now.disks[l.deviceOf(entry)].size >= int64(size) {
		return nil
	}
	if err := l.answers(ctx); err != nil {
		return err
	}
	l.in.Progress("telling the guest that disk %s has grown to %s", entry, size)
	node := nodeName(uid)
	if err := l.conn.Raw(ctx).BlockResize(nil, &node, int64(size)); err != nil {
		return err
	}
	l.d.step("grown")
	return l.refresh(ctx)
}
