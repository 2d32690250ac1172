package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reconciler/forge"
	"reconciler/internal/durable"
)

// pacedForge answers as it is told to, and notes when it was called. Time is
// virtual.
type pacedForge struct {
	mu     sync.Mutex
	began  time.Time
	calls  []string // SECONDS COMMIT STATE TEXT
	answer func(ctx context.Context) error
}

func (f *pacedForge) SetStatus(ctx context.Context, commit string, s forge.Status) error {
	f.mu.Lock()
	f.calls = append(f.calls, fmt.Sprintf("%s %s %s %s", time.Since(f.began), commit, s.State, s.Description))
	answer := f.answer
	f.mu.Unlock()
	if answer != nil {
		return answer(ctx)
	}
	return nil
}

func (f *pacedForge) since() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.calls
	f.calls = nil
	return list
}

func (f *pacedForge) answers(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = func(context.Context) error { return err }
}

type tellerWorld struct {
	*teller
	forge *pacedForge
	log   *strings.Builder
}

// inBubble runs a test with a teller at work, in virtual time.
func inBubble(t *testing.T, test func(t *testing.T, w tellerWorld)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, err := durable.Open(dir, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		events, err := openJournal(dir, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		log := &strings.Builder{}
		f := &pacedForge{began: time.Now()}
		x := newTeller(f, "host1", store{d}, slog.New(slog.NewTextHandler(&lockedWriter{w: log}, nil)), events)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); x.run(ctx, x) }()
		test(t, tellerWorld{x, f, log})
		cancel()
		<-done
	})
}

// pass lets virtual time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (w tellerWorld) expect(t *testing.T, want ...string) {
	t.Helper()
	if got := w.forge.since(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("the forge was called\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func say(commit string, state forge.State, text string) map[string]verdict {
	return map[string]verdict{commit: {State: state, Text: text}}
}

// A passing state is not told, a lasting one once a minute at most, the end at
// once.
func TestTellerPace(t *testing.T) {
	inBubble(t, func(t *testing.T, w tellerWorld) {
		w.tell(say("a", forge.Pending, "2 to do"), "a")
		pass(500 * time.Millisecond)
		w.tell(say("a", forge.Success, "2 in sync"), "a")
		pass(time.Second)
		w.expect(t, "500ms a success 2 in sync")

		for i := range 300 {
			w.tell(say("b", forge.Pending, fmt.Sprint(300-i, " to do")), "b")
			pass(900 * time.Millisecond)
		}
		w.tell(say("b", forge.Success, "300 in sync"), "b")
		pass(time.Hour)
		w.expect(t, "2.5s b pending 299 to do", "1m2.5s b pending 233 to do", "2m2.5s b pending 166 to do",
			"3m2.5s b pending 99 to do", "4m2.5s b pending 33 to do", "4m31.5s b success 300 in sync")
		for range 10 {
			w.tell(say("b", forge.Failure, "a machine broke long after"), "b")
			pass(time.Minute)
		}
		w.expect(t)
	})
}

// While the forge is down, it is called ever less often; what is told in the
// end is what holds then. Both are said once.
func TestTellerBacksOff(t *testing.T) {
	inBubble(t, func(t *testing.T, w tellerWorld) {
		w.forge.answers(&forge.Error{Op: "set", Err: errors.New("connection refused")})
		w.tell(say("a", forge.Success, "1 in sync"), "a")
		pass(time.Hour)
		calls := w.forge.since()
		if len(calls) < 10 || len(calls) > 14 {
			t.Errorf("%d calls in an hour: %q", len(calls), calls)
		}
		w.tell(say("b", forge.Success, "2 in sync"), "b")
		w.forge.answers(nil)
		pass(lastPause + lastPause/4)
		if calls := w.forge.since(); len(calls) != 1 || !strings.HasSuffix(calls[0], "b success 2 in sync") {
			t.Errorf("%q", calls)
		}
		list, err := w.events.after(t.Context(), 0, false)
		if err != nil || len(list) != 2 || list[0].Reason != "StatusNotTold" || list[1].Reason != "StatusTold" {
			t.Errorf("%+v, %v", list, err)
		}
		if n := strings.Count(w.log.String(), "\n"); n != 2 {
			t.Errorf("%d lines in the log:\n%s", n, w.log)
		}
	})
}

// Retry-After is kept to, whatever happens meanwhile.
func TestTellerWaitsAsAsked(t *testing.T) {
	inBubble(t, func(t *testing.T, w tellerWorld) {
		w.forge.answers(&forge.Error{Op: "set", Code: 429, RetryAfter: 20 * time.Minute})
		w.tell(say("a", forge.Success, "1"), "a")
		pass(0)
		w.expect(t, "0s a success 1")
		w.forge.answers(nil)
		for range 19 {
			pass(time.Minute)
			w.tell(say("a", forge.Success, "1"), "a")
			w.tell(say("b", forge.Pending, "2"), "b")
		}
		w.expect(t)
		pass(time.Minute)
		w.expect(t, "20m0s b pending 2")
	})
}

// A commit that is gone from the forge is not asked about for ever, if it is
// not the one in question.
func TestTellerForgetsWhatIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, w tellerWorld) {
		w.tell(say("a", forge.Pending, "held"), "a")
		pass(time.Second)
		w.expect(t, "1s a pending held")
		w.tell(say("b", forge.Success, "done"), "b")
		pass(0)
		w.expect(t, "1s b success done", "1s a pending superseded by b before it was done")

		w.tell(say("c", forge.Pending, "held"), "c")
		pass(time.Second)
		w.forge.answers(&forge.Error{Op: "set", Code: 404})
		w.tell(map[string]verdict{}, "d")
		pass(24 * time.Hour)
		w.expect(t, "2s c pending held", "2s c pending superseded by d before it was done")
		if len(w.said) != 0 {
			t.Errorf("still remembered: %v", w.said)
		}
	})
}

