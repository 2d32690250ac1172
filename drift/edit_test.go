package drift

import (
	"errors"
	"strings"
	"testing"

	"reconciler/spec"
)

const vm = spec.KindVirtualMachine

func edit(path, value string) FieldEdit {
	return FieldEdit{Kind: vm, Name: "web-1", Path: path, Value: value}
}

func remove(path string) FieldEdit {
	return FieldEdit{Kind: vm, Name: "web-1", Path: path, Remove: true}
}

const head = "apiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: web-1}\n"

// The file, and under each edit the lines it takes away and puts in.
var table = []struct {
	name string
	file string
	edit FieldEdit
	diff string // lines with - and +; "!" and a part of the reason where it is not made
}{
	{
		"block", head + "spec:\n  host: host1\n  cpu:\n    cores: 2   # enough\n  memory:\n    # the database needs it\n    size: 512Mi\t# half a gig\n",
		edit("spec.memory.size", "1Gi"), "-    size: 512Mi\t# half a gig\n+    size: 1024Mi\t# half a gig\n",
	},
	{
		"flow on one line", head + `spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, boot: {kernel: {image: k}, cmdline: "console=ttyS0 a,b {c}"}, disks: [{disk: a}, {disk: b}], nics: [{name: n, network: user}]}` + "\n",
		remove("spec.disks[b]"), "s/, {disk: b}//",
	},
	{
		"flow, the first", head + `spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, disks: [{disk: a}, {disk: b}]}`,
		remove("spec.disks[a]"), "s/{disk: a}, //",
	},
	{
		"flow, the only one", head + `spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, disks: [ {disk: a} ]}`,
		remove("spec.disks[a]"), "s/[ {disk: a} ]/[  ]/",
	},
	{
		"flow, a quoted bracket", head + `spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, boot: {kernel: {image: k}, cmdline: 'it''s } fine # here'}}`,
		edit("spec.powerState", "Stopped"), "s/host1,/host1, powerState: Stopped,/",
	},
	{
		"a field that is not there", head + "spec:\n  host: host1 # where\n  # how fast\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n",
		edit("spec.powerState", "Stopped"), "+  powerState: Stopped\n",
	},
	{
		"no newline at the end", head + "spec:\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  host: host1",
		edit("spec.powerState", "Stopped"), "-  host: host1\n+  host: host1\n+  powerState: Stopped",
	},
	{
		"CRLF", strings.ReplaceAll(head+"spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n", "\n", "\r\n"),
		edit("spec.powerState", "Stopped"), "+  powerState: Stopped\r\n",
	},
	{
		"quotes stay", head + "spec:\n  host: 'host1'\n  cpu: {cores: 1}\n  memory: {size: \"128Mi\"}\n  powerState: 'Running'\n",
		edit("spec.powerState", "Stopped"), "-  powerState: 'Running'\n+  powerState: 'Stopped'\n",
	},
	{
		"double quotes and a unit", head + "spec:\n  host: 'host1'\n  cpu: {cores: 1}\n  memory: {size: \"131072Ki\"}\n",
		edit("spec.memory.size", "256Mi"), "s/131072Ki/262144Ki/",
	},
	{
		"a unit that does not fit", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 1Gi}\n",
		edit("spec.memory.size", "1536Mi"), "s/1Gi/1536Mi/",
	},
	{
		"block entry", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks:\n    # the system\n    - disk: a\n    # the data\n    - name: data   # big\n      # and slow\n      disk: b # here\n    - disk: c\n  nics: []\n",
		remove("spec.disks[data]"), "-    - name: data   # big\n-      disk: b # here\n",
	},
	{
		"the only block entry", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks:\n  # the system\n  - disk: a\n  # the end\n",
		remove("spec.disks[a]"), "-  disks:\n-  - disk: a\n",
	},
	{
		"dash on its own line", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks:\n  -\n    disk: a\n  - # second\n    disk: b\n",
		remove("spec.disks[b]"), "-  - # second\n-    disk: b\n",
	},
	{
		"flow over lines", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks: [\n    {disk: a}, # first\n    {disk: b}, # second\n    {disk: c}  # third\n  ]\n",
		remove("spec.disks[b]"), "-    {disk: b}, # second\n",
	},
	{
		"a card's network", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  nics:\n    - {name: front, network: front}\n    - {name: back, network: back, mac: \"52:54:00:00:00:01\"}\n",
		edit("spec.nics[back].network", "other"), "s/network: back/network: other/",
	},
	{
		"a card's address", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  nics:\n    - {name: front, network: front}\n",
		edit("spec.nics[front].mac", "52:54:00:00:00:09"), "s/network: front/network: front, mac: \"52:54:00:00:00:09\"/",
	},
	{
		"a new entry, block", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks:\n    - disk: a # one\n",
		FieldEdit{Kind: vm, Name: "web-1", Path: "spec.disks[x]", Entry: []Pair{{"name", "x"}, {"disk", "b"}}},
		"+    - name: x\n+      disk: b\n",
	},
	{
		"a new entry, flow", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks: [{disk: a}]\n",
		FieldEdit{Kind: vm, Name: "web-1", Path: "spec.disks[x]", Entry: []Pair{{"name", "x"}, {"disk", "b"}}},
		"s/{disk: a}/{disk: a}, {name: x, disk: b}/",
	},
	{
		"a new list", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n",
		FieldEdit{Kind: vm, Name: "web-1", Path: "spec.disks[x]", Entry: []Pair{{"disk", "x"}}},
		"+  disks: [{disk: x}]\n",
	},
	{
		"a literal in the way", head[:len(head)-len("metadata: {name: web-1}\n")] + "metadata:\n  annotations:\n    note: |\n      spec:\n        memory: {size: 1Mi}\n      # no comment\n  name: web-1\nspec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n",
		edit("spec.memory.size", "256Mi"), "s/128Mi/256Mi/",
	},
	{
		"many documents, one name", "# head\n---\n" + diskNamed("web-1") + "---\n# mine\n" + head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}} # end\n---\n" + diskNamed("z"),
		edit("spec.memory.size", "256Mi"), "s/128Mi/256Mi/",
	},
	{
		"an umlaut before it", head + "spec: {\"host\": host1, cpu: {cores: 1}, boot: {kernel: {image: k}, cmdline: \"grün ☃ 𝄞\"}, memory: {size: 128Mi}}\n",
		edit("spec.memory.size", "256Mi"), "s/128Mi/256Mi/",
	},
	{
		"an anchor nobody uses", head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: &m 128Mi}}\n",
		edit("spec.memory.size", "256Mi"), "s/128Mi/256Mi/",
	},
	{
		"an alias of a scalar", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: &m 128Mi, max: *m}\n",
		edit("spec.memory.max", "256Mi"), "s/*m/256Mi/",
	},
	{
		"an anchor others use", head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: &m 128Mi, max: *m}\n",
		edit("spec.memory.size", "64Mi"), "!anchor",
	},
	{
		"an alias of a mapping", head[:len(head)-1] + "\nspec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks: [&d {disk: a}, {name: b, disk: b}]\n  nics: []\n",
		remove("spec.disks[a]"), "s/&d {disk: a}, //",
	},
	{
		"a value no tree may have", head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}}\n",
		edit("spec.memory.size", "134217729"), "!cannot be declared",
	},
	{
		"an entry nobody wrote", head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, disks: [{disk: a}]}\n",
		remove("spec.disks[x]"), "!no such entry",
	},
	{
		"the name follows the disk", head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, disks: [{disk: a}]}\n",
		edit("spec.disks[a].disk", "b"), "!would be",
	},
	{
		"an object that is not there", diskNamed("a"), edit("spec.memory.size", "1Gi"), "!no such object",
	},
	{
		"a document", "# about all\n---\n" + diskNamed("a") + "---\n# about it\n" + head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}}\n---\n" + diskNamed("z"),
		remove(""), "s/---\n# about it\n" + head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}}\n//",
	},
	{
		"the first document", "# about all\n" + head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}}\n---\n" + diskNamed("z"),
		remove(""), "s/" + head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}}\n---\n//",
	},
	{
		"a mark at the beginning", "\ufeff" + head + "spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}}\n",
		edit("spec.cpu.cores", "4"), "s/cores: 1/cores: 4/",
	},
}

