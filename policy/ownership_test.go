package policy

import (
	"strings"
	"testing"
	"time"

	"reconciler/deadline"
	"reconciler/reconcile"
	"reconciler/spec"
)

func TestOwnership(t *testing.T) {
	const uid = "u"
	disk := func(op reconcile.Op, have bool) reconcile.Action {
		a := reconcile.Action{Kind: spec.KindDisk, Name: "d", UID: uid, Op: op, State: reconcile.Ready, Want: &reconcile.Object{Kind: spec.KindDisk, UID: uid}}
		if have {
			a.Have = &reconcile.Live{Disk: &reconcile.LiveDisk{Quarantined: op == reconcile.OpRestore}}
		}
		return a
	}
	const acmes, globexs, ops = "tenants/acme/a.yaml", "tenants/globex/g.yaml", "ops/o.yaml"
	for _, c := range []struct {
		name     string
		op       reconcile.Op
		have     bool
		declared string
		recorded string
		held     string
	}{
		{"restored by its tenant", reconcile.OpRestore, true, acmes, "tenants/acme/old.yaml", ""},
		{"restored by another", reconcile.OpRestore, true, globexs, acmes, "tenant globex declares it, but it is tenant acme's (tenants/acme/a.yaml)"},
		{"the operators' restored by a tenant", reconcile.OpRestore, true, globexs, ops, "it is not a tenant's"},
		{"a path that was another tenant's", reconcile.OpRestore, true, globexs, "acme:" + globexs, "it is tenant acme's"},
		{"a directory that was renamed", reconcile.OpRestore, true, acmes, "acme:old/acme/a.yaml", ""},
		{"a directory of a tenant that is gone", reconcile.OpUnchanged, true, globexs, "initech:" + globexs, "it is tenant initech's"},
		{"restored by the operators", reconcile.OpRestore, true, ops, acmes, ""},
		{"restored, and the record is lost", reconcile.OpRestore, true, globexs, "", "nothing says whose"},
		{"there, and the record is lost", reconcile.OpUnchanged, true, globexs, "", ""},
		{"changed by another while its removal is held", reconcile.OpUpdate, true, globexs, acmes, "tenant acme's"},
		{"as it is, by another", reconcile.OpUnchanged, true, globexs, acmes, "tenant acme's"},
		{"made anew: nothing is there", reconcile.OpCreate, false, globexs, acmes, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Input{Have: reconcile.NewState(), Limits: DefaultLimits, Now: now, Ownership: Ownership{
				Tenants: []Tenant{acme(), globex()}, Declared: func(string) string { return c.declared }, Recorded: map[string]Owner{},
			}}
			if c.recorded != "" {
				tenant, file, named := strings.Cut(c.recorded, ":")
				if !named {
					tenant, file = "", c.recorded
				}
				in.Ownership.Recorded[uid] = Owner{tenant, file}
			}
			d := disk(c.op, c.have)
			vm := reconcile.Action{Kind: spec.KindVirtualMachine, Name: "v", UID: "vm", Op: reconcile.OpCreate, State: reconcile.Ready,
				Want: &reconcile.Object{Refs: []reconcile.Ref{{Path: "spec.disks[d].disk", To: d.Want}}}}
			plan := func() *reconcile.Plan { return &reconcile.Plan{Actions: []reconcile.Action{d, vm}} }
			p := plan()
			Apply(p, in)
			got, user := p.Actions[0], p.Actions[1]
			if c.held == "" {
				if got.State != reconcile.Ready || user.State != reconcile.Ready || got.Op != c.op {
					t.Fatalf("%s %s (%s), its machine %s (%s)", got.Op, got.State, got.Reason, user.State, user.Reason)
				}
				return
			}
			if got.State != reconcile.Held || !strings.Contains(got.Reason, c.held) || got.Op == reconcile.OpUnchanged || !strings.Contains(got.Reason, "reconciler allow Disk/d") {
				t.Errorf("%s %s (%s)", got.Op, got.State, got.Reason)
			}
			// A machine must not get at the data through the disk either.
			if user.State != reconcile.Held || !strings.Contains(user.Reason, "Disk/d") {
				t.Errorf("its machine: %s (%s)", user.State, user.Reason)
			}
			in.Allowances = []Allowance{{ID: "Disk/d", Deadline: deadline.Deadline{Until: now.Add(time.Hour)}}}
			p = plan()
			if Apply(p, in); p.Actions[0].State != reconcile.Ready || p.Actions[1].State != reconcile.Ready {
				t.Errorf("allowed: %s, %s", p.Actions[0].State, p.Actions[1].State)
			}
			in.Allowances, in.Ownership.Tenants = nil, nil
			p = plan()
			if Apply(p, in); p.Actions[0].State != reconcile.Ready {
				t.Errorf("without tenants: %s", p.Actions[0].State)
			}
		})
	}
}
