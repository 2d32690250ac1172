package policy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"reconciler/spec"
)

const shared = `apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host2}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.2}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec: {host: host1, capacity: 1Ti, volumes: {file: {path: pools/fast}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: slow}
spec: {host: host1, capacity: 1Ti, volumes: {file: {path: pools/slow}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: front}
spec: {bridge: {name: br-front}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: mgmt}
spec: {bridge: {name: br-mgmt}}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: debian}
spec: {source: {file: {path: debian.img}}, sha256: "0000000000000000000000000000000000000000000000000000000000000001", virtualSize: 1Gi}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: golden}
spec: {source: {file: {path: golden.img}}, sha256: "0000000000000000000000000000000000000000000000000000000000000002", virtualSize: 1Gi}
`

func doc(kind, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec: {%s}\n", kind, name, spec)
}

func diskDoc(name, more string) string { return doc("Disk", name, "pool: fast, size: 1Gi"+more) }

func vmDoc(name, more string) string {
	return doc("VirtualMachine", name, "host: host1, cpu: {cores: 2}, memory: {size: 1Gi}"+more)
}

func tree(t rapid.TB, files map[string]string) *spec.Set {
	t.Helper()
	fsys := fstest.MapFS{"cluster.yaml": &fstest.MapFile{Data: []byte(shared)}}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	set, err := spec.Load(fsys)
	if err != nil {
		t.Fatalf("the tree itself is wrong: %v", err)
	}
	return set
}

func acme() Tenant {
	return Tenant{
		Name: "acme", Path: "tenants/acme", Kinds: []spec.Kind{spec.KindVirtualMachine, spec.KindDisk, spec.KindImage, spec.KindNetwork},
		Pools: []string{"fast"}, Networks: []string{"front"}, Images: []string{"debian"}, Hosts: []string{"host1"},
		Bridges: []string{"br-acme"}, ImageFiles: "acme",
	}
}

func globex() Tenant {
	return Tenant{Name: "globex", Path: "tenants/globex", Kinds: []spec.Kind{spec.KindVirtualMachine, spec.KindDisk, spec.KindNetwork, spec.KindImage},
		Pools: []string{"fast"}, Bridges: []string{"br-globex"}, ImageFiles: "globex"}
}

