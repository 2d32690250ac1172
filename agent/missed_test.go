package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// reported is a repository with a report of this host, of a key that is gone.
type reported struct {
	simSource
	data []byte
}

func (r reported) Report(context.Context, string, string) (data, payload, signature []byte, err error) {
	return r.data, []byte("tree"), []byte("signed by another key"), nil
}

// listening notes what the agent says that it knows of.
type listening struct {
	simStorage
	known *map[reconcile.Key]string
}

func (d listening) Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	*d.known = want.Known
	state, err := d.simStorage.Observe(ctx, want)
	for k := range want.Known { // as the driver does
		if state.Objects[k] == nil {
			state.Unknown[k] = "not mounted"
		}
	}
	return state, err
}

// An agent that has lost its memory tells the drivers what it had by its own last
// report, over restarts, until that is found.
func TestWhatWasReportedIsMissed(t *testing.T) {
	s := newSim(t, nil)
	s.commit(map[string]string{"disk.yaml": simDisk("d") + simVM("web", ", memory: {size: 64Mi}")})
	s.mustPass()
	s.mustPass()
	a := s.agent
	a.mu.Lock()
	data, err := json.Marshal(status.Record("host1", s.cluster(), a.mem.Good, a.have, a.base, time.Now()))
	a.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	pool := reconcile.Key{Kind: spec.KindStoragePool, UID: s.live(spec.KindStoragePool, "fast").UID}
	disk := reconcile.Key{Kind: spec.KindDisk, UID: s.live(spec.KindDisk, "d").UID}

	// The state directory is lost, and the pool is away.
	if err := os.RemoveAll(filepath.Join(s.dir, "agent")); err != nil {
		t.Fatal(err)
	}
	had := s.state
	s.sleep(time.Hour)
	lost := s.clock()
	s.state = reconcile.NewState()
	var known map[reconcile.Key]string
	s.cfg.Source, s.cfg.Storage = reported{simSource{s: s}, data}, listening{simStorage{s: s}, &known}
	for range 2 {
		s.restart()
		_, _ = s.pass()
		if known[pool] == "" || known[disk] == "" || len(known) != 2 {
			t.Fatalf("known: %v", known)
		}
		for _, b := range s.ran() {
			if b.object != "VirtualMachine/web" && !b.at.Before(lost) {
				t.Errorf("%s %s", b.op, b.object)
			}
		}
	}
	s.state = had
	s.mustPass()
	s.mustPass()
	if _, ok := known[disk]; ok || len(s.agent.mem.Missed) > 0 {
		t.Errorf("found, and still missed: %v, %v", known, s.agent.mem.Missed)
	}
}

// What the agent itself remembers is enough for a pool whose record is lost.
func TestAPoolThatWasAppliedIsKnown(t *testing.T) {
	s := newSim(t, nil)
	var known map[reconcile.Key]string
	s.cfg.Storage = listening{simStorage{s: s}, &known}
	s.restart()
	s.commit(map[string]string{"disk.yaml": simDisk("d")})
	s.mustPass()
	s.mustPass()
	if pool := (reconcile.Key{Kind: spec.KindStoragePool, UID: s.live(spec.KindStoragePool, "fast").UID}); known[pool] == "" {
		t.Errorf("known: %v", known)
	}
}
