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
	c, err := Parse("c.yaml", []byte(`
repo: ssh://git@forge.example/cluster.git
branch: main
path: clusters/demo
host: host1
accel: tcg
qemuUser: nobody
stateDir: /s
runDir: /r
imageDir: /i
credentials: {tokenFile: /t, sshKeyFile: /k, knownHostsFile: /kh, caFile: /ca}
allowed:
  roots: [/srv/pools]
  bridges: [br0, br1]
limits: {budget: {count: 3, percent: 20}, parallel: 2}
interval: 30s
heartbeat: 5m
statusRefPrefix: refs/agents/
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Repo: "ssh://git@forge.example/cluster.git", Branch: "main", Path: "clusters/demo", Host: "host1", Accel: "tcg", QEMUUser: "nobody",
		StateDir: "/s", RunDir: "/r", ImageDir: "/i",
		Credentials: Credentials{"/t", "/k", "/kh", "/ca"},
		Allowed:     Allowed{[]string{"/srv/pools"}, []string{"br0", "br1"}},
		Limits:      Limits{Budget{3, 20}, 2},
		Interval:    30 * time.Second, Heartbeat: 5 * time.Minute, StatusRefPrefix: "refs/agents/",
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
		"repos: x":                         "c.yaml:1:1: unknown key repos (known here: accel, allowed,",
		"\n\nlimits:\n  budget: {cnt: 1}":  "c.yaml:4:12: unknown key limits.budget.cnt (known here: count, percent)",
		"host: a\nhost: b":                 "c.yaml:2:1: host: given twice",
		"interval: 30":                     "c.yaml:1:11: interval: must be a duration like 30s",
		"interval: soon":                   "c.yaml:1:11: interval: must be a duration like 30s",
		"interval: 100ms":                  "c.yaml:1:11: interval: 100ms is not within 1s and 24h",
		"heartbeat: 1s":                    "c.yaml:1:12: heartbeat: 1s is not within 1m and 24h",
		"limits: {parallel: many}":         "c.yaml:1:20: limits.parallel: must be a whole number",
		"limits: {parallel: 0}":            "c.yaml:1:20: limits.parallel: 0 is not within 1 and 64",
		"limits: {budget: {count: 0}}":     "c.yaml:1:26: limits.budget.count: 0 is less than 1",
		"limits: {budget: {percent: 101}}": "c.yaml:1:28: limits.budget.percent: 101 is not within",
		"allowed: {bridges: br0}":          "c.yaml:1:20: allowed.bridges: must be a list of strings",
		"allowed: {bridges: [a/b]}":        `c.yaml:1:20: allowed.bridges: "a/b" is not the name`,
		"allowed: {roots: [srv]}":          `c.yaml:1:18: allowed.roots: "srv" is not an absolute path`,
		"allowed: [x]":                     "c.yaml:1:10: allowed: must be a mapping",
		"- x":                              "c.yaml:1:1: must be a mapping",
		"stateDir: state":                  `c.yaml:1:11: stateDir: "state" is not an absolute path`,
		"credentials: {caFile: ca.pem}":    `c.yaml:1:23: credentials.caFile: "ca.pem" is not an absolute path`,
		"accel: hvf":                       `c.yaml:1:8: accel: "hvf" is none of kvm, tcg, auto`,
		"repo: https://u:p@forge/x":        "c.yaml:1:7: repo: credentials must not stand in the address",
		"repo: https://token@forge/x":      "c.yaml:1:7: repo: credentials must not stand in the address",
		"statusRefPrefix: refs/heads/x/":   "c.yaml:1:18: statusRefPrefix: ",
		"host: [a]":                        "c.yaml:1:7: host: must be a string",
		"host: a\n---\nhost: b":            "one YAML document only",
		"host: \"a":                        "c.yaml: yaml: ",
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