func TestCheckTenants(t *testing.T) {
	const sum = `sha256: "0000000000000000000000000000000000000000000000000000000000000003"`
	with := func(change func(*Tenant)) Tenant { a := acme(); change(&a); return a }
	for _, c := range []struct {
		name    string
		files   map[string]string
		tenants []Tenant
		want    []string // in this order; none: nothing is wrong
	}{
		{"all of it is its own or shared", map[string]string{"tenants/acme/a.yaml": diskDoc("d", ", source: {image: debian}") +
			doc("Network", "net", "bridge: {name: br-acme}") + doc("Image", "own", "source: {file: {path: acme/own.img}}, virtualSize: 1Gi, "+sum) +
			diskDoc("e", ", source: {image: own}") +
			vmDoc("v", ", boot: {kernel: {image: own}}, disks: [{disk: d}, {disk: e}], nics: [{name: a, network: front}, {name: b, network: net}]")}, nil, nil},
		{"outside of all tenants everything goes", map[string]string{"ops/a.yaml": diskDoc("d", "") + vmDoc("v", ", disks: [{disk: d}], nics: [{name: a, network: mgmt}]")}, nil, nil},
		{"a kind", map[string]string{"tenants/acme/a.yaml": doc("StoragePool", "p", `host: host1, capacity: 1Gi, volumes: {file: {path: pools/p}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}`)}, nil,
			[]string{`tenants/acme/a.yaml:2:1: tenant acme may not declare StoragePool "p" (it may declare VirtualMachine, Disk, Image, Network)`}},
		{"a host", map[string]string{"tenants/acme/sub/deep/a.yaml": doc("Host", "h", "roles: [Hypervisor], addresses: {management: 127.0.0.9}")}, nil,
			[]string{`tenants/acme/sub/deep/a.yaml:2:1: tenant acme may not declare Host "h"`}},
		{"a pool", map[string]string{"tenants/acme/a.yaml": doc("Disk", "d", "pool: slow, size: 1Gi")}, nil,
			[]string{`tenants/acme/a.yaml:5:14: tenant acme may not use StoragePool "slow" (it may use fast)`}},
		{"a network", map[string]string{"tenants/acme/a.yaml": vmDoc("v", ", nics: [{name: a, network: front}, {name: b, network: mgmt}]")}, nil,
			[]string{`tenant acme may not use Network "mgmt" (it may use front)`}},
		{"an image of a disk", map[string]string{"tenants/acme/a.yaml": diskDoc("d", ", source: {image: golden}")}, nil,
			[]string{`tenant acme may not use Image "golden" (it may use debian)`}},
		{"an image to boot", map[string]string{"tenants/acme/a.yaml": vmDoc("v", ", boot: {kernel: {image: debian}, initrd: {image: golden}}")}, nil,
			[]string{`tenant acme may not use Image "golden"`}},
		{"a host to run on", map[string]string{"tenants/acme/a.yaml": doc("VirtualMachine", "v", "host: host2, cpu: {cores: 1}, memory: {size: 1Gi}")}, nil,
			[]string{`tenant acme may not use Host "host2" (it may use host1)`}},
		{"any host where none is named", map[string]string{"tenants/acme/a.yaml": doc("VirtualMachine", "v", "host: host2, cpu: {cores: 1}, memory: {size: 1Gi}")},
			[]Tenant{with(func(a *Tenant) { a.Hosts = nil })}, nil},
		{"the operators' disk", map[string]string{"ops/a.yaml": diskDoc("d", ""), "tenants/acme/a.yaml": vmDoc("v", ", disks: [{disk: d}]")}, nil,
			[]string{`tenant acme may not use Disk "d" (none is shared with it)`}},
		{"another tenant's disk", map[string]string{"tenants/globex/a.yaml": diskDoc("d", ""), "tenants/acme/a.yaml": vmDoc("v", ", disks: [{name: x, disk: d}]")}, nil,
			[]string{`tenants/acme/a.yaml:5:`, `Disk "d" belongs to tenant globex`}},
		{"another tenant's network under a shared name", map[string]string{"tenants/globex/a.yaml": doc("Network", "lan", "bridge: {name: br-globex}"),
			"tenants/acme/a.yaml": vmDoc("v", ", nics: [{name: a, network: lan}]")}, []Tenant{with(func(a *Tenant) { a.Networks = []string{"lan"} }), globex()},
			[]string{`Network "lan" belongs to tenant globex`}},
		{"a bridge", map[string]string{"tenants/acme/a.yaml": doc("Network", "n", "bridge: {name: br-mgmt}")}, nil,
			[]string{`tenant acme may not use the bridge br-mgmt (it may use br-acme)`}},
		{"the host's own network", map[string]string{"tenants/acme/a.yaml": doc("Network", "n", "user: {}")}, nil, []string{`networks of a bridge only`}},
		{"a file outside", map[string]string{"tenants/acme/a.yaml": doc("Image", "i", "source: {file: {path: golden.img}}, "+sum)}, nil,
			[]string{`tenant acme may not use the file golden.img (its files are below acme/)`}},
		{"a file beside", map[string]string{"tenants/acme/a.yaml": doc("Image", "i", "source: {file: {path: acme-2/x.img}}, "+sum)}, nil, []string{`may not use the file acme-2/x.img`}},
		{"a directory that only starts alike", map[string]string{"tenants/acme-2/a.yaml": diskDoc("d", ", source: {image: golden}")}, nil, nil},
		{"a file of the directory's name", map[string]string{"tenants/acme.yaml": diskDoc("d", ", source: {image: golden}")}, nil, nil},
		{"another case", map[string]string{"tenants/ACME/a.yaml": diskDoc("d", "")}, nil,
			[]string{`tenants/ACME/a.yaml:2:1: the path differs from tenants/acme, tenant acme's, in upper and lower case only (move the file)`}},
		{"another case of a directory above", map[string]string{"Tenants/acme/a.yaml": diskDoc("d", "")}, nil, []string{`Tenants/acme/a.yaml:2:1: the path differs`}},
		{"the longest path counts", map[string]string{"tenants/acme/dev/a.yaml": diskDoc("d", ""), "tenants/acme/a.yaml": vmDoc("v", ", disks: [{disk: d}]")},
			[]Tenant{acme(), {Name: "dev", Path: "tenants/acme/dev", Kinds: []spec.Kind{spec.KindDisk}}},
			[]string{`Disk "d" belongs to tenant dev`, `tenant dev may not use StoragePool "fast" (none is shared with it)`}},
		{"machines", map[string]string{"tenants/acme/a.yaml": vmDoc("v1", "") + vmDoc("v2", ", powerState: Stopped") + vmDoc("v3", "") + vmDoc("v4", ""), "ops/a.yaml": vmDoc("v0", "")},
			[]Tenant{with(func(a *Tenant) { a.Quota.Machines = 2 })}, []string{`tenants/acme/a.yaml:12:1: tenant acme would have 3 machines, and its quota is 2`}},
		{"just within", map[string]string{"tenants/acme/a.yaml": vmDoc("v1", "") + vmDoc("v2", "") + diskDoc("d", "")},
			[]Tenant{with(func(a *Tenant) { a.Quota = Quota{Machines: 2, CPUs: 4, Disks: 1, Memory: 2 << 30, Storage: 1 << 30} })}, nil},
		{"processors, memory, storage", map[string]string{"tenants/acme/a.yaml": vmDoc("v1", "") + vmDoc("v2", "") + diskDoc("d", "") + diskDoc("e", "")},
			[]Tenant{with(func(a *Tenant) { a.Quota = Quota{CPUs: 3, Memory: 2<<30 - 1, Storage: 1<<30 + 1} })},
			[]string{`:10:26: tenant acme would have 4 virtual CPUs, and its quota is 3`, `:10:53: tenant acme would have 2Gi of memory`, `:20:26: tenant acme would have 2Gi of storage`}},
		{"disks", map[string]string{"tenants/acme/a.yaml": diskDoc("d", "") + diskDoc("e", "")}, []Tenant{with(func(a *Tenant) { a.Quota.Disks = 1 })},
			[]string{`:7:1: tenant acme would have 2 disks`}},
		{"images", map[string]string{"tenants/acme/a.yaml": doc("Image", "a", "source: {file: {path: acme/own.img}}, "+sum) + doc("Image", "b", "source: {file: {path: acme/own.img}}, "+sum)},
			[]Tenant{with(func(a *Tenant) { a.Quota.Images = 1 })}, []string{`:7:1: tenant acme would have 2 images`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.tenants == nil {
				c.tenants = []Tenant{acme(), globex()}
			}
			err := CheckTenants(tree(t, c.files), c.tenants)
			if len(c.want) == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			var errs spec.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("%v is not spec.Errors", err)
			}
			rest := err.Error()
			for _, w := range c.want {
				_, after, found := strings.Cut(rest, w)
				if !found {
					t.Errorf("%v\ndoes not say, or not in this order: %s", err, w)
				}
				rest = after
			}
		})
	}
	if err := CheckTenants(tree(t, nil), nil); err != nil {
		t.Errorf("without tenants: %v", err)
	}
}

