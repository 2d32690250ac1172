package agent

import (
	"fmt"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"reconciler/spec"
)

// draft is a tree that edits are drawn for.
type draft struct {
	disks     []draftDisk
	machines  []draftMachine
	bridge    string
	kernel    string // content of the image k
	capacity  int    // Gi
	portals   int
	hostDrift string
	next      int // number of the next name
}

type draftDisk struct {
	name, was         string
	incarnation, size int // Mi
	policy, retention string
	drift             string
}

type draftMachine struct {
	name, was            string
	incarnation          int
	cores, memory, max   int
	power, update, again string
	restartPolicy        string
	kernel, cmdline      string
	timeout              int
	seed                 string
	drift                string
	disks                []string
	network, mac         string
}

func (d *draft) clone() *draft {
	c := *d
	c.disks = slices.Clone(d.disks)
	c.machines = slices.Clone(d.machines)
	for i := range c.machines {
		c.machines[i].disks = slices.Clone(c.machines[i].disks)
	}
	return &c
}

const draftFrame = `
apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
spec: {id: demo}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}%s}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec:
  host: host1
  capacity: %dGi
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: [%s]}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: front}
spec: {user: {}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: back}
spec: {bridge: {name: %s}}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: k}
spec: {source: {file: {path: k}}, sha256: "%s"}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: k2}
spec: {source: {file: {path: k2}}, sha256: "1111111111111111111111111111111111111111111111111111111111111111"}
`

func (d *draft) text() string {
	var b strings.Builder
	drift := ""
	if d.hostDrift != "" {
		drift = ", drift: " + d.hostDrift
	}
	portals := `"127.0.0.1:3260"`
	if d.portals > 1 {
		portals += `, "127.0.0.2:3260"`
	}
	fmt.Fprintf(&b, draftFrame, drift, d.capacity, portals, d.bridge, strings.Repeat(d.kernel, 64))
	for _, k := range d.disks {
		fmt.Fprintf(&b, "---\napiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {%s}\nspec: {pool: fast, size: %dMi, deletionPolicy: %s, retention: %s}\n",
			draftMeta(k.name, k.was, k.incarnation, k.drift), k.size, k.policy, k.retention)
	}
	for _, m := range d.machines {
		s := fmt.Sprintf("host: host1, cpu: {cores: %d, max: 8}, memory: {size: %dMi, max: %dMi}, powerState: %s, updatePolicy: {restart: %s}, restartPolicy: %s, shutdown: {timeout: %ds}",
			m.cores, m.memory, m.max, m.power, m.update, m.restartPolicy, m.timeout)
		if m.kernel != "" {
			s += fmt.Sprintf(", boot: {kernel: {image: %s}, cmdline: %q}", m.kernel, m.cmdline)
		}
		if m.again != "" {
			s += ", restartedAt: " + fmt.Sprintf("%q", m.again)
		}
		if m.seed != "" {
			s += ", cloudInit: {userData: {inline: " + m.seed + "}}"
		}
		s += ", disks: ["
		for _, k := range m.disks {
			s += fmt.Sprintf("{disk: %s}, ", k)
		}
		s += "], nics: ["
		if m.network != "" {
			s += fmt.Sprintf("{name: n, network: %s, mac: %q}", m.network, m.mac)
		}
		s += "]"
		fmt.Fprintf(&b, "---\napiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {%s}\nspec: {%s}\n",
			draftMeta(m.name, m.was, m.incarnation, m.drift), s)
	}
	return b.String()
}

func draftMeta(name, was string, incarnation int, drift string) string {
	s := "name: " + name
	if was != "" {
		s += ", movedFrom: [" + was + "]"
	}
	if incarnation > 0 {
		s += fmt.Sprintf(", incarnation: %d", incarnation)
	}
	if drift != "" {
		s += ", drift: " + drift
	}
	return s
}

// set loads the tree as the host and CI do. One that they refuse is not tried.
func (d *draft) set(t *rapid.T) *spec.Set {
	t.Helper()
	objects, err := spec.Parse("test.yaml", []byte(d.text()))
	if err != nil {
		t.Fatalf("%v\n%s", err, d.text())
	}
	set, err := spec.Build(objects)
	if err != nil {
		t.Skip(err)
	}
	return set
}

