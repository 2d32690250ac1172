package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"reconciler/internal/testbed"
)

// A host that has lost its state, and whose pool is not mounted, does not take
// the mount point for an empty pool: by its own status ref it knows better. With
// the mount, all is as it was; no command is needed for any of it.
func TestStateLostAndPoolNotMounted(t *testing.T) {
	w := newQuickWorld(t)
	point, backing := filepath.Join(w.dir, "srv", "big"), filepath.Join(w.dir, "backing")
	w.must(os.MkdirAll(point, 0o755))
	w.must(os.MkdirAll(backing, 0o700))
	mount := func() { w.t.Helper(); w.must(syscall.Mount(backing, point, "", syscall.MS_BIND, "")) }
	mount()
	// Everything ends, as when the host is switched off.
	end := func() {
		w.t.Helper()
		if w.agent != nil {
			w.kill()
		}
		if err := testbed.KillAll(w.dir); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		end()
		_ = syscall.Unmount(point, syscall.MNT_DETACH)
	})
	w.hostConfig("interval: 2s\nlimits: {budget: {count: 100}}\nallowed: {roots: [" + w.file("srv") + "]}\n")
	_, rest, _ := strings.Cut(w.base(), "kind: StoragePool")
	doc, _, _ := strings.Cut(rest, "---\n")
	doc = strings.NewReplacer("{name: fast}", "{name: big}", "path: pools/fast", "path: "+point).Replace(doc)
	w.write("big.yaml", "apiVersion: reconciler/v1alpha1\nkind: StoragePool"+doc)
	w.write("data.yaml", strings.Replace(disk("data", "1Mi"), "pool: fast", "pool: big", 1)+off("data", "data"))
	w.apply0()
	w.mark("data", 7)
	pool, data := w.uid("StoragePool/big"), w.uid("Disk/data")
	w.await(passTime, "the report of all of it", func() bool {
		out, ok := w.bareGit("show", "refs/reconciler/status/host1:state.json")
		return ok && strings.Contains(out, pool) && strings.Contains(out, data)
	})

	end()
	w.must(syscall.Unmount(point, 0))
	w.must(os.RemoveAll(w.state()))
	w.start()
	for range 2 { // the second agent has the first one's memory
		for _, uid := range []string{pool, data} {
			w.says(uid, "not mounted")
		}
		if entries, err := os.ReadDir(point); err != nil || len(entries) > 0 {
			t.Errorf("in the mount point: %v, %v", entries, err)
		}
		w.kill()
		w.start()
	}
	mount()
	w.reconcile()
	w.settled()
	w.marked("data", 7)
}
