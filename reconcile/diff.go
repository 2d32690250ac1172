package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"reconciler/spec"
)

// Diff says what to do so that have becomes want. base is what was last
// applied: it tells what a commit asks for from what the world did by itself,
// and without it nothing is deleted.
func Diff(want *Desired, base Base, have State, now time.Time) Plan {
	d := &differ{want: want, base: base, have: have, now: now}
	d.index()
	keys := d.keys()
	actions := make([]Action, 0, len(keys))
	for _, k := range keys {
		if a, ok := d.object(k); ok {
			actions = append(actions, a)
		}
	}
	p := Plan{
		APIVersion: spec.APIVersion, Kind: "Plan", Revision: want.Revision,
		Actions: actions, Unmanaged: have.Unmanaged,
	}
	d.identify(&p)
	d.capacity(&p)
	d.link(&p)
	p.Settle()
	p.Hosts = []HostDigest{{Host: want.Host, Digest: planDigest(p.Actions), ObservedAt: now}}
	return p
}

// differ holds the arguments of Diff and what is looked up in them often.
type differ struct {
	want *Desired
	base Base
	have State
	now  time.Time

	cordoned  bool   // the host takes nothing new
	hostDrift string // mode of the host

	named   map[nameKey][]Key // objects that are there, or cannot be observed, by name
	holders map[string]*Live  // machine that has a disk, by the disk's UID

	applied Base                      // base as it was handed in
	renamed map[Key]map[string]string // entries of machines that follow a rename
}

type nameKey struct {
	kind spec.Kind
	name string
}

func (d *differ) index() {
	d.follow()
	for k, o := range d.want.Objects {
		if k.Kind == spec.KindHost && d.want.isHere(o.Name) {
			d.cordoned = o.Get("spec.state") == spec.HostStateCordoned
			d.hostDrift = o.Get("spec.drift")
		}
	}
	if mode := d.want.HostDrift; mode != nil {
		d.hostDrift = *mode
	}
	d.named = map[nameKey][]Key{}
	d.holders = map[string]*Live{}
	for k, h := range d.have.Objects {
		d.named[nameKey{k.Kind, h.Name}] = append(d.named[nameKey{k.Kind, h.Name}], k)
		if h.VM != nil {
			for _, disk := range h.VM.Disks {
				d.holders[disk] = h
			}
		}
	}
	for k := range d.have.Unknown {
		if b := d.base[k]; b != nil && d.have.Objects[k] == nil {
			d.named[nameKey{k.Kind, b.Name}] = append(d.named[nameKey{k.Kind, b.Name}], k)
		}
	}
}

// keys lists every object known from anywhere, dependencies before dependants.
func (d *differ) keys() []Key {
	seen := make(map[Key]string, len(d.want.Objects))
	for k, o := range d.want.Objects {
		seen[k] = o.Name
	}
	for k, o := range d.have.Objects {
		if _, ok := seen[k]; !ok {
			seen[k] = o.Name
		}
	}
	for k, o := range d.base {
		if _, ok := seen[k]; !ok {
			seen[k] = o.Name
		}
	}
	for k := range d.have.Unknown {
		if _, ok := seen[k]; !ok {
			seen[k] = k.UID
		}
	}
	order := map[spec.Kind]int{}
	for i, k := range spec.Kinds {
		order[k] = i
	}
	keys := make([]Key, 0, len(seen))
	for k := range seen {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(order[a.Kind], order[b.Kind]), strings.Compare(seen[a], seen[b]), strings.Compare(a.UID, b.UID))
	})
	return keys
}

// declared kinds have nothing of their own on a host: what was last applied is
// what is there, unless a driver observes them all the same.
func declared(k spec.Kind) bool {
	switch k {
	case spec.KindCluster, spec.KindHost, spec.KindNetwork, spec.KindImage, spec.KindSecret:
		return true
	}
	return false
}

