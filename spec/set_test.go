package spec

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"
)

func mustLoad(t *testing.T, files map[string]string) *Set {
	t.Helper()
	set, err := Load(treeOf(files))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func treeOf(files map[string]string) fstest.MapFS {
	tree := fstest.MapFS{}
	for name, text := range files {
		tree[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return tree
}

// dump is everything a set says, for comparison.
func dump(s *Set) string {
	var b strings.Builder
	fmt.Fprintln(&b, s.ClusterID(), s.Cluster().UID, s.Len())
	for i, o := range s.All() {
		fmt.Fprintln(&b, i, o.Kind, o.UID, o.Pos, Flatten(o))
		if s.Get(o.Kind, o.Meta.Name) != o || s.ByUID(o.UID) != o || !slices.Contains(s.Of(o.Kind), o) {
			fmt.Fprintln(&b, "not found where it should be")
		}
	}
	return b.String()
}

func TestExamplesAreATree(t *testing.T) {
	files := make(map[string]string)
	for k, doc := range examples {
		files[string(k)+".yaml"] = doc
	}
	set := mustLoad(t, files)
	var kinds []Kind
	for _, o := range set.All() {
		kinds = append(kinds, o.Kind)
	}
	if !slices.Equal(kinds, Kinds) {
		t.Errorf("All lists %v, want the order of Kinds", kinds)
	}
}

func TestTreeWithoutCluster(t *testing.T) {
	for _, files := range []map[string]string{{}, {"readme.md": "x"}, {"a.yaml": ""}, {"a.yaml": "---\n# nothing\n---\n"}} {
		_, err := Load(treeOf(files))
		if err == nil || err.Error() != ".:1:1: the tree has no Cluster (add a document of kind Cluster)" {
			t.Errorf("%v: %v", files, err)
		}
	}
	// What else is wrong is said all the same.
	_, err := Load(treeOf(map[string]string{"a.yaml": caseFile("Disk x\nspec: {pool: fast, size: 1Gi}\n")}))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 2 {
		t.Errorf("want two errors, got %v", err)
	}
}

// An address may repeat where nothing connects the two.
func TestAddressesOnUserNetworks(t *testing.T) {
	docs := base
	for _, name := range []string{"x", "y"} {
		docs += "---\n" + caseFile(strings.Replace(vm, " x\n", " "+name+"\n", 1)+"  nics: [{name: a, network: user, mac: \"52:00:00:00:00:01\"}]\n")
	}
	mustLoad(t, map[string]string{"a.yaml": docs})
}

func TestRoundTrip(t *testing.T) {
	files := estate(3)
	files["old.yaml"] = base
	files["base.yaml"] = strings.Replace(files["base.yaml"], examples[KindCluster]+"---\n", "", 1)
	files["old.yaml"] = strings.NewReplacer("name: fast}", "name: fast2}", "pool: fast,", "pool: fast2,", "name: host1}", "name: host2}", "host: host1\n", "host: host2\n", "name: front}", "name: front2}").Replace(base)
	files["old.yaml"] = strings.Replace(files["old.yaml"], "network: front,", "network: front2,", 1)
	set := mustLoad(t, files)

	written, err := Marshal(set.All()...)
	if err != nil {
		t.Fatal(err)
	}
	again := mustLoad(t, map[string]string{"all.yaml": string(written)})
	if len(again.All()) != len(set.All()) {
		t.Fatalf("%d objects became %d", len(set.All()), len(again.All()))
	}
	for i, o := range set.All() {
		g := again.All()[i]
		if g.Kind != o.Kind || g.UID != o.UID || !reflect.DeepEqual(g.Meta, o.Meta) || !reflect.DeepEqual(g.Spec, o.Spec) {
			t.Errorf("%s %s came back as\n%+v\nwas\n%+v", o.Kind, o.Meta.Name, g.Spec, o.Spec)
		}
	}
}

// Objects made in a program get defaults and checks as if they were parsed.
func TestBuildOfLiterals(t *testing.T) {
	set, err := Build([]*Object{
		{Kind: KindCluster, Meta: Meta{Name: "demo"}, Spec: &Cluster{}},
		{Kind: KindHost, Meta: Meta{Name: "h"}, Spec: &Host{Roles: []string{RoleStorage}, Addresses: HostAddresses{Management: "192.0.2.1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if h := set.Get(KindHost, "h").Spec.(*Host); h.State != HostStateActive {
		t.Errorf("host: %+v", h)
	}
	_, err = Build([]*Object{
		{Kind: KindCluster, Meta: Meta{Name: "demo"}, Spec: &Cluster{}},
		{Kind: KindHost, Meta: Meta{Name: "h"}, Spec: &Host{Roles: []string{"Cook"}, Addresses: HostAddresses{Management: "192.0.2.1"}}},
	})
	if err == nil || !strings.Contains(err.Error(), `"Cook" is not a known value`) {
		t.Errorf("error: %v", err)
	}
}

// Parse returns broken objects so that references to them are not called
// dangling; who drops the error does not get them as good.
func TestBrokenObjectsAreNotBuilt(t *testing.T) {
	objects, err := Parse("a.yaml", []byte(base+"---\n"+caseFile("Disk x\nspec: {pool: fast, size: 1GB}\n")))
	if err == nil || len(objects) != 12 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	if _, err := Build(objects); err == nil || !strings.Contains(err.Error(), `Disk "x" has errors`) {
		t.Errorf("Build: %v", err)
	}
	good := mustLoad(t, map[string]string{"base.yaml": base})
	if _, err := good.Update(nil, map[string][]*Object{"a.yaml": objects[11:]}, nil); err == nil || !strings.Contains(err.Error(), `Disk "x" has errors`) {
		t.Errorf("Update: %v", err)
	}
}

// estateFile draws one file of a small world in which names, disks, addresses
// and paths meet often.
func estateFile(t *rapid.T) string {
	name := func(l string) string {
		return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, l)
	}
	meta := func() string {
		m := "metadata: {name: " + name("name")
		if rapid.IntRange(0, 4).Draw(t, "moved") == 0 {
			former := rapid.SampledFrom([]string{"d", "e", "a"}).Draw(t, "former")
			m += ", movedFrom: [" + former + ", z]"
		}
		return m + ", incarnation: " + fmt.Sprint(rapid.IntRange(0, 1).Draw(t, "incarnation")) + "}\n"
	}
	docs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
		head := "apiVersion: reconciler/v1alpha1\nkind: "
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 9:
			key := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "key")
			return head + "Secret\n" + meta() + "spec: {data: {k: \"\", " + key + ": \"" + sealedValue + "\"}}\n" + sopsPart
		case 0:
			roles := rapid.SampledFrom([]string{"Storage", "Hypervisor", "Hypervisor, Storage"}).Draw(t, "roles")
			return head + "Host\n" + meta() + "spec: {roles: [" + roles + "], addresses: {management: 192.0.2.1}}\n"
		case 1:
			return head + "StoragePool\n" + meta() + "spec: {host: " + name("host") + ", capacity: 1Gi, volumes: {file: {path: " + name("path") + "}}, target: {embedded: {portals: [\"192.0.2.1:3260\"]}}}\n"
		case 2:
			size := rapid.SampledFrom([]string{"", ", virtualSize: 1Gi", ", virtualSize: 2Gi", ", format: qcow2, virtualSize: 1Gi"}).Draw(t, "image")
			return head + "Image\n" + meta() + "spec: {source: {file: {path: a}}, sha256: \"" + zeros + "\"" + size + "}\n"
		case 3:
			return head + "Network\n" + meta() + "spec: " + rapid.SampledFrom([]string{"{user: {}}", "{bridge: {name: br0}}"}).Draw(t, "network") + "\n"
		case 4, 5:
			source := rapid.SampledFrom([]string{"", ", source: {image: a}", ", source: {image: b}"}).Draw(t, "source")
			return head + "Disk\n" + meta() + "spec: {pool: " + name("pool") + ", size: 1Gi" + source + "}\n"
		}
		spec := "spec:\n  host: " + name("host") + "\n  cpu: {cores: 1}\n  memory: {size: 64Mi}\n"
		if rapid.Bool().Draw(t, "disk") {
			spec += "  disks: [{disk: " + name("disk") + "}]\n"
		}
		if rapid.Bool().Draw(t, "nic") {
			spec += "  nics: [{name: n, network: " + name("network") + ", mac: \"52:00:00:00:00:0" + rapid.SampledFrom([]string{"1", "2"}).Draw(t, "mac") + "\"}]\n"
		}
		if rapid.Bool().Draw(t, "boot") {
			spec += "  boot: {kernel: {image: " + name("image") + "}}\n"
		}
		if rapid.Bool().Draw(t, "cloud-init") {
			spec += "  cloudInit: {userData: {secret: " + name("secret") + ", key: x}}\n"
		}
		return head + "VirtualMachine\n" + meta() + spec
	}), 1, 2).Draw(t, "docs")
	return strings.Join(docs, "---\n")
}

// Update gives what Build of the whole tree gives: the same set or the same
// errors. The world starts whole, so that most steps from it are valid.
func TestUpdateIsBuild(t *testing.T) {
	start := map[string]string{"cluster.yaml": examples[KindCluster]}
	for i := range 40 {
		// Company that keeps changes small beside the tree.
		start[fmt.Sprintf("n%d.yaml", i)] = caseFile(fmt.Sprintf("Network other-%d\nspec: {user: {}}\n", i))
	}
	for _, n := range []string{"a", "b", "c"} {
		start["host-"+n+".yaml"] = caseFile("Host " + n + "\nspec: {roles: [Hypervisor, Storage], addresses: {management: 192.0.2.1}}\n")
		start["pool-"+n+".yaml"] = caseFile("StoragePool " + n + "\nspec: {host: " + n + ", capacity: 1Gi, volumes: {file: {path: " + n + "}}, target: {embedded: {portals: [\"192.0.2.1:3260\"]}}}\n")
		start["net-"+n+".yaml"] = caseFile("Network " + n + "\nspec: {bridge: {name: br0}}\n")
		start["image-"+n+".yaml"] = caseFile("Image " + n + "\nspec: {source: {file: {path: a}}, sha256: \"" + zeros + "\", virtualSize: 1Gi}\n")
		start["secret-"+n+".yaml"] = strings.Replace(secretWeb, "name: web", "name: "+n, 1)
		start["disk-"+n+".yaml"] = caseFile("Disk " + n + "\nspec: {pool: " + n + ", size: 1Gi}\n")
		start["vm-"+n+".yaml"] = caseFile("VirtualMachine " + n + "\nspec:\n  host: " + n + "\n  cpu: {cores: 1}\n  memory: {size: 64Mi}\n  disks: [{disk: " + n + "}]\n  nics: [{name: n, network: " + n + ", mac: \"52:00:00:00:00:01\"}]\n  boot: {kernel: {image: " + n + "}}\n  cloudInit: {userData: {secret: " + n + ", key: user-data}}\n")
	}
	names := slices.Sorted(maps.Keys(start))
	var valid, invalid int
	rapid.Check(t, func(t *rapid.T) {
		files := maps.Clone(start)
		set, err := Load(treeOf(files))
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			next := maps.Clone(files)
			var removed []string
			added := make(map[string][]*Object)
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(append(names, "new.yaml")), 1, 3, rapid.ID[string]).Draw(t, "files") {
				if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
					removed = append(removed, name)
					delete(next, name)
					continue
				}
				next[name] = estateFile(t)
				if name == "cluster.yaml" {
					next[name] = caseFile("Cluster " + rapid.SampledFrom([]string{"x", "y"}).Draw(t, "cluster") + "\n")
				}
				objects, err := Parse(name, []byte(next[name]))
				if err != nil {
					t.Fatal(err)
				}
				added[name] = objects
			}
			before := dump(set)
			got, gotErr := set.Update(removed, added, nil)
			want, wantErr := Load(treeOf(next))
			if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				t.Fatalf("errors of Update:\n%v\nof Load:\n%v", gotErr, wantErr)
			}
			if dump(set) != before {
				t.Fatal("Update changed the set it started from")
			}
			if gotErr != nil {
				invalid++
				continue
			}
			valid++
			if dump(got) != dump(want) {
				t.Fatalf("Update:\n%s\nLoad:\n%s", dump(got), dump(want))
			}
			files, set = next, got
		}
	})
	if valid < 5 || invalid < 5 {
		t.Errorf("%d valid and %d invalid steps: too few of one to prove much", valid, invalid)
	}
}

