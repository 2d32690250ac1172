package e2e

import (
	"fmt"
	"strings"
	"testing"

	"reconciler/reconcile"
)

// A restart brings a machine back at once, with what did not fit before; and one
// after which it would not start is not begun.
func TestRestartSucceedsOrIsNotBegun(t *testing.T) {
	w := newWorld(t)
	tree := func(disks int, more string, replace ...string) {
		var docs strings.Builder
		var entries []string
		for i := range disks {
			docs.WriteString(disk(fmt.Sprintf("d%02d", i), "1Mi"))
			entries = append(entries, fmt.Sprintf("{disk: d%02d}", i))
		}
		text := strings.NewReplacer(replace...).Replace(docs.String() + vm("web", "rt.mode=idle", "disks: ["+strings.Join(entries, ", ")+"]"+more))
		w.write("vm.yaml", text)
	}
	tree(1, "")
	w.commit("a machine with one disk")
	w.start()
	w.reconcile()
	w.serial("web").Wait(t, `^GUEST up`, bootTime)
	first := w.pid("web")

	tree(11, "")
	rev := w.commit("ten more")
	w.reconcile()
	p := w.plan()
	const waits = "all 9 PCI slots of the process are in use or spoken for; needs a restart"
	if a := action(t, &p, "VirtualMachine/web"); a.State != reconcile.Waiting || !strings.Contains(a.Reason, waits) || len(a.Changes) != 4 || p.Revision != rev {
		t.Fatalf("the plan of what does not fit: %s %s\n%s", a.State, a.Reason, strings.Join(lines(&p), "\n"))
	}
	if w.pid("web") != first {
		t.Fatal("it was restarted")
	}
	w.cli("restart", "vm/web")
	w.reconcile()
	w.settled()
	second := w.pid("web")
	if second == first || strings.Count(w.devices("web"), "=d") != 11 {
		t.Errorf("process %d, was %d, with %s", second, first, w.devices("web"))
	}
	w.serial("web").Wait(t, `^GUEST up`, bootTime)

	const automatic = ", updatePolicy: {restart: Automatic}"
	for _, c := range []struct{ name, from, to, why string }{
		{"machine type", automatic, automatic + ", machine: pc-q35-99.1", "this host's QEMU has no machine type pc-q35-99.1"},
		{"CPU model", "cpu: {cores: 1}", "cpu: {cores: 1, model: Skylake-Servr-v4}", "did you mean Skylake-Server-v4?"},
		{"memory", "memory: {size: 128Mi}", "memory: {size: 12Ti}", "of memory at most"},
	} {
		tree(11, automatic, c.from, c.to)
		w.commit(c.name)
		w.reconcile()
		p := w.plan()
		if got := lines(&p); !strings.Contains(reasons(&p), c.why) || w.pid("web") != second {
			t.Errorf("%s: process %d, was %d\n%s\n%s", c.name, w.pid("web"), second, strings.Join(got, "\n"), reasons(&p))
		}
		// Whoever asks for the restart is told.
		if out, code := w.try("restart", "vm/web"); code != 1 || !strings.Contains(out, "would not start again") || !strings.Contains(out, c.why) {
			t.Errorf("%s: restart ends with %d: %s", c.name, code, out)
		}
		if w.pid("web") != second {
			t.Errorf("%s: it was restarted, and is down", c.name)
		}
	}
	// A kernel that cannot be had, and that no plan can know of.
	tree(11, automatic, "kernel: {image: k}", "kernel: {image: k2}")
	w.write("image.yaml", fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Image\nmetadata: {name: k2}\nspec: {source: {file: {path: k2}}, sha256: \"%s\"}\n", strings.Repeat("0", 64)))
	w.commit("a kernel that is not there")
	w.await(passTime, "the machine to be said to have failed", func() bool {
		o := w.objects("vms")["VirtualMachine/web"]
		return strings.Contains(fmt.Sprint(o.Conditions, o.Status), "would not start again") || strings.Contains(fmt.Sprint(o.Conditions, o.Status), "k2")
	})
	if w.pid("web") != second {
		t.Error("it was stopped for a kernel that is not there")
	}
	// Back, and all is as it should be.
	w.remove("image.yaml")
	tree(11, "")
	w.commit("back")
	w.reconcile()
	w.settled()
	if w.pid("web") != second {
		t.Error("it was restarted for nothing")
	}
}
