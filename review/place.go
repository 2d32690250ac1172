package review

import (
	"cmp"
	"fmt"
	"strings"

	"reconciler/reconcile"
	"reconciler/spec"
)

func (h HostInput) was() string { return cmp.Or(h.Was, h.Host) }

// misplaced is why the hosts that have them would refuse a merge that declares
// disks elsewhere; empty if none would.
func misplaced(in Input) string {
	var why []string
	for _, h := range in.Hosts {
		if h.Problem != "" || h.New || h.Gone {
			continue
		}
		if errs := reconcile.Misplaced(in.Merge, h.Host, h.Base, h.Have); len(errs) > 0 {
			why = append(why, errs.Error())
		}
	}
	return strings.Join(why, "; ")
}

// arriving are the objects of a host that another one has, as far as reports and
// the base tell: the host waits for them until it hears that they are gone there.
// The hosts themselves also know what came before the base.
func arriving(in Input, set *spec.Set, to HostInput) map[reconcile.Key]string {
	list := map[reconcile.Key]string{}
	name := to.Host
	if set == in.Base {
		name = to.was()
	}
	for _, o := range set.All() {
		if set.HostOf(o) != name || o.Kind == spec.KindHost {
			continue
		}
		k := reconcile.Key{Kind: o.Kind, UID: o.UID}
		for _, h := range in.Hosts {
			if h.Host == to.Host || h.New || h.Problem != "" {
				continue
			}
			_, unknown := h.Have.Unknown[k]
			if unknown || h.Have.Objects[k] != nil || h.Base[k] != nil {
				list[k] = fmt.Sprintf("it is on host %s, and cannot move: put it back, or wait with this until it was removed there and is gone", h.Host)
			}
		}
		if in.Base == nil || list[k] != "" {
			continue
		}
		if was := in.Base.ByUID(o.UID); was != nil {
			if at := in.Base.PlaceOf(was); at != nil && at.Meta.Name != to.was() {
				list[k] = fmt.Sprintf("the base has it on host %s, which must report first that it is gone there", at.Meta.Name)
			}
		}
	}
	return list
}
