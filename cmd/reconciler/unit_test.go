package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"reconciler/api"
	"reconciler/cmd/reconciler/config"
	"reconciler/reconcile"
	"reconciler/spec"
)

func TestPlanExit(t *testing.T) {
	action := func(op reconcile.Op, s reconcile.ActionState) reconcile.Action {
		return reconcile.Action{Op: op, State: s}
	}
	for name, tt := range map[string]struct {
		plan reconcile.Plan
		want int
	}{
		"empty":      {reconcile.Plan{}, 0},
		"unchanged":  {reconcile.Plan{Actions: []reconcile.Action{action(reconcile.OpUnchanged, reconcile.Ready)}}, 0},
		"ready":      {reconcile.Plan{Actions: []reconcile.Action{action(reconcile.OpCreate, reconcile.Ready), action(reconcile.OpUpdate, reconcile.Held)}}, 2},
		"waiting":    {reconcile.Plan{Actions: []reconcile.Action{action(reconcile.OpUpdate, reconcile.Waiting)}}, 3},
		"held":       {reconcile.Plan{Actions: []reconcile.Action{action(reconcile.OpUpdate, reconcile.Held)}}, 3},
		"blocked":    {reconcile.Plan{Actions: []reconcile.Action{action(reconcile.OpBlocked, reconcile.Blocked)}}, 3},
		"incomplete": {reconcile.Plan{Incomplete: true, Actions: []reconcile.Action{action(reconcile.OpCreate, reconcile.Ready)}}, 4},
	} {
		if got := report(t.Context(), &bytes.Buffer{}, "reconciler plan", planExit(&tt.plan)); got != tt.want {
			t.Errorf("%s: exit code %d, want %d", name, got, tt.want)
		}
	}
}

func TestReport(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx  context.Context
		err  error
		code int
		text string
	}{
		"error":       {t.Context(), errors.New("disk on fire"), 1, "reconciler: disk on fire\n"},
		"usage":       {t.Context(), usagef("no"), 64, "reconciler: no\n  hint: reconciler x --help\n"},
		"hint":        {t.Context(), fmt.Errorf("a: %w", &hinted{errors.New("b"), "do c"}), 1, "reconciler: a: b\n  hint: do c\n"},
		"agent":       {t.Context(), fmt.Errorf("a: %w", &api.Error{Message: "m", Hint: "h"}), 1, "reconciler: a: m\n  hint: h\n"},
		"controls":    {t.Context(), errors.New("a\x1b[2J\nb\u202e"), 1, "reconciler: a\ufffd[2J\nb\ufffd\n"},
		"interrupted": {ended, fmt.Errorf("a: %w", context.Canceled), 1, "reconciler: interrupted\n"},
	} {
		var b bytes.Buffer
		if code := report(tt.ctx, &b, "reconciler x", tt.err); code != tt.code || b.String() != tt.text {
			t.Errorf("%s: exit code %d, %q", name, code, b.String())
		}
	}
}

// YAML says what JSON says, key by key and in its order, whatever the strings hold.
func TestYAMLIsJSON(t *testing.T) {
	v := struct {
		Z    string   `json:"z"`
		A    []string `json:"a"`
		None []string `json:"none"`
		M    any      `json:"m"`
	}{"true", []string{"1", "null", "a: b", "line\nline", "\u2028 \u00e9 \U0001f600", "<&>", "~", "2026-11-22T10:00:00Z"}, []string{}, map[string]any{}}
	var out bytes.Buffer
	if err := printData(&out, "yaml", v); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "z: \"true\"\na:\n") || !strings.Contains(out.String(), "none: []\nm: {}\n") {
		t.Errorf("%s", out.String())
	}
	want, _ := json.Marshal(v)
	if got := yamlToJSON(t, out.Bytes()); got != string(want) {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestAge(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 5 * time.Second: "5s", 65 * time.Second: "1m5s", 2*time.Hour + 5*time.Minute: "2h5m", 50 * time.Hour: "2d2h",
	} {
		if got := age(now.Add(-d), now); got != want {
			t.Errorf("%s: %s", d, got)
		}
	}
	if got := age(time.Time{}, now); got != "" {
		t.Errorf("no time: %s", got)
	}
}