// object decides on one object; ok is false where there is nothing left of it.
func (d *differ) object(k Key) (a Action, ok bool) {
	w, h, b := d.want.Objects[k], d.have.Objects[k], d.base[k]
	if h == nil && declared(k.Kind) && !d.have.Complete[k.Kind] && b != nil && b.Done {
		h = LiveFromApplied(b)
	}
	a = Action{Kind: k.Kind, UID: k.UID, Host: d.want.Host, State: Ready, Changes: []Change{}, Want: w, Have: h}
	switch {
	case w != nil:
		a.Name = w.Name
	case h != nil:
		a.Name = h.Name
	case b != nil:
		a.Name = b.Name
	default:
		a.Name = k.UID
	}
	if why, unknown := d.have.Unknown[k]; unknown {
		if w == nil && h == nil && b == nil {
			a.Cause = CauseDrift
		}
		a.block("%s", why)
		a.unknown = true
		return a, true
	}
	if other := d.impostor(k, w, h); other != "" {
		a.block("%s", other)
		return a, true
	}
	switch {
	case w == nil && h == nil:
		return a, false
	case w == nil:
		d.remove(&a, b)
	case h == nil:
		d.create(&a, b)
	default:
		d.compare(&a, b)
	}
	return a, true
}

func (a *Action) block(format string, args ...any) {
	a.Op, a.State, a.Reason = OpBlocked, Blocked, fmt.Sprintf(format, args...)
}

// impostor finds a recorded object of the same name and another identity. With
// a raised incarnation that is meant, and with a lowered one whose disk is in
// quarantine, which undoes the raise. Else a movedFrom got lost, and to follow
// it would delete one object and create, or restore, another in its place.
func (d *differ) impostor(k Key, w *Object, h *Live) string {
	if declared(k.Kind) {
		return ""
	}
	switch {
	case w != nil && (h == nil || h.quarantined()):
		for _, o := range d.named[nameKey{k.Kind, w.Name}] {
			if d.want.Objects[o] == nil && !d.have.Objects[o].quarantined() && !meant(d.incarnation(o), w, h) {
				return fmt.Sprintf("the name belongs to a recorded object of another identity (%s); put back metadata.movedFrom, or raise metadata.incarnation for a fresh one", o.UID)
			}
		}
	case w == nil && h != nil && !h.quarantined():
		for wk, o := range d.want.Objects {
			if wk.Kind == k.Kind && o.Name == h.Name && !meant(h.Incarnation, o, d.have.Objects[wk]) {
				return fmt.Sprintf("its name is declared with another identity (%s); put back metadata.movedFrom, or raise metadata.incarnation there", wk.UID)
			}
		}
	}
	return ""
}

// incarnation is the recorded one.
func (d *differ) incarnation(k Key) int {
	if h := d.have.Objects[k]; h != nil {
		return h.Incarnation
	}
	return d.base[k].Incarnation
}

// meant says whether the incarnations tell that w, of which h is there, is to
// take the place of the object of its name with this incarnation.
func meant(old int, w *Object, h *Live) bool {
	return old < w.Incarnation || old > w.Incarnation && h.quarantined()
}

func (h *Live) quarantined() bool { return h != nil && h.Disk != nil && h.Disk.Quarantined }

// create is for an object that is wanted and not there.
func (d *differ) create(a *Action, b *Applied) {
	k := a.Key()
	if !declared(k.Kind) && !d.have.Complete[k.Kind] {
		a.block("it could not be observed whether it exists")
		return
	}
	a.Op, a.Cause = OpCreate, d.createCause(a.Want, b)
	for _, f := range a.Want.Fields {
		a.Changes = append(a.Changes, Change{Field: f.Path, To: f.Value, cause: a.Cause, id: f.ID + a.copied(f.Path)})
	}
	if b == nil && d.want.Arriving[k] != "" {
		a.State, a.Reason = Waiting, d.want.Arriving[k]
	} else if isNew := b == nil || !b.Done; isNew && k.Kind == spec.KindVirtualMachine && d.cordoned {
		a.State, a.Reason = Waiting, fmt.Sprintf("Host/%s is Cordoned: nothing new starts there", d.want.Host)
	}
	if k.Kind == spec.KindVirtualMachine && a.Want.Get("spec.powerState") != spec.PowerStopped {
		if why := CannotStart(a.Want, d.have.Facts); why != "" {
			a.block("%s", why)
		}
	}
	if k.Kind == spec.KindDisk && b != nil && b.Done {
		a.block("its volume is gone; restore the volume, or raise metadata.incarnation to start with a new one")
	}
}