// among draws another value than the present one.
func among[T comparable](t *rapid.T, what string, present T, values ...T) T {
	others := slices.DeleteFunc(slices.Clone(values), func(v T) bool { return v == present })
	return rapid.SampledFrom(others).Draw(t, what)
}

var (
	macs    = []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}
	drifts  = []string{"", spec.DriftCorrect, spec.DriftReport, spec.DriftOff}
	powers  = []string{spec.PowerRunning, spec.PowerStopped}
	updates = []string{spec.UpdateManual, spec.UpdateAutomatic}
	agains  = []string{"", "2026-11-22T10:00:00Z", "2026-11-22T11:00:00Z"}
)

func (d *draft) fresh(prefix string) string {
	d.next++
	return fmt.Sprintf("%s%d", prefix, d.next)
}

func (d *draft) newDisk(t *rapid.T) draftDisk {
	return draftDisk{
		name: d.fresh("d"), size: 64 * rapid.IntRange(1, 3).Draw(t, "size"),
		policy:    rapid.SampledFrom([]string{spec.DeletionRetain, spec.DeletionDelete}).Draw(t, "policy"),
		retention: rapid.SampledFrom([]string{"24h", "48h"}).Draw(t, "retention"),
	}
}

func (d *draft) newMachine(t *rapid.T) draftMachine {
	m := draftMachine{
		name: d.fresh("v"), cores: rapid.IntRange(1, 2).Draw(t, "cores"), memory: 128, max: 1024, cmdline: "quiet", timeout: 10,
		power:  rapid.SampledFrom([]string{spec.PowerRunning, spec.PowerRunning, spec.PowerStopped}).Draw(t, "power"),
		update: rapid.SampledFrom(updates).Draw(t, "update"), restartPolicy: spec.RestartAlways, mac: macs[0],
		network: rapid.SampledFrom([]string{"", "front", "back"}).Draw(t, "network"),
	}
	if rapid.Bool().Draw(t, "kernel") {
		m.kernel = "k"
	}
	return m
}

// drawDraft draws a tree of up to three machines and four disks.
func drawDraft(t *rapid.T) *draft {
	d := &draft{bridge: "br0", kernel: "0", capacity: 10, portals: 1}
	for range rapid.IntRange(0, 4).Draw(t, "disks") {
		d.disks = append(d.disks, d.newDisk(t))
	}
	for range rapid.IntRange(1, 3).Draw(t, "machines") {
		d.machines = append(d.machines, d.newMachine(t))
	}
	for i := range d.disks {
		d.give(d.disks[i].name, rapid.IntRange(-1, len(d.machines)-1).Draw(t, "owner"))
	}
	d.hostDrift = rapid.SampledFrom([]string{"", "", spec.DriftReport}).Draw(t, "mode")
	return d
}

// give attaches a disk to a machine, or to none, and takes it from any other.
func (d *draft) give(disk string, to int) {
	for i := range d.machines {
		d.machines[i].disks = slices.DeleteFunc(d.machines[i].disks, func(k string) bool { return k == disk })
	}
	if to >= 0 {
		d.machines[to].disks = append(d.machines[to].disks, disk)
	}
}

// edited draws a number of edits of the tree.
func (d *draft) edited(t *rapid.T, least, most int) (*draft, int) {
	c := d.clone()
	n := rapid.IntRange(least, most).Draw(t, "edits")
	for range n {
		c.edit(t)
	}
	return c, n
}

// edit changes one field of one object, or makes or removes one.
func (d *draft) edit(t *rapid.T) {
	what := rapid.SampledFrom([]string{"machine", "machine", "disk", "disk", "tree"}).Draw(t, "edited")
	switch {
	case what == "machine" && len(d.machines) > 0:
		d.editMachine(t, rapid.IntRange(0, len(d.machines)-1).Draw(t, "machine"))
	case what == "disk" && len(d.disks) > 0:
		d.editDisk(t, rapid.IntRange(0, len(d.disks)-1).Draw(t, "disk"))
	default:
		d.editTree(t)
	}
}