func TestUpdateWithParseErrors(t *testing.T) {
	set := mustLoad(t, map[string]string{"base.yaml": base})
	objects, parse := Parse("a.yaml", []byte(caseFile("Disk x\nspec: {pool: fst, size: 1GB}\n")))
	_, err := set.Update(nil, map[string][]*Object{"a.yaml": objects}, parse)
	const want = `a.yaml:4:14: spec.pool: there is no StoragePool "fst" (did you mean fast?)
a.yaml:4:25: spec.size: "1GB" is not a size (did you mean 1Gi?)`
	if fmt.Sprint(err) != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

// The same content under another name is parsed once and placed anew.
func TestInFile(t *testing.T) {
	objects, err := Parse("a.yaml", []byte(base))
	if err != nil {
		t.Fatal(err)
	}
	moved := InFile("dir/b.yaml", objects)
	file, line, col := moved[1].Position("spec.roles")
	if file != "dir/b.yaml" || line != 8 || col != 15 || moved[1].Pos != "dir/b.yaml:5:1" {
		t.Errorf("%s:%d:%d, document at %s", file, line, col, moved[1].Pos)
	}
	if file, _, _ := objects[1].Position("spec.roles"); file != "a.yaml" {
		t.Error("InFile changed what it was given")
	}
}

// Which of many errors get a suggestion, and all else, must not depend on the
// order in which workers find them.
func TestErrorsAreDeterministic(t *testing.T) {
	// Every second machine's disk is missing: more names than get a suggestion.
	files := estate(800)
	for i, name := range slices.Sorted(maps.Keys(files)) {
		if i%2 == 0 {
			files[name], _, _ = strings.Cut(files[name], "---\n")
		}
	}
	files["base.yaml"] = estate(0)["base.yaml"]
	objects := parseAll(t, files)
	_, first := Build(objects)
	if !strings.Contains(fmt.Sprint(first), "did you mean") {
		t.Fatalf("no suggestions: %.300v", first)
	}
	for range 3 {
		slices.Reverse(objects)
		if _, err := Build(objects); err.Error() != first.Error() {
			t.Fatal("the same objects give other errors")
		}
	}
}