func TestCheckMoves(t *testing.T) {
	moved := func(kind, name, from string) string {
		return strings.Replace(doc(kind, name, "pool: fast, size: 1Gi"), "name: "+name, "name: "+name+", movedFrom: ["+from+"]", 1)
	}
	base := map[string]string{"tenants/acme/a.yaml": diskDoc("a", ""), "tenants/globex/g.yaml": diskDoc("g", ""), "ops/o.yaml": diskDoc("o", "")}
	for _, c := range []struct {
		name, file, text string
		want             string
	}{
		{"renamed", "tenants/acme/a.yaml", moved("Disk", "b", "a"), ""},
		{"in another file", "tenants/acme/sub/b.yaml", diskDoc("a", ""), ""},
		{"a fresh one", "tenants/acme/a.yaml", strings.Replace(diskDoc("g", ""), "name: g", "name: g, incarnation: 1", 1), ""},
		{"another tenant's under its name", "tenants/acme/a.yaml", diskDoc("g", ""), `tenants/acme/a.yaml:4:18: Disk "g" takes over what is tenant globex's`},
		{"another tenant's under a new name", "tenants/acme/a.yaml", moved("Disk", "b", "g"), `tenants/acme/a.yaml:4:`},
		{"the operators'", "tenants/acme/a.yaml", diskDoc("o", ""), `Disk "o" takes over what is not a tenant's`},
		{"taken back by the operators", "ops/x.yaml", diskDoc("g", ""), ""},
	} {
		err := CheckMoves(tree(t, base), tree(t, map[string]string{c.file: c.text}), []Tenant{acme(), globex()})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestRebase(t *testing.T) {
	tenants := []Tenant{acme(), globex(), {Name: "dev", Path: "tenants/acme/dev"}}
	for dir, want := range map[string]string{
		"": "acme=tenants/acme globex=tenants/globex dev=tenants/acme/dev", ".": "acme=tenants/acme globex=tenants/globex dev=tenants/acme/dev",
		"tenants":            "acme=acme globex=globex dev=acme/dev",
		"tenants/acme":       "acme= dev=dev",
		"tenants/acme/x/":    "acme=",
		"tenants/acme/dev/x": "dev=",
		"ops":                "",
		"tenants/acm":        "",
	} {
		var got []string
		for _, n := range Rebase(tenants, dir) {
			got = append(got, n.Name+"="+n.Path)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%q: %s, want %s", dir, s, want)
		}
	}
}

// Every reference of every kind is looked at: what the tags say, found another way.
func TestReferencesAreComplete(t *testing.T) {
	var tagged func(typ reflect.Type) int
	tagged = func(typ reflect.Type) int {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		n := 0
		if typ.Kind() == reflect.Struct {
			for i := range typ.NumField() {
				if typ.Field(i).Tag.Get("ref") != "" {
					n++
				}
				n += tagged(typ.Field(i).Type)
			}
		}
		return n
	}
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem())
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(v.Index(0))
		case reflect.String:
			v.SetString("x")
		}
	}
	for _, s := range []any{&spec.VirtualMachine{}, &spec.Disk{}, &spec.Image{}, &spec.Network{}, &spec.StoragePool{}} {
		want := tagged(reflect.TypeOf(s))
		fill(reflect.ValueOf(s).Elem())
		if got := references(&spec.Object{Spec: s}); len(got) != want {
			t.Errorf("%T: %v, want %d", s, got, want)
		}
	}
}

