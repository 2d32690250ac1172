package iscsi

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/drivers/iscsi/target"
	"reconciler/reconcile"
	"reconciler/spec"
)

// crasher ends a driver at its n-th step. The goroutine that takes the step is
// left standing: like after SIGKILL, no further instruction of it runs, no
// deferred one either. The driver is then abandoned with all it holds.
type crasher struct {
	Target
	mu    sync.Mutex
	left  int
	trace []string
	dead  chan struct{}
}

func (c *crasher) step(op string) {
	c.mu.Lock()
	c.trace = append(c.trace, op)
	c.left--
	ends := c.left == 0
	gone := c.left < 0
	c.mu.Unlock()
	if ends {
		close(c.dead)
	}
	if ends || gone {
		select {}
	}
}

func (c *crasher) around(what string, call func() error) error {
	c.step("before " + what)
	err := call()
	c.step("after " + what)
	return err
}

func (c *crasher) Put(ctx context.Context, e target.Export) error {
	return c.around("put", func() error { return c.Target.Put(ctx, e) })
}
func (c *crasher) Remove(ctx context.Context, iqn string) error {
	return c.around("remove", func() error { return c.Target.Remove(ctx, iqn) })
}
func (c *crasher) Grow(ctx context.Context, iqn string, size int64) error {
	return c.around("grow", func() error { return c.Target.Grow(ctx, iqn, size) })
}
func (c *crasher) SetAccess(ctx context.Context, iqn string, list []target.Access) error {
	return c.around("set access", func() error { return c.Target.SetAccess(ctx, iqn, list) })
}
func (c *crasher) Fence(ctx context.Context, iqn string, epoch uint64) error {
	return c.around("fence", func() error { return c.Target.Fence(ctx, iqn, epoch) })
}

// crashAt runs do on a driver that ends at its n-th step. It reports at which
// step that was, or that do ended first.
func (w *world) crashAt(n int, want *reconcile.Desired, do func(*Driver) error) (at string, crashed bool) {
	w.t.Helper()
	c := &crasher{Target: w.client, left: 1 << 30, dead: make(chan struct{})}
	cfg := w.config()
	cfg.Target, cfg.Step = c, c.step
	d, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := d.Observe(w.ctx(), want); err != nil {
		w.t.Fatal(err)
	}
	c.mu.Lock()
	c.left, c.trace = n, nil
	c.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- do(d) }()
	select {
	case err := <-done:
		if err != nil {
			w.t.Fatalf("crash at step %d: %v", n, err)
		}
		return "", false
	case <-c.dead:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.trace[len(c.trace)-1], true
	case <-time.After(30 * time.Second):
		w.t.Fatalf("neither crashed at step %d nor ended", n)
		panic("unreachable")
	}
}

