package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/status"
)

// newQuickWorld is newWorld with short intervals, hardly a budget, and something
// declared that stays: the last machine and the last disk are never removed.
func newQuickWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.write("base.yaml", w.base()+disk("keeper", "1Mi")+off("keeper", "keeper"))
	w.hostConfig("interval: 2s\nlimits: {budget: {count: 100}}\n")
	return w
}

// hostConfig writes the host's configuration, read at the next start.
func (w *world) hostConfig(yaml string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "config.yaml")
	w.must(os.WriteFile(path, []byte(yaml), 0o644))
	w.args = []string{"--config", path}
}

// with adds to the metadata of a document.
func with(doc, meta string) string {
	return strings.Replace(doc, "}\nspec:", ", "+meta+"}\nspec:", 1)
}

// diskOf is disk with further YAML of the spec.
func diskOf(name, size, spec string) string {
	return strings.Replace(disk(name, size), "size: "+size, "size: "+size+", "+spec, 1)
}

// off is a machine that is declared and does not run.
func off(name string, disks ...string) string {
	var list []string
	for _, d := range disks {
		list = append(list, "{disk: "+d+"}")
	}
	return vm(name, "rt.mode=idle", "powerState: Stopped, disks: ["+strings.Join(list, ", ")+"]")
}

// apply commits and brings the commit into force; something may be held.
func (w *world) apply(message string) {
	w.t.Helper()
	w.commit(message)
	w.reconcile()
}

// revert undoes the newest commit and brings that into force.
func (w *world) revert() {
	w.t.Helper()
	w.git("revert", "--no-edit", "HEAD")
	w.git("push", "-q", "origin", "HEAD:main")
	w.reconcile()
}

// output is what a command prints on standard output.
func (w *world) output(args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), binary, append(args, "--run-dir", filepath.Join(w.dir, "run"))...)
	var why strings.Builder
	cmd.Stderr = &why
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("reconciler %s: %v: %s\n%s", strings.Join(args, " "), err, why.String(), w.tail())
	}
	return string(out)
}

// fails runs a command that must be refused, for this reason.
func (w *world) fails(because string, args ...string) {
	w.t.Helper()
	if out, code := w.try(args...); code == 0 || !strings.Contains(out, because) {
		w.t.Errorf("reconciler %s: exit %d; it should have been refused with %q\n%s", strings.Join(args, " "), code, because, out)
	}
}

// list is objects for names that are not unique.
func (w *world) list(what string) []status.Object {
	w.t.Helper()
	var list []status.Object
	w.json(&list, "get", what)
	return list
}

// byUID finds one of list.
func (w *world) byUID(what, uid string) *status.Object {
	w.t.Helper()
	list := w.list(what)
	for i := range list {
		if list[i].UID == uid {
			return &list[i]
		}
	}
	return nil
}

// expect fails unless the next plan has an action for the object in this state
// whose reason holds the text.
func (w *world) expect(object string, state reconcile.ActionState, reason string) *reconcile.Action {
	w.t.Helper()
	p := w.plan()
	a := action(w.t, &p, object)
	if a.State != state || !strings.Contains(a.Reason+waits(a), reason) {
		w.t.Errorf("%s: %s, %s %q; want %s %q", object, a.Op, a.State, a.Reason+waits(a), state, reason)
	}
	return a
}

// waits are the reasons of an action's changes.
func waits(a *reconcile.Action) string {
	var b strings.Builder
	for _, c := range a.Changes {
		fmt.Fprintf(&b, " %s", c.Waits)
	}
	return b.String()
}

// stalled is the reason for which the newest revision is not in force; empty if
// it is.
func (w *world) stalled() string {
	w.t.Helper()
	for _, c := range w.status().Conditions {
		if c.Type == status.Stalled && c.Status == status.True {
			return c.Reason
		}
	}
	return ""
}

func (w *world) status() status.Host {
	w.t.Helper()
	var h status.Host
	w.json(&h, "status")
	return h
}

// volume is the file of a disk in the pool of the world.
func (w *world) volume(uid string) string { return w.state("pools", "fast", uid+".img") }

// qemuInitiator is what qemu-io logs in as.
const qemuInitiator = "iqn.2008-11.org.linux-kvm"

// lend opens an access to a disk, by name or UID, and returns what ends it.
func (w *world) lend(disk string, flags ...string) (a api.Access, end func()) {
	w.t.Helper()
	args := append([]string{"access", "disk/" + disk, "--initiator", qemuInitiator, "--for", "10m", "-o", "json"}, flags...)
	if err := json.Unmarshal([]byte(w.output(args...)), &a); err != nil {
		w.t.Fatal(err)
	}
	return a, func() { w.t.Helper(); w.cli("access", "--end", a.ID) }
}

// io runs commands of qemu-io on a disk, over a session of its own.
func (w *world) io(disk string, commands ...string) {
	w.t.Helper()
	a, end := w.lend(disk)
	defer end()
	var args []string
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	cmd := exec.CommandContext(w.t.Context(), "qemu-io", append(args, "-f", "raw", a.URL)...)
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "failed") {
		w.t.Errorf("Disk/%s: qemu-io %q: %v\n%s", disk, commands, err, out)
	}
}

// mark writes what tells a disk's data from any other's, at its start and end.
func (w *world) mark(disk string, pattern byte) {
	w.t.Helper()
	w.io(disk, fmt.Sprintf("write -P %d 0 64k", pattern), fmt.Sprintf("write -P %d 960k 64k", pattern), "flush")
}

// marked fails unless a disk holds the data that mark wrote, zeros for 0.
func (w *world) marked(disk string, pattern byte) {
	w.t.Helper()
	w.io(disk, fmt.Sprintf("read -P %d 0 64k", pattern), fmt.Sprintf("read -P %d 960k 64k", pattern), "read -P 0 64k 896k")
}

// vanished waits until a disk's data is purged.
func (w *world) vanished(uid string) {
	w.t.Helper()
	w.await(60*time.Second, "the end of volume "+uid, func() bool {
		_, err := os.Stat(w.volume(uid))
		return os.IsNotExist(err)
	})
}