// Whatever tenants write, what passes refers to nothing but their own and what
// is shared, and stays within the quota.
func TestTenantsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		paths := []string{"tenants/acme/", "tenants/globex/", "tenants/acme/dev/", "ops/"}
		tenants := []Tenant{acme(), globex(), {Name: "dev", Path: "tenants/acme/dev", Kinds: []spec.Kind{spec.KindVirtualMachine, spec.KindDisk}, Pools: []string{"fast"}}}
		for i := range tenants {
			tenants[i].Quota = Quota{Machines: rapid.IntRange(1, 4).Draw(t, "machines"), Storage: spec.Size(rapid.IntRange(1, 4).Draw(t, "storage")) << 30}
		}
		files, home := map[string]string{}, map[string]string{}
		put := func(name string, text string) {
			p := rapid.SampledFrom(paths).Draw(t, name+" in")
			files[p+"x.yaml"] += text
			home[name] = strings.TrimSuffix(p, "/")
		}
		var disks []string
		for i := range rapid.IntRange(0, 5).Draw(t, "disks") {
			disks = append(disks, fmt.Sprintf("d%d", i))
			put(disks[i], doc("Disk", disks[i], "size: 1Gi, pool: "+rapid.SampledFrom([]string{"fast", "fast", "slow"}).Draw(t, "pool")))
		}
		for i, d := range disks {
			name := fmt.Sprintf("v%d", i)
			put(name, vmDoc(name, ", disks: [{disk: "+d+"}], nics: [{name: a, network: "+rapid.SampledFrom([]string{"front", "mgmt"}).Draw(t, "network")+"}]"))
		}
		set := tree(t, files)
		err := CheckTenants(set, tenants)

		wrong := false
		machines, storage := map[string]int{}, map[string]spec.Size{}
		for _, o := range set.All() {
			at, ok := home[o.Meta.Name]
			if !ok || at == "ops" {
				continue
			}
			i := slices.IndexFunc(tenants, func(n Tenant) bool { return n.Path == at })
			n := tenants[i]
			switch s := o.Spec.(type) {
			case *spec.Disk:
				storage[n.Name] += s.Size
				wrong = wrong || !slices.Contains(n.Pools, s.Pool)
			case *spec.VirtualMachine:
				machines[n.Name]++
				wrong = wrong || home[s.Disks[0].Disk] != at || !slices.Contains(n.Networks, s.NICs[0].Network)
			}
			wrong = wrong || machines[n.Name] > n.Quota.Machines || storage[n.Name] > n.Quota.Storage
		}
		if wrong != (err != nil) {
			t.Fatalf("wrong %t: %v\n%v", wrong, err, files)
		}
		var errs spec.Errors
		if err != nil && !errors.As(err, &errs) {
			t.Fatalf("%T", err)
		}
		for _, e := range errs {
			if !strings.HasPrefix(e.File, "tenants/") || e.Line == 0 || e.Hint == "" {
				t.Fatalf("%+v", e)
			}
		}
	})
}

