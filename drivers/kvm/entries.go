package kvm

import (
	"fmt"
	"strings"

	"reconciler/reconcile"
)

// follow gives the entries of disks the names that the tree has for them now: an
// entry without a name of its own is called as its disk, and the disk was
// renamed. The devices of a running guest keep their ids, and every disk its
// root port. It says whether anything changed.
func (r *record) follow(want *reconcile.Object) bool {
	have := reconcile.EntryDisks(r.Fields)
	if r.live() {
		have = map[string]string{}
		for entry, e := range r.Launch.Disks {
			have[entry] = e.UID
		}
	}
	renamed := reconcile.Renamed(want, have)
	if len(renamed) == 0 {
		return false
	}
	r.Fields = reconcile.RenameEntries(r.Fields, renamed)
	slots := map[string]int{}
	for former, name := range renamed {
		if port, ok := r.Slots[diskDevice(former)]; ok {
			slots[diskDevice(name)] = port
			delete(r.Slots, diskDevice(former))
		}
	}
	for id, port := range slots {
		r.Slots[id] = port
	}
	if r.Launch == nil {
		return true
	}
	disks := map[string]diskEntry{}
	for entry, e := range r.Launch.Disks {
		if name := renamed[entry]; name != "" {
			e.Device = r.Launch.device(entry)
			entry = name
		}
		disks[entry] = e
	}
	r.Launch.Disks = disks
	return true
}

// device is the id of the device of an entry: it is called as the entry was
// when it was plugged in.
func (l *launch) device(entry string) string {
	if id := l.Disks[entry].Device; id != "" {
		return id
	}
	return diskDevice(entry)
}

// entryOfDevice is the reverse; of a device that is not recorded, attached by
// somebody else, it is as much of its id as tells it from the others.
func (l *launch) entryOfDevice(id string) (entry string, known bool) {
	for entry := range l.Disks {
		if l.device(entry) == id {
			return entry, true
		}
	}
	entry, isDisk := strings.CutPrefix(id, diskDevice(""))
	if _, taken := l.Disks[entry]; taken || !isDisk {
		return id, false
	}
	return entry, false
}

// deviceOf is the id of the device that an entry has, or would have.
func (l *live) deviceOf(entry string) string {
	launch := l.m.snapshot().Launch
	if _, known := launch.Disks[entry]; known {
		return launch.device(entry)
	}
	for id := range l.now.disks {
		if e, known := launch.entryOfDevice(id); e == entry && !known {
			return id
		}
	}
	return l.newDevice(entry)
}

// newDevice is an id for a device that is to be plugged in, which no other has:
// one may be called after this entry since before its own was renamed.
func (l *live) newDevice(entry string) string {
	launch := l.m.snapshot().Launch
	taken := func(id string) bool {
		for other := range launch.Disks {
			if other != entry && launch.device(other) == id {
				return true
			}
		}
		return l.now.devices[id]
	}
	id := diskDevice(entry)
	for n := 2; taken(id); n++ {
		id = fmt.Sprintf("%s.%d", diskDevice(entry), n)
	}
	return id
}
