package spec

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

// base is a valid tree that the documents of a case are added to.
const base = `apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 192.0.2.1}}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: compute1}
spec: {roles: [Hypervisor], addresses: {management: 192.0.2.2}}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: store1}
spec: {roles: [Storage], addresses: {management: 192.0.2.3}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec:
  host: host1
  capacity: 20Gi
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: ["192.0.2.1:3260"]}}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: debian}
spec: {source: {file: {path: debian.qcow2}}, sha256: "0000000000000000000000000000000000000000000000000000000000000000", format: qcow2, virtualSize: 2Gi}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: k}
spec: {source: {file: {path: k}}, sha256: "0000000000000000000000000000000000000000000000000000000000000000"}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: front}
spec: {bridge: {name: br0}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: user}
spec: {user: {}}
---
apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: old-root}
spec: {pool: fast, size: 1Gi}
---
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: old, movedFrom: [older]}
spec:
  host: host1
  cpu: {cores: 1}
  memory: {size: 64Mi}
  disks: [{disk: old-root}]
  nics: [{name: n, network: front, mac: "52:54:00:00:00:01"}]
`

// Documents of a case leave out apiVersion, kind and metadata where these are
// not the matter: "Disk x" stands for them.
func caseFile(doc string) string {
	for _, k := range Kinds {
		if rest, ok := strings.CutPrefix(doc, string(k)+" "); ok {
			name, body, _ := strings.Cut(rest, "\n")
			return "apiVersion: reconciler/v1alpha1\nkind: " + string(k) + "\nmetadata: {name: " + name + "}\n" + body
		}
	}
	return doc
}

func loadCase(doc string) error {
	_, err := Load(fstest.MapFS{
		"base.yaml": {Data: []byte(base)},
		"a.yaml":    {Data: []byte(doc)},
	})
	return err
}

type badCase struct {
	name string
	doc  string
	want string // the errors, one a line, without the file's name
	// schema: an editor shows it as well.
	schema bool
}

const (
	image = "Image x\nspec: {source: {file: {path: a}}, sha256: \"" + zeros + "\""
	zeros = "0000000000000000000000000000000000000000000000000000000000000000"
	vm    = "VirtualMachine x\nspec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 64Mi}\n"
	pool  = "StoragePool x\nspec:\n  host: host1\n  capacity: 20Gi\n"
)

// A Secret as the rules see it. It cannot be decrypted.
const (
	sealedValue = "ENC[AES256_GCM,data:q83v,iv:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=,tag:AAAAAAAAAAAAAAAAAAAAAA==,type:str]"
	sopsPart    = "sops: {mac: x, lastmodified: x, age: [{recipient: x, enc: x}]}\n"
	secretWeb   = "apiVersion: reconciler/v1alpha1\nkind: Secret\nmetadata: {name: web}\nspec: {data: {user-data: \"" + sealedValue + "\", token: \"\"}}\n" + sopsPart
)

