package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

// otherwise are fields that no edit of the table changes, and why.
var otherwise = map[string]string{
	"Cluster metadata.name":            "a label of the tree; its first value is the default of spec.id",
	"Cluster metadata.movedFrom":       "goes with the name",
	"Cluster metadata.incarnation":     "there is one cluster",
	"Host metadata.name":               "has a test of its own, with a second host",
	"Host metadata.movedFrom":          "goes with the name",
	"Host metadata.incarnation":        "a host is not made by us",
	"StoragePool metadata.incarnation": "a pool with disks is not replaced",
	"Secret metadata.name":             onlySOPS,
	"Secret metadata.labels":           onlySOPS,
	"Secret metadata.annotations":      onlySOPS,
	"Secret metadata.movedFrom":        onlySOPS,
	"Secret metadata.incarnation":      onlySOPS,
	"Secret metadata.drift":            onlySOPS,
	"Secret spec.data":                 onlySOPS,
}

const onlySOPS = "TestSecretEdits: only sops writes the file"

// editedTree has a machine that boots the tiny guest, one without anything, and
// something of every kind to edit.
const editedTree = `
---
{apiVersion: reconciler/v1alpha1, kind: Host, metadata: {name: host2},
 spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}}
---
{apiVersion: reconciler/v1alpha1, kind: StoragePool, metadata: {name: slow},
 spec: {host: host1, capacity: 1Gi, volumes: {file: {path: pools/slow}}, target: {embedded: {portals: [PORTAL]}}}}
---
{apiVersion: reconciler/v1alpha1, kind: Network, metadata: {name: lan}, spec: {bridge: {name: BRIDGE1}}}
---
{apiVersion: reconciler/v1alpha1, kind: Image, metadata: {name: k2}, spec: {source: {file: {path: k2}}, sha256: SUM-k2}}
---
{apiVersion: reconciler/v1alpha1, kind: Image, metadata: {name: i2}, spec: {source: {file: {path: i2}}, sha256: SUM-i2}}
---
{apiVersion: reconciler/v1alpha1, kind: Image, metadata: {name: tiny}, spec: {source: {file: {path: tiny}}, sha256: SUM-tiny, virtualSize: 1Mi}}
---
{apiVersion: reconciler/v1alpha1, kind: Disk, metadata: {name: data}, spec: {pool: fast, size: 32Mi}}
---
{apiVersion: reconciler/v1alpha1, kind: Disk, metadata: {name: extra}, spec: {pool: fast, size: 16Mi}}
---
{apiVersion: reconciler/v1alpha1, kind: VirtualMachine, metadata: {name: web},
 spec: {host: host1, cpu: {cores: 2}, memory: {size: 128Mi},
  boot: {kernel: {image: k}, initrd: {image: i}, cmdline: "console=ttyS0 quiet panic=-1 rt.mode=writer rt.disk=all rt.interval=200ms"},
  disks: [{name: data, disk: data}], nics: [{name: front, network: user, mac: "52:54:00:00:00:01"}], shutdown: {timeout: 30s}}}
---
{apiVersion: reconciler/v1alpha1, kind: VirtualMachine, metadata: {name: spare},
 spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, shutdown: {timeout: 1s}}}
`

