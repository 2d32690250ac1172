package drift

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"reconciler/spec"
)

// layout writes a machine's document in one of the many ways people do.
type layout struct {
	t   *rapid.T
	eol string
	n   int // comments written
}

func (l *layout) pick(label string, of ...string) string {
	return rapid.SampledFrom(of).Draw(l.t, label)
}

func (l *layout) comment() string {
	if !rapid.Bool().Draw(l.t, "comment") {
		return ""
	}
	l.n++
	return fmt.Sprintf(" # c%d, {x: [y]} 'it\"s", l.n)
}

func (l *layout) quoted(v string) string {
	return l.pick("quote", v, "'"+v+"'", `"`+v+`"`)
}

func (l *layout) lines(indent int, lines ...string) string {
	var b strings.Builder
	for _, line := range lines {
		if rapid.IntRange(0, 4).Draw(l.t, "remark") == 0 {
			l.n++
			fmt.Fprintf(&b, "%*s# c%d: above%s", indent, "", l.n, l.eol)
		}
		fmt.Fprintf(&b, "%*s%s%s", indent, "", line, l.eol)
	}
	return b.String()
}

// mapping is a field with a mapping of two values.
func (l *layout) mapping(indent int, name string, fields [][2]string) string {
	if rapid.Bool().Draw(l.t, "flow") {
		var parts []string
		for _, f := range fields {
			parts = append(parts, f[0]+": "+f[1])
		}
		pad := l.pick("pad", "", " ")
		return l.lines(indent, name+": {"+pad+strings.Join(parts, ", ")+pad+"}"+l.comment())
	}
	out := l.lines(indent, name+":"+l.comment())
	step := rapid.SampledFrom([]int{1, 2, 4}).Draw(l.t, "step")
	for _, f := range fields {
		out += l.lines(indent+step, f[0]+": "+f[1]+l.comment())
	}
	return out
}

