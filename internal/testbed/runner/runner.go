// Package runner carries out the jobs of a real Gitea in tests: it registers
// as Gitea's own runner does, fetches tasks and runs their commands on this
// machine. It knows the part of the workflow language that our examples use;
// a job with anything else in it fails and says so.
package runner

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reconciler/internal/testbed"
	"reconciler/internal/testbed/gitea"
)

// poll is how often Gitea is asked for work: it has no call that waits.
const poll = 100 * time.Millisecond

// Run is one job that was carried out.
type Run struct {
	Workflow string            // the file's name
	Job      string            // its key in the file
	Event    string            // such as pull_request_target
	Action   string            // what happened to a pull request: opened, synchronized …
	Pull     int               // the pull request's number; 0 if it is about none
	Ref, SHA string            // what GITHUB_REF and GITHUB_SHA were
	Source   string            // the workflow as Gitea handed it out
	Secrets  map[string]string // what Gitea handed out with it
	Log      string            // what the steps wrote; nothing is masked
	Result   Result
}

func (r Run) String() string {
	return fmt.Sprintf("%s/%s on %s %s of #%d: %s\n%s", r.Workflow, r.Job, r.Event, r.Action, r.Pull, r.Result, r.Log)
}

// Config is what a runner offers.
type Config struct {
	Labels []string // what runs-on may ask for; default ubuntu-latest
	Path   []string // directories that are searched for commands first
}

// Runner is one that works until the end of its test.
type Runner struct {
	cfg    Config
	url    string
	client client
	dir    string // of its jobs

	mu   sync.Mutex
	runs []Run
	err  error // why it works no longer
}

// Start registers a runner for one repository and lets it work. What it still
// runs at the end of the test is killed.
func Start(t testing.TB, g *gitea.Gitea, repo gitea.Repo, cfg Config) *Runner {
	t.Helper()
	if len(cfg.Labels) == 0 {
		cfg.Labels = []string{"ubuntu-latest"}
	}
	var registration struct {
		Token string `json:"token"`
	}
	if code, body := g.Do(t, repo.Owner, "GET", "/repos/"+repo.String()+"/actions/runners/registration-token", nil, &registration); code/100 != 2 {
		t.Fatalf("a token to register a runner: %d %s", code, body)
	}
	dir, err := os.MkdirTemp("", "rc-runner-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := testbed.KillAll(dir); err != nil {
			t.Errorf("end what a job left: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r := &Runner{cfg: cfg, url: g.URL, client: client{url: g.URL}, dir: dir}
	if err := r.client.register(t.Context(), registration.Token, "runner-of-"+repo.Name, cfg.Labels); err != nil {
		t.Fatalf("register a runner: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.work(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			for _, run := range r.Runs() {
				t.Log(run)
			}
		}
	})
	return r
}

func (r *Runner) work(ctx context.Context) {
	for tick := time.Tick(poll); ; {
		// Gitea may be down for a while; a real runner goes on asking, too.
		task, err := r.client.fetch(ctx)
		if err == nil && task != nil {
			err = r.carryOut(ctx, task)
		}
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
	}
}

// carryOut runs a task and tells Gitea how it went.
func (r *Runner) carryOut(ctx context.Context, task *task) error {
	e := newExecution(r, task)
	state := e.run(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := r.client.upload(ctx, task.ID, e.rows)
	if err == nil {
		err = r.client.update(ctx, state, e.outputs)
	}
	run := e.record
	run.Result, run.Secrets, run.Source = state.Result, maps.Clone(task.Secrets), string(task.Workflow)
	var log strings.Builder
	for _, row := range e.rows {
		log.WriteString(row.Content + "\n")
	}
	run.Log = log.String()
	r.mu.Lock()
	r.runs = append(r.runs, run)
	r.mu.Unlock()
	return err
}

// Runs are those that ended, the oldest first.
func (r *Runner) Runs() []Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.runs)
}

// Wait returns the first run that ended and fits, and fails the test if there
// is none by the limit.
func (r *Runner) Wait(t testing.TB, limit time.Duration, what string, fits func(Run) bool) Run {
	t.Helper()
	var found Run
	testbed.Await(t, limit, what, func() bool {
		for _, run := range r.Runs() {
			if fits(run) {
				found = run
				return true
			}
		}
		return false
	}, r.tell)
	return found
}

func (r *Runner) tell() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("the runner's last error: %v; its runs: %v", r.err, r.runs)
}
