package iscsi

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"reconciler/drivers/iscsi/target"
	"reconciler/reconcile"
	"reconciler/spec"
)

func poolKey() reconcile.Key {
	return reconcile.Key{Kind: spec.KindStoragePool, UID: uidOf(spec.KindStoragePool, "fast")}
}

func diskKey(name string) reconcile.Key {
	return reconcile.Key{Kind: spec.KindDisk, UID: uidOf(spec.KindDisk, name)}
}

func TestAPoolThatIsNotMountedIsUnknownAndNothingIsMadeInIt(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"), diskYAML("gone", "size: 4Mi"))
	w.converge(want)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))) // gone is in quarantine
	dir := filepath.Join(w.dir, "state/pools/fast")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil { // the mount point
		t.Fatal(err)
	}
	want = w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"), diskYAML("new", "size: 4Mi"))
	for _, restarted := range []bool{false, true} {
		if restarted {
			w.open()
		}
		p, s := w.plan(want)
		for _, k := range []reconcile.Key{poolKey(), diskKey("web"), diskKey("gone"), diskKey("new")} {
			if s.Objects[k] != nil || !strings.Contains(s.Unknown[k], "not mounted") {
				t.Errorf("%v: %v, unknown %q", k, s.Objects[k], s.Unknown[k])
			}
		}
		for _, a := range p.Actions {
			if (a.Kind == spec.KindDisk || a.Kind == spec.KindStoragePool) && a.State != reconcile.Blocked {
				t.Errorf("%s %s/%s is %s", a.Op, a.Kind, a.Name, a.State)
			}
		}
		o := want.Objects[diskKey("new")]
		create := reconcile.Action{Kind: spec.KindDisk, UID: o.UID, Name: o.Name, Op: reconcile.OpCreate, Want: o}
		if err := w.apply(create); err == nil {
			t.Error("a disk was made in a pool that is not mounted")
		}
		if _, err := w.d.Claim(w.ctx(), diskKey("web").UID, owner("launch-1")); err == nil {
			t.Error("a disk of a pool that is not mounted was claimed")
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("in the mount point: %v", entries)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	s := w.converge(want)
	if liveDisk(t, s, "web").Disk.Quarantined || !liveDisk(t, s, "gone").Disk.Quarantined {
		t.Error("after the mount the disks are not as before")
	}
}

func TestALostVolumeIsUnknownNotAbsent(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("a", "size: 4Mi"), diskYAML("b", "size: 4Mi"), diskYAML("c", "size: 4Mi"))
	w.converge(want)
	dir := filepath.Join(w.dir, "state/pools/fast")
	for _, f := range []string{diskKey("a").UID + ".img", diskKey("b").UID + ".img", diskKey("b").UID + ".json"} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, diskKey("c").UID+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.base = reconcile.Base{} // not even with the base lost
	p, s := w.plan(want)
	for _, name := range []string{"a", "b", "c"} {
		if s.Unknown[diskKey(name)] == "" {
			t.Errorf("disk %s is not unknown", name)
		}
	}
	for _, a := range p.Actions {
		if a.Kind == spec.KindDisk && a.State == reconcile.Ready {
			t.Errorf("%s %s", a.Op, a.Name)
		}
	}
}

