package reconcile

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reconciler/spec"
)

var testNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const frame = `
apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
spec: {id: demo}
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
spec:
  host: host1
  capacity: 100Gi
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: ["127.0.0.1:3260"]}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: front}
spec: {user: {}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: back}
spec: {bridge: {name: br-back}}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: k}
spec: {source: {file: {path: k}}, sha256: "0000000000000000000000000000000000000000000000000000000000000000"}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: k2}
spec: {source: {file: {path: k2}}, sha256: "1111111111111111111111111111111111111111111111111111111111111111"}
`

// desired loads documents after the frame, as host1 sees them.
func desired(t interface{ Fatalf(string, ...any) }, docs ...string) *Desired {
	text := frame
	for _, d := range docs {
		text += "---\n" + d
	}
	objects, err := spec.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	set, err := spec.Build(objects)
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	return NewDesired(set, "host1", "rev")
}

func diskDoc(name, rest string) string {
	return fmt.Sprintf("apiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: %s}\nspec: {pool: fast, %s}\n", name, rest)
}

func vmDoc(name, rest string) string {
	return fmt.Sprintf("apiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: %s}\nspec: {host: host1, %s}\n", name, rest)
}

// secretDoc has two values, a and b, as they are encrypted.
func secretDoc(name, a, b, recipient string) string {
	const sealed = "ENC[AES256_GCM,data:%s,iv:AAAA,tag:AAAA,type:str]"
	return fmt.Sprintf("apiVersion: reconciler/v1alpha1\nkind: Secret\nmetadata: {name: %s}\nspec: {data: {a: \""+sealed+"\", b: \""+sealed+"\"}}\n"+
		"sops: {mac: x, lastmodified: x, age: [{recipient: %s}]}\n", name, a, b, recipient)
}

const plainVM = "cpu: {cores: 1}, memory: {size: 128Mi}"

// world is the state and base after everything of d was applied.
func world(d *Desired) (State, Base) {
	base := BaseOf(d)
	return StateFromBase(base), base
}

func find(t testing.TB, p Plan, kind spec.Kind, name string) *Action {
	t.Helper()
	for i := range p.Actions {
		if p.Actions[i].Kind == kind && p.Actions[i].Name == name {
			return &p.Actions[i]
		}
	}
	t.Fatalf("no action for %s/%s in\n%s", kind, name, text(&p))
	return nil
}

// draw makes a random tree: up to four machines over up to six disks.
func draw(t *rapid.T, label string) *Desired {
	var docs []string
	nDisks := rapid.IntRange(0, 6).Draw(t, label+" disks")
	for i := range nDisks {
		docs = append(docs, diskDoc(fmt.Sprintf("d%d", i), fmt.Sprintf("size: %dMi, deletionPolicy: %s",
			rapid.IntRange(1, 3).Draw(t, label+" size")*64, rapid.SampledFrom([]string{"Retain", "Delete"}).Draw(t, label+" policy"))))
	}
	nVMs := rapid.IntRange(0, 4).Draw(t, label+" machines")
	owner := make([]int, nDisks)
	for i := range owner {
		owner[i] = rapid.IntRange(-1, nVMs-1).Draw(t, label+" owner")
	}
	for i := range nVMs {
		s := fmt.Sprintf("cpu: {cores: %d}, memory: {size: %dMi}, powerState: %s, updatePolicy: {restart: %s}",
			rapid.IntRange(1, 2).Draw(t, label+" cores"), rapid.IntRange(1, 2).Draw(t, label+" memory")*128,
			rapid.SampledFrom([]string{"Running", "Stopped"}).Draw(t, label+" power"),
			rapid.SampledFrom([]string{"Manual", "Automatic"}).Draw(t, label+" update"))
		s += ", disks: ["
		for d, o := range owner {
			if o == i {
				s += fmt.Sprintf("{disk: d%d},", d)
			}
		}
		s += "], nics: ["
		if rapid.Bool().Draw(t, label+" nic") {
			s += "{name: n, network: " + rapid.SampledFrom([]string{"front", "back"}).Draw(t, label+" network") + "}"
		}
		s += "]"
		switch rapid.IntRange(0, 3).Draw(t, label+" cloud-init") {
		case 0:
			s += ", cloudInit: {userData: {inline: " + rapid.SampledFrom([]string{"a", "b"}).Draw(t, label+" text") + "}}"
		case 1:
			s += ", cloudInit: {userData: {secret: s, key: " + rapid.SampledFrom([]string{"a", "b"}).Draw(t, label+" key") + "}}"
		}
		docs = append(docs, vmDoc(fmt.Sprintf("v%d", i), s))
	}
	value := func(l string) string { return rapid.SampledFrom([]string{"AAAA", "BBBB"}).Draw(t, label+l) }
	docs = append(docs, secretDoc("s", value(" value"), value(" other value"), value(" recipient")))
	return desired(t, docs...)
}