// Whatever the step at which the agent is killed, the next one observes, goes
// on, and ends where the first would have; and what was written stays.
func TestKilledAtEveryStep(t *testing.T) {
	uid := uidOf(spec.KindDisk, "web")
	type op struct {
		name string
		// before and after are the disks of the tree.
		before, after func(w *world) *reconcile.Desired
		prepare       func(t *testing.T, w *world) // beyond converging to before
		// do replaces the application of the plan's actions.
		do    func(w *world, d *Driver) error
		check func(t *testing.T, w *world, s reconcile.State)
		steps int // at least so many
	}
	none := func(w *world) *reconcile.Desired { return w.tree(w.poolYAML("")) }
	empty := func(w *world) *reconcile.Desired { return w.tree() }
	disk := func(more string) func(w *world) *reconcile.Desired {
		return func(w *world) *reconcile.Desired { return w.tree(w.poolYAML(""), diskYAML("web", more)) }
	}
	imaged := func(w *world) *reconcile.Desired {
		return w.tree(w.poolYAML(""), imageYAML(w, "tiny", tinyImage()), diskYAML("web", "size: 4Mi, source: {image: tiny}"))
	}
	has := func(size int64) func(*testing.T, *world, reconcile.State) {
		return func(t *testing.T, w *world, s reconcile.State) {
			if l := liveDisk(t, s, "web"); l.Disk.Volume != size || l.Disk.LUN != size || l.Disk.Quarantined {
				t.Errorf("%+v", l.Disk)
			}
		}
	}
	wrote := func(t *testing.T, w *world) {
		mustIO(t, mustClaim(t, w, uid, owner("launch-0")), "write -P 0x77 0 128k", "flush")
		if err := w.d.Release(w.ctx(), uid, owner("launch-0")); err != nil {
			t.Fatal(err)
		}
	}
	reads := func(pattern string) func(*testing.T, *world, reconcile.State) {
		return func(t *testing.T, w *world, s reconcile.State) {
			mustIO(t, mustClaim(t, w, uid, owner("launch-9")), "read -P "+pattern+" 0 128k")
		}
	}
	var granted claim.Grant
	ops := []op{
		{name: "create pool", before: empty, after: none, steps: 2},
		{name: "delete pool", before: none, after: empty, steps: 2},
		{name: "create", before: none, after: disk("size: 4Mi"), check: has(4 << 20), steps: 10},
		// The commit is reverted while the agent is down: what was begun goes.
		{name: "create and revert", before: none, after: none, steps: 10, do: func(w *world, d *Driver) error {
			return w.applyAll(d, disk("size: 4Mi")(w))
		}, check: func(t *testing.T, w *world, s reconcile.State) {
			l := s.Objects[diskKey("web")]
			if len(filesOf(w, uid)) > 0 && (l == nil || l.Disk.Volume != 4<<20) {
				t.Errorf("half a disk: %v", filesOf(w, uid))
			}
		}},
		{name: "create from image", before: none, after: imaged, check: reads("0x33"), steps: 15},
		{name: "grow", before: disk("size: 4Mi"), after: disk("size: 8Mi"), check: has(8 << 20), prepare: wrote, steps: 8},
		{name: "record", before: disk("size: 4Mi"), after: disk("size: 4Mi, retention: 3h"), check: has(4 << 20), steps: 3},
		{name: "quarantine", before: disk("size: 4Mi"), after: none, prepare: wrote, steps: 3, check: func(t *testing.T, w *world, s reconcile.State) {
			if l := liveDisk(t, s, "web"); !l.Disk.Quarantined || l.Disk.LUN != 0 || l.Disk.Until.IsZero() {
				t.Errorf("%+v", l.Disk)
			}
			if s := w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))); liveDisk(t, s, "web").Disk.Quarantined {
				t.Error("not restored")
			}
			reads("0x77")(t, w, s)
		}},
		{name: "restore", before: none, after: disk("size: 4Mi"), steps: 6, prepare: func(t *testing.T, w *world) {
			w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
			wrote(t, w)
			w.converge(w.tree(w.poolYAML("")))
		}, check: reads("0x77")},
		{name: "purge", before: none, after: none, steps: 5, prepare: func(t *testing.T, w *world) {
			w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi, retention: 1h")))
			wrote(t, w)
			w.converge(w.tree(w.poolYAML("")))
			w.pass(2*time.Hour, 2*time.Hour)
		}, check: func(t *testing.T, w *world, s reconcile.State) {
			if left := filesOf(w, uid); len(left) > 0 {
				t.Errorf("left over: %v", left)
			}
		}},
		{name: "claim", before: disk("size: 4Mi"), after: disk("size: 4Mi"), steps: 4, do: func(w *world, d *Driver) error {
			_, err := d.Claim(w.ctx(), uid, owner("launch-1"))
			return err
		}, check: func(t *testing.T, w *world, s reconcile.State) {
			g := mustClaim(t, w, uid, owner("launch-1"))
			if g.Epoch != 1 {
				t.Errorf("epoch %d", g.Epoch)
			}
			mustIO(t, g, "write -P 1 0 64k")
		}},
		{name: "release", before: disk("size: 4Mi"), after: disk("size: 4Mi"), steps: 6, prepare: func(t *testing.T, w *world) {
			granted = mustClaim(t, w, uid, owner("launch-1"))
		}, do: func(w *world, d *Driver) error {
			return d.Release(w.ctx(), uid, owner("launch-1"))
		}, check: func(t *testing.T, w *world, s reconcile.State) {
			// Whoever wants the disk first makes sure that it was released.
			if err := w.d.Release(w.ctx(), uid, owner("launch-1")); err != nil {
				t.Fatal(err)
			}
			if g := mustClaim(t, w, uid, owner("launch-2")); g.Epoch <= granted.Epoch {
				t.Errorf("epoch %d after %d", g.Epoch, granted.Epoch)
			}
			if _, err := qemuIO(granted, "read 0 64k"); err == nil {
				t.Error("the old epoch still logs in")
			}
		}},
		{name: "access", before: disk("size: 4Mi"), after: disk("size: 4Mi"), steps: 4, do: func(w *world, d *Driver) error {
			_, err := d.Access(w.ctx(), AccessRequest{Disk: uid, Initiators: []string{rescue}, Until: w.d.cfg.Now().Add(time.Hour)})
			return err
		}, check: func(t *testing.T, w *world, s reconcile.State) {
			w.pass(2*time.Hour, 0)
			if err := w.d.Ensure(w.ctx()); err != nil {
				t.Fatal(err)
			}
			if list, err := w.d.ListAccess(w.ctx()); err != nil || len(list) > 0 {
				t.Errorf("%+v, %v", list, err)
			}
		}},
	}
	for _, o := range ops {
		t.Run(o.name, func(t *testing.T) {
			var steps []string
			for n := 1; ; n++ {
				w := newWorld(t)
				w.converge(o.before(w))
				if o.prepare != nil {
					o.prepare(t, w)
				}
				want := o.after(w)
				do := func(d *Driver) error { return w.applyAll(d, want) }
				if o.do != nil {
					do = func(d *Driver) error { return o.do(w, d) }
				}
				at, crashed := w.crashAt(n, want, do)
				if crashed {
					steps = append(steps, at)
				}
				w.open()
				s := w.converge(want)
				if o.check != nil {
					o.check(t, w, s)
				}
				if left := leftovers(w); len(left) > 0 {
					t.Errorf("left over: %v", left)
				}
				w.stopTarget()
				if t.Failed() {
					t.Fatalf("after a crash at step %d: %s", n, at)
				}
				if !crashed {
					break
				}
			}
			if len(steps) < o.steps {
				t.Errorf("only %d steps: %q", len(steps), steps)
			}
		})
	}
}

