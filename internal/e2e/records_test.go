package e2e

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"reconciler/internal/testbed/cache"
	"reconciler/reconcile"
	"reconciler/status"
)

// firstBuild is a host with the records that the first build left: testdata/records
// was taken from a host of its own, after all processes had been killed, as a
// power cut would. The machines old and web ran, web is suspended and its memory
// waits for a restart, db is off; one disk is in quarantine, one is lent.
func firstBuild(t *testing.T) *world {
	t.Helper()
	lockFirstBuild(t)
	dir, err := os.MkdirTemp("", "rc-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, dir: dir, bare: filepath.Join(dir, "cluster.git"), work: filepath.Join(dir, "work"),
		images: filepath.Join(dir, "imgs"),
	}
	t.Cleanup(w.cleanup)
	w.must(os.Mkdir(w.images, 0o755))
	w.must(os.WriteFile(filepath.Join(w.images, "tiny.img"), bytes.Repeat([]byte("x"), 1<<20), 0o644))
	w.must(os.Mkdir(w.work, 0o755))
	bundle, err := filepath.Abs("testdata/records/cluster.bundle")
	w.must(err)
	w.git("clone", "-q", "--bare", bundle, w.bare)
	w.git("clone", "-q", w.bare, ".")
	w.git("config", "user.name", "test")
	w.git("config", "user.email", "test@localhost")
	places := strings.NewReplacer("@STATE@", w.state(), "@RUN@", filepath.Join(dir, "run"), "@DIR@", dir)
	from := os.DirFS("testdata/records/state")
	w.must(fs.WalkDir(from, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(from, path)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(path, "git/objects") {
			data = []byte(places.Replace(string(data)))
		}
		w.must(os.MkdirAll(filepath.Dir(w.state(path)), 0o700))
		return os.WriteFile(w.state(path), data, 0o600)
	}))
	// The volumes hold nothing: their files are as large as the records say.
	for _, path := range w.glob("pools/fast/[0-9a-f]*.json") {
		var m struct{ Size int64 }
		w.record(path, &m)
		w.must(os.WriteFile(strings.TrimSuffix(path, ".json")+".img", nil, 0o600))
		w.must(os.Truncate(strings.TrimSuffix(path, ".json")+".img", m.Size))
	}
	w.log, err = os.Create(filepath.Join(dir, "agent.log"))
	w.must(err)
	w.hostConfig("interval: 1h\n")
	return w
}