// newEdits makes the world of editedTree; nothing runs yet.
func newEdits(t *testing.T) (e *edits, bridges [2]string) {
	t.Helper()
	e = &edits{world: newWorld(t), tree: map[string]map[string]any{}}
	bridges = [2]string{bridge(t, "a"), bridge(t, "b")}
	for from, to := range map[string]string{"k": "k2", "i": "i2"} {
		e.copy(filepath.Join(e.images, from), filepath.Join(e.images, to))
		// Neither the kernel's loader nor the unpacker of the initrd minds what
		// follows the end.
		f, err := os.OpenFile(filepath.Join(e.images, to), os.O_APPEND|os.O_WRONLY, 0)
		e.must(err)
		_, err = f.Write(make([]byte, 512))
		e.must(errors.Join(err, f.Close()))
	}
	e.must(os.WriteFile(filepath.Join(e.images, "tiny"), make([]byte, 1<<20), 0o644))
	config, err := yaml.Marshal(map[string]any{
		"allowed": map[string]any{"bridges": bridges[:]},
		"limits":  map[string]any{"budget": map[string]any{"count": 100}},
		"secrets": map[string]any{"ageKeyFile": e.file("age.txt")},
	})
	e.must(err)
	path := filepath.Join(e.dir, "config.yaml")
	e.must(os.WriteFile(path, config, 0o644))
	e.args = []string{"--config", path}
	e.ageKey("host")
	e.write("secret.yaml", sealed(t, "machine"))
	e.parse(e.base())
	e.parse(strings.NewReplacer("PORTAL", `"`+e.portal+`"`, "BRIDGE1", bridges[0],
		"SUM-k2", e.sum("k2"), "SUM-i2", e.sum("i2"), "SUM-tiny", e.sum("tiny")).Replace(editedTree))
	return e, bridges
}

// Every field of every kind, one at a time: it is seen in the plan with its
// impact, carried out or waiting for a restart that carries it out, or refused
// with a reason and without a trace; then there is nothing left to do.
func TestEveryEdit(t *testing.T) {
	e, bridges := newEdits(t)
	table := slices.Concat(e.labels(), e.declarations(), e.imageEdits(), e.disks(), e.cards(bridges), e.restarts(), e.interruptions())
	covered(t, table)
	e.save()
	e.commit("the tree")
	e.start()
	e.reconcile()
	e.settled()
	e.console = e.serial(nameOf(web))
	e.console.Wait(t, `^REC 3 vda`, bootTime)
	for i := range table {
		e.run(&table[i])
	}
	e.several()
}

const (
	web, spare = "VirtualMachine/web", "VirtualMachine/spare"
	tree       = "Cluster/test"
	host1      = "Host/host1"
	mac1, mac2 = "52:54:00:00:00:01", "52:54:00:00:00:02"
	cmdline    = "console=ttyS0 quiet panic=-1 rt.mode=writer rt.disk=all rt.interval=200ms"
)

func nameOf(object string) string {
	_, name, _ := strings.Cut(object, "/")
	return name
}

// id is an object's UID.
func (e *edits) id(kind spec.Kind, name string, incarnation int) string {
	id := e.tree[tree]["spec"].(map[string]any)["id"].(string)
	return spec.UID(id, kind, spec.Meta{Name: name, Incarnation: incarnation})
}

// update is an edit that is seen as the change of one field, and carried out at
// once. shown is how the plan writes the new value.
func update(object, field string, to any, from, shown, impact string) edit {
	return edit{object: object, field: field, to: to,
		plan: fmt.Sprintf("%s update %s ready\n%s %s: %s → %s %s", object, impact, object, field, from, shown, impact)}
}

// blocked is an edit that cannot be carried out.
func blocked(object, field string, to any, from, shown, why string) edit {
	return edit{object: object, field: field, to: to, why: why,
		plan: fmt.Sprintf("%s blocked none blocked\n%s %s: %s → %s none", object, object, field, from, shown)}
}

// restart is an edit of a machine that waits for its restart.
func restart(object, field string, to any, from, shown string, check func(*edits)) edit {
	return edit{object: object, field: field, to: to, why: "reconciler restart vm/" + nameOf(object), check: check,
		plan: fmt.Sprintf("%s update restart waiting\n%s %s: %s → %s restart", object, object, field, from, shown)}
}

