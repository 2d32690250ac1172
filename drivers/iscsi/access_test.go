package iscsi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target"
	"reconciler/reconcile"
	"reconciler/spec"
)

const rescue = "iqn.2026-11.local.rescue:admin"

func (w *world) lend(t *testing.T, disk string, readOnly bool, initiators ...string) Access {
	t.Helper()
	a, err := w.d.Access(w.ctx(), AccessRequest{
		Disk: disk, Initiators: initiators, Until: w.d.cfg.Now().Add(time.Hour), ReadOnly: readOnly, By: "alice",
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func grantOfAccess(a Access, initiator string) claim.Grant {
	return claim.Grant{Portal: a.Portal, Target: a.Target, LUN: a.LUN, User: a.User, Password: a.Password, Initiator: initiator}
}

func TestWriteAccessIsAClaim(t *testing.T) {
	w := newWorld(t)
	without := w.tree(w.poolYAML(""))
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := uidOf(spec.KindDisk, "web")

	mustClaim(t, w, uid, owner("launch-1"))
	_, err := w.d.Access(w.ctx(), AccessRequest{Disk: uid, Initiators: []string{rescue}, Until: w.d.cfg.Now().Add(time.Hour)})
	var held *claim.HeldError
	if !errors.As(err, &held) || held.Owner.Launch != "launch-1" {
		t.Fatalf("write access to a machine's disk: %v", err)
	}
	if err := w.d.Release(w.ctx(), uid, owner("launch-1")); err != nil {
		t.Fatal(err)
	}

	a := w.lend(t, uid, false, rescue, rescue+"-2")
	mustIO(t, grantOfAccess(a, rescue), "write -P 9 0 64k")
	mustIO(t, grantOfAccess(a, rescue+"-2"), "read -P 9 0 64k")
	if _, err := qemuIO(grantOfAccess(a, rescue+"-3"), "read 0 64k"); err == nil {
		t.Error("an initiator that was not named logs in")
	}
	if _, err := w.d.Claim(w.ctx(), uid, owner("launch-2")); !errors.As(err, &held) || held.Owner.Access != a.ID {
		t.Errorf("claim beside a write access: %v", err)
	}
	if act := w.action(without, spec.KindDisk, "web"); act.State != reconcile.Waiting {
		t.Errorf("removal beside an access: %+v", act)
	}
	// It survives a restart of the agent, as the same grant.
	w.open()
	list, err := w.d.ListAccess(w.ctx())
	if err != nil || len(list) != 1 || list[0].ID != a.ID || list[0].By != "alice" || list[0].URL() != a.URL() {
		t.Errorf("list: %+v, %v", list, err)
	}
	if err := w.d.EndAccess(w.ctx(), a.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.d.EndAccess(w.ctx(), a.ID); !errors.Is(err, ErrNoAccess) {
		t.Errorf("ending it again: %v", err)
	}
	if _, err := qemuIO(grantOfAccess(a, rescue), "read 0 64k"); err == nil {
		t.Error("an ended access logs in")
	}
	mustIO(t, mustClaim(t, w, uid, owner("launch-2")), "read -P 9 0 64k")
}

func TestAccessEndsByItself(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := uidOf(spec.KindDisk, "web")
	a := w.lend(t, uid, false, rescue)
	w.pass(59*time.Minute, 0)
	if err := w.d.Ensure(w.ctx()); err != nil {
		t.Fatal(err)
	}
	mustIO(t, grantOfAccess(a, rescue), "read 0 64k")
	w.pass(time.Minute, 0)
	if err := w.d.Ensure(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if _, err := qemuIO(grantOfAccess(a, rescue), "read 0 64k"); err == nil {
		t.Error("an access that is over logs in")
	}
	if list, err := w.d.ListAccess(w.ctx()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	// Nor does a claim wait for the next Ensure.
	b := w.lend(t, uid, false, rescue)
	w.pass(2*time.Hour, 0)
	if g := mustClaim(t, w, uid, owner("launch-1")); g.Epoch <= b.Epoch {
		t.Errorf("epoch %d after %d", g.Epoch, b.Epoch)
	}
}

// A clock that was years ahead when a disk was lent does not lend it for years.
func TestAccessEndsWhenTheClockWasWrong(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	w.pass(10*365*24*time.Hour, 0)
	w.lend(t, uidOf(spec.KindDisk, "web"), false, rescue)
	w.pass(-10*365*24*time.Hour, 0)
	for _, c := range []struct {
		up   time.Duration
		want int
	}{{59 * time.Minute, 1}, {time.Minute, 0}} {
		w.pass(0, c.up)
		w.open()
		if err := w.d.Ensure(w.ctx()); err != nil {
			t.Fatal(err)
		}
		if list, err := w.d.ListAccess(w.ctx()); err != nil || len(list) != c.want {
			t.Errorf("%s later: %d accesses, %v, want %d", c.up, len(list), err, c.want)
		}
	}
}

func TestReadOnlyAccessStandsBesideAClaim(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := uidOf(spec.KindDisk, "web")
	g := mustClaim(t, w, uid, owner("launch-1"))
	mustIO(t, g, "write -P 3 0 64k", "flush")
	a := w.lend(t, uid, true, rescue)
	r := grantOfAccess(a, rescue)
	if out, err := qemuIO(r, "write -P 4 0 64k"); err == nil {
		t.Errorf("a read-only access wrote: %s", out)
	}
	mustIO(t, g, "read -P 3 0 64k", "write -P 5 0 64k")
	out, err := exec.Command("iscsi-inq", "-i", rescue, a.URL()).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "DIRECT_ACCESS") {
		t.Errorf("iscsi-inq %v: %s", err, out)
	}
	// What it sets, it sets for itself.
	if out, err := exec.Command("iscsi-swp", "-i", rescue, "--swp", "on", a.URL()).CombinedOutput(); err != nil {
		t.Errorf("iscsi-swp %v: %s", err, out)
	}
	mustIO(t, g, "write -P 6 0 64k", "flush")
	if err := w.d.Release(w.ctx(), uid, owner("launch-1")); err != nil {
		t.Fatal(err)
	}
	// A read-only access, too, keeps the disk from quarantine.
	rm := reconcile.Action{Kind: spec.KindDisk, UID: uid, Name: "web", Op: reconcile.OpQuarantine}
	if err := w.apply(rm); err == nil || !strings.Contains(err.Error(), a.ID) {
		t.Errorf("quarantine beside a read-only access: %v", err)
	}
	if err := w.d.EndAccess(w.ctx(), a.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.apply(rm); err != nil {
		t.Error(err)
	}
}

func TestEndOfAccessDrainsItsSession(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := uidOf(spec.KindDisk, "web")
	a := w.lend(t, uid, false, rescue)
	// qemu-io without commands holds its session until its input ends.
	cmd := exec.Command("qemu-io", "--object", "secret,id=chap,data="+a.Password.Reveal(), "--image-opts",
		"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal="+a.Portal+",file.target="+a.Target+",file.lun=0,file.user="+a.User+
			",file.password-secret=chap,file.initiator-name="+rescue)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	sessions := func() int {
		list, err := w.d.List(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, c := range list {
			n += c.Sessions
		}
		return n
	}
	await(t, "the session to begin", func() error {
		if sessions() == 0 {
			return errors.New("no session")
		}
		return nil
	})
	if err := w.d.EndAccess(w.ctx(), a.ID); err != nil {
		t.Fatal(err)
	}
	served, err := w.d.served(w.ctx())
	if err != nil || len(served[a.Target].Sessions) != 0 {
		t.Errorf("sessions after the end: %+v, %v", served[a.Target].Sessions, err)
	}
}

func TestAnswersNoticesAStoppedTarget(t *testing.T) {
	w := newWorldAt(t, t.TempDir())
	w.startTargetProcess()
	w.open()
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"), diskYAML("db", "size: 4Mi")))
	disks := []string{uidOf(spec.KindDisk, "web"), uidOf(spec.KindDisk, "db")}
	if err := w.d.Answers(w.ctx(), disks); err != nil {
		t.Fatalf("healthy: %v", err)
	}
	signalTarget(t, w, "STOP")
	// The kernel still accepts connections for a process that is stopped.
	c, err := net.DialTimeout("tcp", w.portal, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	began := time.Now()
	if err := w.d.Answers(w.ctx(), disks); err == nil {
		t.Error("a stopped target answers")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	signalTarget(t, w, "CONT")
	await(t, "the target to answer again", func() error { return w.d.Answers(w.ctx(), disks) })
	if err := w.d.Answers(w.ctx(), []string{uidOf(spec.KindDisk, "none")}); err == nil {
		t.Error("a disk that is not there is answered for")
	}
}

func TestUndeleteKeepsAndDeclares(t *testing.T) {
	w := newWorld(t)
	first := w.tree(w.poolYAML(""), diskYAML("old", "size: 4Mi, retention: 2h"))
	w.converge(first)
	renamed := strings.Replace(diskYAML("web", "size: 4Mi, retention: 2h"), "{name: web}", "{name: web, movedFrom: [old]}", 1)
	w.converge(w.tree(w.poolYAML(""), renamed))
	uid := uidOf(spec.KindDisk, "old")
	if _, err := w.d.Undelete(w.ctx(), uid); err == nil {
		t.Error("a disk in use was undeleted")
	}
	w.converge(w.tree(w.poolYAML("")))
	o, err := w.d.Undelete(w.ctx(), uid)
	if err != nil {
		t.Fatal(err)
	}
	if o.Meta.Name != "web" || spec.UID("demo", spec.KindDisk, o.Meta) != uid || o.Spec.(*spec.Disk).Size != 4*spec.MiB || o.Spec.(*spec.Disk).Pool != "fast" {
		t.Errorf("%+v %+v", o.Meta, o.Spec)
	}
	w.pass(1000*time.Hour, 1000*time.Hour)
	s := w.converge(w.tree(w.poolYAML("")))
	l := s.Objects[reconcile.Key{Kind: spec.KindDisk, UID: uid}]
	if l == nil || !l.Disk.Quarantined || !l.Disk.Until.IsZero() || l.Disk.Elapsed {
		t.Fatalf("%+v", l)
	}
	if l := w.converge(w.tree(w.poolYAML(""), renamed)).Objects[l.Key()]; l.Disk.Quarantined {
		t.Error("declared again, and still in quarantine")
	}
}

// reserved is a target in which something reserves every disk.
type reserved struct {
	Target
	cleared []string // IQNs
}

func (r *reserved) List(ctx context.Context) ([]target.Status, error) {
	list, err := r.Target.List(ctx)
	for i := range list {
		if !slices.Contains(r.cleared, list[i].IQN) {
			list[i].Reservations = []scsi.Reservation{{Initiator: rescue, Owner: 3, Key: 7, Type: "WriteExclusive", Kept: true}, {Initiator: rescue + "-2"}}
		}
	}
	return list, err
}

func (r *reserved) ClearReservations(ctx context.Context, iqn string) error {
	r.cleared = append(r.cleared, iqn)
	return r.Target.ClearReservations(ctx, iqn)
}

// What is reserved is part of what is observed, and can be ended.
func TestReservationsAreNamed(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"))
	w.converge(want)
	uid := uidOf(spec.KindDisk, "web")
	w.d.cfg.Target = &reserved{Target: w.d.cfg.Target}
	named := []string{"WriteExclusive of " + rescue + " (epoch 3) kept over restarts", "registration of " + rescue + "-2"}
	now := func() []string {
		return w.observe(want).Objects[reconcile.Key{Kind: spec.KindDisk, UID: uid}].Disk.Reservations
	}
	if got := now(); !slices.Equal(got, named) {
		t.Errorf("observed as %q", got)
	}
	if gone, err := w.d.ClearReservations(w.ctx(), uid); err != nil || !slices.Equal(gone, named) {
		t.Errorf("cleared %q, %v", gone, err)
	}
	if got := now(); len(got) != 0 {
		t.Errorf("left is %q", got)
	}
	if _, err := w.d.ClearReservations(w.ctx(), uidOf(spec.KindDisk, "other")); err == nil {
		t.Error("of a disk that is not there")
	}
}

// What the host's configuration says of discovery is in force when the agent starts.
func TestDiscoveryFollowsTheConfiguration(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	g := mustClaim(t, w, uidOf(spec.KindDisk, "web"), owner("launch-1"))
	list := func() error { return exec.Command("iscsi-ls", "-i", g.Initiator, "iscsi://"+g.Portal).Run() }
	if err := list(); err != nil {
		t.Errorf("discovery by name: %v", err)
	}
	for _, chap := range []bool{true, false} {
		cfg := w.config()
		cfg.DiscoveryCHAP = chap
		var err error
		if w.d, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		if err := w.d.Ensure(w.ctx()); err != nil {
			t.Fatal(err)
		}
		if err := list(); (err != nil) != chap {
			t.Errorf("discovery by name, with CHAP asked for %v: %v", chap, err)
		}
		mustIO(t, g, "read 0 64k")
	}
}

// An initiator's name is the same in any case, and its sessions are named.
func TestAccessFoldsNames(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := uidOf(spec.KindDisk, "web")
	a := w.lend(t, uid, false, "iqn.2026-11.local.rescue:WIN-ABC", "iqn.2026-11.local.rescue:win-abc")
	if len(a.Initiators) != 1 || a.Initiators[0] != "iqn.2026-11.local.rescue:win-abc" {
		t.Errorf("initiators %q", a.Initiators)
	}
	mustIO(t, grantOfAccess(a, "iqn.2026-11.local.rescue:WIN-ABC"), "write -P 9 0 64k")
	mustIO(t, grantOfAccess(a, "iqn.2026-11.local.rescue:Win-Abc"), "read -P 9 0 64k")
	// What is no name is not recorded.
	for _, n := range []string{"", "backup", "iqn.2026-11.org.example: x", "iqn." + strings.Repeat("x", 220)} {
		_, err := w.d.Access(w.ctx(), AccessRequest{Disk: uid, Initiators: []string{n}, Until: w.d.cfg.Now().Add(time.Hour), ReadOnly: true})
		if err == nil || !strings.Contains(err.Error(), "no name of an initiator") {
			t.Errorf("%q: %v", n, err)
		}
	}
	if r, err := w.d.claims.Get(uid); err != nil || len(r.Readers) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A damaged record of reservations keeps its own disk from being served, and says how
// to go on.
func TestDamagedReservations(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi"), diskYAML("db", "size: 4Mi"))
	w.converge(want)
	uid := uidOf(spec.KindDisk, "web")
	g := mustClaim(t, w, uid, owner("launch-1"))
	sum := sha256.Sum256([]byte(g.Target))
	file := filepath.Join(w.dir, "target", "reservations", hex.EncodeToString(sum[:10])+".json")
	w.stopTarget()
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.startTarget()
	state := w.observe(want)
	why := state.Unknown[reconcile.Key{Kind: spec.KindDisk, UID: uid}]
	if !strings.Contains(why, file) || !strings.Contains(why, "reconciler access --clear-reservations disk/web drops them") {
		t.Errorf("it is observed as %q", why)
	}
	if state.Objects[reconcile.Key{Kind: spec.KindDisk, UID: uidOf(spec.KindDisk, "db")}] == nil {
		t.Error("another disk is not observed")
	}
	if _, err := w.d.ClearReservations(w.ctx(), uid); err != nil {
		t.Fatal(err)
	}
	mustIO(t, g, "write -P 9 0 64k")
	if why := w.observe(want).Unknown; len(why) > 0 {
		t.Errorf("then %v", why)
	}
}
