package review

import (
	"fmt"
	"strings"
	"time"

	"reconciler/reconcile"
)

// promise lets every row show the most that its approval allows. An id says what
// is asked of an object, not what the object does at the moment: a machine that
// was down when the host looked may run when the change comes, and would be
// restarted with the approval of a harmless start. And what was pending may be
// done by then: what cancels it has to undo it.
func promise(rows []Row, want, was *reconcile.Desired, base reconcile.Base, now time.Time) {
	done := reconcile.BaseOf(was)
	asked, undone := calm(want, base, now), calm(want, done, now)
	for i := range rows {
		r := &rows[i]
		switch k := r.Key(); {
		case r.Origin == Cancelled:
			if m := undone[k]; m != nil && m.Op != reconcile.OpUnchanged {
				r.Most = m.Impact
				r.add(fmt.Sprintf("undone by %s with impact %s if it is carried out before the merge", m.Op, m.Impact))
			}
		case r.ours():
			m := asked[k]
			if d := undone[k]; m == nil || d != nil && d.Impact > m.Impact {
				m = d
			}
			if m != nil && m.Impact > r.Impact {
				r.Impact = m.Impact
				r.add(fmt.Sprintf("%s with impact %s if it is by then as it was applied", m.Op, m.Impact))
			}
		}
	}
}

func (r *Row) add(note string) { r.Note = strings.TrimPrefix(r.Note+"; ", "; ") + note }

// calm is what is asked for where nothing but base was ever done.
func calm(want *reconcile.Desired, base reconcile.Base, now time.Time) map[reconcile.Key]*reconcile.Action {
	p := reconcile.Diff(want, base, reconcile.Calm(want, base), now)
	actions := make(map[reconcile.Key]*reconcile.Action, len(p.Actions))
	for i := range p.Actions {
		actions[p.Actions[i].Key()] = &p.Actions[i]
	}
	return actions
}
