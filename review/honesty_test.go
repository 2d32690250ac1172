package review

import (
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

const automatic = "cpu: {cores: 1}, updatePolicy: {restart: Automatic}, memory: {size: "

// A machine that is down when CI looks may run when the change comes: the plan
// shows the restart that is approved with it.
func TestPlanShowsTheMostThatMayHappen(t *testing.T) {
	base := tree(t, vmOn("host1", "a", automatic+"128Mi}"))
	merge := tree(t, vmOn("host1", "a", automatic+"256Mi}"))
	h := applied(base, "host1")
	for _, o := range h.Have.Objects {
		if o.VM != nil {
			o.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "QEMU ended", Failed: true}
		}
	}
	r := Compare(input(base, merge, h))
	row := r.rows(true)[0]
	if row.Op != reconcile.OpStart || row.Impact != reconcile.ImpactRestart || !strings.Contains(row.Note, "restart") || r.Impact != reconcile.ImpactRestart {
		t.Errorf("%s, impact %s (%s), of the whole plan %s", row.Op, row.Impact, row.Note, r.Impact)
	}
}

// What was pending, and is taken back, may be done before the merge.
func TestPlanShowsWhatUndoesTheCancelled(t *testing.T) {
	old := tree(t)
	base := tree(t, disk("d", "size: 64Mi"))
	r := Compare(input(base, old, applied(old, "host1")))
	if len(r.Cancelled) != 1 || r.Cancelled[0].Kind != spec.KindDisk || r.Cancelled[0].Most != reconcile.ImpactRemove ||
		!strings.Contains(r.Cancelled[0].Note, "quarantine") || r.Impact != reconcile.ImpactRemove {
		t.Errorf("cancelled %+v, impact of the whole plan %s", r.Cancelled, r.Impact)
	}
}
