package drift

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

const driftTree = importTree + `---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: back}
spec: {bridge: {name: br-back}}
---
apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: root, drift: Report}
spec: {pool: fast, size: 1Gi}
---
apiVersion: reconciler/v1alpha1
kind: Disk
metadata: {name: spare, drift: Report}
spec: {pool: fast, size: 1Gi}
---
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: web, drift: Report}
spec:
  host: host1
  cpu: {cores: 2}
  memory: {size: 512Mi}
  disks: [{disk: root}]
  nics: [{name: front, network: front}]
`

func TestPropose(t *testing.T) {
	set, want := load(t, driftTree)
	spare := set.Get(spec.KindDisk, "spare").UID
	for _, c := range []struct {
		name   string
		object string
		moved  func(h *reconcile.Live)
		diff   string // of the file
		note   string
	}{
		{"memory", "VirtualMachine/web", field("spec.memory.size", "1Gi", ""), "-  memory: {size: 512Mi}\n+  memory: {size: 1024Mi}\n", ""},
		{"sockets", "VirtualMachine/web", field("spec.cpu.sockets", "2", ""), "-  cpu: {cores: 2}\n+  cpu: {cores: 2, sockets: 2}\n", ""},
		{"a disk that is gone", "VirtualMachine/web", field("spec.disks[root].disk", "root (incomplete)", ""), "-  disks: [{disk: root}]\n+  disks: []\n", ""},
		{"a disk of the tree plugged in", "VirtualMachine/web", field("spec.disks[x].disk", "spare", spare),
			"-  disks: [{disk: root}]\n+  disks: [{disk: root}, {name: x, disk: spare}]\n", ""},
		{"a disk of nobody's plugged in", "VirtualMachine/web", field("spec.disks[x].disk", "dead", ""), "", "none that the tree declares"},
		{"the device's size alone", "VirtualMachine/web", field("spec.disks[root].size", "2Gi", ""), "", "the size of the device was changed"},
		{"another bridge", "VirtualMachine/web", field("spec.nics[front].backend", "bridge br-back", ""),
			"-  nics: [{name: front, network: front}]\n+  nics: [{name: front, network: back}]\n", ""},
		{"a bridge of nobody's", "VirtualMachine/web", field("spec.nics[front].backend", "bridge (none)", ""), "", "0 networks of the tree"},
		{"another address", "VirtualMachine/web", field("spec.nics[front].mac", "52:54:00:00:00:01", ""),
			"-  nics: [{name: front, network: front}]\n+  nics: [{name: front, network: front, mac: \"52:54:00:00:00:01\"}]\n", ""},
		{"a card that is gone", "VirtualMachine/web", field("spec.nics[front].network", "front (incomplete)", ""), "-  nics: [{name: front, network: front}]\n+  nics: []\n", ""},
		{"a card of nobody's", "VirtualMachine/web", field("spec.nics[x].mac", "52:54:00:00:00:01", ""), "", "of which the tree knows nothing"},
		{"paused", "VirtualMachine/web", func(h *reconcile.Live) { h.VM.Power = reconcile.PowerPaused }, "", "no word"},
		{"off", "VirtualMachine/web", func(h *reconcile.Live) {
			field("spec.powerState", "Stopped", "")(h)
			h.VM = &reconcile.LiveVM{Power: reconcile.PowerStopped, Exit: "asked", Asked: true}
		}, "+  powerState: Stopped\n", ""},
		{"a volume", "Disk/root", func(h *reconcile.Live) {
			field("spec.size", "3Gi", "")(h)
			h.Disk.Volume, h.Disk.LUN = 3<<30, 3<<30
		}, "-spec: {pool: fast, size: 1Gi}\n+spec: {pool: fast, size: 3Gi}\n", ""},
		{"a volume no spec can have", "Disk/root", field("spec.size", "1073741825", ""), "", "is not edited"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := reconcile.BaseOf(want)
			have := reconcile.StateFromBase(base)
			for _, h := range have.Objects {
				if string(h.Kind)+"/"+h.Name == c.object {
					c.moved(h)
				}
			}
			plan := reconcile.Diff(want, base, have, time.Now())
			if !plan.Empty() {
				t.Fatal("drift is corrected")
			}
			p := Propose(&plan, set)
			files, err := p.Files(func(string) ([]byte, error) { return []byte(driftTree), nil })
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if data, ok := files["a.yaml"]; ok {
				got = diff(driftTree, string(data))
			}
			if got != c.diff {
				t.Errorf("changed\n%s\nwant\n%s", got, c.diff)
			}
			if c.note == "" != (len(p.Notes) == 0) || !slices.ContainsFunc(p.Notes, func(n Note) bool { return strings.Contains(n.Text, c.note) }) && c.note != "" {
				t.Errorf("notes %v, want %q", p.Notes, c.note)
			}
			if c.diff == "" {
				return
			}
			// Accepted, nothing is left to do but what the commit itself says.
			objects, err := spec.Parse("a.yaml", files["a.yaml"])
			if err != nil {
				t.Fatal(err)
			}
			next, err := spec.Build(objects)
			if err != nil {
				t.Fatal(err)
			}
			plan = reconcile.Diff(reconcile.NewDesired(next, "host1", ""), base, have, time.Now())
			for _, a := range plan.Actions {
				if a.Drift != "" || a.Impact > reconcile.ImpactLive {
					t.Errorf("accepted: %s %s/%s, impact %s, drift %q", a.Op, a.Kind, a.Name, a.Impact, a.Drift)
				}
			}
		})
	}
}

