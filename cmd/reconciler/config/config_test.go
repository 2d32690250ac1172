package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAsbrTTnLaYzT8w7o4YIHO0dhL9PrVYQMHTo1S4Kp3n7 ci"
	c, err := Parse("c.yaml", []byte(strings.ReplaceAll(`
repo: ssh://git@forge.example/cluster.git
branch: main
path: clusters/demo
host: host1
accel: tcg
qemuUser: nobody
stateDir: /s
runDir: /r
imageDir: /i
credentials: {tokenFile: /t, sshKeyFile: /k, knownHostsFile: /kh, caFile: /ca, write: {tokenFile: /wt, sshKeyFile: /wk}}
windows:
  - {name: weekly, schedule: "0 2 * * 0", duration: 4h, timeZone: Europe/Berlin, impact: stop}
tenants:
  - name: acme
    path: tenants/acme
    kinds: [VirtualMachine]
    pools: [fast]
    networks: [front]
    images: [debian]
    hosts: [host1]
    bridges: [br0]
    imageFiles: images/acme
    quota: {machines: 1, cpus: 2, memory: 3Gi, disks: 4, images: 6, storage: 5Ti}
signing: {required: true, keys: /as, gpgKeys: /gk, commits: Merges, trustedBase: 0123456789012345678901234567890123456789}
requireReviewedPlan: true
planSigners: [KEY]
overrideKeys: [KEY]
hostKeyFile: /hk
machineIDFile: /mid
secrets: {ageKeyFile: /age}
forge: {kind: gitea, url: "https://git.example.org", repository: ops/cluster, tokenFile: /ft, caFile: /fca}
iscsi: {discovery: chap}
webhook: {listen: "192.0.2.1:9443", secretFile: /ws, certFile: /wc, keyFile: /wk}
statusRepo: {url: "https://git.example.org/ops/status", credentials: {tokenFile: /st}}
approvalsRef: refs/agents/approvals
driftBranchPrefix: refs/heads/drift/
allowed:
  roots: [/srv/pools, {path: /mnt/pools, mount: true}, {path: /srv/more, mount: false}]
  bridges: [br0, br1]
limits: {budget: {count: 3, percent: 20}, parallel: 2, imageSize: 20Gi}
interval: 30s
heartbeat: 5m
statusRefPrefix: refs/agents/
`, "KEY", key)))
	if err != nil {
		t.Fatal(err)
	}
	yes, no := true, false
	want := Config{
		Repo: "ssh://git@forge.example/cluster.git", Branch: "main", Path: "clusters/demo", Host: "host1", Accel: "tcg", QEMUUser: "nobody",
		StateDir: "/s", RunDir: "/r", ImageDir: "/i",
		Credentials: Credentials{"/t", "/k", "/kh", "/ca", WriteCredentials{"/wt", "/wk"}},
		Allowed:     Allowed{[]Root{{"/srv/pools", nil}, {"/mnt/pools", &yes}, {"/srv/more", &no}}, []string{"br0", "br1"}},
		Limits:      Limits{Budget{3, 20}, 2, "20Gi"},
		Interval:    30 * time.Second, Heartbeat: 5 * time.Minute, StatusRefPrefix: "refs/agents/",
		Windows: []Window{{"weekly", "0 2 * * 0", 4 * time.Hour, "Europe/Berlin", "stop"}},
		Tenants: []Tenant{{"acme", "tenants/acme", []string{"VirtualMachine"}, []string{"fast"}, []string{"front"}, []string{"debian"}, []string{"host1"},
			[]string{"br0"}, "images/acme", Quota{1, 2, "3Gi", 4, 6, "5Ti"}}},
		Signing:             Signing{true, "/as", "/gk", "Merges", "0123456789012345678901234567890123456789"},
		RequireReviewedPlan: true, PlanSigners: []string{key}, OverrideKeys: []string{key}, HostKeyFile: "/hk", MachineIDFile: "/mid", Secrets: Secrets{"/age"},
		Forge:   Forge{"gitea", "https://git.example.org", "ops/cluster", "/ft", "/fca"},
		ISCSI:   ISCSI{"chap"},
		Webhook: Webhook{"192.0.2.1:9443", "/ws", "/wc", "/wk"},
		Status:  StatusRepo{"https://git.example.org/ops/status", Credentials{TokenFile: "/st"}}, ApprovalsRef: "refs/agents/approvals",
		DriftBranchPrefix: "refs/heads/drift/",
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("\n got %+v\nwant %+v", c, want)
	}
	// Every field is in the file above: one that no test sets could be forgotten.
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not tested", v.Type().Field(i).Name)
		}
	}
}

