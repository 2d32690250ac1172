package iscsi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/drivers/iscsi/target"
	"reconciler/reconcile"
	"reconciler/spec"
)

// loseClaims loses the claim records, as a damaged disk does, and starts anew.
func (w *world) loseClaims() {
	w.t.Helper()
	if err := os.RemoveAll(filepath.Join(w.dir, "state/storage/claims")); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

func TestALostClaimRecordCutsNobodyOff(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"), diskYAML("db", "size: 4Mi"))
	w.converge(want)
	web, db := diskKey("web").UID, diskKey("db").UID
	running := mustClaim(t, w, web, owner("launch-1"))
	gone := mustClaim(t, w, db, owner("launch-2"))
	if err := w.d.Release(w.ctx(), db, owner("launch-2")); err != nil {
		t.Fatal(err)
	}
	w.loseClaims()
	s := w.converge(want)
	if c := liveDisk(t, s, "web").Disk.Claims; len(c) != 1 || c[0].Owner != owner("launch-1") || c[0].Epoch != running.Epoch {
		t.Fatalf("claims: %+v", c)
	}
	mustIO(t, running, "write -P 6 0 64k", "read -P 6 0 64k")
	var held *claim.HeldError
	if _, err := w.d.Claim(w.ctx(), web, owner("launch-3")); !errors.As(err, &held) {
		t.Errorf("a second writer: %v", err)
	}
	mustClaim(t, w, web, owner("launch-1"))
	if _, err := w.d.Access(w.ctx(), AccessRequest{Disk: web, Initiators: []string{rescue}, Until: w.d.cfg.Now().Add(time.Hour), ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "was lost") {
		t.Errorf("access beside an adopted claim: %v", err)
	}
	mustIO(t, running, "read -P 6 0 64k")
	if g := mustClaim(t, w, db, owner("launch-4")); g.Epoch <= gone.Epoch {
		t.Errorf("epoch %d was given before", g.Epoch)
	}
	if err := w.d.Release(w.ctx(), web, owner("launch-1")); err != nil {
		t.Fatal(err)
	}
	g := mustClaim(t, w, web, owner("launch-5"))
	if g.Epoch <= running.Epoch || g.Password.IsZero() {
		t.Errorf("%+v", g)
	}
	mustIO(t, g, "read -P 6 0 64k")
}

func TestAStateDirectoryThatIsLostFindsItsPoolAgain(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"), diskYAML("old", "size: 4Mi")))
	w.converge(want)
	g := mustClaim(t, w, diskKey("web").UID, owner("launch-1"))
	mustIO(t, g, "write -P 0x2a 0 64k", "flush")
	w.stopTarget()
	for _, lost := range []string{filepath.Join(w.dir, "state/storage"), filepath.Join(w.dir, "target")} {
		if err := os.RemoveAll(lost); err != nil {
			t.Fatal(err)
		}
	}
	w.base = reconcile.Base{}
	w.startTarget()
	w.open()
	p, _ := w.plan(want)
	for _, a := range p.Actions {
		if a.State != reconcile.Ready {
			continue
		}
		err := w.apply(a)
		if a.Kind == spec.KindDisk && err == nil {
			t.Errorf("%s: a volume was made where one was", a.Name)
		}
		if a.Kind == spec.KindStoragePool {
			if err != nil {
				t.Fatal(err)
			}
			w.base.Finish(&a)
		}
	}
	s := w.converge(want)
	if !liveDisk(t, s, "old").Disk.Quarantined {
		t.Error("what was in quarantine is not")
	}
	mustIO(t, mustClaim(t, w, diskKey("web").UID, owner("launch-2")), "read -P 0x2a 0 64k")
}

// A target that cannot drain now: nothing is free until it says so.
type draining struct {
	Target
	busy atomic.Bool
}

func (d *draining) Fence(ctx context.Context, iqn string, epoch uint64) error {
	if err := d.Target.Fence(ctx, iqn, epoch); err != nil {
		return err
	}
	if d.busy.Load() {
		return fmt.Errorf("target: %w", target.ErrDraining)
	}
	return nil
}

func TestNothingIsFreeBeforeItIsDrained(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	w.converge(want)
	slow := &draining{Target: w.client}
	cfg := w.config()
	cfg.Target = slow
	var err error
	if w.d, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	w.observe(want)
	uid := diskKey("web").UID
	g := mustClaim(t, w, uid, owner("launch-1"))
	slow.busy.Store(true)
	if err := w.d.Release(w.ctx(), uid, owner("launch-1")); !errors.Is(err, target.ErrDraining) {
		t.Fatalf("release: %v", err)
	}
	if _, err := w.d.Claim(w.ctx(), uid, owner("launch-2")); err == nil {
		t.Fatal("the disk was given away while the old owner's command was at the volume")
	}
	// Not even to the owner itself: its release has begun.
	if _, err := w.d.Claim(w.ctx(), uid, owner("launch-1")); err == nil {
		t.Fatal("a claim that is being released was given again")
	}
	if c := liveDisk(t, w.observe(want), "web").Disk.Claims; len(c) != 1 || c[0].Owner != owner("launch-1") {
		t.Errorf("claims: %+v", c)
	}
	slow.busy.Store(false)
	if again := mustClaim(t, w, uid, owner("launch-2")); again.Epoch <= g.Epoch {
		t.Errorf("epoch %d after %d", again.Epoch, g.Epoch)
	}
}

// Launches race for two disks, with the driver's upkeep going on beside them.
func TestOneOwnerAtATimeUnderLoad(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("a", "size: 4Mi"), diskYAML("b", "size: 4Mi"))
	w.converge(want)
	disks := []string{diskKey("a").UID, diskKey("b").UID}
	var holder [2]atomic.Int32
	var epoch [2]atomic.Uint64
	var given atomic.Int32
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(n)))
			for i := 0; ctx.Err() == nil; i++ {
				k, o := rnd.IntN(2), owner(fmt.Sprintf("launch-%d-%d", n, i))
				g, err := w.d.Claim(w.ctx(), disks[k], o)
				var held *claim.HeldError
				if errors.As(err, &held) {
					continue
				}
				if err != nil {
					t.Errorf("claim: %v", err)
					return
				}
				given.Add(1)
				if h := holder[k].Add(1); h != 1 {
					t.Errorf("%d owners of one disk", h)
				}
				if before := epoch[k].Swap(g.Epoch); before >= g.Epoch {
					t.Errorf("epoch %d after %d", g.Epoch, before)
				}
				holder[k].Add(-1)
				if err := w.d.Release(w.ctx(), disks[k], o); err != nil {
					t.Errorf("release: %v", err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := w.d.Ensure(w.ctx()); err != nil {
				t.Errorf("ensure: %v", err)
			}
			w.observe(want)
			if _, err := w.d.List(w.ctx()); err != nil {
				t.Errorf("list: %v", err)
			}
		}
	})
	wg.Wait()
	if given.Load() < 5 {
		t.Errorf("only %d claims were given", given.Load())
	}
	t.Logf("%d claims", given.Load())
}

func TestALeakedClaimIsReleasedByThePlan(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	w.converge(want)
	g := mustClaim(t, w, diskKey("web").UID, owner("launch-1"))
	s := w.observe(want)
	s.Complete[spec.KindVirtualMachine] = true // and there is no machine
	p := reconcile.Diff(want, w.base, s, w.d.cfg.Now())
	for _, a := range p.Actions {
		if a.Kind != spec.KindDisk {
			continue
		}
		if a.Op != reconcile.OpUpdate || a.State != reconcile.Ready {
			t.Fatalf("%+v", a)
		}
		if err := w.apply(a); err != nil {
			t.Fatal(err)
		}
	}
	if c := liveDisk(t, w.observe(want), "web").Disk.Claims; len(c) != 0 {
		t.Errorf("%+v", c)
	}
	if _, err := qemuIO(g, "read 0 64k"); err == nil {
		t.Error("the leaked claim still logs in")
	}
}
