package review

import (
	"fmt"
	"strings"
	"time"

	"reconciler/reconcile"
)

// promise lets every action of the pull request show the most that it may do.
// An id says what is asked of an object, not what the object does at the moment:
// a machine that was down when the host looked may run when the change comes,
// and would be restarted with the approval of a harmless start.
func promise(rows []Row, want, was *reconcile.Desired, base reconcile.Base, now time.Time) {
	most := map[reconcile.Key]*reconcile.Action{}
	for _, from := range []reconcile.Base{base, reconcile.BaseOf(was)} {
		p := reconcile.Diff(want, from, reconcile.StateFromBase(from), now)
		for i := range p.Actions {
			a := &p.Actions[i]
			if m := most[a.Key()]; m == nil || a.Impact > m.Impact {
				most[a.Key()] = a
			}
		}
	}
	for i := range rows {
		r := &rows[i]
		m := most[r.Key()]
		if !r.ours() || m == nil || m.Impact <= r.Impact {
			continue
		}
		r.Impact = m.Impact
		calm := fmt.Sprintf("%s with impact %s if it is by then as it was applied", m.Op, m.Impact)
		r.Note = strings.TrimPrefix(r.Note+"; ", "; ") + calm
	}
}
