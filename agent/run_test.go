package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A forge that is down is told once, and once when it is back; what fails in
// another way is told on its own. Machines do not wait for it.
func TestTroubleIsToldOnce(t *testing.T) {
	s := newSim(t, nil)
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	pass := func() {
		_, err := s.pass()
		s.agent.logPass(err)
	}
	pass()
	for i := range 5 {
		s.broken = fmt.Errorf("dial tcp 192.0.2.1:443: from port %d: no route to host", 40000+i)
		pass()
	}
	told := func(level, text string) int {
		n := 0
		for line := range strings.Lines(s.log.String()) {
			if strings.Contains(line, "level="+level) && strings.Contains(line, text) {
				n++
			}
		}
		return n
	}
	if n := told("WARN", "no route to host"); n != 1 {
		t.Errorf("the outage is told %d times, want once\n%s", n, s.log)
	}
	s.broken = nil
	s.commit(map[string]string{"a.yaml": "kind: Nonsense\n"})
	pass()
	pass()
	if n := told("WARN", "the specs do not load"); n != 1 {
		t.Errorf("the broken revision is told %d times, want once\n%s", n, s.log)
	}
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	pass()
	pass()
	if n := told("INFO", "all is well again"); n != 1 {
		t.Errorf("the end is told %d times, want once\n%s", n, s.log)
	}
	if trouble(errors.New("a")) == trouble(errors.New("b")) {
		t.Error("two failures are taken for one")
	}
}

func TestIntervalHasJitter(t *testing.T) {
	const interval = time.Minute
	seen := map[time.Duration]bool{}
	for range 200 {
		d := jittered(interval)
		if d < interval || d > interval+interval/10 {
			t.Fatalf("%s is not within a tenth of %s", d, interval)
		}
		seen[d] = true
	}
	if len(seen) < 100 {
		t.Errorf("%d different intervals of 200", len(seen))
	}
	if d := jittered(1); d != 1 {
		t.Errorf("%s", d)
	}
}
