package main

import (
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

// A host that a pull request renames is planned for under its new name, from what
// it reported under the old one.
func TestCIRenamedHost(t *testing.T) {
	w := newCIWorld(t)
	base := strings.Replace(w.base(w.hostKey.Public()), "{name: host1}", "{name: hosta, movedFrom: [host1]}", 1)
	w.commit("rename", map[string]string{"base.yaml": base, "web.yaml": strings.Replace(ciVM("web", "128Mi"), "host1", "hosta", 1)})
	r := w.compute()
	if r.report.Incomplete || len(r.report.Hosts) != 1 || r.report.Hosts[0].Host != "hosta" || r.report.Hosts[0].New {
		t.Fatalf("incomplete %v, hosts %+v", r.report.Incomplete, r.report.Hosts)
	}
	for _, a := range r.report.Actions {
		if a.Op != reconcile.OpUnchanged && (a.Kind != spec.KindHost || a.Impact != reconcile.ImpactNone) {
			t.Errorf("%s/%s: %s %s: %s", a.Kind, a.Name, a.Op, a.State, a.Reason)
		}
	}
}

// A pull request that has a disk in another pool fails, with the way out.
func TestCIMovedDisk(t *testing.T) {
	w := newCIWorld(t)
	pool := func(name string) string {
		return "---\napiVersion: reconciler/v1alpha1\nkind: StoragePool\nmetadata: {name: " + name + "}\nspec: {host: host1, capacity: 1Gi, volumes: {file: {path: pools/" + name + "}}, target: {embedded: {portals: [\"127.0.0.1:3260\"]}}}\n"
	}
	disk := "---\napiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: d1}\nspec: {pool: fast, size: 1Mi}\n"
	w.git("checkout", "-q", "main")
	w.commit("a disk", map[string]string{"disk.yaml": pool("fast") + pool("slow") + disk})
	w.report(nil)
	w.git("checkout", "-q", "-B", "feature")
	w.commit("move it", map[string]string{"disk.yaml": pool("fast") + pool("slow") + strings.Replace(disk, "pool: fast", "pool: slow", 1)})
	r := w.compute()
	if why := r.report.Refused; !strings.Contains(why, "disk.yaml:") || !strings.Contains(why, "cannot change its pool") || !strings.Contains(why, "metadata.incarnation") {
		t.Errorf("refused: %q", why)
	}
	if err := r.exit(false); err != exitCode(exitError) {
		t.Errorf("exit %v", err)
	}
}
