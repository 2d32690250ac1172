package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/spec"
)

// places are where the history of the tree has had what only one host can have:
// an object that comes from another host is made here only when that one says
// that it is gone there. The record covers every commit up to the revision in
// force, whether it ever was in force or not.
type places struct {
	// Self is this host, by the UID of its object.
	Self string `json:"self"`
	// Hosts is what was last said of the hosts, by UID.
	Hosts map[string]peerHost `json:"hosts"`
	// Objects are the other hosts of an object, by KIND/UID: those that have not
	// said since that it is gone.
	Objects map[string][]string `json:"objects"`
}

// peerHost is a host as the newest tree that declares it does.
type peerHost struct {
	Names []string `json:"names"` // newest first
	Key   string   `json:"key"`   // that it signs with
}

const placesFile = "places.json"

// maxHistory bounds the commits that are read of a history that is new here.
const maxHistory = 10_000

// loadPlaces leaves none where there is no record that can be read: the history
// tells it all again, and what other hosts said is asked for again.
func (a *Agent) loadPlaces() error {
	p := &places{}
	if err := loadRecord(a, placesFile, p); err != nil || p.Objects == nil {
		return err
	}
	a.places, a.walked = p, a.mem.Good
	a.self.Store(&self{p.Self, p.Hosts[p.Self].Names})
	return nil
}

func (p *places) clone() *places {
	next := &places{Hosts: map[string]peerHost{}, Objects: map[string][]string{}}
	if p != nil {
		next.Self = p.Self
		maps.Copy(next.Hosts, p.Hosts)
		maps.Copy(next.Objects, p.Objects)
	}
	return next
}

func placeKey(k reconcile.Key) string { return string(k.Kind) + "/" + k.UID }

// placed says whether objects of a kind are on one host only.
func placed(k spec.Kind) bool {
	return k == spec.KindVirtualMachine || k == spec.KindDisk || k == spec.KindStoragePool
}

// add notes where a tree has its objects. isSelf tells this host from others.
func (p *places) add(set *spec.Set, isSelf func(*spec.Object) bool) (changed bool) {
	for _, h := range set.Of(spec.KindHost) {
		if isSelf(h) && h.UID != p.Self {
			continue
		}
		now := peerHost{Names: append([]string{h.Meta.Name}, h.Meta.MovedFrom...), Key: h.Spec.(*spec.Host).SigningKey}
		if old := p.Hosts[h.UID]; !slices.Equal(old.Names, now.Names) || old.Key != now.Key {
			p.Hosts[h.UID], changed = now, true
		}
	}
	for _, o := range set.All() {
		if !placed(o.Kind) {
			continue
		}
		at := set.PlaceOf(o)
		if at == nil || isSelf(at) {
			continue
		}
		k := placeKey(reconcile.Key{Kind: o.Kind, UID: o.UID})
		if !slices.Contains(p.Objects[k], at.UID) {
			p.Objects[k], changed = append(slices.Clone(p.Objects[k]), at.UID), true
		}
	}
	return changed
}

// learn notes where the commits up to a revision have their objects. It comes
// before the revision is in force.
func (a *Agent) learn(ctx context.Context, good, hash string, set *spec.Set) error {
	a.mu.Lock()
	old := a.places
	a.walked = "" // what is heard of other hosts meanwhile does not count
	a.mu.Unlock()
	if old == nil {
		good = ""
	}
	walked := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.walked = hash
	}
	if good == hash {
		walked()
		return nil
	}
	list, err := a.cfg.Source.Between(ctx, good, hash, false)
	if good != "" && errors.Is(err, gitrepo.ErrRevisionMissing) { // the history was rewritten
		list, err = a.cfg.Source.Between(ctx, "", hash, false)
	}
	if err != nil {
		return unreadable(err)
	}
	next := old.clone()
	changed := old == nil
	if me := a.selfIn(set); me != nil && next.Self != me.UID {
		next.Self, changed = me.UID, true
	}
	names := []string{a.cfg.Host, a.nameIn(set)}
	isSelf := func(o *spec.Object) bool { return o.UID == next.Self || slices.Contains(names, o.Meta.Name) }
	for _, c := range slices.Backward(list[:min(len(list), maxHistory)]) {
		tree, err := a.cfg.Source.Load(ctx, c.Hash)
		if neverInForce(err) || err == nil && tree.ClusterID() != set.ClusterID() {
			continue
		}
		if err != nil {
			return unreadable(fmt.Errorf("revision %s: %w", short(c.Hash), err))
		}
		changed = next.add(tree, isSelf) || changed
	}
	if !changed {
		walked()
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.store.save(placesFile, next); err != nil {
		return err
	}
	a.places, a.share, a.walked = next, nil, hash
	a.self.Store(&self{next.Self, next.Hosts[next.Self].Names})
	return nil
}

