package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"reconciler/api"
	"reconciler/policy"
	"reconciler/reconcile"
)

// settle is how long changes of a local repository are gathered before a pass:
// a push writes several files.
const settleTime = 20 * time.Millisecond

// Run reconciles until ctx ends. Guests and their disks go on without it.
func (a *Agent) Run(ctx context.Context) (err error) {
	release, err := a.lock()
	if err != nil {
		return err
	}
	defer release()
	a.log.Info("agent started", "host", a.cfg.Host, "repo", a.cfg.Repo, "branch", a.cfg.Branch, "version", a.cfg.Version)
	pushed, stop, err := a.watch()
	if err != nil {
		return err
	}
	defer stop()
	l, err := api.Listen(a.cfg.RunDir)
	if err != nil {
		return fmt.Errorf("listen for commands: %w", err)
	}
	ctx, end := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		defer end() // an agent that nobody can talk to is no use
		served <- api.Serve(ctx, l, a, a.log)
	}()
	defer func() { end(); err = errors.Join(err, <-served) }()
	a.life = ctx
	defer a.startErrands(ctx)(false)
	if a.cfg.Listen != nil {
		a.tasks.Go(func() { a.listen(ctx) })
	}

	quiet := func(string) {}
	mail := newCorrespondent(a)
	a.tasks.Go(func() { mail.run(ctx) })
	a.tasks.Go(func() {
		for {
			select {
			case uid := <-a.cfg.Changed:
				a.wake(trigger{why: "machine " + uid + " changed"})
			case <-ctx.Done():
				return
			}
		}
	})
	mail.ask()
	// Machines come back from the cached revision first: the forge may be one
	// of them.
	next, n := trigger{why: "start"}, (*news)(nil)
	if a.mem.Good == "" {
		next, n = a.wait(ctx, pushed, mail)
	}
	for ctx.Err() == nil {
		a.log.Debug("pass", "trigger", next.why)
		_, err := a.onePass(ctx, n, quiet)
		a.logPass(a.orFetch(err))
		next, n = a.wait(ctx, pushed, mail)
	}
	a.tasks.Wait()
	a.log.Info("agent stopped; machines and disks go on")
	return nil
}

// logPass says what is wrong with a pass when it begins to be, and when it no
// longer is: a forge that is down for a night fails thousands of passes.
func (a *Agent) logPass(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	a.mu.Lock()
	before := a.passFailed
	a.passFailed = trouble(err)
	now := a.passFailed
	a.mu.Unlock()
	switch {
	case now == before:
		if err != nil {
			a.log.Debug("pass", "error", err)
		}
	case err != nil:
		a.log.Warn("pass; said again when it changes", "error", err)
	default:
		a.log.Info("pass: all is well again", "was", before)
	}
}

// orFetch is the error of a pass, or that of the last fetch, which stands.
func (a *Agent) orFetch(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		err = a.fetchErr
	}
	return err
}

// trouble tells one kind of failure from another. The text of a failed fetch
// differs from time to time: a port, a duration.
func trouble(err error) string {
	var r *refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &r) && r.reason == fetchFailed:
		return r.reason
	}
	return err.Error()
}

// wait returns what comes first: the interval, a push, an event of a machine,
// a verb, the next retry, or what the repository answered. Where the trigger is
// one to ask the repository, it does, and gives the answer a moment.
func (a *Agent) wait(ctx context.Context, pushed <-chan struct{}, mail *correspondent) (trigger, *news) {
	interval := jittered(a.cfg.Interval)
	tick := time.NewTimer(interval)
	defer tick.Stop()
	retry := time.NewTimer(a.nextRetry(interval))
	defer retry.Stop()
	var enough <-chan time.Time
	var because trigger
	for {
		t := trigger{}
		select {
		case <-ctx.Done():
			return t, nil
		case n := <-mail.news:
			return trigger{why: "the repository's answer"}, n
		case <-enough:
			return because, nil
		case <-a.kick:
			t = a.asked()
		case <-pushed:
			t = trigger{fetch: true, why: "push"}
		case <-retry.C:
			t = trigger{fetch: a.lost(), why: "retry"}
		case <-tick.C:
			t = trigger{fetch: true, why: "interval"}
		}
		if !t.fetch {
			return t, nil
		}
		mail.ask()
		if because = t; enough == nil {
			enough = time.After(patience)
		}
	}
}

// lost says that there is no revision at all.
func (a *Agent) lost() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.set == nil
}

// jittered adds up to a tenth, so that hosts that were started together do not
// ask the forge together for ever.
func jittered(d time.Duration) time.Duration { return d + time.Duration(rand.Int64N(int64(d)/10+1)) }

// nextRetry is the time until something that waits for a moment may go on.
func (a *Agent) nextRetry(most time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	if a.seeksApprovals() {
		most = min(most, lookInterval)
	}
	for _, f := range a.failures {
		if f.next.After(now) {
			most = min(most, f.next.Sub(now))
		}
	}
	if a.again.next.After(now) {
		most = min(most, a.again.next.Sub(now))
	}
	if at := a.resting(now, math.MaxInt); !at.IsZero() {
		most = min(most, at.Sub(now))
	}
	for _, h := range a.have.Objects {
		if h.VM != nil && h.VM.RetryAt.After(now) {
			most = min(most, h.VM.RetryAt.Sub(now))
		}
		if h.Disk != nil && h.Disk.Quarantined && h.Disk.Until.After(now) {
			most = min(most, h.Disk.Until.Sub(now))
		}
	}
	if at := policy.Wake(a.plan, a.restraints(a.have, true)); !at.IsZero() {
		most = min(most, at.Sub(now))
	}
	return max(most, 50*time.Millisecond)
}