// copied is the content that a disk is made with: an approval of the disk is one
// of that, too. The disk is not compared with it afterwards.
func (a *Action) copied(path string) string {
	if a.Kind != spec.KindDisk {
		return ""
	}
	to := a.Want.ref(path)
	if to == nil {
		return ""
	}
	img, ok := to.Spec.(*spec.Image)
	if !ok {
		return ""
	}
	return fmt.Sprintf(" %s %s %s", img.SHA256, img.Format, img.VirtualSize)
}

// createCause tells an object that got lost from one that a commit asks for, or
// asks to be another than the one that got lost.
func (d *differ) createCause(w *Object, b *Applied) Cause {
	c := d.cause(w, b)
	if c != CauseDrift {
		return c
	}
	walk(w.Fields, b.Fields, func(path string, _, _ *Field) {
		if d.changeCause(w, b, path) == CauseRevision {
			c = CauseRevision
		}
	})
	return c
}

// cause of an action on a whole object.
func (d *differ) cause(w *Object, b *Applied) Cause {
	switch {
	case b == nil:
		return CauseRevision
	case b.Attempted != "" && b.Attempted == w.Generation():
		return CauseRetry
	case !b.Done:
		return CauseRevision
	}
	return CauseDrift
}

// remove is for an object that is there and not wanted.
func (d *differ) remove(a *Action, b *Applied) {
	k, h := a.Key(), a.Have
	if at := d.want.Elsewhere[k]; at != "" {
		a.Op, a.Cause = OpMigrate, CauseRevision
		a.block("it is declared on host %s; moving it there is not supported yet (%s)", at, WayBack(k.Kind))
		return
	}
	if h.quarantined() {
		d.quarantined(a)
		return
	}
	if b == nil {
		a.block("nothing says that it was applied from Git, so it is not deleted; declare it (reconciler import writes how it is), or remove it by hand")
		return
	}
	a.Cause = CauseRevision
	if b.Attempted == removed {
		a.Cause = CauseRetry
	}
	switch k.Kind {
	case spec.KindVirtualMachine:
		a.Op, a.Impact = OpDelete, ImpactRemove
		a.Reason = "removed from the tree"
	case spec.KindDisk:
		d.removeDisk(a)
	case spec.KindStoragePool:
		a.Op = OpDelete
		d.removePool(a)
	default:
		a.Op, a.Reason = OpDelete, "removed from the tree"
	}
}

// removed stands in Applied.Attempted while an object is being removed.
const removed = "removed"

// compare is for an object that is wanted and there.
func (d *differ) compare(a *Action, b *Applied) {
	switch a.Kind {
	case spec.KindVirtualMachine:
		d.vm(a, b)
	case spec.KindDisk:
		d.disk(a, b)
	default:
		a.Changes = d.fields(a.Want, a.Have, b)
		if a.Kind == spec.KindStoragePool {
			d.portals(a, b)
		}
		a.conclude()
	}
}

// conclude derives op, cause, impact and state from the changes.
func (a *Action) conclude() {
	if a.Op == "" {
		a.Op = OpUpdate
		if len(a.Changes) == 0 {
			a.Op = OpUnchanged
			return
		}
	}
	a.Cause = causeOf(possible(a.Changes), a.Cause)
	for _, c := range a.Changes {
		a.Impact = max(a.Impact, c.Impact)
	}
}

