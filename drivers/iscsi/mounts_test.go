package iscsi

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
	"reconciler/reconcile"
	"reconciler/spec"
)

// mounted is a host whose pool is at an absolute path, on a file system that can
// be mounted there and unmounted: a directory that is bound to it.
type mounted struct {
	*world
	point   string // of the pool
	backing string
	mounts  int
}

func newMounted(t testing.TB) *mounted {
	// On the root file system, so that what is not mounted is on that.
	w := newWorldAt(t, t.TempDir())
	m := &mounted{world: w, point: filepath.Join(w.dir, "mnt/fast"), backing: filepath.Join(w.dir, "backing")}
	for _, d := range []string{m.point, m.backing} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for m.mounts > 0 {
			m.unmount()
		}
	})
	return m
}

func (m *mounted) mount(dir string) {
	m.t.Helper()
	if err := unix.Mount(dir, m.point, "", unix.MS_BIND, ""); err != nil {
		m.t.Fatal(err)
	}
	m.mounts++
}

// unmount takes it away, also from under a target that has files of it open.
func (m *mounted) unmount() {
	m.t.Helper()
	if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil {
		m.t.Fatal(err)
	}
	m.mounts--
}

func (m *mounted) pool() string { return strings.Replace(m.poolYAML(""), "pools/fast", m.point, 1) }

// start starts the target and the driver, with the root as a host's
// configuration has it.
func (m *mounted) start(mount *bool) {
	m.t.Helper()
	m.startTarget()
	m.restart(mount)
}

func (m *mounted) restart(mount *bool) {
	m.t.Helper()
	cfg := m.config()
	cfg.AllowedRoots = []Root{{filepath.Join(m.dir, "mnt"), mount}}
	d, err := New(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.d = d
}

// loseState loses the whole state directory, the target's part of it included
// where that does not run.
func (m *mounted) loseState(target bool) {
	m.t.Helper()
	err := os.RemoveAll(filepath.Join(m.dir, "state"))
	if target {
		m.stopTarget()
		err = errors.Join(err, os.RemoveAll(filepath.Join(m.dir, "target")))
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.base = reconcile.Base{}
}

// mustBeEmpty fails if anything is in the directory that the pool is mounted on.
func (m *mounted) mustBeEmpty() {
	m.t.Helper()
	entries, err := os.ReadDir(m.point)
	if err != nil || len(entries) > 0 {
		m.t.Fatalf("in the mount point: %v, %v", entries, err)
	}
}

// mustHold fails unless the pool and the disk are unknown, and no plan nor stale
// action makes anything.
func (m *mounted) mustHold(want *reconcile.Desired, why string) {
	m.t.Helper()
	p, s := m.plan(want)
	for _, k := range []reconcile.Key{poolKey(), diskKey("web")} {
		if s.Objects[k] != nil || !strings.Contains(s.Unknown[k], "not mounted") || !strings.Contains(s.Unknown[k], why) {
			m.t.Errorf("%s: %v, unknown %q, want %q", k.Kind, s.Objects[k], s.Unknown[k], why)
		}
	}
	for _, a := range p.Actions {
		if (a.Kind == spec.KindStoragePool || a.Kind == spec.KindDisk) && a.State != reconcile.Blocked {
			m.t.Errorf("%s %s/%s is %s", a.Op, a.Kind, a.Name, a.State)
		}
		if a.Want != nil {
			a.Op = reconcile.OpCreate // of an older plan
			if err := m.apply(a); err == nil && a.Kind != spec.KindHost && a.Kind != spec.KindCluster {
				m.t.Errorf("%s/%s was made", a.Kind, a.Name)
			}
		}
	}
	m.mustBeEmpty()
}

func is(b bool) *bool { return &b }

// A host that has lost its memory, and whose pool is not mounted, makes nothing:
// with the mount, all is as before.
func TestAPoolIsMissedAfterTheStateIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		mount  *bool
		known  string // what this host reported
		target bool   // it goes on
		why    string
	}{
		"by its own report":    {nil, "this host reported it", false, "this host reported it"},
		"by the configuration": {is(true), "", false, "mount: true"},
		"by the target":        {nil, "", true, "the target, which still runs"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMounted(t)
			m.mount(m.backing)
			m.start(c.mount)
			want := m.tree(m.pool(), diskYAML("web", "size: 4Mi"))
			m.converge(want)
			uid := diskKey("web").UID
			g := mustClaim(t, m.world, uid, owner("launch-1"))
			mustIO(t, g, "write -P 7 0 64k", "flush")
			if marker, err := volume.ReadMarker(m.backing); err != nil || marker.Mount == nil || !*marker.Mount {
				t.Fatalf("marker %+v, %v", marker, err)
			}

			m.unmount()
			m.loseState(!c.target)
			if c.target {
				m.restart(c.mount)
			} else {
				m.start(c.mount)
			}
			if c.known != "" {
				want.Known = map[reconcile.Key]string{poolKey(): c.known}
			}
			m.mustHold(want, c.why)

			m.mount(m.backing)
			m.restart(c.mount)
			s := m.converge(want)
			liveDisk(t, s, "web")
			if !c.target {
				g = mustClaim(t, m.world, uid, owner("launch-2"))
			}
			mustIO(t, g, "read -P 7 0 64k")
			m.unmount()
			m.mustBeEmpty()
		})
	}
}

