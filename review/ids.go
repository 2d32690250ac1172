package review

import (
	"maps"
	"slices"
	"time"

	"reconciler/reconcile"
)

// maxSteps bounds how far ahead the ids of a plan are worked out. A disk that
// is handed on takes a step for each machine.
const maxSteps = 20

// approvable are the ids that a reviewer of the pull request approves: shown
// are those of the plan, also those that the same work has later on. What was
// asked for before the pull request is not among them: it has its own review.
func approvable(want, was *reconcile.Desired, base reconcile.Base, have reconcile.State, plan *reconcile.Plan, now time.Time) (shown, also []string) {
	if !asks(plan) {
		p := reconcile.Diff(want, reconcile.BaseOf(was), reconcile.StateFromBase(reconcile.BaseOf(was)), now)
		if !asks(&p) {
			return []string{}, []string{}
		}
	}
	before := map[string]bool{}
	doneBase, doneHave := ahead(was, base, have, now, before)
	ids := map[string]bool{}
	for i := range plan.Actions {
		if id := plan.Actions[i].ID; id != "" && !before[id] {
			ids[id] = true
		}
	}
	later := map[string]bool{}
	ahead(want, base, have, now, later)
	// What was pending may be done by then, as far as it can be, or all of it.
	ahead(want, doneBase, doneHave, now, later)
	all := reconcile.BaseOf(was)
	ahead(want, all, reconcile.StateFromBase(all), now, later)
	maps.DeleteFunc(later, func(id string, _ bool) bool { return ids[id] || before[id] })
	return sorted(ids), sorted(later)
}

// Asked are the ids that it takes to make base what is wanted, now and in the
// steps after that, as far as nothing moves by itself.
func Asked(want *reconcile.Desired, base reconcile.Base, now time.Time) map[string]bool {
	ids := map[string]bool{}
	ahead(want, base, reconcile.Calm(want, base), now, ids)
	return ids
}

func sorted(set map[string]bool) []string {
	list := slices.Sorted(maps.Keys(set))
	if list == nil {
		list = []string{}
	}
	return list
}

func asks(p *reconcile.Plan) bool {
	return slices.ContainsFunc(p.Actions, func(a reconcile.Action) bool { return a.ID != "" })
}

// ahead carries a plan out on paper until nothing is ready, and notes the ids
// of every step.
func ahead(want *reconcile.Desired, base reconcile.Base, have reconcile.State, now time.Time, ids map[string]bool) (reconcile.Base, reconcile.State) {
	base = maps.Clone(base)
	if base == nil {
		base = reconcile.Base{}
	}
	for range maxSteps {
		p := reconcile.Diff(want, base, have, now)
		for i := range p.Actions {
			if id := p.Actions[i].ID; id != "" {
				ids[id] = true
			}
		}
		if p.Empty() {
			break
		}
		have = reconcile.Simulate(have, p)
		for i := range p.Actions {
			if a := &p.Actions[i]; a.State == reconcile.Ready && (a.Op != reconcile.OpUnchanged || a.Want != nil) {
				base.Finish(a)
			}
		}
	}
	return base, have
}