// rename is an edit of a name, which brings the former one with it.
func rename(object, name string, with ...set) edit {
	kind, _, _ := strings.Cut(object, "/")
	now := kind + "/" + name
	return edit{object: object, field: "metadata.name", to: name,
		with: append(with, set{object, "metadata.movedFrom", []any{nameOf(object)}}),
		plan: fmt.Sprintf("%s update none ready\n%s metadata.movedFrom: → %s none\n%s metadata.name: %s → %s none",
			now, now, nameOf(object), now, nameOf(object), name)}
}

// labels are edits of what is never interpreted, of each kind.
func (e *edits) labels() (list []edit) {
	for _, object := range []string{tree, host1, "StoragePool/fast", "Image/k", "Network/user", "Disk/data", web} {
		for _, field := range []string{"metadata.labels", "metadata.annotations"} {
			d := update(object, field+"[tier]", nil, "", "a", "none")
			d.field, d.to = field, map[string]any{"tier": "a"}
			list = append(list, d)
		}
		list = append(list, update(object, "metadata.drift", "Correct", "", "Correct", "none"))
	}
	return list
}

// declarations are edits of the cluster, the host and pools.
func (e *edits) declarations() []edit {
	cordon := update(host1, "spec.state", "Cordoned", "Active", "Cordoned", "none")
	cordon.check = cordoned
	move := edit{object: "StoragePool/slow", field: "spec.host", to: "host2", why: "declared on host host2", plan: `StoragePool/slow blocked none blocked`}
	return []edit{
		{object: tree, field: "spec.iqnBase", to: "iqn.2026-12.local.other", refused: "it changes iqnBase"},
		{object: tree, field: "spec.id", to: "other", refused: `it declares the cluster id "other"`},
		update(host1, "spec.addresses.storage", "127.0.0.2", "127.0.0.1", "127.0.0.2", "none"),
		update(host1, "spec.addresses.migration", "127.0.0.3", "127.0.0.1", "127.0.0.3", "none"),
		update(host1, "spec.addresses.management", "127.0.0.4", "127.0.0.1", "127.0.0.4", "none"),
		update(host1, "spec.roles", []any{"Storage", "Hypervisor"}, "Hypervisor,Storage", "Storage,Hypervisor", "none"),
		update(host1, "spec.signingKey", hostKey, "", hostKey, "none"),
		update(host1, "spec.drift", "Report", "Correct", "Report", "none"),
		update(host1, "spec.drift", "Correct", "Report", "Correct", "none"),
		cordon,
		update("StoragePool/fast", "spec.capacity", "5Gi", "4Gi", "5Gi", "none"),
		update("StoragePool/fast", "spec.overcommit", 1.5, "1.0", "1.5", "none"),
		move,
		blocked("StoragePool/slow", "spec.volumes.file.path", "pools/other", "pools/slow", "pools/other", "cannot move"),
		rename("StoragePool/slow", "cold"),
	}
}

// hostKey is any public key: what it signs is no matter of this table.
const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAsbrTTnLaYzT8w7o4YIHO0dhL9PrVYQMHTo1S4Kp3n7 host1"

// cordoned checks that a cordoned host takes no new machine.
func cordoned(e *edits) {
	e.t.Helper()
	before := e.git("rev-parse", "HEAD")
	e.parse(vm("new", "", "powerState: Running"))
	p := e.plan("--rev", e.propose("a new machine"))
	e.compare("the plan of a new machine on a cordoned host", &p, []string{"VirtualMachine/new create none waiting"})
	delete(e.tree, "VirtualMachine/new")
	e.git("reset", "-q", "--hard", before)
}

