package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"reconciler/internal/testbed"
	"reconciler/status"
)

// A pool whose file system does not answer holds up nothing that does not need
// it: a machine of another pool that crashes meanwhile is back.
func TestSilentPool(t *testing.T) {
	w := newQuickWorld(t)
	_, rest, _ := strings.Cut(w.base(), "kind: StoragePool")
	doc, _, _ := strings.Cut(rest, "---\n")
	w.write("slow.yaml", "apiVersion: reconciler/v1alpha1\nkind: StoragePool"+
		strings.NewReplacer("{name: fast}", "{name: slow}", "pools/fast", "pools/slow").Replace(doc)+"---\n"+
		strings.Replace(disk("far", "1Mi"), "pool: fast", "pool: slow", 1)+off("far", "far"))
	w.write("app.yaml", disk("app", "16Mi")+vm("app", "rt.mode=writer rt.disk=/dev/vda", "disks: [{disk: app}]"))
	w.apply0()
	serial := w.serial("app")
	serial.Wait(t, `^REC 5 `, bootTime)

	// The open of a FIFO that nobody writes to does not come back.
	marker := filepath.Join(w.state("pools", "slow"), ".reconciler-pool.json")
	w.must(os.Rename(marker, marker+".away"))
	w.must(syscall.Mkfifo(marker, 0o600))
	answer := func() {
		if f, err := os.OpenFile(marker, os.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
			_ = f.Close()
		}
	}
	t.Cleanup(answer)
	for _, object := range []string{"StoragePool/slow", "Disk/far"} {
		w.says(w.uid(object), "does not answer")
	}
	crashed := w.qemu(w.uid("VirtualMachine/app"))
	w.signal(crashed, syscall.SIGKILL)
	w.await(passTime, "the machine to be back", func() bool {
		for _, p := range w.qemus() {
			if p.PID != crashed.PID {
				return true
			}
		}
		return false
	})
	testbed.NewSerial(w.serialPath("app")).Wait(t, `^WRITER start `, bootTime)
	for _, c := range w.status().Conditions {
		if c.Type == status.Ready && c.Status == status.Unknown {
			t.Errorf("the status is stale: %+v", c)
		}
	}

	answer()
	w.must(os.Rename(marker+".away", marker))
	answer()
	w.await(passTime, "the pool to be known", func() bool {
		o := w.byUID("all", w.uid("StoragePool/slow"))
		return o != nil && o.Health == status.Healthy
	})
	w.settled()
}