func TestWhatIsUnmanagedIsReportedAndLeft(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	w.converge(want)
	stray := filepath.Join(w.dir, "state/pools/fast", "5a0e8f5e-1111-5222-8333-123456789abc.img")
	if err := os.WriteFile(stray, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := target.Export{IQN: "iqn.2000-01.example:other", Path: stray, Portals: []string{w.portal}, Serial: strings.Repeat("0", 20)}
	if err := w.client.Put(w.ctx(), foreign); err != nil {
		t.Fatal(err)
	}
	s := w.converge(want)
	if len(s.Unmanaged) != 2 || s.Unmanaged[0].Name != stray || s.Unmanaged[1].Name != foreign.IQN {
		t.Errorf("%+v", s.Unmanaged)
	}
	w.converge(w.tree(w.poolYAML("")))
	if _, err := os.Stat(stray); err != nil {
		t.Error(err)
	}
	if served, err := w.d.served(w.ctx()); err != nil || served[foreign.IQN].Path != stray {
		t.Errorf("%v, %v", served, err)
	}
}

func TestPoolPaths(t *testing.T) {
	w := newWorld(t)
	outside := t.TempDir()
	mnt := filepath.Join(w.dir, "mnt")
	for _, d := range []string{mnt + "/ok", mnt + "/full", outside + "/x"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, mnt+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mnt+"/full/data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{
		mnt + "/ok/a": true, mnt + "/link/a": false, mnt + "/full": false, mnt: false,
		outside + "/a": false, mnt + "/../mnt2": false, "storage/claims/../../../x": false, "deep/er": true, "storage": false,
	} {
		want := w.tree(strings.Replace(w.poolYAML(""), "pools/fast", "other", 1))
		o := want.Objects[poolKey()]
		o.Spec.(*spec.StoragePool).Volumes.File.Path = path
		w.observe(want)
		err := w.apply(reconcile.Action{Kind: spec.KindStoragePool, UID: o.UID, Name: o.Name, Op: reconcile.OpCreate, Want: o})
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
		if err := w.d.deletePool(w.ctx(), &reconcile.Action{UID: o.UID}); err != nil {
			t.Errorf("%s: delete: %v", path, err)
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("outside: %v", entries)
	}
	if _, err := os.Stat(mnt + "/full/data"); err != nil {
		t.Error(err)
	}
}

func TestAPoolWithVolumesIsNotDeleted(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	w.converge(w.tree(w.poolYAML("")))
	if err := w.d.deletePool(w.ctx(), &reconcile.Action{UID: poolKey().UID}); err == nil || !strings.Contains(err.Error(), "1 volumes") {
		t.Errorf("with a volume in quarantine: %v", err)
	}
	if s := w.observe(w.tree(w.poolYAML(""))); s.Objects[poolKey()] == nil {
		t.Error("the pool is gone")
	}
}

func TestTheTargetFollowsTheRecords(t *testing.T) {
	w := newWorldAt(t, t.TempDir())
	w.startTargetProcess()
	w.open()
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"), diskYAML("db", "size: 4Mi"))
	w.converge(want)
	g := mustClaim(t, w, diskKey("web").UID, owner("launch-1"))
	mustIO(t, g, "write -P 8 0 64k", "flush")

	// Killed: it comes back with what it had, before any agent asks.
	w.stopTarget()
	if _, s := w.planWithoutTarget(want); s.Unknown[diskKey("web")] == "" {
		t.Error("with the target down, the disk is not unknown")
	}
	w.startTargetProcess()
	mustIO(t, g, "read -P 8 0 64k")

	// With its state lost, the agent gives it all of it again: same grant.
	w.stopTarget()
	if err := os.RemoveAll(filepath.Join(w.dir, "target")); err != nil {
		t.Fatal(err)
	}
	w.startTargetProcess()
	if _, err := qemuIO(g, "read 0 64k"); err == nil {
		t.Fatal("the state was not lost")
	}
	s := w.converge(want)
	if liveDisk(t, s, "db").Disk.LUN != 4<<20 {
		t.Error("not exported again")
	}
	mustIO(t, g, "read -P 8 0 64k")

	// An access that the records do not know is removed.
	iqn := g.Target
	rogue := target.Access{Epoch: 99, Initiators: []string{rescue}}
	if err := w.client.SetAccess(w.ctx(), iqn, []target.Access{rogue}); err != nil {
		t.Fatal(err)
	}
	w.converge(want)
	served, err := w.d.served(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if a := served[iqn].Access; len(a) != 1 || a[0].Epoch != g.Epoch {
		t.Errorf("access: %+v", a)
	}
	mustIO(t, g, "read -P 8 0 64k")
}

// The driver starts the target, and what keeps it running is not the driver.
func TestEnsureStartsATargetThatStays(t *testing.T) {
	w := newWorldAt(t, t.TempDir())
	ec := ensureConfig(filepath.Join(w.dir, "target"), filepath.Join(w.dir, "run"))
	t.Cleanup(func() {
		if err := target.Stop(w.ctx(), ec); err != nil {
			t.Error(err)
		}
	})
	cfg := w.config()
	cfg.Start = func(ctx context.Context) error { return target.Ensure(ctx, ec) }
	var err error
	if w.d, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	w.converge(want)
	g := mustClaim(t, w, diskKey("web").UID, owner("launch-1"))
	mustIO(t, g, "write -P 4 0 64k", "flush")
	pid, err := w.client.Ping(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "another target process", func() error {
		now, err := w.client.Ping(w.ctx())
		if err == nil && now == pid {
			err = errors.New("the old one answers")
		}
		return err
	})
	mustIO(t, g, "read -P 4 0 64k")
	if p, _ := w.plan(want); !p.Empty() && p.Count(reconcile.Ready) > 0 {
		for _, a := range p.Actions {
			if a.Op != reconcile.OpUnchanged {
				t.Errorf("%s %s", a.Op, a.Name)
			}
		}
	}
}

// planWithoutTarget is plan while Ensure cannot succeed.
func (w *world) planWithoutTarget(want *reconcile.Desired) (reconcile.Plan, reconcile.State) {
	w.t.Helper()
	if err := w.d.Ensure(w.ctx()); err == nil {
		w.t.Error("ensure succeeds without a target")
	}
	s := w.observe(want)
	return reconcile.Diff(want, w.base, s, w.d.cfg.Now()), s
}

func TestPortalsOfAnIdlePoolChange(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	old := w.portal
	w.portal = freePortal(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	g := mustClaim(t, w, diskKey("web").UID, owner("launch-1"))
	if g.Portal != w.portal || g.Portal == old {
		t.Errorf("portal %s", g.Portal)
	}
	mustIO(t, g, "write 0 64k")
}

// A pool full to the last byte: the guest's write fails, what was acknowledged
// stays, and claims, releases and quarantine still work.
func TestAFullPool(t *testing.T) {
	w := newWorldAt(t, t.TempDir())
	state := filepath.Join(w.dir, "state")
	if err := os.Remove(state); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(tmpfs(t, "12M"), state); err != nil {
		t.Fatal(err)
	}
	w.startTarget()
	w.open()
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 32Mi"), diskYAML("db", "size: 32Mi"))
	w.converge(want)
	web, db := diskKey("web").UID, diskKey("db").UID
	g := mustClaim(t, w, web, owner("launch-1"))
	mustIO(t, g, "write -P 0x21 0 1M", "flush")
	fill(t, state)
	if out, err := qemuIO(g, "write -P 0x22 8M 4M"); err == nil || !strings.Contains(err.Error(), "No space") {
		t.Errorf("a write to a full pool: %s %v", out, err)
	}
	mustIO(t, g, "read -P 0x21 0 1M")

	for n := range 20 {
		if err := w.d.Release(w.ctx(), web, owner("launch-1")); err != nil {
			t.Fatalf("release %d: %v", n, err)
		}
		fill(t, state)
		again := mustClaim(t, w, web, owner("launch-1"))
		if again.Epoch <= g.Epoch {
			t.Fatalf("epoch %d after %d", again.Epoch, g.Epoch)
		}
		g = again
		fill(t, state)
	}
	mustClaim(t, w, db, owner("launch-2")) // its first claim is a new record
	fill(t, state)
	if err := w.d.Release(w.ctx(), db, owner("launch-2")); err != nil {
		t.Fatal(err)
	}
	s := w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 32Mi")))
	if !liveDisk(t, s, "db").Disk.Quarantined {
		t.Error("not in quarantine")
	}
	if free := s.Objects[poolKey()].Pool.Free; free > 1<<20 {
		t.Errorf("free %d", free)
	}
	if !strings.Contains(w.log.String(), "pool is filling up") {
		t.Error("nobody was warned")
	}
	// Survives a restart, still full.
	w.open()
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 32Mi")))
	mustIO(t, g, "read -P 0x21 0 1M")
	if err := os.Remove(filepath.Join(state, "guest")); err != nil {
		t.Fatal(err)
	}
	mustIO(t, g, "write -P 0x22 8M 2M", "read -P 0x22 8M 2M", "read -P 0x21 0 1M")
}

// fill takes every byte that is left, as a guest does.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "guest"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(bytes.Repeat([]byte{1}, 4096)); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestPoolUse(t *testing.T) {
	for _, c := range []struct {
		capacity, allocated, free int64
		want                      int
	}{
		{100, 80, 1000, 80},
		{1000, 80, 20, 80}, // the file system is smaller than the capacity
		{100, 120, 1000, 120},
		{0, 0, 0, 100},
	} {
		if got := PoolUse(c.capacity, c.allocated, c.free); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