// lockFirstBuild keeps two runs of these tests apart: identities and the portal
// are those of the records.
func lockFirstBuild(t *testing.T) {
	t.Helper()
	dir, err := cache.Dir()
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := cache.Lock(t.Context(), filepath.Join(dir, "first-build.lock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unlock)
}

func (w *world) glob(pattern string) []string {
	w.t.Helper()
	list, err := filepath.Glob(w.state(pattern))
	w.must(err)
	return list
}

func (w *world) record(path string, into any) {
	w.t.Helper()
	data, err := os.ReadFile(path)
	w.must(err)
	if err := json.Unmarshal(data, into); err != nil {
		w.t.Fatalf("%s: %v\n%s", path, err, data)
	}
}

type machineRecord struct {
	Machine string
	Slots   map[string]int
	Launch  struct{ ID string }
}

// What the first build wrote is read, and rewritten with a version when it
// changes: machines have their disks, machine versions, slots and addresses, what
// was suspended stays so, and what was removed can be brought back.
func TestRecordsOfTheFirstBuild(t *testing.T) {
	w := firstBuild(t)
	const old = "f20803dd-ec18-58d9-80aa-f070faab4939"
	var before, after machineRecord
	w.record(w.state("vms", old+".json"), &before)
	w.start()
	w.reconcile()
	all := w.objects("all")
	for _, name := range []string{"StoragePool/fast", "Image/tiny", "Disk/web-root", "Disk/web-data", "Disk/db-root", "Disk/old-root", "Disk/old-data", "Disk/lent", "VirtualMachine/old", "VirtualMachine/db"} {
		if o := all[name]; o.Sync != status.Synced || o.Health != status.Healthy {
			t.Errorf("%s is %s, %s: %+v", name, o.Sync, o.Health, o.Conditions)
		}
	}
	if o := all["VirtualMachine/web"]; o.Health != status.Suspended {
		t.Errorf("the suspended machine is %s", o.Health)
	}
	if _, ok := w.objects("quarantine")["Disk/removed"]; !ok {
		t.Error("the removed disk is not in quarantine")
	}
	w.record(w.state("vms", old+".json"), &after)
	if after.Machine != before.Machine || after.Launch.ID == before.Launch.ID || after.Launch.ID == "" {
		t.Errorf("machine %s, launch %s; before: %s, %s", after.Machine, after.Launch.ID, before.Machine, before.Launch.ID)
	}
	if got, want := slots(after), slots(before); !slices.Equal(got, want) {
		t.Errorf("slots %v, before %v", got, want)
	}
	if out := w.cli("events"); !strings.Contains(out, "Suspended     VirtualMachine/web  testdata (by root)") {
		t.Errorf("the audit of before is gone:\n%s", out)
	}
	running := w.qemu(old)
	if running.PID == 0 || w.qemu(all["VirtualMachine/web"].UID).PID != 0 {
		t.Errorf("processes: %v", w.qemus())
	}
	w.cli("resume", "vm/web")
	w.reconcile()
	w.await(passTime, "the resumed machine to run", func() bool { return w.qemu(all["VirtualMachine/web"].UID).PID != 0 })
	w.reconcile()
	if p := w.plan(); p.Count(reconcile.Ready) > 0 {
		t.Errorf("the plan is not empty: %+v", p.Summary)
	}
	w.stop()
	for _, pattern := range []string{"agent/*.json", "vms/*.json", "storage/*/*.json", "pools/fast/*.json", "target/exports/*.json"} {
		for _, path := range w.glob(pattern) {
			var r struct{ Version int }
			if w.record(path, &r); r.Version < 1 && !slices.Contains([]string{"drift.json", "forge.json", "owners.json", "review.json"}, filepath.Base(path)) && !strings.Contains(path, "75584908") {
				t.Errorf("%s has no version", path)
			}
		}
	}
	// With the next start nothing is new: the processes are the same.
	w.start()
	w.reconcile()
	if now := w.qemu(old); now.PID != running.PID {
		t.Errorf("the machine's process was %d and is %d", running.PID, now.PID)
	}
}

// slots are the taken root ports; the names of devices may have become others.
func slots(r machineRecord) []int {
	var all []int
	for _, n := range r.Slots {
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}

// A record that a later build wrote is left as it is, and named.
func TestRecordsOfALaterBuild(t *testing.T) {
	w := firstBuild(t)
	w.start()
	w.reconcile()
	for _, c := range []struct{ pattern, named string }{
		{"agent/agent.json", "start"}, {"agent/base.json", "start"}, {"agent/owners.json", "start"}, {"agent/review.json", "start"},
		{"vms/f20803dd*.json", "VirtualMachine/old"},
		{"storage/claims/636cff4d*.json", "Disk/old-root"},
		{"storage/disks/636cff4d*.json", "Disk/old-root"},
		{"storage/pools/*.json", "StoragePool/fast"},
		{"storage/images/*.json", "Image/tiny"},
		{"pools/fast/636cff4d*.json", "Disk/old-root"},
		{"pools/fast/.reconciler-pool.json", "StoragePool/fast"},
	} {
		paths := w.glob(c.pattern)
		if len(paths) != 1 {
			t.Fatalf("%s: %v", c.pattern, paths)
		}
		was, err := os.ReadFile(paths[0])
		w.must(err)
		w.stop()
		later := []byte(`{"version": 99, "what": "is new"}`)
		w.must(os.WriteFile(paths[0], later, 0o600))
		if c.named == "start" {
			out, code := w.try(append([]string{"plan"}, w.flags()...)...)
			if code == 0 || !strings.Contains(out, paths[0]) || !strings.Contains(out, "newer reconciler") {
				t.Errorf("%s: exit %d: %s", c.pattern, code, out)
			}
		} else {
			w.start()
			w.try("reconcile", "--wait")
			if out := w.cli("get", "all"); !strings.Contains(line(out, c.named), "newer reconciler") || !strings.Contains(line(out, c.named), paths[0]) {
				t.Errorf("%s: not named:\n%s", c.pattern, out)
			}
			w.stop()
		}
		if now, err := os.ReadFile(paths[0]); err != nil || !bytes.Equal(now, later) {
			t.Errorf("%s was changed: %s, %v", c.pattern, now, err)
		}
		w.must(os.WriteFile(paths[0], was, 0o600))
		w.start()
		w.reconcile()
		if p := w.plan(); p.Count(reconcile.Ready)+p.Count(reconcile.Blocked) > 0 {
			var text strings.Builder
			_ = p.WriteText(&text)
			t.Errorf("%s: with the record back the plan is not empty:\n%s", c.pattern, text.String())
		}
	}
}

func line(text, with string) string {
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, with+" ") {
			return l
		}
	}
	return ""
}

// Whatever becomes of one file under the state directory, the agent comes up or
// says which file keeps it from it, a machine that does not depend on the file
// goes on and can be restarted, and no other object is taken for absent.
func TestOneDamagedFile(t *testing.T) {
	w := firstBuild(t)
	w.start()
	w.reconcile()
	const old = "f20803dd-ec18-58d9-80aa-f070faab4939"
	all := w.objects("all")
	w.stop()
	var files []string
	w.must(filepath.WalkDir(w.state(), func(path string, e fs.DirEntry, err error) error {
		// One of a kind: of records by identity, those of the machine that is off.
		name := strings.TrimPrefix(path, w.state()+"/")
		switch {
		case err != nil || !e.Type().IsRegular() || strings.Contains(path, ".reserve"):
		case strings.HasSuffix(path, ".img"), strings.HasPrefix(name, "images/"), strings.HasSuffix(path, ".log"):
		case strings.HasPrefix(name, "git/objects/"):
		case strings.HasPrefix(name, "target/exports/"), strings.HasPrefix(name, "storage/"), strings.HasPrefix(name, "pools/fast/"), strings.HasPrefix(name, "vms/"):
			// In their packages, every file in every way.
			if strings.HasPrefix(filepath.Base(name), "75584908") || strings.HasPrefix(filepath.Base(name), "006b5c56") {
				files = append(files, path)
			}
		default:
			files = append(files, path)
		}
		return nil
	}))
	damages := []func([]byte) []byte{
		func([]byte) []byte { return nil },
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { return bytes.Repeat([]byte{0xff, '{', 0}, len(b)/3+1) },
	}
	if len(files) < 15 {
		t.Fatalf("only %d files: %v", len(files), files)
	}
	for n, path := range files {
		was, err := os.ReadFile(path)
		w.must(err)
		info, err := os.Stat(path)
		w.must(err)
		name := strings.TrimPrefix(path, w.state()+"/")
		w.must(os.WriteFile(path, damages[n%len(damages)](was), info.Mode()))
		if name == "agent/host_key" || name == "agent/agent.json" {
			// They are the agent's own: who it is, and what must not be done.
			out, code := w.try(append([]string{"plan"}, w.flags()...)...)
			if !strings.Contains(out, filepath.Base(path)) {
				t.Errorf("%s: exit %d, not named: %s", name, code, out)
			}
		} else {
			w.start()
			w.await(passTime, "a pass with a damaged "+name, func() bool {
				now := w.objects("all")
				return now["VirtualMachine/old"].Health == status.Healthy
			})
			p := w.qemu(old)
			if p.PID == 0 {
				t.Fatalf("%s: the machine does not run", name)
			}
			if n%4 == 0 { // it can be acted on, too
				w.cli("restart", "vm/old")
				w.await(passTime, "the machine to be restarted with a damaged "+name, func() bool {
					now := w.qemu(old)
					return now.PID != 0 && now.PID != p.PID
				})
			}
			now := w.objects("all")
			for object, o := range all {
				if now[object].UID != o.UID {
					t.Errorf("%s: %s is gone", name, object)
				}
			}
			w.stop()
		}
		if _, err := os.Stat(path + ".damaged"); err == nil {
			w.must(os.Remove(path + ".damaged"))
		}
		w.must(os.WriteFile(path, was, info.Mode()))
	}
	w.start()
	w.reconcile()
	w.await(passTime, "all to be as it was, of "+strconv.Itoa(len(files))+" files", func() bool {
		p := w.plan()
		return p.Count(reconcile.Blocked) == 0 && p.Count(reconcile.Ready) == 0
	})
}
