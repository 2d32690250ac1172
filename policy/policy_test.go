package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"reconciler/deadline"
	"reconciler/reconcile"
	"reconciler/spec"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// host is a host with n running machines and n disks, all of which a plan
// would remove.
func host(n int) (reconcile.State, func() *reconcile.Plan) {
	have := reconcile.NewState()
	for i := range n {
		vm := &reconcile.Live{Object: reconcile.Object{Kind: spec.KindVirtualMachine, Name: fmt.Sprintf("v%02d", i), UID: fmt.Sprintf("vm-%02d", i)},
			VM: &reconcile.LiveVM{Power: reconcile.PowerRunning}}
		disk := &reconcile.Live{Object: reconcile.Object{Kind: spec.KindDisk, Name: fmt.Sprintf("d%02d", i), UID: fmt.Sprintf("disk-%02d", i)},
			Disk: &reconcile.LiveDisk{}}
		have.Objects[vm.Key()], have.Objects[disk.Key()] = vm, disk
	}
	return have, func() *reconcile.Plan {
		p := &reconcile.Plan{Hosts: []reconcile.HostDigest{{Host: "h", Digest: "sha256:abc"}}}
		for _, k := range reconcile.SortedKeys(have.Objects) {
			h := have.Objects[k]
			a := reconcile.Action{Kind: k.Kind, Name: h.Name, UID: k.UID, Op: reconcile.OpDelete, Impact: reconcile.ImpactRemove,
				State: reconcile.Ready, Cause: reconcile.CauseRevision, ID: strings.Repeat(fmt.Sprintf("%x", len(p.Actions)%16), 64), Have: h}
			if k.Kind == spec.KindDisk {
				a.Op = reconcile.OpQuarantine
			}
			p.Actions = append(p.Actions, a)
		}
		p.Settle()
		return p
	}
}

func count(p *reconcile.Plan, kind spec.Kind, s reconcile.ActionState) int {
	n := 0
	for i := range p.Actions {
		if p.Actions[i].Kind == kind && p.Actions[i].State == s {
			n++
		}
	}
	return n
}

func TestBudget(t *testing.T) {
	for _, c := range []struct{ objects, run int }{
		{1, 0}, {2, 1}, {3, 2}, {10, 2}, {29, 2}, {30, 3}, {50, 5},
	} {
		have, plan := host(c.objects)
		p := plan()
		Apply(p, Input{Have: have, Limits: DefaultLimits, Now: now})
		for _, kind := range []spec.Kind{spec.KindVirtualMachine, spec.KindDisk} {
			if n := count(p, kind, reconcile.Ready); n != c.run {
				t.Errorf("%d of %d %ss would be removed, want %d", n, c.objects, kind, c.run)
			}
		}
	}
}

// Twenty commits of two deletions each must not pass.
func TestBudgetRolls(t *testing.T) {
	have, plan := host(30)
	var ledger Ledger
	at, gone := now, 0
	for range 20 {
		p := plan()
		two := 0
		for i := range p.Actions {
			if p.Actions[i].Kind == spec.KindVirtualMachine && two < 2 {
				two++
			} else {
				p.Actions[i].Op, p.Actions[i].Impact = reconcile.OpUnchanged, reconcile.ImpactNone
			}
		}
		Apply(p, Input{Have: have, Limits: DefaultLimits, Ledger: ledger, Now: at})
		for i := range p.Actions {
			a := &p.Actions[i]
			if charge, ok := ChargeFor(a, at); ok && a.State == reconcile.Ready {
				ledger = append(ledger.Trim(deadline.Clock{Now: at}), charge)
				delete(have.Objects, a.Key())
				gone++
			}
		}
		at = at.Add(time.Hour)
	}
	if gone != 3 {
		t.Errorf("%d of 30 machines were removed within 24 hours, want 3", gone)
	}
	p := plan()
	Apply(p, Input{Have: have, Limits: DefaultLimits, Ledger: ledger, Now: now.Add(25 * time.Hour)})
	if n := count(p, spec.KindVirtualMachine, reconcile.Ready); n == 0 {
		t.Error("the budget does not come back after the window")
	}
}