// A forge that does not answer holds up nobody who has something to say.
func TestTellerDoesNotBlock(t *testing.T) {
	inBubble(t, func(t *testing.T, w tellerWorld) {
		w.forge.answer = func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(30 * time.Second):
				return &forge.Error{Op: "set", Err: context.DeadlineExceeded}
			}
		}
		began := time.Now()
		for i := range 1000 {
			w.tell(say("a", forge.Success, fmt.Sprint(i)), "a")
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("1000 reports took %s", d)
		}
		pass(time.Second)
		if calls := w.forge.since(); len(calls) != 1 {
			t.Errorf("%q", calls)
		}
		pass(30*time.Second + firstPause + firstPause/4)
		if calls := w.forge.since(); len(calls) != 1 || !strings.HasSuffix(calls[0], "a success 999") {
			t.Errorf("%q", calls)
		}
	})
}

// An address that cannot be listened on is tried again, and said once for each
// reason; a push in between wakes the agent to fetch.
func TestListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, nil)
		var calls []time.Duration
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		s.agent.cfg.Listen = func(ctx context.Context, pushed func()) error {
			calls = append(calls, time.Since(began))
			switch len(calls) {
			case 1, 2:
				return errors.New("cannot assign requested address")
			case 3:
				return errors.New("address already in use")
			}
			pushed()
			<-ctx.Done()
			return ctx.Err()
		}
		done := make(chan struct{})
		go func() { defer close(done); s.agent.listen(ctx) }()
		pass(time.Hour)
		cancel()
		<-done
		if got, want := fmt.Sprint(calls), "[0s 30s 1m0s 1m30s]"; got != want {
			t.Errorf("called at %s, want %s", got, want)
		}
		if next := s.agent.asked(); !next.fetch || next.why != "webhook" {
			t.Errorf("woken as %+v", next)
		}
		list, err := s.agent.events.after(t.Context(), 0, false)
		if err != nil || len(list) != 2 || list[0].Reason != "WebhookDown" || list[1].Reason != "WebhookDown" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}