// watch tells of pushes to a local repository. A directory that is made anew,
// as `git pack-refs` does, is found again with the interval.
func (a *Agent) watch() (<-chan struct{}, func(), error) {
	pushed := make(chan struct{}, 1)
	paths := a.cfg.Source.Watch()
	if len(paths) == 0 {
		return pushed, func() {}, nil
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nil, fmt.Errorf("watch the repository: %w", err)
	}
	for _, p := range paths {
		if err := w.Add(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			_ = w.Close()
			return nil, nil, fmt.Errorf("watch %s: %w", p, err)
		}
	}
	go func() {
		var settled <-chan time.Time
		for {
			select {
			case e, ok := <-w.Events:
				if !ok {
					return
				}
				// Our own status ref is no push: it would wake us for ever.
				if filepath.Ext(e.Name) != ".lock" && settled == nil {
					settled = time.After(settleTime)
				}
			case err, ok := <-w.Errors:
				if !ok {
					return
				}
				a.log.Warn("watching the repository", "error", err)
			case <-settled:
				settled = nil
				select {
				case pushed <- struct{}{}:
				default:
				}
			}
		}
	}()
	return pushed, func() { _ = w.Close() }, nil
}

// wake asks for a pass soon; it never blocks. Two requests become one.
func (a *Agent) wake(t trigger) {
	a.mu.Lock()
	a.pending = trigger{fetch: a.pending.fetch || t.fetch, why: t.why}
	a.mu.Unlock()
	for _, c := range []chan struct{}{a.kick, a.rush} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (a *Agent) asked() trigger {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.pending
	a.pending = trigger{}
	select {
	case <-a.rush:
	default:
	}
	return t
}

// ApplyOnce brings the newest revision into force and returns when nothing is
// ready any more. It is what `apply` does where no daemon runs.
func (a *Agent) ApplyOnce(ctx context.Context, progress func(string)) (*reconcile.Plan, error) {
	release, err := a.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	stop := a.startErrands(ctx)
	defer func() { a.tasks.Wait(); stop(true) }()
	a.life = ctx
	return a.untilDone(ctx, progress)
}

// untilDone runs passes until nothing is ready, nothing runs any more and
// nothing is about to be tried again.
func (a *Agent) untilDone(ctx context.Context, progress func(string)) (*reconcile.Plan, error) {
	a.forgiveFailures()
	say, end := whileListening(progress)
	defer end()
	for fetch := true; ; fetch = false {
		plan, err := a.runPass(ctx, fetch, say)
		if err != nil {
			return plan, err
		}
		running, retry, failed := a.outstanding()
		switch {
		case failed != "":
			return plan, errors.New(failed)
		case running != nil:
			select {
			case <-running:
			case <-ctx.Done():
				return plan, ctx.Err()
			}
		case retry > 0:
			select {
			case <-time.After(retry):
			case <-ctx.Done():
				return plan, ctx.Err()
			}
		default:
			return plan, nil
		}
	}
}

// whileListening passes progress on until end is called: an action may outlive
// the one who listens.
func whileListening(progress func(string)) (say func(string), end func()) {
	var mu sync.Mutex
	over := false
	say = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			progress(line)
		}
	}
	return say, func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
	}
}

// applyTries is how often an object is tried before `apply` gives up on it.
const applyTries = 4

// outstanding is what a person who waits still waits for: the end of an action
// that runs, or the next retry; or the object that is given up on.
func (a *Agent) outstanding() (running <-chan struct{}, retry time.Duration, failed string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.running {
		running = t.done
	}
	now := a.cfg.Now()
	if at := a.resting(now, applyTries); !at.IsZero() {
		retry = at.Sub(now)
	}
	for k, f := range a.failures {
		if until := max(f.next.Sub(now), time.Millisecond); retry == 0 || until < retry {
			retry = until
		}
		if f.count < applyTries {
			continue
		}
		for i := range a.plan.Actions {
			if act := &a.plan.Actions[i]; act.Key() == k {
				failed = objectName(act) + ": " + f.message
			}
		}
	}
	return running, retry, failed
}

// forgive lets an object that rests be tried at once, and what it needs: a person
// named it.
func (a *Agent) forgive(k reconcile.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.failures, k)
	delete(a.repeats, k)
	if a.plan == nil {
		return
	}
	for i := range a.plan.Actions {
		if act := &a.plan.Actions[i]; act.Key() == k {
			for _, dep := range act.Dependencies() {
				delete(a.failures, dep)
			}
		}
	}
}

// forgiveFailures lets what rests be tried at once: a person asked for it.
func (a *Agent) forgiveFailures() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.failures)
	for _, r := range a.repeats {
		r.next = time.Time{}
	}
}