// imageEdits are edits of images, of which one is fetched.
func (e *edits) imageEdits() []edit {
	e.must(os.WriteFile(filepath.Join(e.images, "x"), []byte(strings.Repeat("x", 1<<20)), 0o644))
	e.must(os.MkdirAll(filepath.Join(e.images, "copies"), 0o755))
	e.copy(filepath.Join(e.images, "i2"), filepath.Join(e.images, "copies", "i2"))
	old, x := e.sum("tiny"), e.sum("x")
	fetched := 0
	files := http.FileServer(http.Dir(e.images))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fetched++
		files.ServeHTTP(w, r)
	}))
	e.t.Cleanup(server.Close)
	return []edit{
		update("Image/tiny", "spec.virtualSize", "2Mi", "1Mi", "2Mi", "none"),
		update("Image/tiny", "spec.format", "qcow2", "raw", "qcow2", "none"),
		{object: "Image/tiny", field: "spec.source.http", to: map[string]any{"url": server.URL + "/x"},
			with: []set{{"Image/tiny", "spec.source.file", nil}, {"Image/tiny", "spec.sha256", x}},
			plan: fmt.Sprintf(`Image/tiny update none ready
				Image/tiny spec.source.file.path: tiny → none
				Image/tiny spec.source.http.url: → %s/x none
				Image/tiny spec.sha256: %s → %s none`, server.URL, old, x),
			check: func(e *edits) {
				if fetched == 0 {
					e.t.Error("the image was not fetched")
				}
			}},
		update("Image/tiny", "spec.source.http.url", server.URL+"/copies/../x", server.URL+"/x", server.URL+"/copies/../x", "none"),
		update("Image/i2", "spec.source.file.path", "copies/i2", "i2", "copies/i2", "none"),
		rename("Image/tiny", "small"),
		{object: "Image/small", field: "metadata.incarnation", to: 1, plan: "Image/small delete none ready\nImage/small create none ready"},
	}
}

// disks are edits of disks, and of those of a running machine.
func (e *edits) disks() []edit {
	writes := func(disk string) func(*edits) {
		serial := spec.Serial(e.id(spec.KindDisk, disk, 0))
		return func(e *edits) {
			e.t.Helper()
			guest(`^DISK add vd. serial=` + serial)(e)
			guest(`^REC \d+ vd. ` + serial)(e)
		}
	}
	extra := spec.Serial(e.id(spec.KindDisk, "extra", 0))
	moved := rename("Disk/extra", "more", set{web, "spec.disks[d0].disk", "more"})
	moved.check = guest(`^REC \d+ vd. ` + extra)
	return []edit{
		{object: web, field: "spec.disks[data].name", to: "d0", check: writes("data"),
			plan: web + ` update live ready
				` + web + ` spec.disks[data].disk: data → live
				` + web + ` spec.disks[data].size: 32Mi → live
				` + web + ` spec.disks[d0].disk: → data live
				` + web + ` spec.disks[d0].size: → 32Mi live`},
		{object: web, field: "spec.disks[d0].disk", to: "extra", check: writes("extra"),
			plan: web + ` update live ready
				` + web + ` spec.disks[d0].disk: data → extra live
				` + web + ` spec.disks[d0].size: 32Mi → 16Mi live`},
		{object: "Disk/extra", field: "spec.size", to: "24Mi",
			plan: `Disk/extra update live ready
				Disk/extra spec.size: 16Mi → 24Mi live
				` + web + ` update live ready
				` + web + ` spec.disks[d0].size: 16Mi → 24Mi live`,
			check: guest(fmt.Sprintf(`^DISK change vd. serial=%s size=%d`, extra, 24<<20))},
		{object: "Disk/extra", field: "spec.size", to: "8Mi", why: "a disk cannot shrink",
			plan: `Disk/extra blocked none blocked
				Disk/extra spec.size: 24Mi → 8Mi none
				` + web + ` blocked none blocked
				` + web + ` spec.disks[d0].size: 24Mi → 8Mi none`},
		{object: "Disk/extra", field: "spec.size", to: "8Gi", why: "would hold",
			plan: `Disk/extra blocked live blocked
				Disk/extra spec.size: 24Mi → 8Gi live
				` + web + ` blocked live blocked
				` + web + ` spec.disks[d0].size: 24Mi → 8Gi live`},
		{object: "Disk/extra", field: "spec.pool", to: "cold", refused: "a disk cannot change its pool"},
		{object: "Disk/extra", field: "spec.source.image", to: "k2", why: "raise metadata.incarnation",
			with: []set{{"Image/k2", "spec.virtualSize", "16Mi"}},
			plan: `Disk/extra blocked none blocked
				Disk/extra spec.source.blank: {} → none
				Disk/extra spec.source.image: → k2 none
				Image/k2 update none ready
				Image/k2 spec.virtualSize: → 16Mi none`},
		{object: "Disk/extra", field: "spec.source.blank", to: map[string]any{}, with: []set{{"Disk/extra", "spec.retention", "100h"}},
			plan: `Disk/extra update destroy ready
				Disk/extra spec.retention: 168h → 100h destroy`},
		update("Disk/extra", "spec.deletionPolicy", "Delete", "Retain", "Delete", "destroy"),
		update("Disk/extra", "spec.deletionPolicy", "Retain", "Delete", "Retain", "none"),
		update("Disk/extra", "spec.retention", "200h", "100h", "200h", "none"),
		moved,
		{object: "Disk/more", field: "metadata.incarnation", to: 1, check: func(e *edits) {
			e.t.Helper()
			guest(`^REC \d+ vd. ` + spec.Serial(e.id(spec.KindDisk, "extra", 1)))(e)
		},
			plan: `Disk/more quarantine remove ready
				Disk/more create none ready
				` + web + ` update live ready
				` + web + ` spec.disks[d0].disk: extra → more live`},
	}
}