func TestParseUntil(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"": {}, "2h": now.Add(2 * time.Hour), "2026-11-23T00:00:00Z": now.Add(14 * time.Hour),
	} {
		if got, err := parseUntil(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
}

func TestAnnotation(t *testing.T) {
	got := annotation(severityError, spec.Error{File: "a,b:c.yaml", Line: 3, Col: 7, Msg: "100% wrong\n::error::", Hint: "fix it"})
	if want := "::error file=a%2Cb%3Ac.yaml,line=3,col=7::100%25 wrong%0A::error:: (fix it)"; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// No name of others starts a command of a CI runner.
func TestNoWorkflowCommands(t *testing.T) {
	var out bytes.Buffer
	errs := spec.Errors{
		{File: "::set-env name=A::b.yaml", Line: 1, Col: 1, Msg: "wrong"},
		{File: " ::error::.yaml", Line: 1, Col: 1, Msg: "wrong"},
		{File: "a.yaml", Line: 1, Col: 1, Msg: "##[add-mask]x ::error::"},
		{File: "\x1b[2J\u202e%0A::a.yaml", Line: 1, Col: 1, Msg: "wrong\u202e"},
	}
	printSpecErrors(&out, "text", severityError, "", errs)
	if want := "./::set-env name=A::b.yaml:1:1: wrong\n./ ::error::.yaml:1:1: wrong\na.yaml:1:1: ## [add-mask]x ::error::\n\ufffd[2J\ufffd%0A::a.yaml:1:1: wrong\ufffd\n"; out.String() != want {
		t.Errorf("\n got %q\nwant %q", out.String(), want)
	}
	out.Reset()
	printSpecErrors(&out, "github", severityWarning, "", errs[3:])
	if want := "::warning file=\ufffd[2J\ufffd%250A%3A%3Aa.yaml,line=1,col=1::wrong\ufffd\n"; out.String() != want {
		t.Errorf("\n got %q\nwant %q", out.String(), want)
	}
	out.Reset()
	report(t.Context(), &out, "x", errors.Join(errs[0], errs[1]))
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(strings.TrimSpace(line), "::") {
			t.Errorf("an error begins with %q", line)
		}
	}
}

// Every kind has a name on the command line, and no two have the same.
func TestKindNames(t *testing.T) {
	seen := map[string]spec.Kind{}
	for _, k := range spec.Kinds {
		for _, n := range append([]string{string(k)}, kindNames[k]...) {
			got, ok := parseKind(n)
			if !ok || got != k {
				t.Errorf("%s: %s, %t", n, got, ok)
			}
			if other, twice := seen[n]; twice && other != k {
				t.Errorf("%s is %s and %s", n, k, other)
			}
			seen[n] = k
		}
	}
}

func TestProbes(t *testing.T) {
	if _, err := probeISCSI(t.Context()); err != nil {
		t.Errorf("this machine has qemu-block-extra: %v", err)
	}
	dir := t.TempDir()
	if _, err := probeState(dir + "/to/be/made"); err != nil {
		t.Errorf("state directory: %v", err)
	}
	if _, err := probeRun(dir + "/" + strings.Repeat("long", 30)); err != nil {
		t.Errorf("run directory: %v", err)
	}
	t.Setenv("PATH", dir)
	c := config.Default()
	c.StateDir, c.RunDir, c.Accel = "/proc/nothing", "/dev/null", "kvm"
	c.Allowed.Bridges = []string{"br-none"}
	c.Credentials.TokenFile = dir // others may look into it, and it is no file of ours
	open := filepath.Join(dir, "open")
	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if why, err := probeTrusted(open); err != nil {
		t.Errorf("%s, %v", why, err)
	}
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	c.Webhook.SecretFile, c.HostKeyFile, c.Signing.Keys, c.Signing.GPGKeys = open, open, open, dir+"/none"
	for _, f := range probeHost(t.Context(), c, open) {
		switch f.Name {
		case "privileges", "tap devices":
			continue
		}
		if f.OK || f.Message == "" {
			t.Errorf("%s is said to be fit: %s", f.Name, f.Message)
		}
		if f.Fix == "" && f.Name != "state dir" {
			t.Errorf("%s does not say how to put it right: %s", f.Name, f.Message)
		}
	}
}

func yamlToJSON(t *testing.T, data []byte) string {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal(data, &n); err != nil {
		t.Fatal(err)
	}
	return nodeJSON(t, n.Content[0])
}

// nodeJSON keeps the order of the keys.
func nodeJSON(t *testing.T, n *yaml.Node) string {
	t.Helper()
	var parts []string
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			parts = append(parts, nodeJSON(t, n.Content[i])+":"+nodeJSON(t, n.Content[i+1]))
		}
		return "{" + strings.Join(parts, ",") + "}"
	case yaml.SequenceNode:
		for _, c := range n.Content {
			parts = append(parts, nodeJSON(t, c))
		}
		return "[" + strings.Join(parts, ",") + "]"
	}
	var v any
	if err := n.Decode(&v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Who took whose session is said where accesses are listed.
func TestAccessListNamesReplacedSessions(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	list := []api.Access{
		{ID: "a1", Disk: "web", Until: now.Add(time.Hour), Initiators: []string{"iqn.x:a", "iqn.x:b"}, Sessions: []api.AccessSession{
			{Initiator: "iqn.x:a", Address: "192.0.2.2:5000", Replaced: 2, ReplacedFrom: "192.0.2.1:4000"}, {Initiator: "iqn.x:b", Address: "192.0.2.3:1"},
		}},
		{ID: "a2", Disk: "db", Until: now.Add(time.Hour), Initiators: []string{"iqn.x:a"}},
	}
	var out bytes.Buffer
	if err := printAccessList(&out, list[1:], now); err != nil || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := printAccessList(&out, list, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  2         iqn.x:a, iqn.x:b\n", "access a1: iqn.x:a logged in again from 192.0.2.2:5000, which ended its session from 192.0.2.1:4000 (2 in all)\n", "give each client a name of its own"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
