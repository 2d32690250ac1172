package e2e

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// QEMU runs as a user of its own and still gets its disks, also later ones.
func TestUnprivilegedQEMU(t *testing.T) {
	w := newWorld(t)
	config := filepath.Join(w.dir, "config.yaml")
	w.must(os.WriteFile(config, []byte("qemuUser: nobody\n"), 0o600))
	w.args = []string{"--config", config}
	w.must(os.Chmod(w.dir, 0o711)) // what the configuration asks for
	web := func(disks string) string {
		return disk("root", "16Mi") + disk("data", "16Mi") + vm("web", "rt.mode=idle", "disks: ["+disks+"], nics: [{name: n, network: user}]")
	}
	w.write("vms.yaml", web("{disk: root}"))
	w.commit("one disk")
	w.start()
	w.reconcile()
	serial := w.serial("web")
	serial.Wait(t, `DISK add vda`, bootTime)
	w.write("vms.yaml", web("{disk: root}, {disk: data}"))
	w.commit("two disks")
	w.reconcile()
	w.settled()
	serial.Wait(t, `DISK add vdb`, bootTime)

	nobody, err := user.Lookup("nobody")
	w.must(err)
	qemus := w.qemus()
	if len(qemus) != 1 {
		t.Fatalf("%d QEMU run, want 1", len(qemus))
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", qemus[0].PID))
	w.must(err)
	uids := "Uid:\t" + strings.Join([]string{nobody.Uid, nobody.Uid, nobody.Uid, nobody.Uid}, "\t") + "\n"
	if !strings.Contains(string(data), uids) {
		t.Errorf("QEMU does not run as nobody (%s):\n%s", nobody.Uid, data)
	}
}