func diskNamed(name string) string {
	return "apiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: " + name + "}\nspec: {pool: fast, size: 1Gi}\n"
}

func TestEdit(t *testing.T) {
	for _, c := range table {
		t.Run(c.name, func(t *testing.T) {
			got, err := Edit("a.yaml", []byte(c.file), []FieldEdit{c.edit})
			if why, ok := strings.CutPrefix(c.diff, "!"); ok {
				var unsafe *UnsafeError
				if !errors.As(err, &unsafe) || !strings.Contains(err.Error(), why) {
					t.Errorf("error %v, want one with %q\n%s", err, why, got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s, ok := strings.CutPrefix(c.diff, "s/"); ok {
				s = strings.TrimSuffix(s, "/")
				cut := strings.LastIndex(s, "/")
				old, with := s[:cut], s[cut+1:]
				if want := strings.Replace(c.file, old, with, 1); string(got) != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				return
			}
			if d := diff(c.file, string(got)); d != c.diff {
				t.Errorf("changed\n%s\nwant\n%s", d, c.diff)
			}
		})
	}
}

func TestEditToNothing(t *testing.T) {
	got, err := Edit("a.yaml", []byte("---\n"+diskNamed("a")), []FieldEdit{{Kind: spec.KindDisk, Name: "a", Remove: true}})
	if err != nil || got == nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSeveralEdits(t *testing.T) {
	file := head + "spec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 128Mi}\n  disks: [{disk: a}, {disk: b}]\n"
	got, err := Edit("a.yaml", []byte(file), []FieldEdit{
		remove("spec.disks[a]"), edit("spec.powerState", "Stopped"), edit("spec.memory.size", "192Mi"), remove("spec.disks[b]"),
	})
	want := head + "spec:\n  host: host1\n  powerState: Stopped\n  cpu: {cores: 1}\n  memory: {size: 192Mi}\n  disks: []\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestAddDocument(t *testing.T) {
	for _, file := range []string{"", diskNamed("a"), strings.TrimSuffix(diskNamed("a"), "\n"), strings.ReplaceAll(diskNamed("a"), "\n", "\r\n")} {
		got := AddDocument([]byte(file), []byte(diskNamed("new")))
		before, _ := spec.Parse("a.yaml", []byte(file))
		after, err := spec.Parse("a.yaml", got)
		if err != nil || len(after) != len(before)+1 || after[len(before)].Meta.Name != "new" {
			t.Errorf("%v\n%s", err, got)
		}
		if strings.Contains(file, "\r") && strings.Count(string(got), "\n") != strings.Count(string(got), "\r\n") {
			t.Errorf("mixed line ends:\n%q", got)
		}
	}
}

// diff lists the lines that differ: a longest common subsequence is kept.
func diff(a, b string) string {
	x, y := strings.SplitAfter(a, "\n"), strings.SplitAfter(b, "\n")
	long := make([][]int, len(x)+1)
	for i := range long {
		long[i] = make([]int, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				long[i][j] = long[i+1][j+1] + 1
			} else {
				long[i][j] = max(long[i+1][j], long[i][j+1])
			}
		}
	}
	var out strings.Builder
	i, j := 0, 0
	for i < len(x) || j < len(y) {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			i, j = i+1, j+1
		case i < len(x) && (j == len(y) || long[i+1][j] >= long[i][j+1]):
			if x[i] != "" {
				out.WriteString("-" + strings.TrimSuffix(x[i], "\n") + "\n")
			}
			i++
		default:
			if y[j] != "" {
				out.WriteString("+" + y[j])
			}
			j++
		}
	}
	return out.String()
}