var badCases = []badCase{
	// Envelope and documents.
	{"no apiVersion", "kind: Network\nmetadata: {name: x}\nspec: {user: {}}\n", `1:1: apiVersion is missing (write apiVersion: reconciler/v1alpha1)`, true},
	{"other apiVersion", "apiVersion: v1\nkind: Network\nmetadata: {name: x}\nspec: {user: {}}\n", `1:13: apiVersion: "v1" is not known (write reconciler/v1alpha1)`, true},
	{"no kind", "apiVersion: reconciler/v1alpha1\nmetadata: {name: x}\n", `1:1: kind is missing`, true},
	{"unknown kind", "apiVersion: reconciler/v1alpha1\nkind: VirtualMachin\nmetadata: {name: x}\n", `2:7: unknown kind "VirtualMachin" (did you mean VirtualMachine?)`, true},
	{"kind of other case", "apiVersion: reconciler/v1alpha1\nkind: disk\nmetadata: {name: x}\n", `2:7: unknown kind "disk" (did you mean Disk?)`, true},
	{"kind far from any", "apiVersion: reconciler/v1alpha1\nkind: Deployment\nmetadata: {name: x}\n", `2:7: unknown kind "Deployment"`, true},
	{"kind of another type", "apiVersion: reconciler/v1alpha1\nkind: [Disk]\nmetadata: {name: x}\n", `2:7: kind: expected a string, found a list`, true},
	{"kind not yet", "apiVersion: reconciler/v1alpha1\nkind: Snapshot\nmetadata: {name: x}\n", `2:7: kind Snapshot is not supported yet`, true},
	{"unknown part", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x}\nspecs: {user: {}}\n", "1:1: spec is missing\n4:1: unknown field \"specs\" (did you mean spec?)", true},
	{"status", "Network x\nspec: {user: {}}\nstatus: {}\n", `5:1: unknown field "status" (known are apiVersion, kind, metadata, spec)`, true},
	{"duplicate part", "Network x\nspec: {user: {}}\nspec: {user: {}}\n", `5:1: duplicate field "spec"`, false},
	{"no metadata", "apiVersion: reconciler/v1alpha1\nkind: Network\nspec: {user: {}}\n", `1:1: metadata is missing`, true},
	{"no name", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {labels: {a: b}}\nspec: {user: {}}\n", `3:11: metadata.name is missing`, true},
	{"no spec", "Network x\n", `1:1: spec is missing`, true},
	{"list as document", "- a\n", `1:1: expected an object, found a list (a document has apiVersion, kind, metadata and spec)`, true},
	{"string as document", "hello\n", `1:1: expected an object, found the string "hello" (a document has apiVersion, kind, metadata and spec)`, true},

	// YAML itself.
	{"not YAML", "a: [1\nb: 2\n", `2:1: not YAML: did not find expected ',' or ']'`, false},
	{"tab", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata:\n\tname: x\n", `4:1: not YAML: found character that cannot start any token (indent with spaces, not tabs)`, false},
	{"bad indent", "Network x\nspec:\n  user: {}\n bridge: {}\n", `6:1: not YAML: did not find expected key`, false},
	{"unknown anchor", "Network x\nspec: *a\n", `4:7: not YAML: unknown anchor 'a' referenced (an anchor is known in its own document only)`, false},
	{"anchor of another document", "Network x\nspec: {bridge: {name: &a br0}}\n---\napiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: y}\nspec: {bridge: {name: *a}}\n", `9:23: the anchor "a" is another document's (an anchor is known in its own document only; write the value out)`, false},
	{"directive", "%YAML 1.2\n---\napiVersion: reconciler/v1alpha1\n", `1:1: not YAML: found incompatible YAML document (leave out the directive %YAML 1.2)`, false},
	{"directive amid the file", "Network x\nspec: {user: {}}\n...\n%YAML 1.2\n---\n", `6:1: not YAML: found incompatible YAML document (leave out the directive %YAML 1.2)`, false},
	{"directive without a document", "%YAML 1.2\napiVersion: reconciler/v1alpha1\n", `1:1: not YAML: mapping values are not allowed in this context (leave out the directive %YAML 1.2)`, false},
	{"line separator", "apiVersion: reconciler/v1alpha1\nkind: Network # a\u2028b\nmetadata: {name: x}\n", `2:18: not YAML: could not find expected ':' (remove the invisible character U+2028, a line separator)`, false},
	{"line separator in a name", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x\u2028y}\nspec: {user: {}}\n", `3:18: metadata.name: "x\u2028y" is not a name (remove the invisible character U+2028, a line separator)`, true},
	{"byte order mark amid the file", "Network x\nspec: {user: {}}\n---\n\ufeffapiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: y}\nspec: {user: {}}\n", `6:1: apiVersion is missing (write apiVersion: reconciler/v1alpha1)
6:1: unknown field "\ufeffapiVersion" (remove the invisible character U+FEFF, a byte order mark)`, true},
	{"byte order mark before a document", "Network x\nspec: {user: {}}\n\ufeff---\napiVersion: reconciler/v1alpha1\nkind: Network\n", `5:1: not YAML: could not find expected ':' (remove the invisible character U+FEFF, a byte order mark)`, false},
	{"no-break space", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata:\n  name:\u00a0x\nspec: {user: {}}\n", `4:3: metadata: expected a mapping, found the string "name:\u00a0x" (remove the invisible character U+00A0, a no-break space)`, true},
	{"LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", `1:1: the file is a pointer of Git LFS, not its content (keep specs out of LFS: git lfs untrack, then git add --renormalize)`, true},
	{"control character", "Network x\nspec: {user: {}} # \x07\n", `4:20: control character 0x07 (a spec is plain text)`, false},
	{"NUL", "\x00", `1:1: control character 0x00 (a spec is plain text)`, false},
	{"Latin-1", "# caf\xe9\n", `1:6: the file is not UTF-8 (save it as UTF-8 text)`, false},
	{"UTF-16", "\xff\xfea\x00", `1:1: the file is not UTF-8 (save it as UTF-8 text)`, true},
	{"duplicate key", "Network x\nspec: {user: {}, user: {}}\n", `4:18: duplicate field "user" in spec`, false},
	{"duplicate label", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, labels: {a: b, a: c}}\nspec: {user: {}}\n", `3:36: duplicate field "a" in metadata.labels`, false},
	{"merge key", "Disk x\nspec:\n  <<: {pool: fast}\n  pool: fast\n  size: 1Gi\n", `5:3: merge keys are not read in spec (write the fields out)`, false},
	{"merge key in a mapping", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, labels: {<<: {a: b}}}\nspec: {user: {}}\n", `3:30: merge keys are not read in metadata.labels (write the fields out)`, false},
	{"complex key", "Network x\nspec: {? [a] : b, user: {}}\n", `4:10: the name of a field cannot be a list in spec`, false},
	{"custom tag", "Network x\nspec: !network {user: {}}\n", `4:7: spec: expected a mapping, found a value tagged "!network"`, false},
	{"binary", "VirtualMachine x\nspec: {host: !!binary aG9zdDE=, cpu: {cores: 1}, memory: {size: 64Mi}}\n", `4:14: spec.host: expected a string, found a value tagged "!!binary" (write it in quotes)`, false},

	// Types.
	{"number as string", "Disk x\nspec: {pool: 12, size: 1Gi}\n", `4:14: spec.pool: expected a string, found the number 12 (write it in quotes)`, true},
	{"boolean as string", "Network x\nspec: {bridge: {name: true}}\n", `4:23: spec.bridge.name: expected a string, found the boolean true (write it in quotes)`, true},
	{"nothing", "Disk x\nspec:\n  pool:\n  size: 1Gi\n", `5:8: spec.pool: expected a string, found nothing`, true},
	{"empty string", "Disk x\nspec: {pool: \"\", size: 1Gi}\n", `4:14: spec.pool: is empty`, true},
	{"nothing as mapping", "VirtualMachine x\nspec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 64Mi}\n  shutdown:\n", `8:12: spec.shutdown: expected a mapping, found nothing (write {} or leave it out)`, true},
	{"string as number", "VirtualMachine x\nspec: {host: host1, cpu: {cores: \"2\"}, memory: {size: 64Mi}}\n", `4:34: spec.cpu.cores: expected a whole number, found the string "2"`, true},
	{"float as number", "VirtualMachine x\nspec: {host: host1, cpu: {cores: 1.5}, memory: {size: 64Mi}}\n", `4:34: spec.cpu.cores: expected a whole number, found the number 1.5`, true},
	{"octal", "VirtualMachine x\nspec: {host: host1, cpu: {cores: 010}, memory: {size: 64Mi}}\n", `4:34: spec.cpu.cores: "010" is not a whole number (write decimal digits)`, false},
	{"hexadecimal", "VirtualMachine x\nspec: {host: host1, cpu: {cores: 0x10}, memory: {size: 64Mi}}\n", `4:34: spec.cpu.cores: "0x10" is not a whole number (write decimal digits)`, false},
	{"string as list", "Host x\nspec: {roles: Storage, addresses: {management: 192.0.2.1}}\n", `4:15: spec.roles: expected a list, found the string "Storage"`, true},
	{"list as mapping", vm + "  disks: [old-root]\n", `8:11: spec.disks[0]: expected a mapping, found the string "old-root"`, true},
	{"mapping as list", vm + "  disks: {disk: x}\n", `8:10: spec.disks: expected a list, found a mapping`, true},
	{"settings where there are none", "Network x\nspec: {user: yes}\n", `4:14: spec.user: expected an empty mapping, found the string "yes" (write user: {})`, true},
	{"number as label", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, labels: {a: 1}}\nspec: {user: {}}\n", `3:33: metadata.labels[a]: expected a string, found the number 1 (write it in quotes)`, true},

	// Unknown and missing.
	{"unknown field", "Disk x\nspec: {pool: fast, sise: 1Gi}\n", "4:7: spec.size is missing\n4:20: unknown field \"sise\" in spec (did you mean size?)", true},
	{"unknown field below a list", vm + "  nics: [{name: a, network: front, mc: x}]\n", `8:36: unknown field "mc" in spec.nics[a] (did you mean mac?)`, true},
	{"unknown field in none", "Network x\nspec: {user: {dhcp: true}}\n", `4:15: unknown field "dhcp" in spec.user`, true},
	{"unknown in metadata", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, namespace: y}\nspec: {user: {}}\n", `3:21: unknown field "namespace" in metadata (known are name, labels, annotations, movedFrom, incarnation, drift)`, true},
	{"missing deep", "Host x\nspec: {roles: [Storage], addresses: {}}\n", `4:37: spec.addresses.management is missing`, true},
	{"nothing chosen", "Network x\nspec: {}\n", `4:7: spec is empty (give user or bridge)`, true},
	{"two chosen", "Network x\nspec: {user: {}, bridge: {name: br0}}\n", `4:7: spec takes one of user, bridge (remove all but one)`, true},
	{"two sources", "Disk x\nspec: {pool: fast, size: 2Gi, source: {blank: {}, image: debian}}\n", `4:39: spec.source takes one of blank, image (remove all but one)`, true},
	{"no source", "Image x\nspec: {source: {}, sha256: \"" + zeros + "\"}\n", `4:16: spec.source is empty (give http or file)`, true},

	// Values.
	{"wrong unit", "Disk x\nspec: {pool: fast, size: 10GB}\n", `4:26: spec.size: "10GB" is not a size (did you mean 10Gi?)`, true},
	{"no unit", "Disk x\nspec: {pool: fast, size: 10}\n", `4:26: spec.size: 10 is out of range (did you mean 10Mi or 10Gi?)`, true},
	{"size in words", "Disk x\nspec: {pool: fast, size: big}\n", `4:26: spec.size: "big" is not a size (write a whole number with Ki, Mi, Gi or Ti)`, true},
	{"negative size", "Disk x\nspec: {pool: fast, size: -1Gi}\n", `4:26: spec.size: "-1Gi" is not a size (write a whole number with Ki, Mi, Gi or Ti)`, true},
	{"size with a point", "Disk x\nspec: {pool: fast, size: 1.5Gi}\n", `4:26: spec.size: "1.5Gi" is not a size (write a whole number with Ki, Mi, Gi or Ti)`, true},
	{"size too large for the type", "Disk x\nspec: {pool: fast, size: 99999999999Ti}\n", `4:26: spec.size: size "99999999999Ti" is too large`, false},
	{"size too large", "Disk x\nspec: {pool: fast, size: 65Ti}\n", `4:26: spec.size: 65Ti is out of range (write 1Mi to 64Ti)`, false},
	{"size not a multiple", "Disk x\nspec: {pool: fast, size: 1025Ki}\n", `4:26: spec.size: 1025Ki is not a multiple of 1Mi`, false},
	{"memory too small", "VirtualMachine x\nspec: {host: host1, cpu: {cores: 1}, memory: {size: 8Mi}}\n", `4:53: spec.memory.size: 8Mi is out of range (write 16Mi to 16Ti)`, false},
	{"duration without unit", vm + "  shutdown: {timeout: 60}\n", `8:23: spec.shutdown.timeout: "60" is not a duration (did you mean 60s?)`, true},
	{"duration in days", "Disk x\nspec: {pool: fast, size: 1Gi, retention: 7d}\n", `4:42: spec.retention: "7d" is not a duration (write a number with a unit, such as 30s, 5m or 168h)`, true},
	{"negative duration", "Disk x\nspec: {pool: fast, size: 1Gi, retention: -1h}\n", `4:42: spec.retention: "-1h" is not a duration (write a number with a unit, such as 30s, 5m or 168h)`, true},
	{"no duration", "Disk x\nspec: {pool: fast, size: 1Gi, retention: 0s}\n", `4:42: spec.retention: 0s is out of range (write 1s to 87600h)`, false},
	{"overcommit below one", pool + "  overcommit: 0.5\n  volumes: {file: {path: p}}\n  target: {embedded: {portals: [\"192.0.2.1:3260\"]}}\n", `7:15: spec.overcommit: 0.5 is out of range (write a number from 1 to 100)`, true},
	{"overcommit not a number", pool + "  overcommit: .nan\n  volumes: {file: {path: p}}\n  target: {embedded: {portals: [\"192.0.2.1:3260\"]}}\n", `7:15: spec.overcommit: ".nan" is not a number`, false},
	{"enumeration", vm + "  powerState: running\n", `8:15: spec.powerState: "running" is not a known value (did you mean Running?)`, true},
	{"enumeration, far", vm + "  powerState: Up\n", `8:15: spec.powerState: "Up" is not a known value (write Running or Stopped)`, true},
	{"role", "Host x\nspec: {roles: [Hypervisor, Compute], addresses: {management: 192.0.2.1}}\n", `4:28: spec.roles[1]: "Compute" is not a known value (write Hypervisor or Storage)`, true},
	{"role twice", "Host x\nspec: {roles: [Storage, Storage], addresses: {management: 192.0.2.1}}\n", `4:25: spec.roles[1]: duplicate "Storage"`, false},
	{"no role", "Host x\nspec: {roles: [], addresses: {management: 192.0.2.1}}\n", `4:15: spec.roles is empty`, true},
	{"name in capitals", "Network Front\nspec: {user: {}}\n", `3:18: metadata.name: "Front" is not a name (lower-case letters, digits and '-', at most 63 characters, a letter or digit at both ends)`, true},
	{"name with a hyphen at its end", "Network a-\nspec: {user: {}}\n", `3:18: metadata.name: "a-" is not a name (lower-case letters, digits and '-', at most 63 characters, a letter or digit at both ends)`, true},
	{"long name", "Network " + strings.Repeat("a", 64) + "\nspec: {user: {}}\n", `3:18: metadata.name: "` + strings.Repeat("a", 60) + `…" is not a name (lower-case letters, digits and '-', at most 63 characters, a letter or digit at both ends)`, true},
	{"too many cards", vm + "  nics:\n" + manyCards(MaxDevices+1), `137:14: 129 disks and NICs are more than a machine can have (at most 128 in all)`, false},
	{"name of a card", vm + "  nics: [{name: \"a,b\", network: front}]\n", `8:17: spec.nics[0].name: "a,b" is not a name (lower-case letters, digits and '-', at most 63 characters, a letter or digit at both ends)`, true},
	{"negative incarnation", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, incarnation: -1}\nspec: {user: {}}\n", `3:34: metadata.incarnation: -1 is out of range (write 0 to 1000000)`, true},
	{"label key", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, labels: {\"a]b\": c}}\nspec: {user: {}}\n", `3:30: metadata.labels: "a]b" is not a key (letters, digits and . _ / -, at most 128 characters)`, true},
	{"label of two lines", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, labels: {a: \"b\\nc\"}}\nspec: {user: {}}\n", `3:33: metadata.labels[a]: "b\nc" contains a control character (one line of at most 256 characters)`, false},
	{"moved from itself", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, movedFrom: [a, x]}\nspec: {user: {}}\n", `3:36: metadata.movedFrom ends with "x", which is the name (list former names only)`, false},
	{"moved nowhere", "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: x, movedFrom: [a, a]}\nspec: {user: {}}\n", `3:36: metadata.movedFrom[1]: "a" follows itself`, false},
	{"multicast address", vm + "  nics: [{name: a, network: front, mac: \"01:00:5e:00:00:01\"}]\n", `8:41: spec.nics[a].mac: "01:00:5e:00:00:01" is a multicast address (the second digit of a card's address is even)`, false},
	{"short address", vm + "  nics: [{name: a, network: front, mac: \"52:54:00:00:00\"}]\n", `8:41: spec.nics[a].mac: "52:54:00:00:00" is not a MAC address (write six pairs of hexadecimal digits, such as 52:54:00:12:34:56)`, true},
	{"address with an option behind", vm + "  nics: [{name: a, network: front, mac: \"52:54:00:00:00:01,x=y\"}]\n", `8:41: spec.nics[a].mac: "52:54:00:00:00:01,x=y" is not a MAC address (write six pairs of hexadecimal digits, such as 52:54:00:12:34:56)`, true},
	{"address of zeros", vm + "  nics: [{name: a, network: front, mac: \"00:00:00:00:00:00\"}]\n", `8:41: spec.nics[a].mac: "00:00:00:00:00:00" is no card's address (write six pairs of hexadecimal digits, such as 52:54:00:12:34:56)`, false},
	{"IP address", "Host x\nspec: {roles: [Storage], addresses: {management: host.example}}\n", `4:50: spec.addresses.management: "host.example" is not an IP address (write an IPv4 or IPv6 address of the host)`, false},
	{"signing key", "Host x\nspec: {roles: [Storage], addresses: {management: 192.0.2.1}, signingKey: ssh-dss AAAA}\n", `4:74: spec.signingKey: "ssh-dss AAAA" is not a public SSH key (one line as reconciler key prints it: ssh-ed25519 AAAA…)`, true},
	{"every address", "Host x\nspec: {roles: [Storage], addresses: {management: 0.0.0.0}}\n", `4:50: spec.addresses.management: "0.0.0.0" stands for every address of the host (write an IPv4 or IPv6 address of the host)`, false},
	{"zone", "Host x\nspec: {roles: [Storage], addresses: {management: \"fe80::1%eth0\"}}\n", `4:50: spec.addresses.management: "fe80::1%eth0" has a zone (write an IPv4 or IPv6 address of the host)`, false},
	{"portals", pool + "  volumes: {file: {path: p}}\n  target:\n    embedded:\n      portals:\n        - 192.0.2.1\n        - 192.0.2.1:0\n        - 192.0.2.1:65536\n        - ':3260'\n        - '[::]:3260'\n        - 192.0.2.1:3260\n        - 192.0.2.1:3260\n",
		`11:11: spec.target.embedded.portals[0]: "192.0.2.1" is not a portal (write ADDRESS:PORT with an IP address, such as 192.0.2.1:3260 or [2001:db8::1]:3260)
12:11: spec.target.embedded.portals[1]: "192.0.2.1:0" has no usable port (1 to 65535; the port of iSCSI is 3260)
13:11: spec.target.embedded.portals[2]: "192.0.2.1:65536" is not a portal (write ADDRESS:PORT with an IP address, such as 192.0.2.1:3260 or [2001:db8::1]:3260)
14:11: spec.target.embedded.portals[3]: ":3260" is not a portal (write ADDRESS:PORT with an IP address, such as 192.0.2.1:3260 or [2001:db8::1]:3260)
15:11: spec.target.embedded.portals[4]: "[::]:3260" stands for every address of the host (write ADDRESS:PORT with an IP address, such as 192.0.2.1:3260 or [2001:db8::1]:3260)
17:11: spec.target.embedded.portals[6]: duplicate "192.0.2.1:3260"`, false},
	{"climbing pool", pool + "  volumes: {file: {path: ../etc}}\n  target: {embedded: {portals: [\"192.0.2.1:3260\"]}}\n", `7:26: spec.volumes.file.path: "../etc" climbs out with ".." (write the path without ..)`, false},
	{"climbing absolute pool", pool + "  volumes: {file: {path: /srv/../etc}}\n  target: {embedded: {portals: [\"192.0.2.1:3260\"]}}\n", `7:26: spec.volumes.file.path: "/srv/../etc" climbs out with ".." (write the path without ..)`, false},
	{"pool at the root", pool + "  volumes: {file: {path: /}}\n  target: {embedded: {portals: [\"192.0.2.1:3260\"]}}\n", `7:26: spec.volumes.file.path: "/" is not a directory of the pool's own (name one below it)`, false},
	{"pool path with an option", pool + "  volumes: {file: {path: \"p,snapshot=on\"}}\n  target: {embedded: {portals: [\"192.0.2.1:3260\"]}}\n", `7:26: spec.volumes.file.path: "p,snapshot=on" is not a pool path (letters, digits and . _ + ~ @ - between slashes, at most 512 characters)`, true},
	{"absolute image", "Image x\nspec: {source: {file: {path: /etc/shadow}}, sha256: \"" + zeros + "\"}\n", `4:30: spec.source.file.path: "/etc/shadow" is an absolute path (the path starts below the image directory)`, false},
	{"climbing image", "Image x\nspec: {source: {file: {path: a/../../b}}, sha256: \"" + zeros + "\"}\n", `4:30: spec.source.file.path: "a/../../b" climbs out with ".." (write the path without ..)`, false},
	{"image with a protocol", "Image x\nspec: {source: {file: {path: \"nbd:host\"}}, sha256: \"" + zeros + "\"}\n", `4:30: spec.source.file.path: "nbd:host" is not a file path (letters, digits and . _ + ~ @ - between slashes, at most 512 characters)`, true},
	{"URL of a file", "Image x\nspec: {source: {http: {url: \"file:///etc/shadow\"}}, sha256: \"" + zeros + "\"}\n", `4:29: spec.source.http.url: "file:///etc/shadow" is not a URL (write an http or https URL)`, true},
	{"URL with a password", "Image x\nspec: {source: {http: {url: \"https://u:secret@h/x\"}}, sha256: \"" + zeros + "\"}\n", `4:29: spec.source.http.url: the URL has a user or password in it (anyone who reads the repository reads it too)`, false},
	{"URL without a host", "Image x\nspec: {source: {http: {url: \"https:///x\"}}, sha256: \"" + zeros + "\"}\n", `4:29: spec.source.http.url: "https:///x" is not a URL (write an http or https URL)`, false},
	{"sum", "Image x\nspec: {source: {file: {path: a}}, sha256: \"abc\"}\n", `4:43: spec.sha256: "abc" is not a SHA-256 sum (64 hexadecimal digits, as sha256sum prints)`, true},
	{"sum as number", "Image x\nspec: {source: {file: {path: a}}, sha256: 12}\n", `4:43: spec.sha256: expected a string, found the number 12 (write it in quotes)`, true},
	{"image format", image + ", format: vmdk}\n", `4:119: spec.format: "vmdk" is not a known value (write raw or qcow2)`, true},
	{"bridge too long", "Network x\nspec: {bridge: {name: br-much-too-long}}\n", `4:23: spec.bridge.name: "br-much-too-long" is not the name of a network interface (letters, digits, '.', '_' and '-', at most 15 characters)`, true},
	{"bridge with a slash", "Network x\nspec: {bridge: {name: a/b}}\n", `4:23: spec.bridge.name: "a/b" is not the name of a network interface (letters, digits, '.', '_' and '-', at most 15 characters)`, true},
	{"cluster id", "Cluster x\nspec: {id: \"a/b\"}\n", "3:18: second Cluster \"x\", the first is at base.yaml:1:1 (a tree has exactly one)\n4:12: spec.id: \"a/b\" is not a cluster id (letters, digits, '.', '_' and '-', at most 63 characters)", true},
	{"CPU feature", "VirtualMachine x\nspec: {host: host1, cpu: {cores: 1, model: \"host,+vmx\"}, memory: {size: 64Mi}}\n", `4:44: spec.cpu.model: "host,+vmx" is not a CPU model (a name that qemu-system-x86_64 -cpu help lists; features cannot be added)`, true},
	{"machine type", vm + "  machine: virt\n", `8:12: spec.machine: "virt" is not a machine type (q35, or a version of it such as pc-q35-7.2)`, true},
	{"machine option", vm + "  machine: q35,accel=tcg\n", `8:12: spec.machine: "q35,accel=tcg" is not a machine type (q35, or a version of it such as pc-q35-7.2)`, true},
	{"time", vm + "  restartedAt: yesterday\n", `8:16: spec.restartedAt: "yesterday" is not a time (write RFC 3339, such as 2026-11-22T10:00:00Z)`, false},
	{"date", vm + "  restartedAt: 2026-11-22\n", `8:16: spec.restartedAt: "2026-11-22" is not a time (write RFC 3339, such as 2026-11-22T10:00:00Z)`, false},

	// Fields against each other.
	{"CPUs", "VirtualMachine x\nspec: {host: host1, cpu: {sockets: 2, cores: 4, max: 6}, memory: {size: 64Mi}}\n", `4:54: spec.cpu.max: 6 is less than the 8 virtual CPUs the machine has`, false},
	{"whole sockets", "VirtualMachine x\nspec: {host: host1, cpu: {cores: 4, max: 6}, memory: {size: 64Mi}}\n", `4:42: spec.cpu.max: 6 is not a multiple of 4 (CPUs come in whole sockets of cores × threads)`, false},
	{"too many CPUs", "VirtualMachine x\nspec: {host: host1, cpu: {sockets: 16, cores: 16}, memory: {size: 64Mi}}\n", `4:26: spec.cpu: 256 virtual CPUs are out of range (sockets × cores × threads is at most 255)`, false},
	{"memory", "VirtualMachine x\nspec: {host: host1, cpu: {cores: 1}, memory: {size: 64Mi, max: 32Mi}}\n", `4:64: spec.memory.max: 32Mi is less than the size, 64Mi`, false},
	{"no kernel", vm + "  boot: {initrd: {image: k}, cmdline: quiet}\n", "8:18: spec.boot.initrd needs a kernel (give boot.kernel, or leave it out)\n8:39: spec.boot.cmdline needs a kernel (give boot.kernel, or leave it out)", false},
	{"kernel and firmware", vm + "  boot: {kernel: {image: k}, firmware: BIOS}\n", `8:40: spec.boot.firmware and spec.boot.kernel exclude each other (remove one)`, false},
	{"command line of two lines", vm + "  boot: {kernel: {image: k}, cmdline: \"a\\nb\"}\n", `8:39: spec.boot.cmdline: "a\nb" contains a control character (one line of at most 2047 characters)`, false},
	{"card twice", vm + "  nics: [{name: a, network: user}, {name: a, network: user}]\n", `8:36: spec.nics: duplicate name "a" (every entry has a name of its own)`, false},
	{"address twice", vm + "  nics: [{name: a, network: user, mac: \"52:00:00:00:00:01\"}, {name: b, network: user, mac: \"52:00:00:00:00:01\"}]\n", `8:92: spec.nics[b].mac: 52:00:00:00:00:01 is the address of "a" already`, false},
	{"disk twice by name", vm + "  disks: [{disk: d}, {disk: d}]\n---\n" + caseFile("Disk d\nspec: {pool: fast, size: 1Gi}\n"), `8:22: spec.disks: duplicate name "d" (every entry has a name of its own)`, false},
	{"disk twice", vm + "  disks: [{disk: d}, {name: e, disk: d}]\n---\n" + caseFile("Disk d\nspec: {pool: fast, size: 1Gi}\n"), `8:38: spec.disks[e].disk: "d" is attached as "d" already (a disk can be attached once)`, false},

	// Secrets and cloud-init.
	{"Secret in the clear", "Secret x\nspec: {data: {password: hunter2}}\n", "1:1: the Secret is not encrypted: sops is missing (" + sopsHint + ")\n4:25: spec.data[password]: the value is not encrypted (" + sopsHint + ")", true},
	{"Secret encrypted in part", "Secret x\nspec: {data: {a: \"" + sealedValue + "\", pin: 1234}}\n" + sopsPart, "4:138: spec.data[pin]: expected a string, found a value that is not encrypted (" + sopsHint + ")", true},
	{"Secret without data", "Secret x\nspec: {data: {}}\n" + sopsPart, `4:14: spec.data is empty`, true},
	{"Secret for nobody", "Secret x\nspec: {data: {a: \"" + sealedValue + "\"}}\n" + strings.Replace(sopsPart, "age: [", "pgp: [", 1), `5:7: sops.age is empty: no host can decrypt the Secret (add a host's recipient: sops rotate --in-place --add-age RECIPIENT FILE)`, false},
	{"Secret by hand", "Secret x\nspec: {data: {a: \"" + sealedValue + "\"}}\nsops: {age: [{}]}\n", "5:7: sops.lastmodified is missing (only the sops program writes it)\n5:7: sops.mac is missing (only the sops program writes it)", false},
	{"Secret of key groups", "Secret x\nspec: {data: {a: \"" + sealedValue + "\"}}\n" + strings.Replace(sopsPart, "age: [", "key_groups: [", 1), `5:45: sops.key_groups are not supported (encrypt for age recipients, without a threshold)`, false},
	{"Secret by comments", "Secret x\nspec: {data: {a: \"" + sealedValue + "\"}}\n" + strings.Replace(sopsPart, "{", "{encrypted_comment_regex: x, ", 1), `5:33: sops.encrypted_comment_regex is not supported (` + sopsHint + `)`, false},
	{"sops as a string", "Network x\nspec: {user: {}}\nsops: yes\n", `5:7: sops: expected a mapping, found the string "yes" (only the sops program writes it)`, true},
	{"everything encrypted", "apiVersion: " + sealedValue + "\nkind: " + sealedValue + "\nmetadata: {name: x}\n" + sopsPart, `2:7: the whole document is encrypted (decrypt it, then ` + sopsHint + `)`, true},
	{"name encrypted", "Secret \"" + sealedValue + "\"\nspec: {data: {a: \"\"}}\n" + sopsPart, `3:18: metadata.name: the value is encrypted (only the data of a Secret may be: ` + sopsHint + `)`, true},
	{"command line encrypted", vm + "  boot: {kernel: {image: k}, cmdline: \"" + sealedValue + "\"}\n", `8:39: spec.boot.cmdline: the value is encrypted (only the data of a Secret may be: ` + sopsHint + `)`, false},
	{"no user-data", vm + "  cloudInit: {}\n", `8:14: spec.cloudInit.userData is missing`, true},
	{"empty user-data", vm + "  cloudInit: {userData: {}}\n", `8:25: spec.cloudInit.userData is empty (give inline, or secret and key)`, true},
	{"text and Secret", vm + "  cloudInit: {userData: {inline: a, key: b}}\n", `8:25: spec.cloudInit.userData has both inline text and a Secret (give inline, or secret and key)`, true},
	{"Secret without key", vm + "  cloudInit: {userData: {secret: web}}\n---\n" + secretWeb, `8:25: spec.cloudInit.userData.key is missing (which key of the Secret?)`, true},
	{"key without Secret", vm + "  cloudInit: {userData: {key: a}}\n", `8:25: spec.cloudInit.userData.secret is missing (whose key?)`, true},
	{"no key", vm + "  cloudInit: {userData: {secret: web, key: \"a:b\"}}\n---\n" + secretWeb, `8:44: spec.cloudInit.userData.key: "a:b" is not a key of a Secret (letters, digits and . _ / -, at most 128 characters)`, true},
	{"other key", vm + "  cloudInit: {userData: {secret: web, key: usr-data}}\n---\n" + secretWeb, `8:44: spec.cloudInit.userData.key: Secret "web" has no key "usr-data" (did you mean user-data?)`, false},
	{"unknown key", vm + "  cloudInit: {userData: {inline: a}, metaData: {secret: web, key: x}}\n---\n" + secretWeb, `8:67: spec.cloudInit.metaData.key: Secret "web" has no key "x" (it has token, user-data)`, false},
	{"no such Secret", vm + "  cloudInit: {userData: {secret: wep, key: token}}\n---\n" + secretWeb, `8:34: spec.cloudInit.userData.secret: there is no Secret "wep" (did you mean web?)`, false},
	{"meta-data that is none", vm + "  cloudInit: {userData: {inline: a}, metaData: {inline: \"[a]\"}, networkConfig: {inline: \"a: [\"}}\n", "8:57: spec.cloudInit.metaData.inline is not a YAML mapping\n8:89: spec.cloudInit.networkConfig.inline is not a YAML mapping", false},
	{"long user-data", vm + "  cloudInit: {userData: {inline: \"" + strings.Repeat("a", 131073) + "\"}}\n", `8:34: spec.cloudInit.userData.inline: "` + strings.Repeat("a", 60) + `…" is not a text (at most 131072 bytes, without control characters but tab and line feed)`, true},
	{"binary user-data", vm + "  cloudInit: {userData: {inline: \"a\\0b\"}}\n", `8:34: spec.cloudInit.userData.inline: the text contains a control character (at most 131072 bytes, without control characters but tab and line feed)`, false},

	// Objects against each other. The schema knows one document at a time.
	{"second cluster", "Cluster x\nspec: {}\n", `3:18: second Cluster "x", the first is at base.yaml:1:1 (a tree has exactly one)`, false},
	{"duplicate name", "VirtualMachine old\nspec: {host: host1, cpu: {cores: 1}, memory: {size: 64Mi}}\n", `base.yaml:56:18: duplicate VirtualMachine "old", the first is at a.yaml:1:1 (names are unique within a kind)`, false},
	{"former name", "VirtualMachine older\nspec: {host: host1, cpu: {cores: 1}, memory: {size: 64Mi}}\n", `3:18: VirtualMachine "older" is a former name of "old", at base.yaml:56:34 (take another name; a former name stays taken)`, false},
	{"same identity", "apiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: x, movedFrom: [older]}\nspec: {host: host1, cpu: {cores: 1}, memory: {size: 64Mi}}\n", `base.yaml:56:34: VirtualMachine "old" and "x" at a.yaml:1:1 have the same identity (both started as "older"; a new object needs another movedFrom or incarnation)`, false},
	{"dangling", "VirtualMachine x\nspec:\n  host: hots1\n  cpu: {cores: 1}\n  memory: {size: 64Mi}\n  boot: {kernel: {image: kk}}\n  disks: [{disk: old-rot}]\n  nics: [{name: a, network: forn}]\n",
		`5:9: spec.host: there is no Host "hots1" (did you mean host1?)
8:26: spec.boot.kernel.image: there is no Image "kk" (did you mean k?)
9:18: spec.disks[old-rot].disk: there is no Disk "old-rot" (did you mean old-root?)
10:29: spec.nics[a].network: there is no Network "forn" (did you mean front?)`, false},
	{"dangling, far", "Disk x\nspec: {pool: ssd, size: 1Gi}\n", `4:14: spec.pool: there is no StoragePool "ssd"`, false},
	{"not a hypervisor", "VirtualMachine x\nspec: {host: store1, cpu: {cores: 1}, memory: {size: 64Mi}}\n", `4:14: spec.host: host "store1" does not have the role Hypervisor (its roles are at base.yaml:18:15)`, false},
	{"not a storage host", "StoragePool x\nspec: {host: compute1, capacity: 1Gi, volumes: {file: {path: p}}, target: {embedded: {portals: [\"192.0.2.1:3260\"]}}}\n", `4:14: spec.host: host "compute1" does not have the role Storage (its roles are at base.yaml:13:15)`, false},
	{"one directory, two pools", pool + "  volumes: {file: {path: pools//fast/}}\n  target: {embedded: {portals: [\"192.0.2.1:3260\"]}}\n", `base.yaml:26:26: spec.volumes.file.path: "pools/fast" on host "host1" belongs to pool "x" at a.yaml:1:1 (every pool has a directory of its own)`, false},
	{"disk of two machines", vm + "  disks: [{name: r, disk: old-root}]\n", `base.yaml:61:18: spec.disks[old-root].disk: "old-root" belongs to machine "x" at a.yaml:1:1 (a disk belongs to one machine)`, false},
	{"address of two machines", vm + "  nics: [{name: a, network: front, mac: \"52:54:00:00:00:01\"}]\n", `base.yaml:62:41: spec.nics[n].mac: 52:54:00:00:00:01 on network "front" is an address of machine "x" at a.yaml:1:1 (give one of them another mac)`, false},
	{"address of two machines, by two networks of a bridge", "Network back\nspec: {bridge: {name: br0}}\n---\n" + caseFile(vm+"  nics: [{name: a, network: back, mac: \"52:54:00:00:00:01\"}]\n"), `13:40: spec.nics[a].mac: 52:54:00:00:00:01 on network "back", bridge "br0", is an address of machine "old" on network "front" of the same bridge, at base.yaml:54:1 (give one of them another mac)`, false},
	{"disk smaller than its image", "Disk x\nspec: {pool: fast, size: 1Gi, source: {image: debian}}\n", `4:26: spec.size: 1Gi is less than the virtualSize of image "debian", 2Gi`, false},
	{"image without virtual size", "Disk x\nspec: {pool: fast, size: 1Gi, source: {image: k}}\n", `4:47: spec.source.image: image "k" does not say its virtualSize (qemu-img info shows it)`, false},
	{"kernel in qcow2", vm + "  boot: {kernel: {image: debian}}\n", `8:26: spec.boot.kernel.image: image "debian" has the format qcow2 (a kernel or initrd is raw)`, false},

	// What is wrong in one place hides nothing elsewhere, and an object with
	// errors is not missing to others.
	{"broken object referred to", "Disk d\nspec: {pool: fast, size: 1GB}\n---\n" + caseFile(vm+"  disks: [{disk: d}]\n"), `4:26: spec.size: "1GB" is not a size (did you mean 1Gi?)`, true},
	{"kind unknown, name known", "apiVersion: reconciler/v1alpha1\nkind: Dsk\nmetadata: {name: d}\n---\n" + caseFile(vm+"  disks: [{disk: d}, {disk: e}]\n"), "2:7: unknown kind \"Dsk\" (did you mean Disk?)\n12:29: spec.disks[e].disk: there is no Disk \"e\"", true},
	{"documents lost", "Disk x\nspec: {pool: fst, size: 1Gi}\n---\na: [\n", `7:1: not YAML: did not find expected node content`, false},
}

func TestBadInput(t *testing.T) {
	for _, c := range badCases {
		t.Run(c.name, func(t *testing.T) {
			err := loadCase(caseFile(c.doc))
			var errs Errors
			if !errors.As(err, &errs) {
				t.Fatalf("loads; want:\n%s", c.want)
			}
			got := strings.ReplaceAll("\n"+errs.Error(), "\na.yaml:", "\n")
			if got != "\n"+c.want {
				t.Errorf("got:%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestLaterIsRefusedByName(t *testing.T) {
	docs := map[string]string{
		"spec.policies is not supported yet":            "Cluster x\nspec: {policies: {}}\n",
		"spec.capacity is not supported yet":            "Host x\nspec: {capacity: {}}\n",
		"spec.state: Draining is not supported yet":     "Host x\nspec: {state: Draining}\n",
		"spec.state: Maintenance is not supported yet":  "Host x\nspec: {state: Maintenance}\n",
		"spec.volumes.lvmThin is not supported yet":     "StoragePool x\nspec: {volumes: {lvmThin: {vg: a}}}\n",
		"spec.target.lio is not supported yet":          "StoragePool x\nspec: {target: {lio: {portals: []}}}\n",
		"spec.source.snapshot is not supported yet":     "Disk x\nspec: {source: {snapshot: a}}\n",
		"spec.source.clone is not supported yet":        "Disk x\nspec: {source: {clone: a}}\n",
		"spec.io is not supported yet":                  "Disk x\nspec: {io: {}}\n",
		"spec.encryption is not supported yet":          "Disk x\nspec: {encryption: {}}\n",
		"spec.vlan is not supported yet":                "Network x\nspec: {vlan: {}}\n",
		"spec.vxlan is not supported yet":               "Network x\nspec: {vxlan: {}}\n",
		"spec.mtu is not supported yet":                 "Network x\nspec: {mtu: 9000}\n",
		"spec.antiSpoofing is not supported yet":        "Network x\nspec: {antiSpoofing: true}\n",
		"spec.bridge.mtu is not supported yet":          "Network x\nspec: {bridge: {mtu: 9000}}\n",
		"spec.boot.firmware: UEFI is not supported yet": "VirtualMachine x\nspec: {boot: {firmware: UEFI}}\n",
		"spec.machine: microvm is not supported yet":    "VirtualMachine x\nspec: {machine: microvm}\n",
	}
	for want, doc := range docs {
		_, err := Parse("a.yaml", []byte(caseFile(doc)))
		if err == nil || !strings.Contains(err.Error(), ": "+want) {
			t.Errorf("want %q, got:\n%v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), "unknown field") {
			t.Errorf("also unknown:\n%v", err)
		}
	}
}

func TestEveryRuleIsInTheTable(t *testing.T) {
	// A format or reference that no case breaks would go unnoticed if it broke.
	var all strings.Builder
	for _, c := range badCases {
		all.WriteString(c.want)
	}
	for id, f := range formats {
		if f.what != "" && id != "ip" && !strings.Contains(all.String(), "is not "+f.what) {
			switch id {
			case "label", "annotation", "cmdline", "iqn": // by what they contain; TestIQNBase
				continue
			}
			t.Errorf("no case for format %s", id)
		}
	}
}

func TestIQNBase(t *testing.T) {
	for base, good := range map[string]bool{
		"iqn.2026-11.local.reconciler":            true,
		"iqn.2001-04.com.example:storage.a-b":     true,
		"iqn.2026-13.local.x":                     false,
		"iqn.2026-00.local.x":                     false,
		"iqn.26-01.local.x":                       false,
		"iqn.2026-01.":                            false,
		"iqn.2026-01":                             false,
		"iqn.2026-01.Local":                       false,
		"iqn.2026-01.local,x":                     false,
		"iqn.2026-01.local_x":                     false,
		"iqn.2026-01.local:":                      false,
		"iqn.2026-01.-local":                      false,
		"eui.02004567a425678d":                    false,
		"iqn.2026-01." + strings.Repeat("a", 116): true,
		"iqn.2026-01." + strings.Repeat("a", 117): false,
	} {
		_, p := formats["iqn"].parse(base)
		if (p == nil) != good {
			t.Errorf("%q: %v", base, p)
		}
	}
}

func TestErrorsFollowPlaces(t *testing.T) {
	err := loadCase(caseFile("Disk x\nspec: {pool: fast, size: 1GB, retention: 7, deletionPolicy: Keep, source: {imag: debian}}\n"))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 4 {
		t.Fatalf("want four errors, got:\n%v", err)
	}
	for i, e := range errs[1:] {
		if before := errs[i]; before.Line > e.Line || before.Line == e.Line && before.Col > e.Col {
			t.Errorf("%v stands after %v", before, e)
		}
	}
}

func manyCards(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "    - {name: n%d, network: front}\n", i)
	}
	return b.String()
}