// possible are the changes that can ever be done, or all if none can: what a
// commit asks for in vain is not why the rest is done.
func possible(changes []Change) []Change {
	able := slices.DeleteFunc(slices.Clone(changes), func(c Change) bool { return c.never })
	if len(able) == 0 {
		return changes
	}
	return able
}

// causeOf is revision where the commit asks for any of the changes.
func causeOf(changes []Change, otherwise Cause) Cause {
	c := otherwise
	for _, ch := range changes {
		switch {
		case ch.cause == CauseRevision:
			return CauseRevision
		case ch.cause == CauseRetry, c == "":
			c = ch.cause
		}
	}
	return c
}

// fields compares two objects path by path. Both are sorted.
func (d *differ) fields(w *Object, h *Live, b *Applied) []Change {
	changes := []Change{}
	walk(w.Fields, h.Fields, func(path string, to, from *Field) {
		if to != nil && from != nil && to.same(*from) {
			return
		}
		r := ruleFor(w.Kind, path)
		if r.special {
			return
		}
		c := Change{Field: path, Impact: r.impact, cause: d.changeCause(w, b, path)}
		if from != nil {
			c.From = from.Value
		}
		if to != nil {
			c.To, c.id = to.Value, to.ID
		}
		if from != nil && to != nil && c.From == c.To { // the name stands for something else now
			c.From += " (" + shortID(from.ID) + ")"
			c.To += " (" + shortID(to.ID) + ")"
		}
		c.Waits = r.never
		c.never = r.never != ""
		changes = append(changes, c)
	})
	return changes
}

// shortID is as much of a UID or of a content's hash as people compare.
func shortID(id string) string { return id[:min(8, len(id))] }

// changeCause tells a commit's work from the world's.
func (d *differ) changeCause(w *Object, b *Applied, path string) Cause {
	if b == nil || !b.Done {
		return d.cause(w, b)
	}
	// An attempt stops and starts machines, but has no business with other fields
	// that the commit leaves alone.
	if path != "spec.powerState" && d.drifted(w, b, path) {
		return CauseDrift
	}
	if b.Attempted != "" && b.Attempted == w.Generation() {
		return CauseRetry
	}
	if !sameField(w.at(path), b.at(path)) {
		return CauseRevision
	}
	return CauseDrift
}

func sameField(f, g *Field) bool {
	if f == nil || g == nil {
		return f == g
	}
	return f.same(*g)
}

func (o *Object) at(path string) *Field {
	i := sort.Search(len(o.Fields), func(i int) bool { return o.Fields[i].Path >= path })
	if i < len(o.Fields) && o.Fields[i].Path == path {
		return &o.Fields[i]
	}
	return nil
}

// walk visits the union of two sorted lists.
func walk(a, b []Field, visit func(path string, a, b *Field)) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Path < b[0].Path:
			visit(a[0].Path, &a[0], nil)
			a = a[1:]
		case len(a) == 0 || b[0].Path < a[0].Path:
			visit(b[0].Path, nil, &b[0])
			b = b[1:]
		default:
			visit(a[0].Path, &a[0], &b[0])
			a, b = a[1:], b[1:]
		}
	}
}

// identify gives every action of the commit the id it has when nothing else
// moved: computed against base, so that drift does not change what was approved.
func (d *differ) identify(p *Plan) {
	var pure *differ
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Cause != CauseRevision && a.Cause != CauseRetry {
			continue
		}
		if pure == nil {
			pure = &differ{want: d.want, base: d.applied, have: Calm(d.want, d.applied), now: d.now}
			pure.index()
		}
		if asked, ok := pure.object(a.Key()); ok && asked.Op != OpUnchanged {
			// Base knows no process. Who approved what was to be done in the running
			// guest has not approved a restart.
			if a.outOfSlots && asked.Op == OpUpdate {
				asked.Op, asked.Impact = OpRestart, ImpactRestart
			}
			a.ID = actionID(d.want.Cluster, d.want.oldestHost(), &asked)
		}
	}
}