func (d *draft) editMachine(t *rapid.T, i int) {
	m := &d.machines[i]
	switch rapid.SampledFrom([]string{"cores", "memory", "max", "power", "update", "again", "policy", "kernel", "cmdline", "timeout", "seed",
		"drift", "network", "mac", "order", "rename", "incarnation", "remove"}).Draw(t, "field") {
	case "cores":
		m.cores = among(t, "to", m.cores, 1, 2, 4)
	case "memory":
		m.memory = among(t, "to", m.memory, 128, 256, 512)
	case "max":
		m.max = among(t, "to", m.max, 1024, 2048)
	case "power":
		m.power = among(t, "to", m.power, powers...)
	case "update":
		m.update = among(t, "to", m.update, updates...)
	case "again":
		m.again = among(t, "to", m.again, agains...)
	case "policy":
		m.restartPolicy = among(t, "to", m.restartPolicy, spec.RestartAlways, spec.RestartOnFailure, spec.RestartNever)
	case "kernel":
		m.kernel = among(t, "to", m.kernel, "", "k", "k2")
	case "cmdline":
		m.cmdline = among(t, "to", m.cmdline, "quiet", "debug")
	case "timeout":
		m.timeout = among(t, "to", m.timeout, 10, 20)
	case "seed":
		m.seed = among(t, "to", m.seed, "", "one", "two")
	case "drift":
		m.drift = among(t, "to", m.drift, drifts...)
	case "network":
		m.network = among(t, "to", m.network, "", "front", "back")
	case "mac":
		m.mac = among(t, "to", m.mac, macs...)
	case "order":
		slices.Reverse(m.disks)
	case "rename":
		if m.was == "" {
			m.was, m.name = m.name, d.fresh("v")
		}
	case "incarnation":
		m.incarnation++
	case "remove":
		d.machines = slices.Delete(d.machines, i, i+1)
	}
}

func (d *draft) editDisk(t *rapid.T, i int) {
	k := &d.disks[i]
	switch rapid.SampledFrom([]string{"size", "policy", "retention", "drift", "owner", "owner", "rename", "incarnation", "remove"}).Draw(t, "field") {
	case "size":
		k.size = among(t, "to", k.size, 64, 128, 192, 256)
	case "policy":
		k.policy = among(t, "to", k.policy, spec.DeletionRetain, spec.DeletionDelete)
	case "retention":
		k.retention = among(t, "to", k.retention, "24h", "48h")
	case "drift":
		k.drift = among(t, "to", k.drift, drifts...)
	case "owner":
		d.give(k.name, rapid.IntRange(-1, len(d.machines)-1).Draw(t, "to"))
	case "rename":
		if k.was == "" {
			old := k.name
			k.was, k.name = old, d.fresh("d")
			for i := range d.machines {
				for j, has := range d.machines[i].disks {
					if has == old {
						d.machines[i].disks[j] = k.name
					}
				}
			}
		}
	case "incarnation":
		k.incarnation++
	case "remove":
		d.give(k.name, -1)
		d.disks = slices.Delete(d.disks, i, i+1)
	}
}

func (d *draft) editTree(t *rapid.T) {
	switch rapid.SampledFrom([]string{"new disk", "new machine", "bridge", "kernel", "capacity", "portals", "drift"}).Draw(t, "part") {
	case "new disk":
		k := d.newDisk(t)
		d.disks = append(d.disks, k)
		d.give(k.name, rapid.IntRange(-1, len(d.machines)-1).Draw(t, "to"))
	case "new machine":
		d.machines = append(d.machines, d.newMachine(t))
	case "bridge":
		d.bridge = among(t, "to", d.bridge, "br0", "br1")
	case "kernel":
		d.kernel = among(t, "to", d.kernel, "0", "2")
	case "capacity":
		d.capacity = among(t, "to", d.capacity, 10, 20)
	case "portals":
		d.portals = among(t, "to", d.portals, 1, 2)
	case "drift":
		d.hostDrift = among(t, "to", d.hostDrift, drifts...)
	}
}