func field(path, value, id string) func(*reconcile.Live) {
	return func(h *reconcile.Live) {
		h.Fields = slices.DeleteFunc(slices.Clone(h.Fields), func(f reconcile.Field) bool { return f.Path == path })
		h.Fields = append(h.Fields, reconcile.Field{Path: path, Value: value, ID: id})
		slices.SortFunc(h.Fields, func(a, b reconcile.Field) int { return strings.Compare(a.Path, b.Path) })
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	p := Proposal{Items: []Item{{Moved: []Moved{{File: "a", Edit: edit("spec.cpu.cores", "2")}}}}}
	if _, err := p.Files(func(string) ([]byte, error) { return nil, errors.New("gone") }); err == nil {
		t.Error("no error")
	}
}

// What comes from the world stays text, and the body within what a forge takes.
func TestMessages(t *testing.T) {
	var p Proposal
	c := Context{Host: "host1", Branch: "main", Revision: "0123", Traces: map[string][]Trace{}, Since: map[string]time.Time{}}
	hostile := "x`|\n</td><script>@all [a](b) \u2028 # \x1b[31m"
	for i := range 10_000 {
		uid := fmt.Sprint(i)
		p.Items = append(p.Items, Item{Kind: vm, Name: "web-" + uid, UID: uid, Moved: []Moved{{Field: "spec.nics[" + hostile + "].mac", Real: hostile, Declared: hostile}}})
		c.Traces[uid] = []Trace{{time.Unix(0, 0), hostile}}
		c.Unmanaged = append(c.Unmanaged, Note{hostile, hostile})
	}
	body := p.Body(c)
	if len(body) > 65_000 {
		t.Errorf("the body has %d bytes", len(body))
	}
	for _, bad := range []string{"<script>", "@all", "\x1b", "\u2028", "[a]", "(b)"} {
		if strings.Contains(stripCode(body), bad) {
			t.Errorf("the body has %q outside of code", bad)
		}
	}
	if strings.Count(p.Title(c), "\n") > 0 || !strings.Contains(body, "more objects") {
		t.Error("title or body is not bounded")
	}
	if strings.Contains(p.Message(c), "\x1b") {
		t.Error("the message has control characters")
	}
}

// Whatever foreign things are called, they make no link and no command of a
// pull request's text, nor of the commit's.
func TestForeignNames(t *testing.T) {
	for _, name := range []string{
		`\[x](https://evil.example/)`, `\\[x](https://evil.example/)`, "https://evil.example/", "www.evil.example", `\`, `a\|b`, "a`b", "``",
		"fixes #1", "closes GH-1", "closes https://forge.example/o/r/issues/1", "@all", "!12", "/close", "| a | b |", "a\n/close\n", "</td>", "~bug", "%v1", "$1",
	} {
		p := Proposal{
			Items: []Item{{Kind: vm, Name: "web", UID: "u", Moved: []Moved{{Field: "spec.x", Declared: name, Real: name}}}},
			Notes: []Note{{name, name}},
		}
		c := Context{Host: "host1", Branch: "main", Traces: map[string][]Trace{"u": {{time.Unix(0, 0), name}}}, Unmanaged: []Note{{name, name}}}
		for line := range strings.Lines(p.Body(c)) {
			if strings.Count(line, "`")%2 != 0 {
				t.Errorf("%q: a code span has no end in %q", name, line)
			}
			if strings.HasPrefix(line, "|") && strings.Count(stripCode(line), "|") != 5 || strings.Contains(line, "\\`") {
				t.Errorf("%q: the row is %q", name, line)
			}
			// What is left is ours.
			for _, bad := range []string{"evil", "](", "#", "@", "GH-", "!", "/close", "~", "%", "$"} {
				if strings.Contains(stripCode(line), bad) {
					t.Errorf("%q: %q is outside of code in %q", name, bad, line)
				}
			}
		}
		for _, bad := range []string{"#1", "GH-1", "@all", "!12", "://"} {
			if strings.Contains(p.Message(c), bad) {
				t.Errorf("%q: the commit's message has %q", name, bad)
			}
		}
	}
}

// stripCode leaves out what stands in backquotes.
func stripCode(s string) string {
	var b strings.Builder
	for i, part := range strings.Split(s, "`") {
		if i%2 == 0 {
			b.WriteString(part)
		}
	}
	return b.String()
}

// What a pull request suggests can be pasted where one object drifted.
func TestBodySuggestsTheCommand(t *testing.T) {
	p := Proposal{Items: []Item{{Kind: vm, Name: "web", UID: "u"}}}
	if got := p.Body(Context{Host: "host1"}); !strings.Contains(got, "`reconciler revert VirtualMachine/web --reason …`") {
		t.Errorf("of one object:\n%s", got)
	}
	p.Items = append(p.Items, p.Items[0])
	if got := p.Body(Context{Host: "host1"}); !strings.Contains(got, "`reconciler revert KIND/NAME --reason …`") {
		t.Errorf("of two:\n%s", got)
	}
}
