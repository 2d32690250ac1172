package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

// claimBook is a storage that only keeps claims, as the real one does: what the
// owner does not have is released.
type claimBook struct {
	Storage
	owner map[string]claim.Owner
	fails string // the disk that cannot be claimed
}

func (b *claimBook) Claim(_ context.Context, disk string, o claim.Owner) (claim.Grant, error) {
	if have, ok := b.owner[disk]; ok && have != o {
		return claim.Grant{}, fmt.Errorf("claim of %s held by launch %s of machine %s", disk, have.Launch, have.VM)
	}
	if disk == b.fails {
		return claim.Grant{}, errors.New("no")
	}
	b.owner[disk] = o
	return claim.Grant{Disk: disk}, nil
}

func (b *claimBook) Release(_ context.Context, disk string, o claim.Owner) error {
	if b.owner[disk] == o {
		delete(b.owner, disk)
	}
	return nil
}

func (b *claimBook) String() string {
	var list []string
	for d, o := range b.owner {
		list = append(list, d+"="+o.Launch)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// drive is a hypervisor that does what a function says.
type drive struct {
	Hypervisor
	apply func(a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error)
}

func (d *drive) Prove(context.Context, reconcile.Action, reconcile.Inputs) error { return nil }

func (d *drive) Apply(_ context.Context, a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
	return d.apply(a, in)
}

func claimAgent(disks ...string) (*Agent, *claimBook, *drive, *reconcile.Action) {
	book := &claimBook{owner: map[string]claim.Owner{}}
	h := &drive{}
	a := &Agent{cfg: Config{Host: "host1", Storage: book, Hypervisor: h}, log: slog.New(slog.DiscardHandler), bootID: "b", have: reconcile.NewState()}
	want := &reconcile.Object{Kind: spec.KindVirtualMachine, Name: "web", UID: "vm", Fields: []reconcile.Field{{Path: "spec.powerState", Value: "Running"}}}
	act := &reconcile.Action{Kind: want.Kind, Name: "web", UID: "vm", Op: reconcile.OpUpdate, Want: want,
		Have: &reconcile.Live{Object: *want, VM: &reconcile.LiveVM{Power: reconcile.PowerRunning, Launch: "one", Disks: map[string]string{"root": "root"}}}}
	book.owner["root"] = a.owner("vm", "one")
	for _, d := range append([]string{"root"}, disks...) {
		path := "spec.disks[" + d + "].disk"
		want.Refs = append(want.Refs, reconcile.Ref{Path: path, To: &reconcile.Object{Kind: spec.KindDisk, Name: d, UID: d}})
		if d != "root" {
			act.Changes = append(act.Changes, reconcile.Change{Field: path, To: d})
		}
	}
	return a, book, h, act
}

// An attach that failed gives its claim back, and one that may have been done
// does not.
func TestFailedAttachGivesItsClaimBack(t *testing.T) {
	silent := func(string, ...any) {}
	for name, c := range map[string]struct {
		disks []string // that QEMU has afterwards
		err   error
		fails string
		left  string
	}{
		"done":                    {[]string{"root", "a", "b"}, nil, "", "a=one b=one root=one"},
		"one of them failed":      {[]string{"root", "a"}, errors.New("all slots are in use"), "", "a=one root=one"},
		"nobody knows":            {nil, errors.New("QEMU does not answer"), "", "a=one b=one root=one"},
		"the second has no claim": {nil, nil, "b", "root=one"},
	} {
		a, book, h, act := claimAgent("a", "b")
		book.fails = c.fails
		h.apply = func(reconcile.Action, reconcile.Inputs) (reconcile.Outputs, error) {
			return reconcile.Outputs{Disks: c.disks}, c.err
		}
		err := a.machine(t.Context(), nil, act, silent)
		if (err == nil) != (c.err == nil && c.fails == "") || book.String() != c.left {
			t.Errorf("%s: %v, claims %s, want %s", name, err, book, c.left)
		}
	}
}

// A restart releases every claim of the launch, also those that are on no list of
// the machine's, so that the next launch finds no disk taken.
func TestRestartReleasesEveryClaim(t *testing.T) {
	a, book, h, act := claimAgent("a")
	act.Op = reconcile.OpRestart
	book.owner["a"] = a.owner("vm", "one")     // an attach that failed
	book.owner["other"] = a.owner("vm", "one") // and one of a disk that is no longer wanted
	a.have.Objects[reconcile.Key{Kind: spec.KindDisk, UID: "other"}] = &reconcile.Live{
		Disk: &reconcile.LiveDisk{Claims: []claim.Claim{{Owner: book.owner["other"]}}},
	}
	var ops []reconcile.Op
	h.apply = func(a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error) {
		ops = append(ops, a.Op)
		return reconcile.Outputs{}, nil
	}
	if err := a.machine(t.Context(), nil, act, func(string, ...any) {}); err != nil {
		t.Fatal(err)
	}
	if left := book.String(); strings.Contains(left, "=one") || strings.Contains(left, "other") || len(book.owner) != 2 {
		t.Errorf("claims %s", left)
	}
	if !slices.Equal(ops, []reconcile.Op{reconcile.OpStop, reconcile.OpStart}) {
		t.Errorf("operations %v", ops)
	}
}

// What rests after a failure is the action that failed: a machine that a restart
// has taken down is started at once.
func TestBackOffIsTheActions(t *testing.T) {
	events, err := openJournal(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{failures: map[reconcile.Key]*failure{}, cfg: Config{Now: time.Now}, events: events}
	k := reconcile.Key{Kind: spec.KindVirtualMachine, UID: "vm"}
	try := func(op reconcile.Op) time.Duration {
		a.fail(k, &task{action: &reconcile.Action{Kind: k.Kind, Name: "web", UID: k.UID, Op: op}, err: errors.New("no")})
		return time.Until(a.failures[k].next)
	}
	for range 12 {
		try(reconcile.OpUpdate)
	}
	if rests := try(reconcile.OpUpdate); rests < lastRetry-time.Second {
		t.Errorf("an update that failed often rests for %v", rests)
	}
	if rests := try(reconcile.OpStart); rests > 2*firstRetry {
		t.Errorf("the first start rests for %v", rests)
	}
}

// What is suspended is an object, whatever it is called when it is resumed.
func TestResumeUnderAnotherName(t *testing.T) {
	s := newSim(t, nil)
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	s.mustPass()
	if err := s.agent.Suspend(t.Context(), api.SuspendRequest{Object: "VirtualMachine/a", Reason: "test", Caller: api.Caller{Name: "ada"}}); err != nil {
		t.Fatal(err)
	}
	s.commit(machines(strings.Replace(simVM("b", ", memory: {size: 512Mi}"), "{name: b}", "{name: b, movedFrom: [a]}", 1)))
	s.mustPass()
	if err := s.agent.Resume(t.Context(), api.ResumeRequest{Object: "VirtualMachine/b"}); err != nil {
		t.Error(err)
	}
	if a := actionOf(t, s.mustPass(), "VirtualMachine/b"); a.State == reconcile.Held {
		t.Errorf("it is still held: %s", a.Reason)
	}
}
