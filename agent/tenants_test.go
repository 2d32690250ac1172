package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

func twoTenants(c *Config) {
	kinds := []spec.Kind{spec.KindVirtualMachine, spec.KindDisk}
	c.Tenants = []policy.Tenant{
		{Name: "acme", Path: "tenants/acme", Kinds: kinds, Pools: []string{"fast"}},
		{Name: "globex", Path: "tenants/globex", Kinds: kinds, Pools: []string{"fast"}},
	}
}

func withDisk(vm, disk string) string {
	return simVM(vm, ", memory: {size: 512Mi}, disks: [{disk: "+disk+"}]") + simDisk(disk)
}

// A tree in which a tenant oversteps its bounds never comes into force; the
// last good one stays, and the next good one is taken.
func TestTenantViolation(t *testing.T) {
	s := newSim(t, twoTenants)
	s.commit(map[string]string{"tenants/acme/a.yaml": withDisk("a", "a-root")})
	s.mustPass()
	s.ran()
	s.commit(map[string]string{"tenants/acme/a.yaml": withDisk("a", "a-root"),
		"tenants/globex/g.yaml": simVM("g", ", memory: {size: 512Mi}") + strings.Replace(simCluster, "apiVersion: reconciler/v1alpha1\nkind: Cluster\nmetadata: {name: demo}\n", "", 1)})
	s.commits[1]["cluster.yaml"] = "apiVersion: reconciler/v1alpha1\nkind: Cluster\nmetadata: {name: demo}\n"
	_, err := s.pass()
	if err == nil || !strings.Contains(err.Error(), `tenants/globex/g.yaml:7:1: tenant globex may not declare Host "host1"`) {
		t.Errorf("%v", err)
	}
	if b := s.ran(); len(b) != 0 {
		t.Errorf("it came into force: %v", b)
	}
	st, err := s.agent.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Conditions {
		if c.Type == status.Stalled && (c.Status != status.True || c.Reason != "TenantViolation") {
			t.Errorf("%+v", c)
		}
	}
	if st.LastAppliedRevision == st.LastAttemptedRevision {
		t.Error("the refused revision is reported as applied")
	}
	s.commit(map[string]string{"tenants/acme/a.yaml": withDisk("a", "a-root"), "tenants/globex/g.yaml": simVM("g", ", memory: {size: 512Mi}")})
	s.mustPass()
	if b := s.ran(); len(b) != 1 || b[0].object != "VirtualMachine/g" {
		t.Errorf("after the fix: %v", b)
	}
	// A stricter configuration finds the revision in force, which stays.
	s.cfg.Tenants[1].Quota.CPUs, s.cfg.Tenants[0].Pools = 1, nil
	s.restart()
	if _, err := s.pass(); err == nil || !strings.Contains(err.Error(), `may not use StoragePool "fast"`) {
		t.Errorf("%v", err)
	}
	if b := s.ran(); len(b) != 0 || s.live(spec.KindVirtualMachine, "a") == nil {
		t.Errorf("what ran is touched: %v", b)
	}
}

// A name that one tenant gave up is no way to its data: not from quarantine,
// not while the removal is held, and not under a new name.
func TestTenantTakesOver(t *testing.T) {
	const theirs = "tenants/globex/g.yaml"
	for _, c := range []struct {
		name   string
		held   bool // the removal
		claims string
	}{
		{"from quarantine", false, withDisk("g", "a-root")},
		{"from quarantine under a new name", false, strings.Replace(withDisk("g", "g-root"), "metadata: {name: g-root}", "metadata: {name: g-root, movedFrom: [a-root]}", 1)},
		{"while the removal is held", true, withDisk("a", "a-root")},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(t, func(cfg *Config) {
				twoTenants(cfg)
				if c.held {
					cfg.Windows = weekly(t)
				}
			})
			keep := withDisk("keep", "keep-root")
			s.commit(map[string]string{"tenants/acme/a.yaml": withDisk("a", "a-root"), theirs: keep})
			s.mustPass()
			s.commit(map[string]string{theirs: keep})
			s.mustPass()
			if gone := s.live(spec.KindVirtualMachine, "a") == nil; gone == c.held {
				t.Fatalf("the machine is gone: %t", gone)
			}
			s.restart() // what is known survives
			s.ran()

			s.commit(map[string]string{theirs: keep + c.claims})
			p := s.mustPass()
			if b := s.ran(); len(b) != 0 {
				t.Fatalf("%v", b)
			}
			disk := "Disk/a-root"
			if strings.Contains(c.claims, "g-root") {
				disk = "Disk/g-root"
			}
			if a := actionOf(t, p, disk); a.State != reconcile.Held || !strings.Contains(a.Reason, "tenant acme's (tenants/acme/a.yaml)") {
				t.Errorf("%s %s (%s)", a.Op, a.State, a.Reason)
			}
			for i := range p.Actions {
				if a := &p.Actions[i]; a.Kind == spec.KindVirtualMachine && a.Name != "keep" && a.State != reconcile.Held {
					t.Errorf("%s %s %s (%s)", a.Name, a.Op, a.State, a.Reason)
				}
			}
			// The owner may have it back.
			s.commit(map[string]string{theirs: keep, "tenants/acme/other.yaml": withDisk("a", "a-root")})
			s.mustPass()
			if h := s.live(spec.KindDisk, "a-root"); h == nil || h.Disk.Quarantined || s.live(spec.KindVirtualMachine, "a") == nil {
				t.Error("the owner did not get it back")
			}
			s.ran()
			// And the operators may give it away.
			s.commit(map[string]string{theirs: keep + withDisk("a", "a-root")})
			if s.mustPass(); len(s.ran()) != 0 {
				t.Error("taken over without the operators")
			}
			for _, id := range []string{"Disk/a-root", "VirtualMachine/a"} {
				if err := s.agent.Allow(context.Background(), api.AllowRequest{ID: id, For: time.Hour, Reason: "sold", Caller: api.Caller{Name: "ada"}}); err != nil {
					t.Fatal(err)
				}
			}
			if p := s.mustPass(); p.Count(reconcile.Held) != 0 {
				t.Errorf("%s", p.Headline())
			}
			s.sleep(2 * time.Hour) // it is theirs for good
			if p := s.mustPass(); p.Count(reconcile.Held) != 0 {
				t.Errorf("when the allowance is over: %s", p.Headline())
			}
		})
	}
}

