package iscsi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

func TestBlankDiskIsMadeServedAndObserved(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 8Mi"))
	s := w.converge(want)
	l := liveDisk(t, s, "web")
	if l.Disk.Volume != 8<<20 || l.Disk.LUN != 8<<20 || l.Get("spec.size") != "8Mi" {
		t.Errorf("volume %d, LUN %d, spec.size %s", l.Disk.Volume, l.Disk.LUN, l.Get("spec.size"))
	}
	uid := l.UID
	g := mustClaim(t, w, uid, owner("launch-1"))
	mustIO(t, g, "write -P 0x5a 1M 64k", "flush", "read -P 0x5a 1M 64k", "read -P 0 0 1M")
	data, err := os.ReadFile(filepath.Join(w.dir, "state/pools/fast", uid+".img"))
	if err != nil {
		t.Fatal(err)
	}
	if data[1<<20] != 0x5a || data[1<<20+65535] != 0x5a || data[1<<20+65536] != 0 {
		t.Error("the volume file does not hold what was written")
	}
	p, s := w.plan(want)
	if !p.Empty() {
		t.Errorf("plan is not empty: %+v", p.Actions)
	}
	pool := s.Objects[reconcile.Key{Kind: spec.KindStoragePool, UID: uidOf(spec.KindStoragePool, "fast")}]
	if pool.Pool.Provisioned != 8<<20 || pool.Pool.Allocated == 0 || pool.Pool.Free == 0 {
		t.Errorf("pool: %+v", pool.Pool)
	}
	if c := liveDisk(t, s, "web").Disk.Claims; len(c) != 1 || c[0].Owner != owner("launch-1") || c[0].Epoch != g.Epoch {
		t.Errorf("claims: %+v", c)
	}
}

func TestClaimIsIdempotentPerOwnerAndExclusive(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := uidOf(spec.KindDisk, "web")
	first := mustClaim(t, w, uid, owner("launch-1"))
	for range 2 {
		if again := mustClaim(t, w, uid, owner("launch-1")); again != first {
			t.Errorf("second claim of the same owner: %v, first %v", again, first)
		}
		w.open()
	}
	_, err := w.d.Claim(w.ctx(), uid, owner("launch-2"))
	var held *claim.HeldError
	if !errors.As(err, &held) || held.Owner != owner("launch-1") {
		t.Fatalf("claim of another launch: %v", err)
	}
	if err := w.d.Release(w.ctx(), uid, owner("launch-2")); err != nil {
		t.Errorf("releasing what is not held: %v", err)
	}
	mustIO(t, first, "write -P 1 0 64k")
	if err := w.d.Release(w.ctx(), uid, owner("launch-1")); err != nil {
		t.Fatal(err)
	}
	if _, err := qemuIO(first, "read 0 64k"); err == nil {
		t.Error("the released grant still logs in")
	}
	second := mustClaim(t, w, uid, owner("launch-2"))
	if second.Epoch <= first.Epoch || second.Initiator == first.Initiator || second.Password == first.Password || second.User == first.User {
		t.Errorf("new launch: %+v after %+v", second, first)
	}
	if n := len(second.Password.Reveal()); n < 12 {
		t.Errorf("CHAP secret of %d characters", n)
	}
	mustIO(t, second, "read -P 1 0 64k")
	if _, err := qemuIO(first, "read 0 64k"); err == nil {
		t.Error("the old epoch logs in beside the new one")
	}
}