// The last machine is not removed (TestBudget), and the last that runs not stopped.
func TestTheLastOne(t *testing.T) {
	for _, c := range []struct {
		name   string
		op     reconcile.Op
		others reconcile.Power // of the host's other two machines; empty: unknown
		held   string
	}{
		{"stop beside running ones", reconcile.OpStop, reconcile.PowerRunning, ""},
		{"stop of the last that runs", reconcile.OpStop, reconcile.PowerStopped, "last machine that runs"},
		{"stop of the last whose guest runs", reconcile.OpStop, reconcile.PowerEnded, "last machine that runs"},
		{"stop of the last that is known to run", reconcile.OpStop, "", "last machine that runs"},
		{"removal beside running ones", reconcile.OpDelete, reconcile.PowerRunning, ""},
		{"removal of the last that runs, beside ones that are off", reconcile.OpDelete, reconcile.PowerStopped, ""},
	} {
		have, plan := host(3)
		p := plan()
		for i := range p.Actions {
			a := &p.Actions[i]
			k := a.Key()
			switch {
			case k.Kind == spec.KindVirtualMachine && a.Name == "v00":
				a.Op = c.op
				a.Impact = map[reconcile.Op]reconcile.Impact{reconcile.OpStop: reconcile.ImpactStop, reconcile.OpDelete: reconcile.ImpactRemove}[c.op]
			case k.Kind == spec.KindVirtualMachine && c.others == "":
				delete(have.Objects, k)
				have.Unknown[k] = "does not answer"
				fallthrough
			default:
				a.Op, a.Impact = reconcile.OpUnchanged, reconcile.ImpactNone
				if h := have.Objects[k]; h != nil && h.VM != nil {
					h.VM.Power = c.others
				}
			}
		}
		Apply(p, Input{Have: have, Limits: DefaultLimits, Now: now})
		for i := range p.Actions {
			if a := &p.Actions[i]; a.Op == c.op && (a.State == reconcile.Held) != (c.held != "") || !strings.Contains(a.Reason, c.held) && a.Op == c.op {
				t.Errorf("%s: %s (%s), want %q", c.name, a.State, a.Reason, c.held)
			}
		}
	}
}

// What is over the budget says when it no longer is, and that is true.
func TestBudgetSaysWhen(t *testing.T) {
	have, plan := host(10)
	ledger := Ledger{
		{At: now.Add(-20 * time.Hour), Kind: spec.KindVirtualMachine, UID: "gone-1", Remove: true},
		{At: now.Add(-10 * time.Hour), Kind: spec.KindVirtualMachine, UID: "gone-2", Remove: true},
		{At: now.Add(-time.Hour), Kind: spec.KindVirtualMachine, UID: "gone-3", Remove: true}, // was allowed
	}
	in := Input{Have: have, Limits: DefaultLimits, Ledger: ledger, Now: now}
	p := plan()
	Apply(p, in)
	free := now.Add(14 * time.Hour)
	for i := range p.Actions {
		if a := &p.Actions[i]; a.Kind == spec.KindVirtualMachine && !strings.Contains(a.Reason, "held until "+free.Format(clockFormat)) {
			t.Errorf("%s, want until %s", a.Reason, free)
		}
	}
	if wake := Wake(p, in); wake.After(free) || wake.IsZero() {
		t.Errorf("wakes at %s", wake)
	}
	for at, want := range map[time.Time]int{free.Add(-time.Nanosecond): 0, free: 1} {
		in.Now = at
		q := plan()
		if Apply(q, in); count(q, spec.KindVirtualMachine, reconcile.Ready) != want {
			t.Errorf("at %s %d may be removed, want %d", at, count(q, spec.KindVirtualMachine, reconcile.Ready), want)
		}
	}
}

