package status

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func vm(name string, power reconcile.Power) *reconcile.Live {
	return &reconcile.Live{
		Object: reconcile.Object{Kind: spec.KindVirtualMachine, Name: name, UID: "uid-" + name, Fields: []reconcile.Field{
			{Path: "spec.disks[d].disk", Value: "d", ID: "uid-d"}, {Path: "spec.memory.size", Value: "128Mi"},
		}},
		VM: &reconcile.LiveVM{Power: power, PID: 42, Launch: "secret-launch", Disks: map[string]string{"d": "uid-d"}},
	}
}

func TestHealthAndConditions(t *testing.T) {
	running := vm("a", reconcile.PowerRunning)
	k := running.Key()
	for _, c := range []struct {
		name             string
		action           reconcile.Action
		change           func(*Input)
		sync, health     string
		ready, stalled   string
		readyReasonStart string
	}{
		{"unchanged", reconcile.Action{Op: reconcile.OpUnchanged, State: reconcile.Ready, Have: running}, nil, Synced, Healthy, True, False, "Synced"},
		{"to be created", reconcile.Action{Op: reconcile.OpCreate, State: reconcile.Ready}, nil, OutOfSync, Progressing, False, False, "Progressing"},
		{"waits for a restart", reconcile.Action{Op: reconcile.OpUpdate, State: reconcile.Waiting, Have: running}, nil, OutOfSync, Healthy, True, False, "waiting"},
		{"blocked", reconcile.Action{Op: reconcile.OpBlocked, State: reconcile.Blocked, Have: running}, nil, OutOfSync, Degraded, False, True, "Blocked"},
		{"missing and held", reconcile.Action{Op: reconcile.OpCreate, State: reconcile.Held}, nil, OutOfSync, Missing, False, False, "Missing"},
		{"paused by an error", reconcile.Action{Op: reconcile.OpStart, State: reconcile.Waiting, Have: vm("a", reconcile.PowerIOError)}, nil, OutOfSync, Degraded, False, False, "Degraded"},
		{"paused, and left so", reconcile.Action{Op: reconcile.OpUpdate, State: reconcile.Held, Have: vm("a", reconcile.PowerPaused)}, nil, OutOfSync, Degraded, False, False, "Degraded"},
		{"paused, and about to go on", reconcile.Action{Op: reconcile.OpStart, State: reconcile.Ready, Have: vm("a", reconcile.PowerPaused)}, nil, OutOfSync, Progressing, False, False, "Progressing"},
		{"failing", reconcile.Action{Op: reconcile.OpUpdate, State: reconcile.Waiting, Have: running}, func(in *Input) { in.Failed[k] = "boom" }, OutOfSync, Degraded, False, True, "Failed"},
		{"in progress", reconcile.Action{Op: reconcile.OpStop, State: reconcile.Waiting}, func(in *Input) { in.Running[k] = true }, OutOfSync, Progressing, False, False, "Progressing"},
		{"suspended", reconcile.Action{Op: reconcile.OpUnchanged, State: reconcile.Ready, Have: running}, func(in *Input) { in.Everything = true }, Synced, Suspended, True, False, "Synced"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.action.Kind, c.action.UID, c.action.Name = k.Kind, k.UID, "a"
			in := Input{
				Plan: &reconcile.Plan{Actions: []reconcile.Action{c.action}}, Have: reconcile.NewState(), Now: now,
				Failed: map[reconcile.Key]string{}, Running: map[reconcile.Key]bool{},
			}
			if c.change != nil {
				c.change(&in)
			}
			o := Objects(in)[0]
			if o.Sync != c.sync || o.Health != c.health {
				t.Errorf("%s, %s; want %s, %s", o.Sync, o.Health, c.sync, c.health)
			}
			if o.Conditions[0].Status != c.ready || o.Conditions[2].Status != c.stalled || o.Conditions[0].Reason != c.readyReasonStart {
				t.Errorf("conditions %+v", o.Conditions)
			}
			// The time of transition stays while the condition does.
			in.Previous, in.Now = []Object{o}, now.Add(time.Hour)
			if again := Objects(in)[0]; !again.Conditions[0].LastTransitionTime.Equal(now) {
				t.Errorf("a condition that did not change moved to %s", again.Conditions[0].LastTransitionTime)
			}
		})
	}
}