func (l *layout) list(indent int, name string, entries [][][2]string) string {
	flat := func(e [][2]string) string {
		var parts []string
		for _, f := range e {
			parts = append(parts, f[0]+": "+f[1])
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	switch rapid.IntRange(0, 3).Draw(l.t, "list") {
	case 0:
		var parts []string
		for _, e := range entries {
			parts = append(parts, flat(e))
		}
		return l.lines(indent, name+": ["+strings.Join(parts, ", ")+"]"+l.comment())
	case 1:
		out := l.lines(indent, name+": [")
		for i, e := range entries {
			comma := ","
			if i == len(entries)-1 {
				comma = ""
			}
			out += l.lines(indent+2, flat(e)+comma+l.comment())
		}
		return out + l.lines(indent, "]")
	case 2:
		out := l.lines(indent, name+":"+l.comment())
		for _, e := range entries {
			out += l.lines(indent, "- "+flat(e)+l.comment())
		}
		return out
	}
	out := l.lines(indent, name+":"+l.comment())
	for _, e := range entries {
		for i, f := range e {
			lead := "  "
			if i == 0 {
				lead = "- "
			}
			out += l.lines(indent+2, lead+f[0]+": "+f[1]+l.comment())
		}
	}
	return out
}

// machine draws a file with a machine of two disks and a card between others.
func machine(t *rapid.T) string {
	l := &layout{t: t, eol: rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(t, "eol")}
	b := strings.ReplaceAll(diskNamed("before"), "\n", l.eol) + "---" + l.eol
	b += l.lines(0, "apiVersion: reconciler/v1alpha1", "kind: VirtualMachine")
	b += l.mapping(0, "metadata", [][2]string{{"name", l.quoted("web-1")}, {"drift", "Report"}})
	b += l.lines(0, "spec:"+l.comment())
	parts := []func() string{
		func() string { return l.lines(2, "host: "+l.quoted("host1")+l.comment()) },
		func() string { return l.mapping(2, "cpu", [][2]string{{"cores", "2"}, {"threads", "1"}}) },
		func() string {
			size := l.pick("size", "512Mi", "'512Mi'", `"524288Ki"`, "&size 512Mi")
			return l.mapping(2, "memory", [][2]string{{"size", size}, {"max", "4Gi"}})
		},
		func() string {
			return l.list(2, "disks", [][][2]string{{{"disk", l.quoted("a")}}, {{"name", "data"}, {"disk", l.quoted("b")}}})
		},
		func() string {
			return l.list(2, "nics", [][][2]string{{{"name", "front"}, {"network", l.quoted("front")}}, {{"name", "back"}, {"network", "back"}}})
		},
		func() string {
			folded := strings.Join([]string{"  cmdline: >-" + l.comment(), "      console=ttyS0", "      spec.disks quiet"}, l.eol)
			return l.lines(2, "boot:", "  kernel: {image: k}", folded)
		},
	}
	for _, p := range rapid.Permutation(parts).Draw(t, "order") {
		b += p()
	}
	return b + "---" + l.eol + strings.ReplaceAll(diskNamed("after"), "\n", l.eol)
}

func TestOneEditChangesOneField(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		file := machine(t)
		if _, err := spec.Parse("a.yaml", []byte(file)); err != nil {
			t.Fatalf("the test wrote nonsense: %v\n%s", err, file)
		}
		e := rapid.SampledFrom([]FieldEdit{
			edit("spec.memory.size", "1Gi"), edit("spec.cpu.cores", "3"), edit("spec.cpu.sockets", "2"),
			edit("spec.powerState", "Stopped"), edit("spec.nics[back].network", "other"), edit("spec.disks[data].disk", "c"),
			edit("spec.nics[front].mac", "52:54:00:00:00:07"),
			remove("spec.disks[a]"), remove("spec.disks[data]"), remove("spec.nics[front]"), remove("spec.nics[back]"),
			{Kind: vm, Name: "web-1", Path: "spec.disks[x]", Entry: []Pair{{"disk", "x"}}},
		}).Draw(t, "edit")
		got, err := Edit("a.yaml", []byte(file), []FieldEdit{e})
		if err != nil {
			t.Fatalf("%v\n%s", err, file)
		}
		d := diff(file, string(got))
		removed, added := 0, 0
		for line := range strings.Lines(d) {
			if line[0] == '-' {
				removed++
			} else {
				added++
			}
		}
		entries := e.Remove || e.Entry != nil
		if !entries && (added != 1 || removed > 1) || entries && removed+added > 4 {
			t.Fatalf("%s changes\n%s\nof\n%s", e, d, file)
		}
		// A comment goes with the line it stands on, and no other.
		for i := range 60 {
			mark := fmt.Sprintf("# c%d", i)
			for _, end := range []string{":", ","} {
				if strings.Contains(file, mark+end) && !strings.Contains(string(got), mark+end) && !strings.Contains(d, mark+end) {
					t.Fatalf("%s loses comment %d:\n%s", e, i, d)
				}
				above := mark + ": above"
				if strings.Contains(file, above) && !strings.Contains(string(got), above) {
					t.Fatalf("%s loses the comment line %d:\n%s", e, i, d)
				}
			}
		}
		if strings.Contains(file, "\r\n") && strings.Count(string(got), "\n") != strings.Count(string(got), "\r\n") {
			t.Fatalf("%s mixes line ends", e)
		}
	})
}

// Whatever the file: an edit is made, and changes one line, or it is refused.
func FuzzEdit(f *testing.F) {
	for _, c := range table {
		f.Add(c.file, c.edit.Path, c.edit.Value, c.edit.Remove)
	}
	f.Fuzz(func(t *testing.T, file, path, value string, remove bool) {
		objects, err := spec.Parse("a.yaml", []byte(file))
		if err != nil || len(objects) == 0 {
			return
		}
		o := objects[0]
		e := FieldEdit{Kind: o.Kind, Name: o.Meta.Name, Path: path, Value: value, Remove: remove}
		got, err := Edit("a.yaml", []byte(file), []FieldEdit{e})
		if err != nil {
			var unsafe *UnsafeError
			if !errors.As(err, &unsafe) {
				t.Errorf("%T: %v", err, err)
			}
			return
		}
		if remove {
			return
		}
		if n := strings.Count(diff(file, string(got)), "\n-"); n > 1 {
			t.Errorf("%s: %d lines went\n%s", e, n+1, diff(file, string(got)))
		}
		after, err := spec.Parse("a.yaml", got)
		if err != nil {
			t.Fatal(err)
		}
		if flat(after[0])[path] != value {
			t.Errorf("%s is %q", path, flat(after[0])[path])
		}
	})
}