// neverInForce says that an error of Load is the tree's own, so that no agent
// ever followed it.
func neverInForce(err error) bool {
	_, invalid := errors.AsType[spec.Errors](err)
	_, unfit := errors.AsType[*gitrepo.PathError](err)
	return invalid || unfit || errors.Is(err, spec.ErrEmpty)
}

// self is what is known of this host's object.
type self struct {
	uid   string
	names []string // as the newest tree has them
}

// selfIn is this host in a tree: the one that is called as it is configured. Once
// a tree has said that, its former names and its later ones do as well.
func (a *Agent) selfIn(set *spec.Set) *spec.Object {
	o, known := set.Get(spec.KindHost, a.cfg.Host), a.self.Load()
	if o != nil || known == nil {
		return o
	}
	if o = set.ByUID(known.uid); o == nil || o.Kind != spec.KindHost {
		return nil
	}
	if slices.Contains(o.Meta.MovedFrom, a.cfg.Host) || slices.Contains(known.names, a.cfg.Host) {
		return o
	}
	return nil
}

// nameIn is what a tree calls this host.
func (a *Agent) nameIn(set *spec.Set) string {
	if o := a.selfIn(set); o != nil {
		return o.Meta.Name
	}
	return a.cfg.Host
}

// name is what the tree in force calls this host; its configuration may say a
// former one.
func (a *Agent) name() string {
	if name := a.called.Load(); name != nil {
		return *name
	}
	return a.cfg.Host
}

// follow brings a tree into force. a.mu is held.
func (a *Agent) follow(set *spec.Set) {
	name := a.nameIn(set)
	if was := a.name(); was != name && a.set != nil {
		a.events.normal("Host/"+name, "HostRenamed", fmt.Sprintf("this host was called %s; its reports go to %s%s from now on", was, a.cfg.StatusRef, name))
	}
	a.set = set
	a.called.Store(&name)
}

// arriving are the objects of a tree that are to be here and that history has
// had on other hosts, and why they wait. a.mu is held.
func (a *Agent) arriving(set *spec.Set) map[reconcile.Key]string {
	list := map[reconcile.Key]string{}
	name := a.nameIn(set)
	for _, o := range set.All() {
		k := reconcile.Key{Kind: o.Kind, UID: o.UID}
		if !placed(o.Kind) || set.HostOf(o) != name {
			continue
		}
		switch others := a.placedElsewhere(k); {
		case a.places == nil:
			list[k] = "the history of the repository could not be read yet: it tells whether another host has it"
		case len(others) > 0 && a.arrival[k] != "":
			list[k] = a.arrival[k]
		case len(others) > 0:
			list[k] = fmt.Sprintf("an earlier revision has it on host %s, which must report first that it is gone there", a.otherName(others[0]))
		case set != a.set && a.set != nil: // what a plan for another revision can tell
			if was := a.set.ByUID(o.UID); was != nil && a.set.HostOf(was) != a.nameIn(a.set) {
				list[k] = fmt.Sprintf("the revision in force has it on host %s, which must report first that it is gone there", a.set.HostOf(was))
			}
		}
	}
	return list
}

// placedElsewhere are the other hosts, by UID, that have not said that an object
// is gone. a.mu is held.
func (a *Agent) placedElsewhere(k reconcile.Key) []string {
	if a.places == nil {
		return nil
	}
	return a.places.Objects[placeKey(k)]
}

// otherName is what another host is or was called. a.mu is held.
func (a *Agent) otherName(uid string) string {
	if a.set != nil {
		if o := a.set.ByUID(uid); o != nil {
			return o.Meta.Name
		}
	}
	if h := a.places.Hosts[uid]; len(h.Names) > 0 {
		return h.Names[0]
	}
	return uid
}
