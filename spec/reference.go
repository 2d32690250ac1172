package spec

//go:generate go test -run ^TestGeneratedFiles$ -update .

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// examples are one document of each kind; together they are a valid tree.
var examples = map[Kind]string{
	KindCluster: `apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  id: demo
  iqnBase: iqn.2026-11.local.reconciler
  defaults: {cpuModel: Skylake-Server-v4}
`,
	KindHost: `apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec:
  roles: [Hypervisor, Storage]
  addresses: {management: 192.0.2.11, storage: 198.51.100.11}
`,
	KindStoragePool: `apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec:
  host: host1
  capacity: 20Gi
  overcommit: 1.5
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: ["198.51.100.11:3260"]}}
`,
	KindImage: `apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: debian-12}
spec:
  source: {http: {url: "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"}}
  sha256: 7d5b5d2f8b8c3f0d6c8f9f7a1e2d3c4b5a69788796a5b4c3d2e1f00112233445
  format: qcow2
  virtualSize: 3Gi
`,
	KindSecret: `apiVersion: reconciler/v1alpha1
kind: Secret
metadata:
    name: web
spec:
    data:
        user-data: ENC[AES256_GCM,data:8gQBkT6TPpGJyjptpE/O68oWRTT5oSwOqo8+7bqz1gUBtiWIhceBEBSiOtVUJEfYo9YPQUxnEazYVq0NOylaE/vA5w+hR2Av2Ma2Wi+NILmdcPb3ykaddryxifPDZs9urJHn9HNoCqQi,iv:EX28HUuNk3stUb/65SzXcVg9iu5ffp9HNm9ORq22Ao4=,tag:42dwruy9tpez8QTTA9xx7g==,type:str]
sops:
    age:
        - enc: |
            -----BEGIN AGE ENCRYPTED FILE-----
            YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBHbnRFUFYvM0p1UDlLbzJN
            dDNQWkU2ajVQV1hGTGE1akdXVGxaNGtickUwCnlrczZQellIeVRNdEpKMVJteGFG
            TGt0dk9leWRKb0xGZ21ldEhJNDA0b3MKLS0tIEQ5OGhkb2ZyMjJRNnpoeEVQMi93
            TE1RUHdjY3ppbWxLK3pOaUY5bTJETk0KNNyhAzqfwsX0EBpy8N7cYwIDusH8QIIW
            58ZE+dTCdwD9DUlK02k7RiVI/kAISyD+5iiwXncWz4Jkwbed4KdF1g==
            -----END AGE ENCRYPTED FILE-----
          recipient: age1dxakc72kencgajt7707zkywzlwz2q7pvnrmchq607hcxd739ca8qh3zzde
    encrypted_regex: ^data$
    lastmodified: "2026-11-22T17:47:49Z"
    mac: ENC[AES256_GCM,data:Ehvq1JuZW/ajv0999dV00gGKVtdg1/wwK6Hlo/kwZtlJA7K1DQS60vFxXpr40AdhrCNB3VAIpeCbf9YGqFOL6XI/5DFg4CKobr9DjgfoELWKfVe2wuRtjm8z2FSFglCLOOXT6jblt34f5D7LoO5pPmUGMZIvGC9bnCF2YDe2RgI=,iv:hNeNDY0H0/280yPJdA+NFBHmvq0rLHjD93+kK5nmzHU=,tag:BdS/+qTozLlWSonw8pXegw==,type:str]
    version: 3.13.3
`,
	KindNetwork: `apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: front}
spec:
  bridge: {name: br-front}
`,
	KindDisk: `apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: web-1-root}
spec:
  pool: fast
  size: 10Gi
  source: {image: debian-12}
  retention: 336h
`,
	KindVirtualMachine: `apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata:
  name: web-1
  labels: {tier: web}
spec:
  host: host1
  cpu: {cores: 2, max: 4}
  memory: {size: 512Mi, max: 2Gi}
  disks:
    - disk: web-1-root
  nics:
    - {name: front, network: front}
  cloudInit:
    userData: {secret: web, key: user-data}
    networkConfig:
      inline: |
        version: 2
        ethernets: {all: {match: {name: "e*"}, dhcp4: true}}
  shutdown: {timeout: 90s}
  updatePolicy: {restart: Automatic}
`,
}