// The record of who had what ends with the object.
func TestOwnersAreForgotten(t *testing.T) {
	s := newSim(t, twoTenants)
	s.commit(map[string]string{"tenants/acme/a.yaml": withDisk("a", "a-root"), "ops.yaml": withDisk("keep", "keep-root")})
	s.mustPass()
	s.commit(map[string]string{"ops.yaml": withDisk("keep", "keep-root")})
	s.mustPass()
	if n := len(s.agent.owners); n != 3 { // the machine is gone, the disk is in quarantine
		t.Errorf("%d owners, want 3: %v", n, s.agent.owners)
	}
	s.sleep(8 * 24 * time.Hour)
	s.mustPass()
	if n := len(s.agent.owners); n != 2 {
		t.Errorf("%d owners after the purge, want 2: %v", n, s.agent.owners)
	}
	s.commit(map[string]string{"ops.yaml": withDisk("keep", "keep-root"), "tenants/globex/g.yaml": withDisk("a", "a-root")})
	s.mustPass()
	if s.live(spec.KindVirtualMachine, "a") == nil {
		t.Error("the name is free, and not given away")
	}
}

// A tenant is its name: a directory that is renamed keeps what is in it, and one
// that is given to another tenant gives it nothing of the former one's. That holds
// for what an earlier build wrote down by its file alone, too.
func TestTenantIsItsName(t *testing.T) {
	for _, earlier := range []bool{false, true} {
		t.Run(fmt.Sprintf("earlier build %t", earlier), func(t *testing.T) {
			s := newSim(t, twoTenants)
			keep := map[string]string{"tenants/globex/g.yaml": withDisk("keep", "keep-root"), "ops.yaml": withDisk("ops", "ops-root")}
			with := func(file, text string) map[string]string {
				files := maps.Clone(keep)
				files[file] = text
				return files
			}
			s.commit(with("tenants/acme/a.yaml", withDisk("a", "a-root")))
			s.mustPass()
			s.commit(keep)
			s.mustPass()
			if h := s.live(spec.KindDisk, "a-root"); h == nil || !h.Disk.Quarantined {
				t.Fatal("the removed disk is not in quarantine")
			}
			if earlier {
				files := s.agent.owners.record()
				files.Tenants = nil
				if err := s.agent.store.save(ownersFile, files); err != nil {
					t.Fatal(err)
				}
				s.restart() // by the new build, before anything is given away
			}
			// The directory is the other tenant's now.
			former := s.cfg.Tenants
			s.cfg.Tenants = slices.Clone(former)
			s.cfg.Tenants[0].Path, s.cfg.Tenants[1].Path = "tenants/moved", "tenants/acme"
			s.restart()
			s.ran()
			moved := map[string]string{"tenants/acme/g.yaml": keep["tenants/globex/g.yaml"], "ops.yaml": keep["ops.yaml"]}
			s.commit(moved)
			if p := s.mustPass(); p.Count(reconcile.Held) != 0 {
				t.Errorf("a renamed directory: %s", p.Headline())
			}
			moved["tenants/acme/a.yaml"] = withDisk("a", "a-root")
			s.commit(moved)
			p := s.mustPass()
			if a := actionOf(t, p, "Disk/a-root"); a.State != reconcile.Held || !strings.Contains(a.Reason, "it is tenant acme's") {
				t.Errorf("a path that was acme's: %s %s (%s)", a.Op, a.State, a.Reason)
			}
			if b := s.ran(); slices.ContainsFunc(b, func(b begun) bool { return strings.HasPrefix(b.object, "Disk/a-root") }) {
				t.Errorf("%v", b)
			}
			// Its tenant has it back, wherever it is.
			delete(moved, "tenants/acme/a.yaml")
			moved["tenants/moved/a.yaml"] = withDisk("a", "a-root")
			s.commit(moved)
			s.mustPass()
			if h := s.live(spec.KindDisk, "a-root"); h == nil || h.Disk.Quarantined {
				t.Error("the tenant did not get it back")
			}
		})
	}
}
