package spec

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A field that is not described would be shown to nobody and compared by nobody.
func TestEveryFieldIsDescribed(t *testing.T) {
	if len(definitions) != len(Kinds) {
		t.Fatalf("%d kinds are defined, Kinds lists %d", len(definitions), len(Kinds))
	}
	for i, d := range definitions {
		if d.kind != Kinds[i] {
			t.Errorf("%s is defined at the place of %s", d.kind, Kinds[i])
		}
		if examples[d.kind] == "" || d.doc == "" {
			t.Errorf("%s has no example or no documentation", d.kind)
		}
		for _, f := range d.all {
			where := fmt.Sprintf("%s %s", d.kind, f.path)
			if f.doc == "" || !strings.HasSuffix(f.doc, ".") {
				t.Errorf("%s: doc tag %q is no sentence", where, f.doc)
			}
			if f.name == "" {
				t.Errorf("%s: no yaml tag", where)
			}
			leaf := f.elem == nil
			if known := slices.Contains([]World{Observed, Recorded, Policy}, f.world); leaf != known {
				t.Errorf("%s: world tag %q", where, f.world)
			}
			if f.required && f.def != "" {
				t.Errorf("%s: required, and has a default", where)
			}
			if f.max != 0 && f.min > f.max {
				t.Errorf("%s: min is more than max", where)
			}
			if (f.shape == shapeSize || f.shape == shapeDuration) && f.max == 0 {
				t.Errorf("%s: no bound, so sums may overflow", where)
			}
			if f.shape == shapeString && f.enum == nil && f.format == nil {
				t.Errorf("%s: any string is accepted", where)
			}
			if f.ref != "" && definitionOf(f.ref) == nil {
				t.Errorf("%s: refers to unknown kind %s", where, f.ref)
			}
		}
		for _, s := range []*structure{d.meta, d.spec} {
			s.fill(reflect.New(s.typ).Elem()) // panics where a default breaks its own rule
		}
	}
}

func TestDefaultsAreTheConstants(t *testing.T) {
	set := mustLoad(t, map[string]string{"a.yaml": base})
	cluster := set.Cluster().Spec.(*Cluster)
	if cluster.IQNBase != DefaultIQNBase || cluster.Defaults.CPUModel != DefaultCPUModel || cluster.ID != "demo" {
		t.Errorf("cluster: %+v", cluster)
	}
	disk := set.Get(KindDisk, "old-root").Spec.(*Disk)
	if disk.Retention != DefaultRetention || disk.DeletionPolicy != DeletionRetain || disk.Source.Blank == nil {
		t.Errorf("disk: %+v", disk)
	}
	o := set.Get(KindVirtualMachine, "old")
	vm := *o.Spec.(*VirtualMachine)
	want := VirtualMachine{
		Host: "host1", PowerState: PowerRunning,
		CPU:    CPU{Sockets: 1, Cores: 1, Threads: 1, Model: DefaultCPUModel},
		Memory: Memory{Size: 64 * MiB}, Machine: "q35",
		Boot:          Boot{Firmware: FirmwareBIOS},
		Disks:         []VMDisk{{Name: "old-root", Disk: "old-root"}},
		NICs:          []NIC{{Name: "n", Network: "front", MAC: "52:54:00:00:00:01"}},
		Shutdown:      Shutdown{DefaultShutdownTimeout},
		RestartPolicy: RestartAlways, UpdatePolicy: UpdatePolicy{UpdateManual},
	}
	if !reflect.DeepEqual(vm, want) {
		t.Errorf("machine:\n got %+v\nwant %+v", vm, want)
	}
	host := set.Get(KindHost, "host1").Spec.(*Host)
	if host.Addresses.Storage != "192.0.2.1" || host.Addresses.Migration != "192.0.2.1" || host.State != HostStateActive {
		t.Errorf("host: %+v", host)
	}
	pool := set.Get(KindStoragePool, "fast").Spec.(*StoragePool)
	if pool.Overcommit != 1 {
		t.Errorf("pool: %+v", pool)
	}
}