// What follows the name of a tenant's Secret could be a part of the name of the
// Secret that the file is a copy of.
func TestTenantsSecretHasOnlyAName(t *testing.T) {
	tenant := acme()
	tenant.Kinds = append(tenant.Kinds, spec.KindSecret)
	for meta, want := range map[string]string{
		"{name: we}":                      "",
		"{name: we, labels: {x: b}}":      "nothing else in its metadata",
		"{name: we, annotations: {x: b}}": "nothing else in its metadata",
		"{name: we, movedFrom: [b]}":      "nothing else in its metadata",
		"{name: we, incarnation: 1}":      "nothing else in its metadata",
		"{name: we, drift: Report}":       "nothing else in its metadata",
		"{name: we, labels: {}}":          "",
	} {
		text := "apiVersion: reconciler/v1alpha1\nkind: Secret\nmetadata: " + meta +
			"\nspec: {data: {a: \"ENC[AES256_GCM,data:AAAA,iv:AAAA,tag:AAAA,type:str]\"}}\nsops: {mac: x, lastmodified: x, age: [{recipient: me}]}\n"
		err := CheckTenants(tree(t, map[string]string{"tenants/acme/s.yaml": text}), []Tenant{tenant})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", meta, err, want)
		}
		if err := CheckTenants(tree(t, map[string]string{"ops/s.yaml": text}), []Tenant{tenant}); err != nil {
			t.Errorf("%s of the operators: %v", meta, err)
		}
	}
}