// cards are edits of networks, and of the NICs of a running machine.
func (e *edits) cards(bridges [2]string) []edit {
	derived := spec.DerivedMAC(e.id(spec.KindVirtualMachine, "web", 0), "back")
	plugged := func(mac string, taps ...int) func(*edits) {
		return func(e *edits) {
			e.t.Helper()
			guest(`^NIC add eth\d mac=` + mac)(e)
			for i, n := range taps {
				e.taps(bridges[i], n)
			}
		}
	}
	return []edit{
		{object: web, field: "spec.nics[front].mac", to: mac2, check: plugged(mac2),
			plan: update(web, "spec.nics[front].mac", mac2, mac1, mac2, "live").plan},
		{object: web, field: "spec.nics[front].network", to: "lan", check: plugged(mac2, 1),
			plan: web + ` update live ready
				` + web + ` spec.nics[front].backend: user → bridge ` + bridges[0] + ` live
				` + web + ` spec.nics[front].network: user → lan live`},
		{object: "Network/lan", field: "spec.bridge.name", to: bridges[1],
			plan: `Network/lan update live ready
				Network/lan spec.bridge.name: ` + bridges[0] + ` → ` + bridges[1] + ` live
				` + web + ` update live ready
				` + web + ` spec.nics[front].backend: bridge ` + bridges[0] + ` → bridge ` + bridges[1] + ` live`,
			check: func(e *edits) { e.t.Helper(); e.taps(bridges[0], 0); e.taps(bridges[1], 1) }},
		{object: web, field: "spec.nics[front].name", to: "back", check: plugged(mac2, 0, 1),
			plan: web + ` update live ready
				` + web + ` spec.nics[front].backend: bridge ` + bridges[1] + ` → live
				` + web + ` spec.nics[front].mac: ` + mac2 + ` → live
				` + web + ` spec.nics[front].network: lan → live
				` + web + ` spec.nics[back].backend: → bridge ` + bridges[1] + ` live
				` + web + ` spec.nics[back].mac: → ` + mac2 + ` live
				` + web + ` spec.nics[back].network: → lan live`},
		{object: web, field: "spec.nics[back].mac", check: plugged(derived, 0, 1),
			plan: update(web, "spec.nics[back].mac", nil, mac2, derived, "live").plan},
		{object: "Network/lan", field: "spec.user", to: map[string]any{}, with: []set{{"Network/lan", "spec.bridge", nil}}, check: plugged(derived, 0, 0),
			plan: `Network/lan update live ready
				Network/lan spec.bridge.name: ` + bridges[1] + ` → live
				Network/lan spec.user: → {} live
				` + web + ` update live ready
				` + web + ` spec.nics[back].backend: bridge ` + bridges[1] + ` → user live`},
		{object: "Network/lan", field: "metadata.incarnation", to: 1,
			plan: fmt.Sprintf(`Network/lan delete none ready
				Network/lan create none ready
				%s update live ready
				%s spec.nics[back].network: lan (%.8s) → lan (%.8s) live`, web, web, e.id(spec.KindNetwork, "lan", 0), e.id(spec.KindNetwork, "lan", 1))},
		rename("Network/lan", "wan", set{web, "spec.nics[back].network", "wan"}),
	}
}

