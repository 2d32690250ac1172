package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"reconciler/forge"
)

// verdict is what this host says of a commit.
type verdict struct {
	State forge.State `json:"state"`
	Text  string      `json:"text"`
	// Refusal says that the commit is not in force for what it is, rather than
	// not carried out.
	Refusal bool `json:"refusal,omitempty"`
	// Last is the last word on a commit that another one has taken the place of.
	Last bool `json:"-"`
}

// saidFile holds what the forge was told, by commit, so that a restart neither
// repeats nor forgets anything.
const saidFile = "forge.json"

// Pace of the teller.
const (
	// settleStatus is how long something that is not final must last to be told.
	settleStatus = time.Second
	// sameState is the least time between two descriptions of one state.
	sameState = time.Minute
)

// teller brings the forge's commit statuses in line with what is to be said:
// the newest replaces what was not told yet.
type teller struct {
	courier // guarded by mu, but for its channel
	forge   Forge
	context string // of the statuses
	store   store
	log     *slog.Logger
	events  *journal

	mu   sync.Mutex // guards what follows
	want map[string]wanted
	said map[string]verdict
	at   map[string]time.Time // when the forge was last told of a commit
	// unsaved says that said is not on the disk.
	unsaved bool
}

type wanted struct {
	verdict
	since time.Time // when its state was first wanted
}

func newTeller(f Forge, host string, s store, log *slog.Logger, events *journal) *teller {
	return &teller{
		courier: newCourier(), forge: f, context: statusContext + host, store: s, log: log, events: events,
		want: map[string]wanted{}, said: map[string]verdict{}, at: map[string]time.Time{},
	}
}

// tell takes what is to be said now, by commit, and what follows from it for
// the commits that the forge was told of before.
func (t *teller) tell(say map[string]verdict, inForce string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	want := map[string]wanted{}
	put := func(commit string, v verdict) {
		w := wanted{verdict: v, since: now}
		if old, ok := t.want[commit]; ok && old.State == v.State {
			w.since = old.since
		}
		want[commit] = w
	}
	for commit, v := range say {
		// What a commit asked for was done: that stays true, whatever happens to
		// the host later on.
		if old, ok := t.said[commit]; ok && old.State == forge.Success && !v.Refusal {
			v = old
		}
		put(commit, v)
	}
	dropped := false
	for commit, old := range t.said {
		switch _, current := say[commit]; {
		case current:
		case commit == inForce && old.Refusal:
			put(commit, verdict{State: forge.Success, Text: "in force; nothing of this host changes", Last: true})
		case old.State == forge.Pending:
			put(commit, verdict{State: forge.Pending, Text: "superseded by " + short(inForce) + " before it was done", Last: true})
		default:
			delete(t.said, commit)
			delete(t.at, commit)
			dropped = true
		}
	}
	t.want = want
	if dropped || t.unsaved {
		t.save()
	}
	t.wake()
}

func (t *teller) due(now time.Time) (wait time.Duration, ok bool) {
	commit, _, wait := t.pick(now)
	return wait, commit != ""
}

func (t *teller) carryOut(ctx context.Context) bool {
	commit, v, _ := t.pick(time.Now())
	return commit == "" || t.say(ctx, commit, v)
}

// pick finds what the forge is to be told next, and in how long; commit is
// empty if there is nothing.
func (t *teller) pick(now time.Time) (commit string, v verdict, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range slices.Sorted(maps.Keys(t.want)) {
		w := t.want[c]
		old, told := t.said[c]
		if told && old == w.verdict {
			continue
		}
		at := w.since
		switch {
		case told && old.State == w.State && !w.Last:
			at = t.at[c].Add(sameState)
		case w.State != forge.Success && !w.Last:
			at = w.since.Add(settleStatus)
		}
		if t.next.After(at) {
			at = t.next
		}
		// The last words on an older commit give way.
		until := max(at.Sub(now), 0)
		if commit == "" || until < wait || until == wait && v.Last && !w.Last {
			commit, v, wait = c, w.verdict, until
		}
	}
	return commit, v, wait
}

// say tells the forge of one commit.
func (t *teller) say(ctx context.Context, commit string, v verdict) (ok bool) {
	err := t.forge.SetStatus(ctx, commit, forge.Status{Context: t.context, State: v.State, Description: v.Text})
	if err != nil && ctx.Err() != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	var refused *forge.Error
	if v.Last && errors.As(err, &refused) && refused.Code != 0 && !refused.Temporary() {
		err = nil // of a commit that is gone there is nothing left to say
	}
	if err != nil {
		if t.pause(now, err) {
			t.log.Warn("the forge could not be told a commit's status; tried again", "error", err)
			t.events.warn("", "StatusNotTold", err.Error())
		}
		return false
	}
	if t.resume() {
		t.log.Info("the forge has been told what it missed", "commit", short(commit))
		t.events.normal("", "StatusTold", "the forge has been told what it missed")
	}
	if v.Last {
		delete(t.said, commit)
		delete(t.at, commit)
		delete(t.want, commit)
	} else {
		t.said[commit], t.at[commit] = v, now
	}
	t.save()
	return true
}

// save writes down what the forge was told. Without it a restart repeats it,
// which changes nothing there. t.mu is held.
func (t *teller) save() {
	err := t.store.save(saidFile, mapRecord[verdict]{t.said})
	if t.unsaved = err != nil; err != nil {
		t.log.Warn("what the forge was told could not be written down; tried again with the next pass", "error", err)
	}
}