func TestGrowIsSeenInVolumeAndLUN(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := uidOf(spec.KindDisk, "web")
	g := mustClaim(t, w, uid, owner("launch-1"))
	s := w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 16Mi")))
	if l := liveDisk(t, s, "web"); l.Disk.Volume != 16<<20 || l.Disk.LUN != 16<<20 || l.Get("spec.size") != "16Mi" {
		t.Errorf("%+v %s", l.Disk, l.Get("spec.size"))
	}
	mustIO(t, g, "write -P 7 15M 1M", "read -P 7 15M 1M")
	// Behind the target's back, as a crash between the two steps leaves it.
	at, _, err := w.d.find(w.ctx(), uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := at.pool.grow(w.ctx(), uid, 24<<20); err != nil {
		t.Fatal(err)
	}
	if l := liveDisk(t, w.observe(w.tree(w.poolYAML(""))), "web"); l.Disk.Volume != 24<<20 || l.Disk.LUN != 16<<20 || l.Get("spec.size") != "16Mi" {
		t.Errorf("half grown: %+v %s", l.Disk, l.Get("spec.size"))
	}
	s = w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 24Mi")))
	if l := liveDisk(t, s, "web"); l.Disk.LUN != 24<<20 {
		t.Errorf("%+v", l.Disk)
	}
	if a := w.action(w.tree(w.poolYAML(""), diskYAML("web", "size: 8Mi")), spec.KindDisk, "web"); a.State == reconcile.Ready && a.Op != reconcile.OpUnchanged {
		if err := w.apply(a); err != nil {
			t.Fatal(err)
		}
	}
	if l := liveDisk(t, w.observe(w.tree(w.poolYAML(""))), "web"); l.Disk.Volume != 24<<20 {
		t.Errorf("the disk shrank: %+v", l.Disk)
	}
}

// A weaker protection may have to wait while the disk grows: what the record
// says is what decides when the disk is removed.
func TestProtectionThatWaitsIsNotRecorded(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi, retention: 48h")))
	a := w.action(w.tree(w.poolYAML(""), diskYAML("web", "size: 8Mi, retention: 1s, deletionPolicy: Delete")), spec.KindDisk, "web")
	for i := range a.Changes {
		if a.Changes[i].Impact == reconcile.ImpactDestroy {
			a.Changes[i].Waits = "held"
		}
	}
	if err := w.apply(a); err != nil {
		t.Fatal(err)
	}
	_, v, err := w.d.find(w.ctx(), a.UID)
	if err != nil {
		t.Fatal(err)
	}
	policy, retention := v.Protection()
	if v.Size != 8<<20 || policy != spec.DeletionRetain || retention != 48*time.Hour {
		t.Errorf("size %d, %s, %s", v.Size, policy, retention)
	}
}

func TestCapacityIsKept(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 200Mi"))
	w.converge(want)
	a := w.action(w.tree(w.poolYAML("  overcommit: 2.0\n"), diskYAML("web", "size: 200Mi"), diskYAML("db", "size: 100Mi")), spec.KindDisk, "db")
	if a.Op != reconcile.OpCreate {
		t.Fatalf("%+v", a)
	}
	// The pool's overcommit is not applied yet.
	var full *CapacityError
	if err := w.apply(a); !errors.As(err, &full) || full.Wanted != 300<<20 || full.Have != 256<<20 {
		t.Fatalf("create over capacity: %v", err)
	}
	if entries, _ := filepath.Glob(filepath.Join(w.dir, "state/pools/fast", a.UID+"*")); len(entries) > 0 {
		t.Errorf("left over: %v", entries)
	}
	grow := w.action(w.tree(w.poolYAML("  overcommit: 2.0\n"), diskYAML("web", "size: 300Mi")), spec.KindDisk, "web")
	if err := w.apply(grow); !errors.As(err, &full) {
		t.Fatalf("grow over capacity: %v", err)
	}
	if l := liveDisk(t, w.observe(want), "web"); l.Disk.Volume != 200<<20 {
		t.Errorf("%+v", l.Disk)
	}
	w.converge(w.tree(w.poolYAML("  overcommit: 2.0\n"), diskYAML("web", "size: 300Mi"), diskYAML("db", "size: 100Mi")))
}

func TestQuarantineRestorePurge(t *testing.T) {
	w := newWorld(t)
	with := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi, retention: 10h"))
	without := w.tree(w.poolYAML(""))
	w.converge(with)
	uid := uidOf(spec.KindDisk, "web")
	g := mustClaim(t, w, uid, owner("launch-1"))
	mustIO(t, g, "write -P 0x42 0 1M", "flush")

	remove := w.action(without, spec.KindDisk, "web")
	remove.Changes = nil
	if err := w.apply(remove); err == nil {
		t.Fatal("a disk with a claim went into quarantine")
	}
	if err := w.d.Release(w.ctx(), uid, owner("launch-1")); err != nil {
		t.Fatal(err)
	}
	start := w.d.cfg.Now()
	w.pass(time.Minute, time.Minute)
	if l := liveDisk(t, w.observe(with), "web"); !l.Disk.Written.Equal(start) {
		t.Errorf("last written at %s, released at %s", l.Disk.Written, start)
	}
	w.pass(-time.Minute, 0)
	s := w.converge(without)
	l := liveDisk(t, s, "web")
	if !l.Disk.Quarantined || !l.Disk.Until.Equal(start.Add(10*time.Hour)) || l.Disk.Elapsed || l.Disk.LUN != 0 || !l.Disk.Written.Equal(start) {
		t.Fatalf("in quarantine: %+v", l.Disk)
	}
	if _, err := w.d.Claim(w.ctx(), uid, owner("launch-2")); err == nil {
		t.Error("a disk in quarantine was claimed")
	}
	// A revert brings the same data back.
	w.pass(9*time.Hour, 9*time.Hour)
	s = w.converge(with)
	if l := liveDisk(t, s, "web"); l.Disk.Quarantined || l.Disk.LUN != 4<<20 {
		t.Fatalf("restored: %+v", l.Disk)
	}
	g = mustClaim(t, w, uid, owner("launch-3"))
	mustIO(t, g, "read -P 0x42 0 1M")
	if err := w.d.Release(w.ctx(), uid, owner("launch-3")); err != nil {
		t.Fatal(err)
	}

	w.converge(without)
	if err := w.d.purgeDisk(w.ctx(), uid); err == nil {
		t.Fatal("purged before its time")
	}
	// The wall clock alone does not end it: the host was off, or the clock is wrong.
	w.pass(100*time.Hour, 2*time.Hour)
	if l := liveDisk(t, w.converge(without), "web"); l.Disk.Elapsed {
		t.Error("elapsed by the wall clock alone")
	}
	w.reboot("boot-2")
	w.converge(without)
	w.pass(0, 7*time.Hour)
	if l := liveDisk(t, w.converge(without), "web"); l.Disk.Elapsed {
		t.Error("elapsed after 9 of 10 hours of uptime")
	}
	w.pass(0, time.Hour+time.Minute)
	w.converge(without)
	if left, _ := filepath.Glob(filepath.Join(w.dir, "state/pools/fast", "*"+uid+"*")); len(left) > 0 {
		t.Errorf("after the purge: %v", left)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "state/storage/disks", uid+".json")); !os.IsNotExist(err) {
		t.Errorf("index after the purge: %v", err)
	}
	// The name again, after retention: fresh data, and an epoch above all before.
	w.base = reconcile.Base{}
	w.converge(with)
	fresh := mustClaim(t, w, uid, owner("launch-4"))
	if fresh.Epoch <= g.Epoch {
		t.Errorf("epoch %d after %d", fresh.Epoch, g.Epoch)
	}
	mustIO(t, fresh, "read -P 0 0 1M")
}

