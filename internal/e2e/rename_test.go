package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/drivers/kvm/qmp"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Every kind is renamed under a running machine, alone and all at once: nothing
// happens to it, and nothing is left to do.
func TestRenames(t *testing.T) {
	w := newSecretWorld(t)
	w.must(os.WriteFile(filepath.Join(w.images, "tiny"), []byte(strings.Repeat("t", 1<<20)), 0o644))
	// The names that each object ever had, the newest last.
	names := map[string][]string{}
	meta := func(object string) string {
		all := names[object]
		m := "name: " + all[len(all)-1]
		if len(all) > 1 {
			m += ", movedFrom: [" + strings.Join(all[:len(all)-1], ", ") + "]"
		}
		return "{" + m + "}"
	}
	now := func(object string) string { return names[object][len(names[object])-1] }
	tree := func() {
		w.write("secret.yaml", strings.Replace(sealed(t, "machine"), "metadata:\n    name: web\n", "metadata: "+meta("Secret web")+"\n", 1))
		w.write("base.yaml", fmt.Sprintf(`{apiVersion: reconciler/v1alpha1, kind: Cluster, metadata: %s}
---
{apiVersion: reconciler/v1alpha1, kind: Host, metadata: {name: host1}, spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}}
---
{apiVersion: reconciler/v1alpha1, kind: StoragePool, metadata: %s,
 spec: {host: host1, capacity: 4Gi, volumes: {file: {path: pools/fast}}, target: {embedded: {portals: ["%s"]}}}}
---
{apiVersion: reconciler/v1alpha1, kind: Network, metadata: %s, spec: {user: {}}}
---
{apiVersion: reconciler/v1alpha1, kind: Image, metadata: %s, spec: {source: {file: {path: k}}, sha256: %s}}
---
{apiVersion: reconciler/v1alpha1, kind: Image, metadata: %s, spec: {source: {file: {path: i}}, sha256: %s}}
---
{apiVersion: reconciler/v1alpha1, kind: Image, metadata: %s, spec: {source: {file: {path: tiny}}, sha256: %s, virtualSize: 1Mi}}
---
{apiVersion: reconciler/v1alpha1, kind: Disk, metadata: %s, spec: {pool: %s, size: 16Mi, source: {image: %s}}}
---
{apiVersion: reconciler/v1alpha1, kind: Disk, metadata: %s, spec: {pool: %s, size: 16Mi}}
---
{apiVersion: reconciler/v1alpha1, kind: VirtualMachine, metadata: %s, spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi},
 boot: {kernel: {image: %s}, initrd: {image: %s}, cmdline: "console=ttyS0 quiet panic=-1 rt.mode=writer rt.disk=all rt.interval=100ms"},
 disks: [{disk: %s}, {name: own, disk: %s}], nics: [{name: front, network: %s}],
 cloudInit: {userData: {secret: %s, key: user-data}}}}
`, meta("Cluster "+w.clusterID()), meta("StoragePool fast"), w.portal, meta("Network user"), meta("Image k"), w.sum("k"), meta("Image i"), w.sum("i"),
			meta("Image tiny"), w.sum("tiny"), meta("Disk root"), now("StoragePool fast"), now("Image tiny"), meta("Disk data"), now("StoragePool fast"),
			meta("VirtualMachine web"), now("Image k"), now("Image i"), now("Disk root"), now("Disk data"), now("Network user"), now("Secret web")))
	}
	objects := []string{"Cluster " + w.clusterID(), "StoragePool fast", "Network user", "Image k", "Image i", "Image tiny", "Secret web", "Disk root", "Disk data", "VirtualMachine web"}
	kinds := []string{"Host"} // the agent is told its name with --host
	for _, object := range objects {
		kind, name, _ := strings.Cut(object, " ")
		names[object] = []string{name}
		kinds = append(kinds, kind)
	}
	for _, kind := range spec.Kinds {
		if !slices.Contains(kinds, string(kind)) {
			t.Errorf("no %s is renamed", kind)
		}
	}
	tree()
	w.commit("a machine with everything")
	w.start()
	w.reconcile()
	w.settled()
	serial := w.serial("web")
	serial.Wait(t, `^REC 3 `, bootTime)
	pid, devices := w.pid("web"), w.devices("web")
	if !strings.Contains(devices, "disk-root") || !strings.Contains(devices, "disk-own") || !strings.Contains(devices, "nic-front") {
		t.Fatalf("the devices are %s", devices)
	}

	rename := func(list ...string) {
		t.Helper()
		for _, object := range list {
			n := names[object]
			names[object] = append(n, fmt.Sprintf("%s-%d", n[0], len(n)+1))
		}
		tree()
		p := w.plan("--rev", w.propose("rename "+strings.Join(list, ", ")))
		if p.Impact != reconcile.ImpactNone {
			t.Errorf("the plan of renaming %s:\n%s", strings.Join(list, ", "), strings.Join(lines(&p), "\n"))
		}
		w.git("push", "-q", "origin", "HEAD:main")
		w.reconcile()
		w.settled()
		if now := w.pid(now("VirtualMachine web")); now != pid {
			t.Fatalf("process %d, was %d, after %s was renamed", now, pid, strings.Join(list, ", "))
		}
		if now := w.devices(now("VirtualMachine web")); now != devices {
			t.Fatalf("the devices are\n%s\nand were\n%s\nbefore %s was renamed", now, devices, strings.Join(list, ", "))
		}
	}
	for _, object := range objects {
		rename(object)
	}
	rename(objects...)
	w.kill()
	w.start()
	w.reconcile()
	w.settled()
	if now := w.pid(now("VirtualMachine web")); now != pid {
		t.Errorf("process %d, was %d, after the agent was started again", now, pid)
	}
	serial.Skip()
	serial.Wait(t, `^REC \d+ `, 20*time.Second)
	if out, code := w.try("events"); code != 0 || strings.Contains(out, "Failed") || strings.Contains(out, "Quarantined") {
		t.Errorf("the events:\n%s", out)
	}
}

// devices lists what is plugged into a machine, and its disks' nodes.
func (w *world) devices(name string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	conn, err := qmp.Dial(ctx, w.state("vms", w.uid("VirtualMachine/"+name)+".qmp"))
	w.must(err)
	defer conn.Close()
	var devices []struct{ Name string }
	w.must(conn.Do(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, &devices))
	var blocks []struct {
		Qdev     string
		Inserted struct {
			NodeName string `json:"node-name"`
		}
	}
	w.must(conn.Do(ctx, "query-block", nil, &blocks))
	var list []string
	for _, d := range devices {
		list = append(list, d.Name)
	}
	for _, b := range blocks {
		list = append(list, b.Qdev+"="+b.Inserted.NodeName)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}
