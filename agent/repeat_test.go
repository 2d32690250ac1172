package agent

import (
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/spec"
)

// A guest that stops again as soon as it is resumed, at a disk that keeps
// returning errors, is resumed with growing pauses, and that is told once.
func TestWhatDoesNotLastRests(t *testing.T) {
	s := newSim(t, nil)
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	s.mustPass()
	s.ran()
	fails := func() {
		s.set(spec.KindVirtualMachine, "a", func(h *reconcile.Live) { h.VM.Power = reconcile.PowerIOError })
	}
	told := func() (n int) {
		list, err := s.agent.Events(t.Context(), 0, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if strings.Contains(e.Message, "returned an error") {
				n++
			}
		}
		return n
	}
	for began := s.clock(); s.clock().Sub(began) < 5*time.Minute; {
		fails()
		if a := actionOf(t, s.mustPass(), "VirtualMachine/a"); a.State == reconcile.Waiting {
			if !strings.Contains(a.Reason, "did not last, and is done again at") {
				t.Fatalf("it waits: %s", a.Reason)
			}
			if d := s.wake(); d > lastRetry {
				t.Fatalf("it rests for %s", d)
			}
		} else {
			s.sleep(10 * time.Millisecond) // the guest's next write
		}
	}
	if n := len(s.ran()); n < 5 || n > 10 || told() != 1 {
		t.Errorf("it was resumed %d times in 5 minutes, and that was told %d times", n, told())
	}

	// A person asks: it is tried at once, and after a restart it starts anew.
	fails()
	s.mustPass()
	s.ran()
	if _, err := s.agent.Reconcile(t.Context(), api.ReconcileRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	fails()
	s.mustPass()
	if list := s.ran(); len(list) != 1 || list[0].op != reconcile.OpStart {
		t.Errorf("asked for: %v", list)
	}
	fails()
	s.mustPass()
	if err := s.agent.Restart(t.Context(), api.MachineRequest{Name: "a", Caller: api.Caller{Name: "ada"}}); err != nil {
		t.Fatal(err)
	}
	s.mustPass()
	if list := s.ran(); len(list) != 2 || list[0].op != reconcile.OpStop || list[1].op != reconcile.OpStart {
		t.Errorf("a restart: %v", list)
	}

	// It held for a while: it is the first time again.
	s.sleep(repeatCalm + time.Second)
	fails()
	s.mustPass()
	if list := s.ran(); len(list) != 1 || told() != 2 {
		t.Errorf("after a calm: %v, told %d times", list, told())
	}
}