// One thing that can be written in several ways is read as one.
func TestSpellings(t *testing.T) {
	c, err := Parse("c.yaml", []byte(`
branch: refs/heads/main
path: ./clusters//demo/
stateDir: /var/lib/reconciler/
runDir: /run/./reconciler
allowed: {roots: [/srv/pools/, {path: /mnt/./pools/}]}
tenants:
  - {name: acme, path: ./tenants/acme/, imageFiles: ./acme/}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want string }{
		{c.Branch, "main"}, {c.Path, "clusters/demo"}, {c.StateDir, "/var/lib/reconciler"}, {c.RunDir, "/run/reconciler"},
		{c.Allowed.Roots[0].Path, "/srv/pools"}, {c.Allowed.Roots[1].Path, "/mnt/pools"}, {c.Tenants[0].Path, "tenants/acme"}, {c.Tenants[0].ImageFiles, "acme"},
		{c.PolicyTenants()[0].Path, "tenants/acme"}, {c.PolicyTenants()[0].ImageFiles, "acme"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "repo:\nlimits:\n", "{}"} {
		c, err := Parse("c.yaml", []byte(text))
		if err != nil || !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
	c := Default()
	c.StateDir = "/s"
	if p := c.Check(); len(p) > 0 {
		t.Errorf("the defaults will not do: %v", p)
	}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	if c.Host == "" || strings.Contains(c.Host, ".") || c.ImageDir != "/s/image-files" {
		t.Errorf("host %q, image directory %q", c.Host, c.ImageDir)
	}
}

func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		"repos: x":                                                "c.yaml:1:1: unknown key repos (known here: accel, allowed,",
		"\n\nlimits:\n  budget: {cnt: 1}":                         "c.yaml:4:12: unknown key limits.budget.cnt (known here: count, percent)",
		"host: a\nhost: b":                                        "c.yaml:2:1: host: given twice",
		"interval: 30":                                            "c.yaml:1:11: interval: must be a duration like 30s",
		"interval: soon":                                          "c.yaml:1:11: interval: must be a duration like 30s",
		"interval: 100ms":                                         "c.yaml:1:11: interval: 100ms is not within 1s and 24h",
		"heartbeat: 1s":                                           "c.yaml:1:12: heartbeat: 1s is not within 1m and 24h",
		"limits: {parallel: many}":                                "c.yaml:1:20: limits.parallel: must be a whole number",
		"limits: {parallel: 0}":                                   "c.yaml:1:20: limits.parallel: 0 is not within 1 and 64",
		"limits: {budget: {count: 0}}":                            "c.yaml:1:26: limits.budget.count: 0 is less than 1",
		"limits: {budget: {percent: 101}}":                        "c.yaml:1:28: limits.budget.percent: 101 is not within",
		"allowed: {bridges: br0}":                                 "c.yaml:1:20: allowed.bridges: must be a list of strings",
		"allowed: {bridges: [a/b]}":                               `c.yaml:1:20: allowed.bridges: "a/b" is not the name`,
		"allowed: {roots: [{path: /srv, mount: maybe}]}":          `c.yaml:1:39: allowed.roots[0].mount: must be true or false`,
		"allowed: {roots: [{mount: true}]}":                       `c.yaml:1:18: allowed.roots: "" is not an absolute path`,
		"allowed: {roots: [{path: /srv, mounts: true}]}":          `unknown key allowed.roots[0].mounts`,
		"allowed: {roots: srv}":                                   `must be a list`,
		"allowed: {roots: [[srv]]}":                               `must be a mapping`,
		"allowed: {roots: [srv]}":                                 `c.yaml:1:18: allowed.roots: "srv" is not an absolute path`,
		"allowed: [x]":                                            "c.yaml:1:10: allowed: must be a mapping",
		"- x":                                                     "c.yaml:1:1: must be a mapping",
		"stateDir: state":                                         `c.yaml:1:11: stateDir: "state" is not an absolute path`,
		"credentials: {caFile: ca.pem}":                           `c.yaml:1:23: credentials.caFile: "ca.pem" is not an absolute path`,
		"iscsi: {discovery: CHAP}":                                `c.yaml:1:20: iscsi.discovery: "CHAP" is none of none, chap`,
		"accel: hvf":                                              `c.yaml:1:8: accel: "hvf" is none of kvm, tcg, auto`,
		"repo: https://u:p@forge/x":                               "c.yaml:1:7: repo: credentials must not stand in the address",
		"repo: https://token@forge/x":                             "c.yaml:1:7: repo: credentials must not stand in the address",
		"statusRefPrefix: refs/heads/x/":                          "c.yaml:1:18: statusRefPrefix: ",
		"signing: {required: true}":                               "c.yaml:1:21: signing.required: signatures are required and no key counts",
		"signing: {required: maybe}":                              "c.yaml:1:21: signing.required: must be true or false",
		"signing: {commits: Some}":                                "c.yaml:1:20: signing.commits: it is All or Merges",
		"signing: {trustedBase: main}":                            "c.yaml:1:24: signing.trustedBase: it is not the full hash",
		"requireReviewedPlan: true":                               "c.yaml:1:22: requireReviewedPlan: no plan could ever be approved",
		"planSigners: [ada]":                                      `c.yaml:1:14: planSigners: "ada" is not a public SSH key`,
		"overrideKeys: [ada]":                                     `c.yaml:1:15: overrideKeys: "ada" is not a public SSH key`,
		"forge: {url: \"https://x\"}":                             "forge.kind: it must be given",
		"forge: {kind: bitbucket, tokenFile: /t}":                 "c.yaml:1:15: forge.kind: it is none of gitea, github, gitlab",
		"forge: {kind: github}":                                   "forge.tokenFile: a forge takes nothing without a token",
		"repo: /srv/x.git\nforge: {kind: gitea, tokenFile: /t}":   "forge.url: the address of the forge is needed",
		"repo: file:///x\nforge: {kind: gitea, tokenFile: /t}":    "forge.url: the address of the forge is needed",
		"forge: {kind: gitea, tokenFile: /t, url: \"x\"}":         "c.yaml:1:42: forge.url: it is not an http(s) address",
		"webhook: {listen: \"here:1\", secretFile: /s}":           "c.yaml:1:19: webhook.listen: it is not ADDRESS:PORT",
		"webhook: {listen: \"127.0.0.1:1\"}":                      "webhook.secretFile: a receiver without a secret believes anybody",
		"webhook: {certFile: /c}":                                 "c.yaml:1:21: webhook.certFile: certFile and keyFile go together",
		"approvalsRef: refs/heads/x":                              "c.yaml:1:15: approvalsRef: ",
		"driftBranchPrefix: refs/x/":                              "c.yaml:1:20: driftBranchPrefix: ",
		"windows: {name: x}":                                      "c.yaml:1:10: windows: must be a list",
		"windows: [{nam: x}]":                                     "c.yaml:1:12: unknown key windows[0].nam",
		"tenants: [{quota: {cpus: many}}]":                        "c.yaml:1:26: tenants[0].quota.cpus: must be a whole number",
		"windows: [{name: w, schedule: '0 2 * *', duration: 1h}]": "c.yaml:1:11: windows[0]: schedule \"0 2 * *\": expected exactly 5 fields",
		"windows: [{name: w, schedule: '@daily', duration: 30s}]": "c.yaml:1:11: windows[0]: duration 30s is not within",
		"windows: [{name: w, schedule: '@daily', duration: 1h, timeZone: Berlin}]":                            "c.yaml:1:65: windows[0].timeZone: \"Berlin\" is not a time zone",
		"windows: [{name: w, schedule: '@daily', duration: 1h, timeZone: Local}]":                             "windows[0].timeZone: \"Local\" is not a time zone",
		"windows: [{name: w, schedule: '@daily', duration: 1h, impact: none}]":                                "windows[0]: impact none interrupts nothing",
		"windows: [{name: w, schedule: '@daily', duration: 1h, impact: much}]":                                "c.yaml:1:63: windows[0].impact: \"much\" is none of live",
		"windows: [{schedule: '@daily', duration: 1h}]":                                                       "windows[0]: it needs a name",
		"windows: [{name: w, schedule: '@daily', duration: 1h}, {name: w, schedule: '@daily', duration: 1h}]": "windows[1].name: there is another window",
		"windows: [{name: w, scedule: '@daily'}]":                                                             "unknown key windows[0].scedule",
		"windows: {name: w}":                                     "windows: must be a list",
		"tenants: [{name: A, path: a}]":                          "tenants[0]: it needs a name",
		"tenants: [{name: a}]":                                   "tenants[0].path: \"\" is not a directory",
		"tenants: [{name: a, path: ../a}]":                       "c.yaml:1:27: tenants[0].path: \"../a\" is not a directory",
		"tenants: [{name: a, path: /a}]":                         "tenants[0].path: \"/a\" is not a directory",
		"tenants: [{name: a, path: a/../b}]":                     "tenants[0].path: \"a/../b\" is not a directory",
		"tenants: [{name: a, path: .}]":                          "tenants[0].path: \".\" is not a directory",
		"tenants: [{name: a, path: x}, {name: a, path: y}]":      "tenants[1].name: there is another tenant",
		"tenants: [{name: a, path: x/Y}, {name: b, path: x/y/}]": "tenants[1].path: tenant a has the same path",
		"tenants: [{name: a, path: a, kinds: [Host]}]":           "tenants[0].kinds: \"Host\" is none of the kinds",
		"tenants: [{name: a, path: a, imageFiles: ../b}]":        "tenants[0].imageFiles: \"../b\" is not a directory",
		"tenants: [{name: a, path: a, quota: {memory: much}}]":   "tenants[0].quota.memory: \"much\" is not a size",
		"limits: {imageSize: 20GB}":                              `limits.imageSize: "20GB" is not a size, such as 20Gi`,
		"tenants: [{name: a, path: a, quota: {images: -1}}]":     "tenants[0].quota.images: -1 is less than 0",
		"tenants: [{name: a, path: a, quota: {machines: -1}}]":   "tenants[0].quota.machines: -1 is less than 0",
		"tenants: [{name: a, path: a, quota: {ram: 1Gi}}]":       "unknown key tenants[0].quota.ram",
		"host: [a]":               "c.yaml:1:7: host: must be a string",
		"host: a\n---\nhost: b":   "one YAML document only",
		"host: \"a":               "c.yaml:1:1: not YAML: found unexpected end of stream",
		"%YAML 1.2\n---\nhost: a": "c.yaml:1:1: not YAML: found incompatible YAML document (leave out the directive %YAML 1.2)",
		"host: a\n\tpath: b":      "c.yaml:2:1: not YAML: ",
	} {
		_, err := Parse("c.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: the error tells the password", text)
		}
	}
}

// All errors are told at once.
// The address of a forge follows from that of a repository elsewhere, and from
// --repo, which is known later.
func TestForgeURLMayBeLeftOut(t *testing.T) {
	for _, repo := range []string{"repo: https://forge.example/ops/cluster.git\n", "repo: git@forge.example:ops/cluster\n", ""} {
		if _, err := Parse("c.yaml", []byte(repo+"forge: {kind: gitea, tokenFile: /t}")); err != nil {
			t.Errorf("%q: %v", repo, err)
		}
	}
}

func TestAllErrors(t *testing.T) {
	_, err := Parse("c.yaml", []byte("accel: x\ninterval: 0s\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("%v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("#", maxFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("repo: x\nlimits: {budget: {count: 1}}")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("c", []byte(text))
		if err == nil && len(c.Check()) > 0 {
			t.Errorf("%q was taken: %v", text, c.Check())
		}
	})
}