// What is published makes the same plan elsewhere, and says nothing else.
func TestStateRoundTrip(t *testing.T) {
	have := reconcile.NewState()
	have.Complete[spec.KindVirtualMachine] = true
	machine := vm("a", reconcile.PowerRunning)
	disk := &reconcile.Live{
		Object: reconcile.Object{Kind: spec.KindDisk, Name: "d", UID: "uid-d"},
		Disk:   &reconcile.LiveDisk{Volume: 64, LUN: 32, Claims: []claim.Claim{{Owner: claim.Owner{Launch: "secret-launch"}}}},
	}
	have.Objects[machine.Key()], have.Objects[disk.Key()] = machine, disk
	unknown := reconcile.Key{Kind: spec.KindDisk, UID: "uid-e"}
	have.Unknown[unknown] = "not mounted"
	base := reconcile.Base{
		machine.Key(): {Object: machine.Object, Done: true},
		disk.Key():    {Object: disk.Object, Attempted: "generation"},
	}
	base[machine.Key()].Spec = struct{ Secret string }{"secret-launch"}
	base[machine.Key()].Refs = []reconcile.Ref{{Path: "p", To: &reconcile.Object{Name: "secret-launch"}}}
	files, err := Files(Host{Host: "h", PID: 7}, nil, Record("h", "c", "rev", have, base, now))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if bytes.Contains(data, []byte("secret-launch")) || bytes.Contains(data, []byte("pid: 7")) {
			t.Errorf("%s tells what it should not:\n%s", name, data)
		}
	}
	r, err := ReadState(files[StateFile])
	if err != nil {
		t.Fatal(err)
	}
	got := r.State()
	if h := got.Objects[machine.Key()]; h == nil || h.VM.Power != reconcile.PowerRunning || h.VM.Disks["d"] != "uid-d" || h.Get("spec.memory.size") != "128Mi" {
		t.Errorf("the machine came back as %+v", h)
	}
	if h := got.Objects[disk.Key()]; h == nil || h.Disk.Volume != 64 || h.Disk.LUN != 32 {
		t.Errorf("the disk came back as %+v", h)
	}
	if got.Unknown[unknown] != "not mounted" || !got.Complete[spec.KindVirtualMachine] || got.Complete[spec.KindDisk] {
		t.Errorf("unknown %v, complete %v", got.Unknown, got.Complete)
	}
	if _, err := ReadState([]byte(strings.Replace(string(files[StateFile]), "HostState", "Other", 1))); err == nil {
		t.Error("another kind is taken for a host's state")
	}
	applied, ok := r.Base()
	if b := applied[machine.Key()]; !ok || b == nil || !b.Done || b.Get("spec.memory.size") != "128Mi" || b.Name != "a" {
		t.Errorf("the machine's base came back as %+v", b)
	}
	if b := applied[disk.Key()]; b == nil || b.Done || b.Attempted != "generation" {
		t.Errorf("the disk's base came back as %+v", b)
	}
	// A report of an older build says nothing of what was applied.
	if _, ok := (Recorded{}).Base(); ok {
		t.Error("a report without a base is taken for one of nothing applied")
	}
	if !json.Valid(files[StateFile]) {
		t.Error("state.json is no JSON")
	}
}

// What changes by itself all the time would be a push with every pass.
func TestDigest(t *testing.T) {
	var base reconcile.Base
	report := func(change func(*reconcile.Live, *Host)) [32]byte {
		t.Helper()
		pool := &reconcile.Live{Object: reconcile.Object{Kind: spec.KindStoragePool, Name: "fast", UID: "uid-fast"}, Pool: &reconcile.LivePool{Free: 10, Provisioned: 5}}
		host := Host{Host: "host1", ObservedAt: now}
		change(pool, &host)
		have := reconcile.NewState()
		have.Objects[pool.Key()] = pool
		plan := &reconcile.Plan{Actions: []reconcile.Action{{Kind: pool.Kind, Name: pool.Name, UID: pool.UID, Op: reconcile.OpUnchanged, State: reconcile.Ready, Have: pool}}}
		objects := Objects(Input{Plan: plan, Have: have, Now: now})
		digest, err := Digest(host, objects, Record("host1", "demo", "r1", have, base, host.ObservedAt))
		if err != nil {
			t.Fatal(err)
		}
		if pool.Pool.Allocated != objects[0].Status["allocated"] {
			t.Errorf("the digest changed the report: %v", objects[0].Status)
		}
		return digest
	}
	first := report(func(*reconcile.Live, *Host) {})
	for _, c := range []struct {
		name   string
		change func(*reconcile.Live, *Host)
		news   bool
	}{
		{"later", func(_ *reconcile.Live, h *Host) { h.ObservedAt = now.Add(time.Minute) }, false},
		{"less space", func(l *reconcile.Live, _ *Host) { l.Pool.Free, l.Pool.Allocated = 3, 7 }, false},
		{"another disk", func(l *reconcile.Live, _ *Host) { l.Pool.Provisioned = 6 }, true},
		{"a new version", func(_ *reconcile.Live, h *Host) { h.Version = "v2" }, true},
		{"a field", func(l *reconcile.Live, _ *Host) { l.Fields = []reconcile.Field{{Path: "spec.capacity", Value: "1Gi"}} }, true},
	} {
		if news := report(c.change) != first; news != c.news {
			t.Errorf("%s: news %v, want %v", c.name, news, c.news)
		}
	}
	disk := reconcile.Object{Kind: spec.KindDisk, Name: "d", UID: "uid-d"}
	base = reconcile.Base{disk.Key(): {Object: disk, Done: true}}
	if report(func(*reconcile.Live, *Host) {}) == first {
		t.Error("what was applied since is no news")
	}
}
