package e2e

import (
	"testing"
	"time"
)

// A guest makes a file system with discard, fills it, checks it and trims it,
// on a disk that our target serves, and finds it whole after a restart.
func TestFilesystemInGuest(t *testing.T) {
	w := newWorld(t)
	w.write("vms.yaml", disk("root", "128Mi")+vm("web", "rt.mode=fs rt.disk=/dev/vda", "disks: [{disk: root}], restartPolicy: Never"))
	w.commit("a file system")
	w.start()
	w.reconcile()
	serial := w.serial("web")
	const ok = `FS ok files=\d+ sum=(\S+)`
	first := serial.Wait(t, ok, bootTime+2*time.Minute)
	w.cli("restart", "vm/web")
	serial.Wait(t, `FS step found`, bootTime+2*time.Minute)
	if second := serial.Wait(t, ok, 2*time.Minute); second[1] != first[1] {
		t.Errorf("the files' sum is %s after a restart, was %s", second[1], first[1])
	}
	// What mkfs and fstrim discarded is given back: far less is allocated than
	// was ever written.
	w.reconcile()
	if n, _ := w.objects("disks")["Disk/root"].Status["allocated"].(float64); n == 0 || n > 64<<20 {
		t.Errorf("%v bytes are allocated of a disk that was trimmed", n)
	}
}