const preface = `<!-- Generated from the types in spec/ by "go generate ./spec". Do not edit. -->

# Spec reference

A repository holds YAML documents, any number in a file, in any layout of
folders. Every ` + "`*.yaml` and `*.yml`" + ` file is read, except where a name starts with
a dot (` + "`.git`, `.github`" + `). Symbolic links are not followed: one that is named
like a spec, or leads out of the repository, is an error; any other is harmless.
Submodules are not read. A file has at most 1 MiB, and is no pointer of Git LFS.

A document has four fields: ` + "`apiVersion: " + APIVersion + "`, `kind`, `metadata` and `spec`" + `. A
file that sops encrypted has a fifth, ` + "`sops`, in every document" + `.
An unknown or duplicate field, a name that refers to nothing and a value of the
wrong type, unit or range are errors. ` + "`reconciler validate`" + ` shows all of them, each
with ` + "`FILE:LINE:COLUMN`" + `.

**Sizes** are whole numbers with ` + "`Ki`, `Mi`, `Gi` or `Ti`" + `; without a unit they are
bytes. **Durations** are written ` + "`30s`, `5m`, `168h`" + `. **Names** consist of lower-case
letters, digits and ` + "`-`" + `, at most 63 characters. Lists whose entries have a name are
told apart by it, not by their order, and paths are written with it:
` + "`spec.nics[front].network`" + `.

**Kept** says where the truth of a field lies: *observed* is read back from what
runs, *recorded* is kept in the durable record of the object, *policy* changes
nothing that runs.

An editor with yaml-language-server checks a file as it is typed when its first
line points to the schema that ` + "`reconciler schema`" + ` prints:

` + "```yaml\n# yaml-language-server: $schema=../.schema/reconciler.schema.json\n```" + `

## Identity

The UID of an object follows from the cluster's id, the kind, the oldest name
and the incarnation. It names the disk's volume and is QEMU's ` + "`-uuid`" + `; its first 20
hexadecimal digits are the serial number a guest sees. To rename an object, add
its old name to the end of ` + "`metadata.movedFrom`" + ` and leave it there for ever. A
removed name that is used again means the same object; whoever wants a fresh one
raises ` + "`metadata.incarnation`" + `.

The entries of a machine's disks are known by their names. One without a name of its
own (` + "`disks: [{disk: web-root}]`" + `) is called as its disk and known by the disk's UID:
where the disk is renamed, and the entry with it, nothing happens to the guest. An
entry with a name of its own that gets another one is another entry: its disk is
detached and attached again.
`

// Reference is docs/spec.md: what every field means.
func Reference() []byte {
	var b bytes.Buffer
	b.WriteString(preface)
	b.WriteString("\n## Metadata\n\nThe same for every kind.\n\n")
	definitions[0].meta.table(&b)
	for _, d := range definitions {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```yaml\n%s```\n\n", d.kind, d.doc, examples[d.kind])
		d.spec.table(&b)
	}
	b.WriteString("\n## Not supported yet\n\nThese are part of the language but not of this build, which refuses them by name.\n\n")
	for _, k := range sorted(laterKinds) {
		fmt.Fprintf(&b, "- kind `%s`\n", k)
	}
	for _, d := range definitions {
		for _, path := range sorted(laterFields[d.kind]) {
			fmt.Fprintf(&b, "- %s: `%s`\n", d.kind, path)
		}
		for _, path := range sorted(laterValues[d.kind]) {
			fmt.Fprintf(&b, "- %s: `%s` with the value %s\n", d.kind, path, "`"+strings.Join(sorted(laterValues[d.kind][path]), "` or `")+"`")
		}
	}
	return b.Bytes()
}

func (s *structure) table(b *bytes.Buffer) {
	b.WriteString("| Field | Type | Default | Kept | Meaning |\n|---|---|---|---|---|\n")
	s.rows(b)
}

func (s *structure) rows(b *bytes.Buffer) {
	for _, f := range s.fields {
		def := f.def
		switch {
		case f.required:
			def = "*required*"
		case def != "":
			def = "`" + def + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", f.shown(), f.kindOf(), def, f.world, f.about())
		if f.elem != nil {
			f.elem.rows(b)
		}
	}
}

// shown is the path with a word in the place of an entry's name.
func (f *field) shown() string {
	return strings.ReplaceAll(f.path, "[]", "[NAME]")
}

// kindOf names the type of a field.
func (f *field) kindOf() string {
	switch f.shape {
	case shapeInt:
		return "integer"
	case shapeFloat:
		return "number"
	case shapeSize:
		return "size"
	case shapeDuration:
		return "duration"
	case shapeStrings:
		return "list of strings"
	case shapeMap:
		return "mapping of strings"
	case shapeList:
		return "list by " + f.key.name
	case shapeStruct, shapePtr:
		return "mapping"
	case shapeEmpty:
		return "`{}`"
	}
	if f.ref != "" {
		return "name of " + article(string(f.ref))
	}
	return "string"
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func article(noun string) string {
	if strings.ContainsAny(noun[:1], "AEIOU") {
		return "an " + noun
	}
	return "a " + noun
}

// rule puts into words what a value may be.
func (f *field) rule() string {
	write := func(n int64) string {
		switch f.shape {
		case shapeSize:
			return Size(n).String()
		case shapeDuration:
			return Duration(n).String()
		}
		return fmt.Sprint(n)
	}
	var parts []string
	if f.enum != nil {
		parts = append(parts, orList(f.enum))
	}
	if f.format != nil && f.ref == "" && f.formatID != "name" {
		parts = append(parts, f.format.doc)
	}
	if f.max != 0 {
		parts = append(parts, write(f.min)+" to "+write(f.max))
	}
	if f.multiple > 1 {
		parts = append(parts, "a multiple of "+write(f.multiple))
	}
	if len(parts) == 0 {
		return ""
	}
	s := strings.Join(parts, "; ") + "."
	// A word starts the sentence; a value or code stays as it is.
	if f.enum == nil && f.formatID != "sha256" && s[0] >= 'a' && s[0] <= 'z' {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	return s
}