// restarts are edits that wait for a restart, and those that need none because
// the machine is told to restart or is off.
func (e *edits) restarts() []edit {
	firmware := restart(spare, "spec.boot.firmware", nil, "BIOS", "", nil)
	firmware.with = []set{{spare, "spec.boot.kernel", map[string]any{"image": "k"}}}
	last := fromSecret("networkConfig", "meta-data", "version: 2 (10 bytes)", told(`^CIDATA network-config "{role: canary-meta`))
	last.restart = []string{web}
	firmware.plan += "\n" + spare + " spec.boot.kernel.image: → k restart"

	return []edit{
		restart(web, "spec.cpu.max", 8, "", "8", started(web, "maxcpus=8")),
		restart(web, "spec.cpu.sockets", 2, "1", "2", started(web, "cpus=4")),
		restart(web, "spec.cpu.threads", 2, "1", "2", started(web, "threads=2")),
		restart(web, "spec.cpu.cores", 1, "2", "1", guest(`^CPU online=4$`)),
		restart(web, "spec.cpu.model", "max", "qemu64", "max", started(web, "-cpu max")),
		restart(web, "spec.memory.max", "256Mi", "", "256Mi", started(web, "maxmem=256M")),
		restart(web, "spec.memory.size", "224Mi", "128Mi", "224Mi", (*edits).measure),
		restart(web, "spec.machine", "pc-q35-7.1", "q35", "pc-q35-7.1", started(web, "-machine pc-q35-7.1,")),
		restart(web, "spec.boot.kernel.image", "k2", "k", "k2", started(web, e.sum("k2"))),
		restart(web, "spec.boot.initrd.image", "i2", "i", "i2", started(web, e.sum("i2"))),
		restart(web, "spec.boot.cmdline", cmdline+" "+showSeed, cmdline, cmdline+" "+showSeed, started(web, " rt.interval=200ms "+showSeed)),
		restart(web, "spec.cloudInit.userData.inline", "#one", "", "#one (4 bytes)", guest(`^CIDATA user-data "#one"$`)),
		restart(web, "spec.cloudInit.metaData.inline", "{instance-id: me}", "", "{instance-id: me} (17 bytes)", told(`^CIDATA meta-data ".*instance-id: me`)),
		restart(web, "spec.cloudInit.networkConfig.inline", "version: 2", "", "version: 2 (10 bytes)", told(`^CIDATA network-config "version: 2"$`)),
		firmware,
		{object: tree, field: "spec.defaults.cpuModel", to: "qemu32", why: "reconciler restart vm/spare",
			plan: tree + ` update none ready
				` + tree + ` spec.defaults.cpuModel: qemu64 → qemu32 none
				` + spare + ` update restart waiting
				` + spare + ` spec.cpu.model: qemu64 → qemu32 restart`,
			check: started(spare, "-cpu qemu32", e.sum("k")), restart: []string{web, spare}},
		{object: "Image/k", field: "spec.sha256", to: e.sum("k2"), with: []set{{"Image/k", "spec.source.file.path", "k2"}},
			plan: fmt.Sprintf(`Image/k update none ready
				Image/k spec.sha256: %[1]s → %[2]s none
				Image/k spec.source.file.path: k → k2 none
				%[3]s update restart waiting
				%[3]s spec.boot.kernel.image: k (%.8[1]s) → k (%.8[2]s) restart`, e.sum("k"), e.sum("k2"), spare),
			check: started(spare, e.sum("k2")), restart: []string{spare}},
		fromSecret("userData", "user-data", "#one (4 bytes)", guest(`^CIDATA user-data "#cloud-config\\n# canary-one`)),
		fromSecret("metaData", "meta-data", "{instance-id: me} (17 bytes)", told(`^CIDATA meta-data ".*role: canary-meta`)),
		last,
	}
}

