package agent

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// stuck is a storage whose look at the disks does not come back, whatever its
// deadline.
type stuck struct {
	simStorage
	asked  *atomic.Int32
	answer chan struct{}
}

func (d stuck) Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error) {
	d.asked.Add(1)
	<-d.answer
	return d.simStorage.Observe(ctx, want)
}

// A driver that does not answer is asked once, and the other's objects go on.
func TestADriverThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		answer := make(chan struct{})
		s := newSim(t, nil)
		s.cfg.Storage = stuck{simStorage{s: s}, &asked, answer}
		s.restart()
		s.commit(map[string]string{"vm.yaml": simVM("web", ", memory: {size: 64Mi}")})
		for i := range 3 {
			began := time.Now()
			p := s.mustPass()
			if took := time.Since(began); i > 0 && took > time.Second || took > observeTimeout+time.Second {
				t.Errorf("pass %d took %s", i, took)
			}
			if a := actionOf(t, p, "VirtualMachine/web"); i > 0 && a.Op != reconcile.OpUnchanged {
				t.Errorf("the machine: %s %s, %s", a.Op, a.State, a.Reason)
			}
		}
		if asked.Load() != 1 {
			t.Errorf("it was asked %d times", asked.Load())
		}
		close(answer)
		synctest.Wait()
		s.mustPass()
		if asked.Load() == 1 || s.live(spec.KindStoragePool, "fast") == nil {
			t.Errorf("it answers again, and was asked %d times", asked.Load())
		}
	})
}

// Two may ask at a time: who wants a plan is not told that a pass is looking.
func TestTwoLookAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o observer
		var asked atomic.Int32
		answer := make(chan struct{})
		s := newSim(t, nil)
		d := stuck{simStorage{s: s}, &asked, answer}
		first := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() {
			_, err := o.observe(ctx, "disks", d, nil)
			first <- err
		}()
		synctest.Wait()
		go func() {
			<-time.After(time.Second)
			close(answer)
		}()
		if _, err := o.observe(ctx, "disks", d, nil); err != nil {
			t.Error(err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

// A status that no pass has made anew says how old it is, and not that all is well.
func TestStatusAges(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Interval = time.Minute })
	s.commit(map[string]string{"vm.yaml": simVM("web", ", memory: {size: 64Mi}")})
	s.mustPass()
	ready := func() status.Condition {
		h, err := s.agent.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range h.Conditions {
			if c.Type == status.Ready {
				return c
			}
		}
		t.Fatalf("no %s in %+v", status.Ready, h.Conditions)
		panic("unreachable")
	}
	s.sleep(2 * time.Minute)
	if c := ready(); c.Status == status.Unknown {
		t.Errorf("after two intervals: %+v", c)
	}
	s.sleep(time.Second)
	if c := ready(); c.Status != status.Unknown || !strings.Contains(c.Message, "2m1s") {
		t.Errorf("beyond: %+v", c)
	}
	s.mustPass()
	if c := ready(); c.Status == status.Unknown {
		t.Errorf("after a pass: %+v", c)
	}
}

// releasing notes the machines whose disks are taken from them.
type releasing struct {
	simStorage
	of *[]string
}

func (d releasing) ReleaseMachine(_ context.Context, vm string) error {
	*d.of = append(*d.of, vm)
	return nil
}

// Ended by force, a machine without a process keeps no disk either: none that
// cannot be observed, whose claims no plan would release.
func TestStopByForceReleasesWhatIsLeft(t *testing.T) {
	s := newSim(t, nil)
	var of []string
	s.cfg.Storage = releasing{simStorage{s: s}, &of}
	s.restart()
	s.commit(map[string]string{"vm.yaml": simVM("web", ", memory: {size: 64Mi}")})
	s.mustPass()
	s.mustPass()
	s.set(spec.KindVirtualMachine, "web", func(h *reconcile.Live) { h.VM.Launch, h.VM.Power = "", reconcile.PowerStopped })
	uid := s.live(spec.KindVirtualMachine, "web").UID
	for _, force := range []bool{false, true} {
		if _, err := s.agent.Stop(context.Background(), api.MachineRequest{Name: "web", Force: force}); err != nil {
			t.Fatal(err)
		}
		if released := len(of) == 1 && of[0] == uid; released != force {
			t.Errorf("force %t: released of %q", force, of)
		}
	}
}
