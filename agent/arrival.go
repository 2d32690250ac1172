package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
	"reconciler/trust"
)

// An object that history had on another host is made here when that host says,
// in a report that it signed, that it does not have it, at a revision from which
// on no commit gives it back to that host. Such a report stays true whatever
// comes later, and whoever shows it again: the host never goes back behind the
// revision, and a revision after ours that gives it back asks for our report.
// Objects of which this host knows that it has them need nothing: nobody else
// can have got such a proof from us.

// maxProof bounds the commits between a report and the revision in force.
const maxProof = 1000

// reportTimeout bounds the reading of one host's report.
const reportTimeout = 15 * time.Second

// seekArrivals asks, beside the pass, the other hosts for what waits for them in a
// plan.
func (a *Agent) seekArrivals(plan *reconcile.Plan, fetched bool) {
	if !fetched {
		return
	}
	a.mu.Lock()
	set, good := a.set, a.mem.Good
	waiting := map[string][]reconcile.Key{} // by the other host
	for i := range plan.Actions {
		act := &plan.Actions[i]
		if act.Want == nil || act.Have != nil || act.Op != reconcile.OpCreate || a.base[act.Key()] != nil {
			continue
		}
		for _, host := range a.placedElsewhere(act.Key()) {
			waiting[host] = append(waiting[host], act.Key())
		}
	}
	known := len(a.arrival) > 0
	a.mu.Unlock()
	if len(waiting) > 0 || known {
		a.aside("arrivals", func(ctx context.Context) bool { return a.askHosts(ctx, waiting, set, good) })
	}
}

// askHosts reads the reports of other hosts and says whether anything need not
// wait any more.
func (a *Agent) askHosts(ctx context.Context, waiting map[string][]reconcile.Key, set *spec.Set, good string) bool {
	why := map[reconcile.Key]string{}
	gone := map[string][]reconcile.Key{}
	for _, host := range slices.Sorted(maps.Keys(waiting)) {
		ctx, cancel := context.WithTimeout(ctx, reportTimeout)
		said, err := a.askArrivals(ctx, host, set, good, waiting[host])
		cancel()
		for _, k := range waiting[host] {
			switch {
			case err != nil:
				why[k] = err.Error()
			case said[k] != "":
				why[k] = said[k]
			default:
				gone[host] = append(gone[host], k)
			}
		}
	}
	found, err := a.settleArrivals(good, why, gone)
	if err != nil {
		a.log.Error("what other hosts said could not be written down", "error", err)
	}
	return found
}

// settleArrivals notes what was heard of other hosts.
func (a *Agent) settleArrivals(good string, why map[reconcile.Key]string, gone map[string][]reconcile.Key) (found bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mem.Good != good || a.walked != good { // what was heard may not hold for what is asked now
		return false, nil
	}
	if !maps.Equal(a.arrival, why) {
		a.arrival, a.share = why, nil
		found = true
	}
	if len(gone) == 0 {
		return found, nil
	}
	next := a.places.clone()
	for host, keys := range gone {
		for _, k := range keys {
			left := slices.DeleteFunc(slices.Clone(next.Objects[placeKey(k)]), func(h string) bool { return h == host })
			if len(left) > 0 {
				next.Objects[placeKey(k)] = left
				continue
			}
			delete(next.Objects, placeKey(k))
			a.events.normal("", "Arrived", fmt.Sprintf("%s %s is gone from host %s, by the report that it signed: it may be made here", k.Kind, k.UID, a.otherName(host)))
		}
	}
	if err := a.store.save(placesFile, next); err != nil {
		return found, err
	}
	a.places, a.share = next, nil
	return true, nil
}

// askArrivals reads the report of another host and says of each object why it
// does not show that it is gone there; nothing where it does. The error is of
// the report as a whole.
func (a *Agent) askArrivals(ctx context.Context, host string, set *spec.Set, good string, keys []reconcile.Key) (map[reconcile.Key]string, error) {
	r, name, err := a.reportOf(ctx, host, set)
	if err != nil {
		return nil, fmt.Errorf("waits for host %s, which had it in an earlier revision, to say that it is gone there: %w", name, err)
	}
	had, err := a.placedSince(ctx, host, set.ClusterID(), r.Revision, good, keys)
	if err != nil {
		return nil, fmt.Errorf("waits for host %s, which had it in an earlier revision: %w", name, err)
	}
	base, told := r.Base()
	state := r.State()
	said := map[reconcile.Key]string{}
	for _, k := range keys {
		h, b := state.Objects[k], base[k]
		switch {
		case h != nil:
			said[k] = fmt.Sprintf("it is on host %s%s, and cannot move: %s", name, inWhat(h), reconcile.WayBack(k.Kind))
		case state.Unknown[k] != "":
			said[k] = fmt.Sprintf("host %s had it in an earlier revision and cannot say whether it still has: %s", name, state.Unknown[k])
		case b != nil:
			said[k] = fmt.Sprintf("it is on host %s, by what was last done there, and cannot move: %s", name, reconcile.WayBack(k.Kind))
		case !told || !state.Complete[k.Kind]:
			said[k] = fmt.Sprintf("host %s had it in an earlier revision, and its last report does not say whether it still has", name)
		case had[k] != "":
			said[k] = fmt.Sprintf("host %s has it in revision %s, and has not reported since at a later one that it is gone there (its last report is of %s)", name, short(had[k]), short(r.Revision))
		}
	}
	return said, nil
}