// On a fresh host nothing is to be said or typed: a pool is made where its path
// is, mounted or not, and from then on it is known which.
func TestAFreshHostMakesItsPool(t *testing.T) {
	for _, on := range []bool{false, true} {
		m := newMounted(t)
		if on {
			m.mount(m.backing)
		}
		m.start(nil)
		want := m.tree(m.pool(), diskYAML("web", "size: 4Mi"))
		liveDisk(t, m.converge(want), "web")
		marker, err := volume.ReadMarker(m.point)
		if err != nil || marker.Mount == nil || *marker.Mount != on {
			t.Fatalf("mounted %t: marker %+v, %v", on, marker, err)
		}
		if !on {
			continue
		}
		// A copy of the marker in the mount point makes it no pool.
		data, err := os.ReadFile(filepath.Join(m.backing, ".reconciler-pool.json"))
		if err != nil {
			t.Fatal(err)
		}
		m.unmount()
		copied := filepath.Join(m.point, ".reconciler-pool.json")
		if err := os.WriteFile(copied, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, lost := range []bool{false, true} {
			if lost {
				m.loseState(true)
				m.start(nil)
			}
			if _, s := m.plan(want); !strings.Contains(s.Unknown[poolKey()], "root file system") {
				t.Errorf("state lost %t: unknown %q", lost, s.Unknown[poolKey()])
			}
		}
		// Moved for good, the operator says so.
		m.restart(is(false))
		if _, s := m.plan(want); s.Unknown[poolKey()] != "" {
			t.Errorf("unknown %q", s.Unknown[poolKey()])
		}
	}
}

// A disk that this host reported, and that is in no pool, is missed.
func TestADiskIsMissedAfterTheStateIsLost(t *testing.T) {
	m := newMounted(t)
	m.mount(m.backing)
	m.start(nil)
	want := m.tree(m.pool(), diskYAML("web", "size: 4Mi"), diskYAML("new", "size: 4Mi"))
	want.Known = map[reconcile.Key]string{diskKey("web"): "this host reported it"}
	if err := m.apply(m.action(want, spec.KindStoragePool, "fast")); err != nil {
		t.Fatal(err)
	}
	_, s := m.plan(want)
	if why := s.Unknown[diskKey("web")]; !strings.Contains(why, "no volume of it, and this host reported it") {
		t.Errorf("unknown %q", why)
	}
	if why, ok := s.Unknown[diskKey("new")]; ok {
		t.Errorf("another disk: %q", why)
	}
}

// What was hidden by a mount, or is mounted over what runs, is another volume:
// who has the one never writes to the other.
func TestAVolumeIsNotItsPath(t *testing.T) {
	m := newMounted(t)
	uid := diskKey("web").UID
	want := m.tree(m.pool(), diskYAML("web", "size: 4Mi"))
	m.mount(m.backing)
	m.start(is(false)) // as builds without a witness were
	m.converge(want)
	mustIO(t, mustClaim(t, m.world, uid, owner("launch-1")), "write -P 1 0 64k", "flush")
	m.unmount()
	m.loseState(true)
	m.start(is(false))
	m.converge(want) // a blank one, in the mount point
	g := mustClaim(t, m.world, uid, owner("launch-2"))
	mustIO(t, g, "write -P 2 0 64k", "flush")
	old := filepath.Join(m.backing, uid+".img")
	before, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	untouched := func() {
		t.Helper()
		if now, err := os.ReadFile(old); err != nil || string(now) != string(before) {
			t.Fatalf("the volume that was hidden is not as it was: %v", err)
		}
	}

	m.mount(m.backing)
	if why := m.observe(want).Unknown[diskKey("web")]; !strings.Contains(why, "another file open") {
		t.Errorf("mounted over: unknown %q", why)
	}
	_ = m.d.Ensure(m.ctx()) // says that there is a session, or a claim
	mustIO(t, g, "write -P 3 64k 64k", "flush")
	untouched()
	if _, err := m.d.Claim(m.ctx(), uid, owner("launch-3")); err == nil {
		t.Error("another launch got the disk")
	}

	m.stopTarget()
	m.startTarget()
	for range 2 {
		if err := m.d.Ensure(m.ctx()); err == nil || !strings.Contains(err.Error(), "another volume") {
			t.Errorf("after a restart of the target: %v", err)
		}
		if why := m.observe(want).Unknown[diskKey("web")]; !strings.Contains(why, "another volume") {
			t.Errorf("after a restart of the target: unknown %q", why)
		}
	}
	if _, err := qemuIO(g, "write -P 4 0 64k"); err == nil {
		t.Error("the launch of one volume wrote to the other")
	}
	untouched()

	// Also with the target's own records lost.
	m.stopTarget()
	if err := os.RemoveAll(filepath.Join(m.dir, "target")); err != nil {
		t.Fatal(err)
	}
	m.startTarget()
	if err := m.d.Ensure(m.ctx()); err == nil || !strings.Contains(err.Error(), "another volume") {
		t.Errorf("after the target's records were lost: %v", err)
	}
	if _, err := qemuIO(g, "write -P 4 0 64k"); err == nil {
		t.Error("the launch of one volume wrote to the other")
	}
	untouched()

	// Unmounted again, its own volume is back.
	m.unmount()
	await(t, "the export to follow", func() error { return m.d.Ensure(m.ctx()) })
	mustIO(t, g, "read -P 2 0 64k", "read -P 3 64k 64k")

	// Once the launch is gone, the disk is what is at the path.
	m.mount(m.backing)
	if err := m.d.Release(m.ctx(), uid, owner("launch-2")); err != nil {
		t.Fatal(err)
	}
	s := m.converge(want)
	liveDisk(t, s, "web")
	mustIO(t, mustClaim(t, m.world, uid, owner("launch-4")), "read -P 1 0 64k")
}

// A file that was put in the place of a volume's, with the same record, is
// another, too.
func TestAReplacedFileIsAnotherVolume(t *testing.T) {
	w := newWorld(t)
	uid := diskKey("web").UID
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	w.converge(want)
	g := mustClaim(t, w, uid, owner("launch-1"))
	mustIO(t, g, "write -P 5 0 64k", "flush")
	file := filepath.Join(w.dir, "state/pools/fast", uid+".img")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".copy", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".copy", file); err != nil {
		t.Fatal(err)
	}
	for _, lost := range []bool{false, false, true} { // the records of the target
		if why := w.observe(want).Unknown[diskKey("web")]; why == "" {
			t.Error("it is known")
		}
		w.stopTarget()
		if lost {
			if err := os.RemoveAll(filepath.Join(w.dir, "target")); err != nil {
				t.Fatal(err)
			}
		}
		w.startTarget()
		if err := w.d.Ensure(w.ctx()); err == nil || !strings.Contains(err.Error(), "another volume") {
			t.Errorf("the target's records lost %t: %v", lost, err)
		}
		if _, err := qemuIO(g, "write -P 6 0 64k"); err == nil {
			t.Error("written to")
		}
	}
	// The operator ends the machine, whatever launch of it has the disk.
	if err := w.d.ReleaseMachine(w.ctx(), owner("").VM); err != nil {
		t.Fatal(err)
	}
	w.converge(want)
	g = mustClaim(t, w, uid, owner("launch-2"))
	mustIO(t, g, "read -P 5 0 64k")

	// After a reboot, with the pool restored from a backup meanwhile, nobody need
	// be told: the launches of the boot before are gone.
	w.stopTarget()
	if err := os.WriteFile(file+".copy", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".copy", file); err != nil {
		t.Fatal(err)
	}
	w.reboot("boot-2")
	w.startTarget()
	w.converge(want)
	later := owner("launch-3")
	later.BootID = "boot-2"
	mustIO(t, mustClaim(t, w, uid, later), "read -P 5 0 64k")
	if _, err := qemuIO(g, "read 0 64k"); err == nil {
		t.Error("the launch before the reboot is admitted")
	}
}

