package review

import (
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

const two = `apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host2}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.2}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast2}
spec: {host: host2, capacity: 10Ti, volumes: {file: {path: pools/fast}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}}
`

func rowOf(t *testing.T, r *Report, host, object string) *Row {
	t.Helper()
	for i := range r.Actions {
		if a := &r.Actions[i]; a.Host == host && string(a.Kind)+"/"+a.Name == object {
			return a
		}
	}
	t.Fatalf("host %s has no row of %s", host, object)
	return nil
}

func parseTree(t *testing.T, text string) *spec.Set {
	t.Helper()
	objects, err := spec.Parse("tree.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	set, err := spec.Build(objects)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A pull request that has a disk in another place than it is, is refused: by what
// the host last applied, by the volume's own record, also where the base had
// removed it in between, and however the disk came to be elsewhere.
func TestMovedDiskIsRefused(t *testing.T) {
	here := tree(t, two, disk("d1", "size: 1Gi"))
	in2 := func(doc string) string { return strings.Replace(doc, "pool: fast", "pool: fast2", 1) }
	gone := tree(t, two)
	trade := parseTree(t, strings.NewReplacer("host: host1", "host: host2", "host: host2", "host: host1").Replace(frame+"---\n"+two+"---\n"+disk("d1", "size: 1Gi")))
	noBase, noRecord := applied(here, "host1"), applied(here, "host1")
	noBase.Base, noRecord.Have = reconcile.Base{}, reconcile.NewState()
	for _, c := range []struct {
		name        string
		base, merge *spec.Set
		host        HostInput
		refused     string
	}{
		{"in one commit", here, tree(t, two, in2(disk("d1", "size: 1Gi"))), applied(here, "host1"), `Disk "d1" is on host "host1" in StoragePool "fast"`},
		{"removed in between", gone, tree(t, two, in2(disk("d1", "size: 1Gi"))), applied(here, "host1"), `Disk "d1" is on host "host1" in StoragePool "fast"`},
		{"by the volume's record", gone, tree(t, two, in2(disk("d1", "size: 1Gi"))), noBase, `a disk cannot change its pool`},
		{"by what was last applied", gone, tree(t, two, in2(disk("d1", "size: 1Gi"))), noRecord, `a disk cannot change its pool`},
		{"pools that trade their hosts", here, trade, applied(here, "host1"), `its StoragePool "fast" is now declared on host "host2"`},
		{"a fresh disk", here, tree(t, two, strings.Replace(in2(disk("d1", "size: 1Gi")), "name: d1", "name: d1, incarnation: 1", 1)), applied(here, "host1"), ""},
		{"the same place", here, tree(t, two, disk("d1", "size: 2Gi")), applied(here, "host1"), ""},
	} {
		r := Compare(input(c.base, c.merge, c.host, applied(gone, "host2")))
		if !strings.Contains(r.Refused, c.refused) || (c.refused == "") != (r.Refused == "") {
			t.Errorf("%s: refused: %q, want %q", c.name, r.Refused, c.refused)
		}
		if c.refused != "" && !strings.Contains(r.Refused, "raise the disk's metadata.incarnation") {
			t.Errorf("%s: no way out in %q", c.name, r.Refused)
		}
	}
}

// A machine that moves to another host waits there, by what the base says and by
// what the host reports that has it.
func TestMovedMachineWaits(t *testing.T) {
	const size = "cpu: {cores: 1}, memory: {size: 64Mi}"
	here, there, gone := tree(t, two, vmOn("host1", "web", size)), tree(t, two, vmOn("host2", "web", size)), tree(t, two)
	for _, c := range []struct {
		name string
		base *spec.Set
		host HostInput
		word string
	}{
		{"in one commit", here, applied(here, "host1"), "it is on host host1"},
		{"removed in between, and not done", gone, applied(here, "host1"), "it is on host host1"},
		{"without a report", here, HostInput{Host: "host1", Problem: "it has reported nothing"}, "the base has it on host host1"},
	} {
		r := Compare(input(c.base, there, c.host, applied(gone, "host2")))
		if a := rowOf(t, r, "host2", "VirtualMachine/web"); a.State != reconcile.Waiting || !strings.Contains(a.Reason, c.word) {
			t.Errorf("%s: on host2 it is %s %s: %s", c.name, a.Op, a.State, a.Reason)
		}
	}
	r := Compare(input(gone, there, applied(gone, "host1"), applied(gone, "host2")))
	if a := rowOf(t, r, "host2", "VirtualMachine/web"); a.State != reconcile.Ready {
		t.Errorf("a machine that nobody has is %s: %s", a.State, a.Reason)
	}
}

// A host that is renamed is the same host: its plan is empty, and of what it
// reported under its old name.
func TestRenamedHostInReview(t *testing.T) {
	docs := frame + "---\n" + disk("d1", "size: 1Gi") + "---\n" + vmOn("host1", "web", "cpu: {cores: 1}, memory: {size: 64Mi}, disks: [{disk: d1}]")
	renamed := strings.ReplaceAll(docs, "host: host1", "host: hosta")
	renamed = strings.Replace(renamed, "{name: host1}", "{name: hosta, movedFrom: [host1]}", 1)
	base := parseTree(t, docs)
	h := applied(base, "host1")
	h.Host, h.Was = "hosta", "host1"
	r := Compare(input(base, parseTree(t, renamed), h))
	for i := range r.Actions {
		if a := &r.Actions[i]; a.Op != reconcile.OpUnchanged && (a.Kind != spec.KindHost || a.Impact != reconcile.ImpactNone) {
			t.Errorf("%s/%s: %s %s: %s %v", a.Kind, a.Name, a.Op, a.State, a.Reason, a.Changes)
		}
	}
	if r.Refused != "" || len(r.Cancelled) > 0 || len(r.Hosts) != 1 {
		t.Errorf("refused %q, cancelled %v, hosts %v", r.Refused, r.Cancelled, r.Hosts)
	}
}
