package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"reconciler/claim"
	"reconciler/gitrepo"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
)

// sim is a host without a world: the agent is real, machines and disks are what
// its actions say, and time passes when the test says so.
type sim struct {
	t     *testing.T
	dir   string
	named string // the cluster, for what must come out the same twice
	cfg   Config // for the next agent
	agent *Agent
	log   *strings.Builder

	mu      sync.Mutex
	now     time.Time
	state   reconcile.State
	commits []map[string]string // file → text
	broken  error               // of the next fetches
	began   []begun
	took    func(a *reconcile.Action) time.Duration
	hang    func(ctx context.Context, a *reconcile.Action) error // before an action is carried out

	silent atomic.Bool // the forge
	waits  chan string // what it was asked while it is silent
}

// begun is an action that reached a driver.
type begun struct {
	at     time.Time
	op     reconcile.Op
	impact reconcile.Impact
	object string
}

func newSim(t *testing.T, change func(*Config)) *sim {
	started := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	s := &sim{t: t, dir: t.TempDir(), now: started, state: reconcile.NewState(), log: &strings.Builder{}, waits: make(chan string, 10)}
	for _, k := range spec.Kinds {
		s.state.Complete[k] = k == spec.KindVirtualMachine || k == spec.KindDisk || k == spec.KindStoragePool
	}
	s.cfg = Config{
		// Agents of one repository, or of one cluster, keep each other out.
		Host: "host1", Repo: s.dir, StateDir: s.dir, RunDir: s.dir, Source: simSource{s: s}, Hypervisor: simHypervisor{s: s}, Storage: simStorage{s: s},
		Limits: policy.Limits{Count: 100}, Now: s.clock, Uptime: func() time.Duration { return s.clock().Sub(started) },
		Log: slog.New(slog.NewTextHandler(&lockedWriter{w: s.log}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if change != nil {
		change(&s.cfg)
	}
	s.restart()
	return s
}

type lockedWriter struct {
	mu sync.Mutex
	w  *strings.Builder
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// restart is the agent's: its memory is what is on disk.
func (s *sim) restart() {
	s.t.Helper()
	a, err := New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.agent = a
}

func (s *sim) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *sim) sleep(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// cluster is a name that no other test has, in whatever process it runs.
func (s *sim) cluster() string {
	if s.named != "" {
		return s.named
	}
	return fmt.Sprintf("demo-%x", sha256.Sum256([]byte(s.dir)))[:20]
}

// commit is a revision of these files and what no test is about.
func (s *sim) commit(files map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files = maps.Clone(files)
	if _, ok := files["cluster.yaml"]; !ok {
		files["cluster.yaml"] = simCluster
	}
	s.commits = append(s.commits, files)
}

const simCluster = `apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec: {host: host1, capacity: 100Ti, volumes: {file: {path: pools/fast}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}}
`

func simVM(name, more string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: %s}\nspec: {host: host1, cpu: {cores: 1}%s}\n", name, more)
}

func simDisk(name string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: %s}\nspec: {pool: fast, size: 1Gi}\n", name)
}

// pass is one pass over the newest revision.
func (s *sim) pass() (*reconcile.Plan, error) {
	return s.agent.runPass(context.Background(), true, func(string) {})
}

// mustPass is a pass that nothing is wrong with.
func (s *sim) mustPass() *reconcile.Plan {
	s.t.Helper()
	p, err := s.pass()
	if err != nil {
		s.t.Fatalf("pass at %s: %v\n%s", s.clock(), err, s.log)
	}
	return p
}

// wake lets time pass until the agent would look again by itself, as if it had
// no interval.
func (s *sim) wake() time.Duration {
	const never = 10 * 365 * 24 * time.Hour
	d := s.agent.nextRetry(never)
	if d == never {
		s.t.Fatalf("at %s nothing would wake the agent", s.clock())
	}
	s.sleep(d)
	return d
}

// ran lists what reached the drivers since the last call.
func (s *sim) ran() []begun {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.began
	s.began = nil
	return list
}

func (s *sim) live(kind spec.Kind, name string) *reconcile.Live {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.state.Objects {
		if h.Kind == kind && h.Name == name {
			return h
		}
	}
	return nil
}

// set changes an object behind the agent's back.
func (s *sim) set(kind spec.Kind, name string, change func(*reconcile.Live)) {
	s.t.Helper()
	h := s.live(kind, name)
	if h == nil {
		s.t.Fatalf("%s/%s is not there", kind, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	change(h)
}

func actionOf(t *testing.T, p *reconcile.Plan, name string) *reconcile.Action {
	t.Helper()
	for i := range p.Actions {
		if objectName(&p.Actions[i]) == name {
			return &p.Actions[i]
		}
	}
	t.Fatalf("the plan has no %s", name)
	return nil
}

func (s *sim) observe(kinds ...spec.Kind) reconcile.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := reconcile.NewState()
	for _, k := range kinds {
		out.Complete[k] = true
	}
	for k, h := range s.state.Objects {
		if out.Complete[k.Kind] {
			c := *h
			if h.Disk != nil {
				d := *h.Disk
				d.Elapsed = d.Quarantined && !d.Until.IsZero() && !s.now.Before(d.Until)
				c.Disk = &d
			}
			if h.VM != nil {
				vm := *h.VM
				c.VM = &vm
			}
			out.Objects[k] = &c
		}
	}
	return out
}

func (s *sim) apply(a reconcile.Action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = append(s.began, begun{s.now, a.Op, a.Impact, objectName(&a)})
	a.State = reconcile.Ready
	s.state = reconcile.Simulate(s.state, reconcile.Plan{Actions: []reconcile.Action{a}})
	if h := s.state.Objects[a.Key()]; h != nil && a.Op == reconcile.OpQuarantine {
		h.Disk.Until = s.now.Add(7 * 24 * time.Hour)
	}
	if s.took != nil {
		s.now = s.now.Add(s.took(&a))
	}
}

// The drivers embed their interfaces: what no test needs is not there.

type simSource struct {
	Source
	s *sim
}

// answer waits for the end of ctx where the forge accepts and says nothing.
func (r simSource) answer(ctx context.Context, call string) error {
	if !r.s.silent.Load() {
		return nil
	}
	select {
	case r.s.waits <- call:
	default:
	}
	<-ctx.Done()
	return ctx.Err()
}

func (r simSource) Fetch(ctx context.Context) (Revision, error) {
	if err := r.answer(ctx, "fetch"); err != nil {
		return Revision{}, err
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return Revision{Hash: fmt.Sprintf("%040d", len(r.s.commits)), Subject: "a commit"}, r.s.broken
}

func (r simSource) Resolve(_ context.Context, rev string) (Revision, error) {
	return Revision{Hash: rev}, nil
}

func (r simSource) Load(_ context.Context, hash string) (*spec.Set, error) {
	n := 0
	if _, err := fmt.Sscanf(hash, "%d", &n); err != nil {
		return nil, err
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	fsys := fstest.MapFS{}
	for name, text := range r.s.commits[n-1] {
		text = strings.Replace(text, "kind: Cluster\nmetadata: {name: demo}", "kind: Cluster\nmetadata: {name: "+r.s.cluster()+"}", 1)
		fsys[path.Clean(name)] = &fstest.MapFile{Data: []byte(text)}
	}
	return spec.Load(fsys)
}

func (r simSource) Descends(_ context.Context, ancestor, hash string) (bool, error) {
	return ancestor <= hash, nil
}
func (r simSource) Between(_ context.Context, from, to string, _ bool) (list []Revision, err error) {
	first, last := 0, 0
	if from != "" {
		_, err = fmt.Sscanf(from, "%d", &first)
	}
	_, err2 := fmt.Sscanf(to, "%d", &last)
	for n := last; n > first; n-- {
		list = append(list, Revision{Hash: fmt.Sprintf("%040d", n)})
	}
	return list, errors.Join(err, err2)
}
func (r simSource) Keep(context.Context, string) error { return nil }
func (r simSource) Publish(ctx context.Context, _, _ string, _ map[string][]byte, _ gitrepo.PushOptions) error {
	return r.answer(ctx, "push")
}
func (r simSource) Records(ctx context.Context, _ string) (map[string][]byte, error) {
	return nil, r.answer(ctx, "records")
}
func (r simSource) Report(context.Context, string, string) (data, payload, signature []byte, err error) {
	return nil, nil, nil, gitrepo.ErrRevisionMissing
}
func (r simSource) Watch() []string { return nil }

type simHypervisor struct {
	Hypervisor
	s *sim
}

func (d simHypervisor) Observe(context.Context, *reconcile.Desired) (reconcile.State, error) {
	return d.s.observe(spec.KindVirtualMachine), nil
}

func (d simHypervisor) Prove(context.Context, reconcile.Action, reconcile.Inputs) error { return nil }

func (d simHypervisor) Apply(ctx context.Context, a reconcile.Action, _ reconcile.Inputs) (reconcile.Outputs, error) {
	if d.s.hang != nil {
		if err := d.s.hang(ctx, &a); err != nil {
			return reconcile.Outputs{}, err
		}
	}
	d.s.apply(a)
	return reconcile.Outputs{}, nil
}

type simStorage struct {
	Storage
	s *sim
}

func (d simStorage) Observe(context.Context, *reconcile.Desired) (reconcile.State, error) {
	return d.s.observe(spec.KindDisk, spec.KindStoragePool), nil
}

func (d simStorage) Apply(ctx context.Context, a reconcile.Action, _ reconcile.Inputs) (reconcile.Outputs, error) {
	if d.s.hang != nil {
		if err := d.s.hang(ctx, &a); err != nil {
			return reconcile.Outputs{}, err
		}
	}
	d.s.apply(a)
	return reconcile.Outputs{}, nil
}
func (d simStorage) Ensure(context.Context) error { return nil }
func (d simStorage) Claim(_ context.Context, disk string, _ claim.Owner) (claim.Grant, error) {
	return claim.Grant{Disk: disk}, nil
}
func (d simStorage) Release(context.Context, string, claim.Owner) error { return nil }
func (d simStorage) ReleaseMachine(context.Context, string) error       { return nil }