func TestAllow(t *testing.T) {
	have, plan := host(1)
	id := plan().Actions[0].ID
	for _, c := range []struct {
		id    string
		until time.Time
		ready int
	}{
		{"", now.Add(time.Hour), 0},
		{id[:32], now.Add(time.Hour), 0}, // a commit can be made whose id begins so
		{id, now.Add(time.Hour), 1},
		{id, now, 0},
		{"sha256:abc", now.Add(time.Hour), 2},
		{"VirtualMachine/v00", now.Add(time.Hour), 0}, // whatever a commit asks of it
	} {
		p := plan()
		Apply(p, Input{Have: have, Limits: DefaultLimits, Now: now, Allowances: []Allowance{{ID: c.id, Deadline: deadline.Deadline{Until: c.until}}}})
		if n := p.Count(reconcile.Ready); n != c.ready {
			t.Errorf("allow %q until %s: %d actions run, want %d", c.id, c.until, n, c.ready)
		}
		for i := range p.Actions {
			if a := &p.Actions[i]; a.State == reconcile.Held && !strings.Contains(a.Reason, "reconciler allow "+a.ID[:12]) {
				t.Errorf("the reason does not say how to allow it: %s", a.Reason)
			}
		}
	}
}

func TestSuspendAndPurge(t *testing.T) {
	have, plan := host(20)
	p := plan()
	one := p.Actions[0].Key()
	Apply(p, Input{Have: have, Limits: DefaultLimits, Now: now, Suspensions: []Suspension{
		{Key: one, Reason: "backup", By: "ada", Deadline: deadline.Deadline{Until: now.Add(time.Hour)}},
		{Reason: "over", By: "ada", Deadline: deadline.Deadline{Until: now}},
	}})
	if a := &p.Actions[0]; a.State != reconcile.Held || !strings.Contains(a.Reason, "suspended by ada until Sun 2026-11-22 13:00 UTC: backup") {
		t.Errorf("%s: %s", a.State, a.Reason)
	}
	if p.Count(reconcile.Ready) == 0 {
		t.Error("a suspension of one object, and one that is over, hold everything")
	}
	p = plan()
	p.Actions[0].Op = reconcile.OpPurge
	Apply(p, Input{Have: have, Limits: DefaultLimits, Now: now, NoPurge: "no contact", Allowances: []Allowance{{ID: "sha256:abc", Deadline: deadline.Deadline{Until: now.Add(time.Hour)}}}})
	if a := &p.Actions[0]; a.State != reconcile.Held {
		t.Errorf("a purge runs without contact: %s", a.State)
	}
}

// A clock that is set forward frees no budget and ends no suspension; one that
// was ahead once holds nothing for longer than it takes.
func TestClockThatWasWrong(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		jump, up time.Duration // since the charge and the suspension
		held     bool
	}{
		"a year ahead":             {year, time.Minute, true},
		"a year ahead, a day on":   {year, 25 * time.Hour, false},
		"it was ahead":             {-year, time.Minute, true},
		"it was ahead, a day on":   {-year, 25 * time.Hour, false},
		"right":                    {time.Hour, time.Hour, true},
		"right, a day on":          {25 * time.Hour, 25 * time.Hour, false},
		"a record of the old form": {-year, 0, true},
	} {
		then := deadline.Clock{Now: now, BootID: "b", Up: time.Hour}
		when := deadline.Clock{Now: now.Add(c.jump), BootID: "b", Up: time.Hour + c.up}
		ledger := Ledger{}.With(then, []Charge{{At: now, Kind: spec.KindVirtualMachine, UID: "gone", Remove: true}})
		stop := Suspension{Reason: "backup", By: "ada", Deadline: deadline.In(then, 24*time.Hour)}
		if name == "a record of the old form" {
			ledger[0].Ends = deadline.Deadline{}
			if !ledger.Adopt(when) || ledger.Adopt(when) {
				t.Errorf("%s: adopted never or twice", name)
			}
		}
		if got := len(ledger.Trim(when)) > 0; got != c.held {
			t.Errorf("%s: the charge counts: %t", name, got)
		}
		if got := stop.Active(when); got != c.held {
			t.Errorf("%s: suspended: %t", name, got)
		}
		if at := ledger[0].Ends.When(when).Sub(when.Now); c.held && at > Window {
			t.Errorf("%s: it is said to hold for another %s", name, at)
		}
	}
}
