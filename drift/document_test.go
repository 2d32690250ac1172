package drift

import (
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

const importTree = `apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec: {host: host1, capacity: 1Ti, volumes: {file: {path: p}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: front}
spec: {user: {}}
`

const imported = `---
apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: root, movedFrom: [old, older-still], incarnation: 3}
spec: {pool: fast, size: 1536Mi, retention: 48h}
---
apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: a-data}
spec: {pool: fast, size: 1Gi, deletionPolicy: Delete}
---
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: web, labels: {tier: web, "10": "true"}}
spec:
  host: host1
  powerState: Stopped
  cpu: {cores: 2, max: 4}
  memory: {size: 512Mi}
  disks: [{name: zero, disk: root}, {disk: a-data}]
  nics: [{name: front, network: front}, {name: own, network: front, mac: "52:54:00:00:00:01"}]
  restartPolicy: Never
`

func load(t *testing.T, text string) (*spec.Set, *reconcile.Desired) {
	t.Helper()
	objects, err := spec.Parse("a.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	set, err := spec.Build(objects)
	if err != nil {
		t.Fatal(err)
	}
	return set, reconcile.NewDesired(set, "host1", "")
}

// What is recorded of an object leads back to the object.
func TestDocument(t *testing.T) {
	set, want := load(t, importTree+imported)
	name := func(uid string) string {
		if o := set.ByUID(uid); o != nil {
			return o.Meta.Name
		}
		return ""
	}
	docs := importTree
	for k, o := range want.Objects {
		if k.Kind != spec.KindDisk && k.Kind != spec.KindVirtualMachine {
			continue
		}
		doc, err := Document(o, "demo", name)
		if err != nil {
			t.Fatal(err)
		}
		docs += "---\n" + string(doc)
		for _, line := range []string{"spec:\n    blank", "threads", "machine:", "firmware", "updatePolicy", "source"} {
			if strings.Contains(string(doc), line) {
				t.Errorf("%s says the default:\n%s", o.Name, doc)
			}
		}
		if _, err := Document(o, "other", name); err == nil {
			t.Errorf("%s is declared in another cluster", o.Name)
		}
	}
	_, again := load(t, docs)
	for k, o := range want.Objects {
		if again.Objects[k] == nil || again.Objects[k].Generation() != o.Generation() {
			t.Errorf("%s/%s is another object:\n%s", o.Kind, o.Name, docs)
		}
	}
}
