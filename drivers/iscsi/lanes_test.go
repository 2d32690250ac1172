package iscsi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/reconcile"
	"reconciler/spec"
)

// A pool whose file system does not answer is unknown; everything else goes on.
func TestAPoolThatDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	w.d.lanes.look, w.d.lanes.write = time.Second, time.Second
	second := strings.NewReplacer("name: fast", "name: slow", "pools/fast", "pools/slow").Replace(w.poolYAML(""))
	onSlow := func(name string) string {
		return strings.Replace(diskYAML(name, "size: 4Mi"), "pool: fast", "pool: slow", 1)
	}
	want := w.tree(w.poolYAML(""), second, diskYAML("web", "size: 4Mi"), onSlow("db"))
	w.converge(want)
	mustClaim(t, w, diskKey("db").UID, owner("launch-0"))

	// An open of a FIFO without a writer does not come back.
	marker := filepath.Join(w.dir, "state/pools/slow/.reconciler-pool.json")
	if err := os.Rename(marker, marker+".away"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(marker, 0o600); err != nil {
		t.Fatal(err)
	}
	answer := func() {
		// Who waits for a writer gets one, and reads nothing.
		f, err := os.OpenFile(marker, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err == nil {
			_ = f.Close()
		}
	}
	t.Cleanup(answer)
	slow := reconcile.Key{Kind: spec.KindStoragePool, UID: uidOf(spec.KindStoragePool, "slow")}
	want = w.tree(w.poolYAML(""), second, diskYAML("web", "size: 4Mi"), diskYAML("new", "size: 4Mi"), onSlow("db"), onSlow("other"))
	for range 3 {
		began := time.Now()
		p, s := w.plan(want)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("a pass took %s", took)
		}
		for _, k := range []reconcile.Key{slow, diskKey("db"), diskKey("other")} {
			if s.Objects[k] != nil || !strings.Contains(s.Unknown[k], "does not answer") {
				t.Errorf("%v: %v, unknown %q", k, s.Objects[k], s.Unknown[k])
			}
		}
		if s.Objects[poolKey()] == nil {
			t.Error("the other pool is unknown")
		}
		liveDisk(t, s, "web")
		for _, a := range p.Actions {
			if a.UID == diskKey("other").UID && a.State != reconcile.Blocked {
				t.Errorf("a disk of the silent pool is %s", a.State)
			}
		}
	}
	// What brings machines of the other pool back, and makes new disks in it.
	if err := w.apply(w.action(want, spec.KindDisk, "new")); err != nil {
		t.Error(err)
	}
	mustIO(t, mustClaim(t, w, diskKey("web").UID, owner("launch-1")), "write 0 64k")

	// Of the silent one, every call ends, with words.
	o := want.Objects[diskKey("other")]
	_, claimed := w.d.Claim(w.ctx(), diskKey("db").UID, owner("launch-0"))
	_, undeleted := w.d.Undelete(w.ctx(), diskKey("db").UID)
	made := w.apply(reconcile.Action{Kind: spec.KindDisk, UID: o.UID, Name: o.Name, Op: reconcile.OpCreate, Want: o})
	for what, err := range map[string]error{"claim": claimed, "undelete": undeleted, "create": made} {
		var silent *SilentError
		if !errors.As(err, &silent) || silent.Pool != "slow" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if list := w.d.Traces(diskKey("db").UID); len(list) > 0 {
		t.Errorf("traces: %v", list)
	}
	// A release needs the target only.
	if err := w.d.Release(w.ctx(), diskKey("db").UID, owner("launch-0")); err != nil {
		t.Error(err)
	}

	// It answers again.
	answer()
	if err := os.Rename(marker+".away", marker); err != nil {
		t.Fatal(err)
	}
	await(t, "the pool to be known again", func() error {
		answer()
		if why := w.observe(want).Unknown[slow]; why != "" {
			return errors.New(why)
		}
		return nil
	})
	w.converge(want)
}

// Two disks that are made at once are both counted, and the first has its room.
func TestBookingsCountInTheirOrder(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML("")))
	at, err := w.d.placeOf(w.ctx(), poolKey().UID)
	if err != nil {
		t.Fatal(err)
	}
	reserve := func(disk string, size int64) (func(), error) {
		return w.d.reserve(context.Background(), at.pool, at.record, disk, size)
	}
	first, err := reserve("a", 200<<20)
	if err != nil {
		t.Fatal(err)
	}
	var full *CapacityError
	if _, err := reserve("b", 100<<20); !errors.As(err, &full) {
		t.Errorf("beyond the limit: %v", err)
	}
	if _, err := reserve("a", 210<<20); err != nil {
		t.Errorf("the same disk again: %v", err)
	}
	first()
	if _, err := reserve("c", 100<<20); !errors.As(err, &full) {
		t.Errorf("beside the second booking: %v", err)
	}
}