// applyAll plans and applies once, on a driver of its own.
func (w *world) applyAll(d *Driver, want *reconcile.Desired) error {
	s, err := d.Observe(w.ctx(), want)
	if err != nil {
		return err
	}
	p := reconcile.Diff(want, w.base, s, d.cfg.Now())
	for _, a := range p.Actions {
		if a.State != reconcile.Ready || a.Op == reconcile.OpUnchanged {
			continue
		}
		switch a.Kind {
		case spec.KindStoragePool, spec.KindDisk, spec.KindImage:
			w.base.Begin(&a)
			if _, err := d.Apply(w.ctx(), a, reconcile.Inputs{}); err != nil {
				return fmt.Errorf("%s %s/%s: %w", a.Op, a.Kind, a.Name, err)
			}
		}
	}
	return nil
}

func filesOf(w *world, uid string) (files []string) {
	_ = filepath.WalkDir(filepath.Join(w.dir, "state"), func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.Contains(filepath.Base(path), uid) {
			files = append(files, path)
		}
		return nil
	})
	return files
}

// leftovers are temporary files that no driver would come back to.
func leftovers(w *world) (files []string) {
	_ = filepath.WalkDir(filepath.Join(w.dir, "state"), func(path string, _ os.DirEntry, err error) error {
		for _, p := range []string{".creating-", ".tmp-", ".fetch-"} {
			if err == nil && strings.HasPrefix(filepath.Base(path), p) {
				files = append(files, path)
			}
		}
		return nil
	})
	return files
}

func tinyImage() []byte {
	b := make([]byte, 1<<20)
	for i := range 256 << 10 {
		b[i] = 0x33
	}
	return b
}

func imageYAML(w *world, name string, data []byte) string {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, "images", name+".img"), data, 0o644); err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Image\nmetadata: {name: %s}\nspec: {source: {file: {path: %s.img}}, sha256: %q, format: raw, virtualSize: 1Mi}\n",
		name, name, sha256Hex(data))
}