// inWhat says how an object is on another host.
func inWhat(h *reconcile.Live) string {
	switch {
	case h.VM != nil:
		return fmt.Sprintf(" (%s)", h.VM.Power)
	case h.Disk != nil && h.Disk.Quarantined:
		return fmt.Sprintf(" in StoragePool %s, in quarantine", h.Get("spec.pool"))
	case h.Disk != nil:
		return fmt.Sprintf(" in StoragePool %s", h.Get("spec.pool"))
	}
	return ""
}

// reportOf reads what another host last reported, as the tree's key for it
// signs. The name is what it is called.
func (a *Agent) reportOf(ctx context.Context, uid string, set *spec.Set) (r status.Recorded, name string, err error) {
	a.mu.Lock()
	h := a.places.Hosts[uid]
	name = a.otherName(uid)
	a.mu.Unlock()
	names, key := h.Names, h.Key
	if o := set.ByUID(uid); o != nil {
		names, key = append([]string{o.Meta.Name}, o.Meta.MovedFrom...), o.Spec.(*spec.Host).SigningKey
	}
	if key == "" {
		return r, name, fmt.Errorf("its Host has no spec.signingKey, so that its report cannot be checked (reconciler key prints it on that host)")
	}
	keys, err := trust.ParsePublicKeys([]string{key})
	if err != nil {
		return r, name, fmt.Errorf("its spec.signingKey: %w", err)
	}
	// A host that was renamed may not have reported under the new name yet.
	var data, payload, signature []byte
	for _, n := range names {
		data, payload, signature, err = a.cfg.Source.Report(ctx, a.cfg.StatusRef+n, status.StateFile)
		if !errors.Is(err, gitrepo.ErrRevisionMissing) {
			break
		}
	}
	if errors.Is(err, gitrepo.ErrRevisionMissing) {
		return r, name, fmt.Errorf("it has reported nothing to %s%s", a.cfg.StatusRef, name)
	}
	if err != nil {
		return r, name, fmt.Errorf("its report cannot be read: %w", err)
	}
	if _, err := keys.Verify(payload, signature, trust.NamespaceGit, a.cfg.Now()); err != nil {
		return r, name, fmt.Errorf("the signature of its report does not count: %w", err)
	}
	if r, err = status.ReadState(data); err != nil {
		return r, name, err
	}
	if !slices.Contains(names, r.Host) || r.Cluster != set.ClusterID() {
		return r, name, fmt.Errorf("its report is of host %q of cluster %q", r.Host, r.Cluster)
	}
	return r, name, nil
}

// placedSince finds, of some objects, those that the revision of a report or a
// later one up to that in force has on a host, and the revision.
func (a *Agent) placedSince(ctx context.Context, host, cluster, reported, good string, keys []reconcile.Key) (map[reconcile.Key]string, error) {
	if reported == "" {
		return nil, errors.New("no revision is in force there")
	}
	ok, err := a.descends(ctx, reported, good)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("its report is of revision %s, which %s does not descend from", short(reported), short(good))
	}
	list, err := a.cfg.Source.Between(ctx, reported, good, false)
	if err != nil {
		return nil, err
	}
	if len(list) > maxProof {
		return nil, fmt.Errorf("its report is %d commits old", len(list))
	}
	had := map[reconcile.Key]string{}
	for _, c := range append(list, Revision{Hash: reported}) {
		tree, err := a.cfg.Source.Load(ctx, c.Hash)
		if neverInForce(err) || err == nil && tree.ClusterID() != cluster {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("revision %s: %w", short(c.Hash), err)
		}
		for _, k := range keys {
			if o := tree.ByUID(k.UID); had[k] == "" && o != nil {
				if at := tree.PlaceOf(o); at != nil && at.UID == host {
					had[k] = c.Hash
				}
			}
		}
	}
	return had, nil
}