func TestRestoreNeedsTheSameDisk(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 8Mi")))
	w.converge(w.tree(w.poolYAML("")))
	smaller := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	a := w.action(smaller, spec.KindDisk, "web")
	if a.Op != reconcile.OpRestore {
		t.Fatalf("%+v", a)
	}
	a.Changes = nil // as if the plan had not seen it
	if err := w.apply(a); err == nil || !strings.Contains(err.Error(), "shrink") {
		t.Fatalf("restore of a smaller disk: %v", err)
	}
	if l := liveDisk(t, w.observe(smaller), "web"); !l.Disk.Quarantined || l.Disk.Volume != 8<<20 {
		t.Errorf("%+v", l.Disk)
	}
	larger := w.tree(w.poolYAML(""), diskYAML("web", "size: 12Mi"))
	if l := liveDisk(t, w.converge(larger), "web"); l.Disk.Quarantined || l.Disk.LUN != 12<<20 {
		t.Errorf("%+v", l.Disk)
	}
}

// What somebody did to a volume by hand shows as what it is, and holds up nothing
// but the size.
func TestAVolumeGrownByHand(t *testing.T) {
	w := newWorld(t)
	size := func(s string) *reconcile.Desired { return w.tree(w.poolYAML(""), diskYAML("web", "size: "+s)) }
	w.converge(size("4Mi"))
	uid := diskKey("web").UID
	file := filepath.Join(w.dir, "state/pools/fast", uid+".img")
	g := mustClaim(t, w, uid, owner("launch-1"))
	for _, by := range []int64{1 << 20, 512, 100} { // 100: not even whole sectors
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		served := st.Size()
		if err := os.Truncate(file, served+by); err != nil {
			t.Fatal(err)
		}
		declared := spec.Size(served)
		has := spec.Size(reconcile.MiBs(served + by))
		want := size(declared.String())
		a := w.action(want, spec.KindDisk, "web")
		if a.State != reconcile.Blocked || len(a.Changes) != 1 || a.Changes[0].From != has.String() || !strings.Contains(a.Reason, "say so in spec.size") {
			t.Fatalf("grown by %d: %s, %q: %+v", by, a.State, a.Reason, a.Changes)
		}
		// What the drift's proposal is made of.
		if l := liveDisk(t, w.observe(want), "web"); l.Get("spec.size") != has.String() {
			t.Errorf("observed %s, want %s", l.Get("spec.size"), has)
		}
		mustIO(t, g, "read 0 64k") // goes on
		// A claim that is left of a launch that is gone is released all the same.
		a.Changes = append(a.Changes, reconcile.Change{Field: "claim", From: "launch-1"})
		a.Op, a.State = reconcile.OpUpdate, reconcile.Ready
		if err := w.apply(a); err != nil {
			t.Fatalf("release: %v", err)
		}
		if r, err := w.d.claims.Get(uid); err != nil || !r.Idle() {
			t.Errorf("the claim is left: %+v, %v", r, err)
		}
		// The way out.
		s := w.converge(size(has.String()))
		if l := liveDisk(t, s, "web").Disk; l.Volume != int64(has) || l.LUN != int64(has) {
			t.Errorf("after the commit: %+v", l)
		}
		g = mustClaim(t, w, uid, owner("launch-1"))
		mustIO(t, g, fmt.Sprintf("write %d 512", int64(has)-512))
	}
	// The tree went back before the target had the larger size.
	at, v, err := w.d.find(w.ctx(), uid)
	if err != nil {
		t.Fatal(err)
	}
	m := v.Meta
	m.Size += 1 << 20
	if err := errors.Join(at.pool.put(w.ctx(), m), at.pool.grow(w.ctx(), uid, m.Size)); err != nil {
		t.Fatal(err)
	}
	if a := w.action(size(spec.Size(v.Size).String()), spec.KindDisk, "web"); a.State != reconcile.Blocked {
		t.Errorf("gone back: %s %s", a.State, a.Reason)
	}
	w.converge(size(spec.Size(m.Size).String()))
	// Cut, it is not made whole with zeros.
	if err := os.Truncate(file, 4<<20); err != nil {
		t.Fatal(err)
	}
	want := size(spec.Size(m.Size).String())
	if why := w.observe(want).Unknown[diskKey("web")]; !strings.Contains(why, "it was cut") {
		t.Errorf("cut: %q", why)
	}
	w.stopTarget()
	w.startTarget()
	if err := w.d.Ensure(w.ctx()); err != nil {
		t.Log(err)
	}
	if why := w.observe(want).Unknown[diskKey("web")]; why == "" {
		t.Error("cut, after a restart of the target: known")
	}
	if st, err := os.Stat(file); err != nil || st.Size() != 4<<20 {
		t.Errorf("it was made longer: %v, %v", st.Size(), err)
	}
}