// fromSecret is an edit of cloudInit: a text goes and a Secret's takes its place.
func fromSecret(part, key, from string, check func(*edits)) edit {
	at := "spec.cloudInit." + part
	return edit{object: web, field: at + ".secret", to: "web", why: "reconciler restart vm/web", check: check,
		with: []set{{web, at + ".key", key}, {web, at + ".inline", nil}},
		plan: fmt.Sprintf(`%[1]s update restart waiting
			%[1]s %[2]s.inline: %[4]s → restart
			%[1]s %[2]s.key: → %[3]s restart
			%[1]s %[2]s.secret: → web restart`, web, at, key, from)}
}

// told expects a line of the guest since it booted, wherever it stands.
func told(pattern string) func(*edits) {
	return func(e *edits) {
		e.t.Helper()
		testbed.NewSerial(e.serialPath(nameOf(web))).Wait(e.t, pattern, bootTime)
	}
}

// measure waits for the guest to tell how much memory it has.
func (e *edits) measure() {
	e.t.Helper()
	memory, err := strconv.Atoi(e.console.Wait(e.t, `^MEM bytes=(\d+)$`, bootTime)[1])
	e.must(err)
	e.memory = memory
}

// interruptions are edits that restart or stop a machine by themselves, and
// those that need nothing more because it is off.
func (e *edits) interruptions() []edit {
	const www = "VirtualMachine/www"
	portal := freePort(e.t)
	return []edit{
		update(web, "spec.shutdown.timeout", "20s", "30s", "20s", "none"),
		update(web, "spec.restartPolicy", "OnFailure", "Always", "OnFailure", "none"),
		{object: web, field: "spec.host", to: "host2", why: "declared on host host2", plan: web + ` blocked none blocked`,
			with: []set{{web, "spec.disks", []any{}}}},
		update(web, "spec.updatePolicy.restart", "Automatic", "Manual", "Automatic", "none"),
		{object: web, field: "spec.memory.size", to: "208Mi", why: "updatePolicy",
			check: func(e *edits) {
				e.t.Helper()
				before := e.memory
				e.measure()
				if less := before - e.memory; less < 15<<20 || less > 16<<20 {
					e.t.Errorf("the guest has %d bytes less than before, not 16 MiB", less)
				}
			},
			plan: web + ` restart restart ready
				` + web + ` spec.memory.size: 224Mi → 208Mi restart`},
		{object: spare, field: "spec.restartedAt", to: "2026-11-22T10:00:00Z", why: "restartedAt",
			plan: spare + ` restart restart ready
				` + spare + ` spec.restartedAt: → 2026-11-22T10:00:00Z restart`},
		update(spare, "spec.restartedAt", nil, "2026-11-22T10:00:00Z", "", "none"),
		{object: web, field: "spec.powerState", to: "Stopped",
			plan: web + ` stop stop ready
				` + web + ` spec.powerState: Running → Stopped stop`},
		update(web, "spec.memory.size", "192Mi", "208Mi", "192Mi", "none"),
		{object: "StoragePool/fast", field: "spec.target.embedded.portals", to: []any{portal},
			plan: update("StoragePool/fast", "spec.target.embedded.portals", nil, e.portal, portal, "live").plan},
		rename(web, "www"),
		{object: www, field: "spec.powerState", to: "Running",
			plan: www + ` start none ready
				` + www + ` spec.powerState: Stopped → Running none`,
			check: func(e *edits) {
				e.t.Helper()
				started(www, "-m size=192M", "guest=www,", `"portal":"`+portal+`"`)(e)
				guest(`^REC \d+`)(e)
			}},
		{object: "StoragePool/fast", field: "spec.target.embedded.portals", to: []any{e.portal}, why: "in use", undo: true,
			plan: `StoragePool/fast update live waiting
				StoragePool/fast spec.target.embedded.portals: ` + portal + ` → ` + e.portal + ` live`},
		update(host1, "spec.state", "Active", "Cordoned", "Active", "none"),
		{object: spare, field: "metadata.incarnation", to: 1, plan: spare + " delete remove ready\n" + spare + " create none ready"},
	}
}