func TestClusterDefaultsReachMachines(t *testing.T) {
	text := strings.Replace(base, "kind: Cluster\nmetadata: {name: demo}\n", "kind: Cluster\nmetadata: {name: now, movedFrom: [first, then]}\nspec: {defaults: {cpuModel: EPYC}}\n", 1)
	text = strings.Replace(text, ", mac: \"52:54:00:00:00:01\"", "", 1)
	objects, err := Parse("a.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	set := build(t, objects)
	if set.ClusterID() != "first" {
		t.Errorf("cluster id is %q, want the oldest name", set.ClusterID())
	}
	o := set.Get(KindVirtualMachine, "old")
	vm := o.Spec.(*VirtualMachine)
	if vm.CPU.Model != "EPYC" {
		t.Errorf("CPU model is %q", vm.CPU.Model)
	}
	if want := UID("first", KindVirtualMachine, o.Meta); o.UID != want || set.ByUID(want) != o {
		t.Errorf("UID is %s, want %s", o.UID, want)
	}
	if vm.NICs[0].MAC != DerivedMAC(o.UID, "n") {
		t.Errorf("address is %q", vm.NICs[0].MAC)
	}
	// The parsed objects may be in a cache, for another tree with another cluster.
	for _, o := range objects {
		if vm, ok := o.Spec.(*VirtualMachine); ok && (vm.CPU.Model != "" || vm.NICs[0].MAC != "" || o.UID != "") {
			t.Error("Build changed an object that it was given")
		}
	}
}

func TestFlatten(t *testing.T) {
	const doc = `apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: x, labels: {b: "2", a: "1"}, annotations: {note: n}, movedFrom: [v, w], incarnation: 3}
spec:
  host: host1
  cpu: {cores: 2, max: 4, model: host}
  memory: {size: 512Mi, max: 2Gi}
  boot: {kernel: {image: k}, initrd: {image: i}, cmdline: "a,b"}
  disks: [{disk: x-root}, {name: data, disk: x-data}]
  nics: [{name: front, network: user, mac: "52:54:00:AB:00:01"}]
  restartedAt: 2026-11-22T10:00:00Z
`
	objects, err := Parse("a.yaml", []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, f := range Flatten(objects[0]) {
		fmt.Fprintf(&got, "%s = %s (%s)\n", f.Path, f.Value, f.World)
	}
	const want = `metadata.name = x (recorded)
metadata.labels[a] = 1 (policy)
metadata.labels[b] = 2 (policy)
metadata.annotations[note] = n (policy)
metadata.movedFrom = v,w (policy)
metadata.incarnation = 3 (policy)
spec.host = host1 (recorded)
spec.powerState = Running (observed)
spec.cpu.sockets = 1 (observed)
spec.cpu.cores = 2 (observed)
spec.cpu.threads = 1 (observed)
spec.cpu.max = 4 (recorded)
spec.cpu.model = host (recorded)
spec.memory.size = 512Mi (observed)
spec.memory.max = 2Gi (recorded)
spec.machine = q35 (recorded)
spec.boot.kernel.image = k (recorded)
spec.boot.initrd.image = i (recorded)
spec.boot.cmdline = a,b (recorded)
spec.disks[x-root].name = x-root (observed)
spec.disks[x-root].disk = x-root (observed)
spec.disks[data].name = data (observed)
spec.disks[data].disk = x-data (observed)
spec.nics[front].name = front (observed)
spec.nics[front].network = user (observed)
spec.nics[front].mac = 52:54:00:ab:00:01 (observed)
spec.shutdown.timeout = 60s (policy)
spec.restartPolicy = Always (policy)
spec.updatePolicy.restart = Manual (policy)
spec.restartedAt = 2026-11-22T10:00:00Z (recorded)
`
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
	for path, want := range map[string]string{
		"spec.disks[data].disk":   "9:46",
		"spec.disks[x-root].name": "9:10", // not written: the list's
		"spec.memory.max":         "7:30",
		"metadata.labels[a]":      "3:29",
		"spec.machine":            "1:1",
	} {
		_, line, col := objects[0].Position(path)
		if got := fmt.Sprintf("%d:%d", line, col); got != want {
			t.Errorf("%s is at %s, want %s", path, got, want)
		}
	}
}

// A plan shows the start of a text and nothing of a secret; both are compared
// by their digest.
func TestFlattenHidesAndAbridges(t *testing.T) {
	flat := func(doc string) map[string]Field {
		t.Helper()
		objects, err := Parse("a.yaml", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		list := make(map[string]Field)
		for _, f := range Flatten(objects[0]) {
			list[f.Path] = f
		}
		return list
	}
	secret := flat(secretWeb)
	if f := secret["spec.data[user-data]"]; f.Value != "(sensitive)" || f.Digest != Digest(sealedValue) || f.Digest == secret["spec.data[token]"].Digest {
		t.Errorf("a secret is shown as %+v", f)
	}
	for text, want := range map[string]string{
		`"#cloud-config\npassword: x\n"`:     "#cloud-config… (26 bytes)",
		`"#cloud-config"`:                    "#cloud-config (13 bytes)",
		`"` + strings.Repeat("é", 30) + `"`:  strings.Repeat("é", 20) + "… (60 bytes)",
		`"a` + strings.Repeat("é", 30) + `"`: "a" + strings.Repeat("é", 19) + "… (61 bytes)",
		`"\nx"`:                              "… (2 bytes)",
	} {
		f := flat(caseFile(vm + "  cloudInit: {userData: {inline: " + text + "}}\n"))["spec.cloudInit.userData.inline"]
		if f.Value != want || len(f.Digest) != 64 {
			t.Errorf("%s is shown as %+v, want %q", text, f, want)
		}
	}
}

// Every leaf of every kind reaches Flatten when it has a value.
func TestFlattenForgetsNoField(t *testing.T) {
	for _, d := range definitions {
		o := &Object{Kind: d.kind, Spec: reflect.New(d.spec.typ).Interface()}
		saturate(reflect.ValueOf(&o.Meta).Elem())
		saturate(reflect.ValueOf(o.Spec).Elem())
		got := make(map[string]bool)
		for _, f := range Flatten(o) {
			got[f.Path] = true
		}
		for _, f := range d.leaves {
			path := strings.Replace(f.path, "[]", "[x]", 1)
			if f.shape == shapeMap {
				path += "[x]"
			}
			if !got[path] {
				t.Errorf("%s: %s is not listed", d.kind, path)
			}
		}
	}
}

// saturate gives every field some value.
func saturate(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		saturate(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		saturate(v.Index(0))
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"x": "x"}))
	case reflect.Struct:
		for i := range v.NumField() {
			saturate(v.Field(i))
		}
	}
}

func TestQuantities(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1Ki": KiB, "1536Mi": 1536 * MiB, "20Gi": 20 * GiB, "3Ti": 3 * TiB} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v", text, got, err)
		}
		var again Size
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != got {
			t.Errorf("%q is written %q and read as %d, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "Gi", "1", "+1Gi", "-1Gi", "1 Gi", "1e3Mi", "0x1Mi", "9223372036854775808Ki", "8388608Ti"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
	for text, want := range map[string]string{"90s": "90s", "60s": "60s", "5m": "5m", "168h": "168h", "1h30m": "90m", "1500ms": "1.5s", "0s": "0s"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d.String() != want {
			t.Errorf("%q is written %q, %v; want %q", text, d, err, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"memory", "machine", "disks", "nics", "cpu"}
	for s, want := range map[string]string{"memroy": "memory", "Memory": "memory", "disk": "disks", "nic": "nics", "cpus": "cpu", "volumes": "", "": ""} {
		if got := nearest(s, slices.Values(names)); got != want {
			t.Errorf("nearest(%q) = %q, want %q", s, got, want)
		}
	}
}
