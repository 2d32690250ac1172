package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"reconciler/reconcile"
)

// Removals are held by a window until it opens, by itself and on the minute,
// and then by the budget; a commit lifts neither, nor does a restart.
func TestWindowAndBudget(t *testing.T) {
	w := newWorld(t)
	// The next minute, if there is time to get everything held before it.
	opens := time.Now().UTC().Truncate(time.Minute).Add(time.Minute)
	if time.Until(opens) < 20*time.Second {
		opens = opens.Add(time.Minute)
	}
	w.config(fmt.Sprintf("interval: 24h\nwindows: [{name: soon, schedule: '%d %d * * *', duration: 10m, timeZone: UTC, impact: remove}]\n", opens.Minute(), opens.Hour()))
	disks := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(disk(fmt.Sprintf("d%d", i), "1Mi"))
		}
		return b.String()
	}
	w.write("disks.yaml", disks(6))
	w.commit("six disks")
	w.start()
	w.reconcile()

	held := func() (n int, why string) {
		p := w.plan()
		for i := range p.Actions {
			if a := &p.Actions[i]; a.Op == reconcile.OpQuarantine && a.State == reconcile.Held {
				n, why = n+1, a.Reason
			}
		}
		return n, why
	}
	w.write("disks.yaml", disks(2))
	w.write("config.yaml.txt", "windows: []\nlimits: {budget: {count: 100}}\n")
	w.commit("remove four, and try to lift what holds it")
	w.reconcile()
	if time.Now().Before(opens) { // the machine may have been that slow
		n, why := held()
		if want := "held until " + opens.Format("Mon 2006-01-02 15:04 MST") + ", window soon"; n != 4 || !strings.HasPrefix(why, want) {
			t.Errorf("%d removals are held: %s, want 4: %s", n, why, want)
		}
		if out := w.cli("status"); !strings.Contains(out, "window      soon opens "+opens.Format("Mon 2006-01-02 15:04")) {
			t.Errorf("status:\n%s", out)
		}
		if n := len(w.objects("quarantine")); n != 0 && time.Now().Before(opens) {
			t.Errorf("%d disks are removed before the window opens", n)
		}
	}
	w.await(3*time.Minute, "the window to open and two disks to go", func() bool { return len(w.objects("quarantine")) == 2 })
	if at := time.Now(); at.Before(opens) {
		t.Errorf("they went at %s, and the window opens at %s", at, opens)
	}
	check := func(when string) {
		t.Helper()
		if n, why := held(); n != 2 || !strings.Contains(why, "2 of the host's disks were stopped or removed within 24 hours, and the limit is 2") {
			t.Errorf("%s %d removals are held: %s", when, n, why)
		}
		if n := len(w.objects("quarantine")); n != 2 {
			t.Errorf("%s %d disks are removed", when, n)
		}
	}
	check("in the window")
	w.stop()
	w.start()
	w.write("disks.yaml", disks(1))
	w.commit("one more")
	w.write("disks.yaml", disks(2))
	w.commit("and back")
	w.reconcile()
	check("after a restart and two commits")
	p := w.plan()
	w.cli("allow", p.Hosts[0].Digest, "--for", "1h", "--reason", "test")
	w.reconcile()
	if n := len(w.objects("quarantine")); n != 4 {
		t.Errorf("%d disks are removed after the operator allowed it, want 4", n)
	}
}