// several edits many fields at once: what can be done in the running guest is
// done, the rest waits for one restart.
func (e *edits) several() {
	const www = "VirtualMachine/www"
	e.t.Helper()
	before := e.launches()
	for _, s := range []set{
		{www, "metadata.labels", map[string]any{"tier": "b"}},
		{www, "spec.updatePolicy.restart", "Manual"},
		{www, "spec.cpu.cores", 2},
		{www, "spec.memory.size", "240Mi"},
		{www, "spec.disks", []any{map[string]any{"name": "d0", "disk": "more"}, map[string]any{"disk": "data"}}},
		{www, "spec.nics", []any{map[string]any{"name": "side", "network": "user", "mac": mac1}}},
		{"Disk/more", "spec.size", "32Mi"},
	} {
		e.set(s)
	}
	rev := e.propose("many fields")
	waiting := []string{
		www + " spec.cpu.cores: 1 → 2 restart",
		www + " spec.memory.size: 192Mi → 240Mi restart",
	}
	derived := spec.DerivedMAC(e.id(spec.KindVirtualMachine, "web", 0), "back")
	want := append([]string{
		"Disk/more spec.size: 24Mi → 32Mi live",
		"Disk/more update live ready",
		www + " metadata.labels[tier]: a → b none",
		www + " spec.disks[d0].size: 24Mi → 32Mi live",
		www + " spec.disks[data].disk: → data live",
		www + " spec.disks[data].size: → 32Mi live",
		www + " spec.nics[back].backend: user → live",
		www + " spec.nics[back].mac: " + derived + " → live",
		www + " spec.nics[back].network: wan → live",
		www + " spec.nics[side].backend: → user live",
		www + " spec.nics[side].mac: → " + mac1 + " live",
		www + " spec.nics[side].network: → user live",
		www + " spec.updatePolicy.restart: Automatic → Manual none",
		www + " update restart ready",
	}, waiting...)
	slices.Sort(want)
	p := e.plan("--rev", rev)
	e.compare("the plan of many edits", &p, want)
	e.console.Skip()
	e.merge()
	for _, pattern := range []string{`^DISK change vd. .*size=33554432`, `^REC \d+ vd. ` + spec.Serial(e.id(spec.KindDisk, "data", 0))} {
		guest(pattern)(e)
	}
	p = e.plan()
	e.compare("the plan while the rest waits", &p, append(waiting, www+" update restart waiting"))
	if a := action(e.t, &p, www); a.Cause != reconcile.CauseRevision {
		e.t.Errorf("the cause of what waits is %s", a.Cause)
	}
	if now := e.launches(); now[e.uid(www)] != before[e.uid(www)] {
		e.t.Errorf("www was restarted by itself")
	}
	e.restart(www)
	started(www, "-m size=240M", mac1)(e)
	guest(`^CPU online=8$`)(e)
}
