package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"reconciler/forge"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
)

// listener is a forge that writes down what it is told.
type listener struct {
	mu     sync.Mutex
	told   []string // COMMIT STATE TEXT
	broken error
}

func (l *listener) SetStatus(_ context.Context, commit string, s forge.Status) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	if s.Context != "reconciler/host1" {
		return errors.New("context " + s.Context)
	}
	l.told = append(l.told, fmt.Sprintf("%s %s %s", strings.TrimLeft(commit, "0"), s.State, s.Description))
	return nil
}

func (l *listener) breaks(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
}

// heard returns what the forge was told since the last call, after it was told
// all.
func (l *listener) heard(s *sim) []string {
	flush(context.Background(), s.agent.teller)
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.told
	l.told = nil
	return list
}

// hears checks what the forge was told since the last time: the start of each.
func (l *listener) hears(s *sim, want ...string) {
	s.t.Helper()
	got := l.heard(s)
	ok := len(got) == len(want)
	for i := range want {
		ok = ok && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		s.t.Fatalf("the forge was told\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func simWithForge(t *testing.T, change func(*Config)) (*sim, *listener) {
	l := &listener{}
	return newSim(t, func(c *Config) {
		c.Forge = l
		if change != nil {
			change(c)
		}
	}), l
}

func smallVM(name string) string { return simVM(name, ", memory: {size: 128Mi}") }

const otherHost = "---\napiVersion: reconciler/v1alpha1\nkind: Host\nmetadata: {name: host2}\nspec: {roles: [Hypervisor], addresses: {management: 127.0.0.2}}\n"

// A host speaks of a commit only where the commit is about it, or where the
// host refuses it; and only once.
func TestForgeHearsWhatConcernsIt(t *testing.T) {
	s, l := simWithForge(t, nil)
	s.commit(map[string]string{"a.yaml": smallVM("a")})
	s.mustPass()
	l.hears(s, "1 success 4 in sync")
	s.mustPass()
	l.hears(s)

	s.commit(map[string]string{"a.yaml": smallVM("a"), "h.yaml": otherHost})
	s.mustPass()
	l.hears(s)

	s.commit(map[string]string{"a.yaml": "nonsense: ["})
	if _, err := s.pass(); err == nil {
		t.Fatal("nonsense came into force")
	}
	l.hears(s, "3 failure refused: the specs do not load: a.yaml:1")
	if _, err := s.pass(); err == nil {
		t.Fatal("nonsense came into force")
	}
	l.hears(s)

	s.commit(map[string]string{"a.yaml": smallVM("a"), "h.yaml": otherHost})
	s.mustPass()
	l.hears(s) // 3 stays what it was, 4 changes nothing here

	s.commit(map[string]string{"a.yaml": smallVM("a") + smallVM("b")})
	s.mustPass()
	l.hears(s, "5 success 5 in sync")

	// What the world does afterwards is not the commit's.
	s.set(spec.KindVirtualMachine, "a", func(h *reconcile.Live) { h.VM.Power = "Stopped" })
	s.mustPass()
	l.hears(s)
}

func TestForgeHearsWhatIsHeld(t *testing.T) {
	s, l := simWithForge(t, func(c *Config) { c.Limits = policy.Limits{Count: 1} })
	s.commit(map[string]string{"a.yaml": smallVM("a") + smallVM("b") + smallVM("c") + smallVM("d")})
	s.mustPass()
	l.hears(s, "1 success")
	s.commit(map[string]string{"a.yaml": smallVM("d")})
	s.mustPass()
	got := l.heard(s)
	if len(got) != 1 || !strings.HasPrefix(got[0], "2 pending 4 in sync, held: 2 (") || !strings.Contains(got[0], "the limit is 1") {
		t.Fatalf("%q", got)
	}
	// A commit that takes its place has the last word.
	s.commit(map[string]string{"a.yaml": smallVM("b") + smallVM("c") + smallVM("d")})
	s.mustPass()
	l.hears(s, "3 success 6 in sync", "2 pending superseded by 000000000000 before it was done")
	s.mustPass()
	l.hears(s)
}

// A commit that was refused and comes into force after all is not left with a
// failure.
func TestForgeHearsOfAcceptance(t *testing.T) {
	s, l := simWithForge(t, nil)
	s.commit(map[string]string{"a.yaml": smallVM("a")})
	s.mustPass()
	l.hears(s, "1 success")
	// The cache breaks for a moment: the same commit loads later on.
	s.commit(map[string]string{"a.yaml": "nonsense: ["})
	if _, err := s.pass(); err == nil {
		t.Fatal("nonsense came into force")
	}
	l.hears(s, "2 failure refused")
	s.commits[1] = map[string]string{"a.yaml": smallVM("a"), "cluster.yaml": simCluster, "h.yaml": otherHost}
	s.mustPass()
	l.hears(s, "2 success in force; nothing of this host changes")
	s.mustPass()
	l.hears(s)
}

// What the forge was told survives the agent; so does what it was not told.
func TestForgeAfterRestart(t *testing.T) {
	s, l := simWithForge(t, nil)
	s.commit(map[string]string{"a.yaml": smallVM("a")})
	s.mustPass()
	l.hears(s, "1 success")
	s.restart()
	s.mustPass()
	l.hears(s)

	l.breaks(errors.New("no route to the forge"))
	s.commit(map[string]string{"a.yaml": smallVM("b")})
	s.mustPass()
	l.hears(s)
	s.restart()
	s.mustPass()
	l.hears(s)
	l.breaks(nil)
	l.hears(s, "2 success")
	s.restart()
	s.mustPass()
	l.hears(s)
}

func TestNoForge(t *testing.T) {
	s := newSim(t, nil)
	s.commit(map[string]string{"a.yaml": smallVM("a")})
	s.mustPass()
	s.agent.startErrands(t.Context())(true)
}