// Records of builds that did not tell volumes apart are read and completed, under
// a machine that goes on.
func TestRecordsWithoutIdentityAreCompleted(t *testing.T) {
	m := newMounted(t)
	m.mount(m.backing)
	m.start(nil)
	uid := diskKey("web").UID
	want := m.tree(m.pool(), diskYAML("web", "size: 4Mi"), diskYAML("old", "size: 4Mi"))
	m.converge(want)
	m.converge(m.tree(m.pool(), diskYAML("web", "size: 4Mi"))) // old is in quarantine
	want = m.tree(m.pool(), diskYAML("web", "size: 4Mi"))
	g := mustClaim(t, m.world, uid, owner("launch-1"))
	mustIO(t, g, "write -P 9 0 64k", "flush")
	m.stopTarget()
	exports, err := filepath.Glob(filepath.Join(m.dir, "target/exports/*.json"))
	if err != nil || len(exports) != 1 {
		t.Fatalf("%v, %v", exports, err)
	}
	strip := func(path string, keys ...string) {
		t.Helper()
		var rec map[string]any
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &rec)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			in := rec
			for {
				outer, inner, nested := strings.Cut(key, ".")
				if !nested {
					break
				}
				in, key = in[outer].(map[string]any), inner
			}
			if in[key] == nil {
				t.Errorf("%s has no %s", path, key)
			}
			delete(in, key)
		}
		if data, err = json.Marshal(rec); err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	marker := filepath.Join(m.backing, ".reconciler-pool.json")
	record := filepath.Join(m.backing, uid+".json")
	strip(exports[0], "file", "export.volume")
	strip(marker, "mount")
	strip(record, "id")
	strip(filepath.Join(m.dir, "state/storage/claims", uid+".json"), "writer.volume", "writer.inode")

	m.start(nil)
	mustIO(t, g, "read -P 9 0 64k") // before any agent
	m.converge(want)
	mustIO(t, g, "write -P 10 0 64k", "flush")
	at, v, err := m.d.find(m.ctx(), uid)
	if err != nil {
		t.Fatal(err)
	}
	s := servedAs(t, m.world, v.Target)
	if v.ID == "" || s.Volume != v.ID || s.File == nil || s.File.Inode != v.Inode {
		t.Errorf("volume %q, export %+v", v.ID, s)
	}
	if k, err := volume.ReadMarker(m.backing); err != nil || k.Mount == nil || !*k.Mount {
		t.Errorf("marker %+v, %v", k, err)
	}
	if old, err := at.pool.get(m.ctx(), diskKey("old").UID); err != nil || old.Quarantine == nil {
		t.Errorf("in quarantine: %+v, %v", old, err)
	}
	// An older build, for a while, forgets the id: it is the same volume.
	strip(record, "id")
	m.converge(want)
	if _, again, err := m.d.find(m.ctx(), uid); err != nil || again.ID != v.ID {
		t.Errorf("id %q was %q, %v", again.ID, v.ID, err)
	}
	m.stopTarget()
	m.startTarget()
	mustIO(t, g, "read -P 10 0 64k")
}

func servedAs(t *testing.T, w *world, iqn string) target.Status {
	t.Helper()
	served, err := w.d.served(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	return served[iqn]
}

func TestMountPoints(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134b`: `/a\b`, "/a": "/a", `/a\0`: `/a0`, `\011x\040`: "\tx "} {
		if got := unescape(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	m := newMounted(t)
	deep := filepath.Join(m.point, "a/b")
	if at, err := mountOf(deep); err != nil || at != "/" {
		t.Errorf("%s, %v", at, err)
	}
	m.mount(m.backing)
	for _, p := range []string{deep, m.point} {
		if at, err := mountOf(p); err != nil || at != m.point {
			t.Errorf("%s: %s, %v", p, at, err)
		}
	}
	if at, err := mountOf(m.point + "er"); err != nil || at != "/" {
		t.Errorf("%s, %v", at, err)
	}
}
