package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/forge"
	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/review"
	"reconciler/spec"
	"reconciler/status"
	"reconciler/trust"
)

var ciNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// ciWorld is a repository with a host that reports, and a job that plans a pull
// request to it. There is no forge and no network.
type ciWorld struct {
	t       *testing.T
	dir     string // of the work tree
	hostKey *trust.Key
	signer  *trust.Key
	now     time.Time
}

func newCIWorld(t *testing.T) *ciWorld {
	t.Helper()
	w := &ciWorld{t: t, dir: t.TempDir(), now: ciNow}
	w.hostKey, w.signer = ciKey(t), ciKey(t)
	w.git("init", "-q", "-b", "main")
	w.commit("begin", map[string]string{"base.yaml": w.base(w.hostKey.Public()), "web.yaml": ciVM("web", "128Mi")})
	w.report(nil)
	w.git("checkout", "-q", "-b", "feature")
	return w
}

func ciKey(t *testing.T) *trust.Key {
	t.Helper()
	k, _, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *ciWorld) base(signingKey string) string {
	if signingKey != "" {
		signingKey = ", signingKey: \"" + strings.TrimSpace(signingKey) + "\""
	}
	return `apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
spec: {id: demo}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}` + signingKey + `}
`
}

func ciVM(name, memory string) string {
	return "apiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata: {name: " + name + "}\nspec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: " + memory + "}\n"
}

func (w *ciWorld) git(args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "git", args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=ada", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=ada", "GIT_COMMITTER_EMAIL=ada@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes files, removes those that are empty, and commits.
func (w *ciWorld) commit(message string, files map[string]string) string {
	w.t.Helper()
	for name, text := range files {
		path := filepath.Join(w.dir, name)
		var err error
		if text == "" {
			err = os.Remove(path)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	w.git("add", "-A")
	w.git("commit", "-q", "--allow-empty", "-m", message)
	return w.git("rev-parse", "HEAD")
}

// open opens the repository as somebody else does.
func (w *ciWorld) open() *gitrepo.Repo {
	w.t.Helper()
	r, err := gitrepo.Open(gitrepo.Config{URL: w.dir, Branch: "main", CacheDir: w.t.TempDir()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return r
}

// set is the specs of the branch.
func (w *ciWorld) set(rev string) *spec.Set {
	w.t.Helper()
	dir := w.t.TempDir()
	for _, name := range strings.Fields(w.git("ls-tree", "--name-only", rev)) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(w.git("show", rev+":"+name)+"\n"), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	set, err := loadDir(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return set
}

// reporting is one report of the host.
type reporting struct {
	recorded status.Recorded
	key      *trust.Key // nil: it is not signed
	raw      []byte     // in place of the report
}

// report is what the host would say after it applied the main branch.
func (w *ciWorld) report(change func(*reporting)) {
	w.t.Helper()
	base := reconcile.BaseOf(reconcile.NewDesired(w.set("main"), "host1", "main"))
	r := reporting{
		recorded: status.Record("host1", "demo", w.git("rev-parse", "main"), reconcile.StateFromBase(base), base, w.now),
		key:      w.hostKey,
	}
	if change != nil {
		change(&r)
	}
	files, err := status.Files(status.Host{Host: "host1"}, nil, r.recorded)
	if err != nil {
		w.t.Fatal(err)
	}
	if r.raw != nil {
		files[status.StateFile] = r.raw
	}
	// The same report is not pushed again, whoever signs it.
	w.git("update-ref", "-d", "refs/reconciler/status/host1")
	opts := gitrepo.PushOptions{When: w.now}
	if r.key != nil {
		opts.Sign = func(payload []byte) ([]byte, error) { return r.key.Sign(payload, trust.NamespaceGit) }
	}
	if _, _, err := w.open().PushFiles(w.t.Context(), "refs/reconciler/status/host1", files, "status", opts); err != nil {
		w.t.Fatal(err)
	}
}

// job opens a job for the branch feature.
func (w *ciWorld) job(change func(*ciSetup)) *ciJob {
	w.t.Helper()
	s := ciSetup{repo: w.dir, ciFlags: ciFlags{
		base: "main", head: "feature", maxAge: 15 * time.Minute,
		statusRefs: "refs/reconciler/status/", approvals: "refs/reconciler/approvals",
	}}
	if change != nil {
		change(&s)
	}
	p, err := (&app{}).ciPolicy("")
	if err != nil {
		w.t.Fatal(err)
	}
	j, err := openCI(s, "", w.t.TempDir(), p, func() time.Time { return w.now })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := j.close(); err != nil {
			w.t.Error(err)
		}
	})
	return j
}

func (w *ciWorld) compute() *ciResult {
	w.t.Helper()
	r, err := w.job(nil).compute(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// onlyRow is the one action with an origin.
func onlyRow(t *testing.T, r *review.Report) review.Row {
	t.Helper()
	var found []review.Row
	for _, row := range r.Actions {
		if row.Origin != "" {
			found = append(found, row)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d actions: %+v", len(found), found)
	}
	return found[0]
}

func TestCIPlan(t *testing.T) {
	w := newCIWorld(t)
	w.commit("more memory", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	r := w.compute()
	row := onlyRow(t, r.report)
	if row.Name != "web" || row.Origin != review.PullRequest || row.Impact != reconcile.ImpactRestart || row.ID == "" {
		t.Errorf("%+v", row)
	}
	// The host agrees on what it is called.
	base := reconcile.BaseOf(reconcile.NewDesired(w.set("main"), "host1", "main"))
	plan := reconcile.Diff(reconcile.NewDesired(w.set("feature"), "host1", "feature"), base, reconcile.StateFromBase(base), ciNow)
	if h := r.report.Hosts[0]; h.Digest != plan.Hosts[0].Digest || !slices.Contains(h.IDs, row.ID) || r.report.Tree != w.git("rev-parse", "feature^{tree}") {
		t.Errorf("host %+v, tree %s", h, r.report.Tree)
	}
	for detailed, want := range map[bool]int{false: 0, true: exitWaiting} {
		if got := report(t.Context(), &bytes.Buffer{}, "x", r.exit(detailed)); got != want {
			t.Errorf("detailed %v: exit code %d, want %d", detailed, got, want)
		}
	}
}

// The plan is of the merge, not of the branch: what came to main meanwhile is
// not undone.
func TestCIPlansTheMerge(t *testing.T) {
	w := newCIWorld(t)
	w.commit("one", map[string]string{"one.yaml": ciVM("one", "128Mi")})
	w.git("checkout", "-q", "main")
	w.commit("two", map[string]string{"two.yaml": ciVM("two", "128Mi")})
	w.report(nil)
	if row := onlyRow(t, w.compute().report); row.Name != "one" || row.Op != reconcile.OpCreate {
		t.Errorf("%s %s", row.Op, row.Name)
	}
}

func TestCIConflict(t *testing.T) {
	w := newCIWorld(t)
	w.commit("one", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	w.git("checkout", "-q", "main")
	w.commit("two", map[string]string{"web.yaml": ciVM("web", "512Mi")})
	r := w.compute()
	if !strings.Contains(r.problem, "web.yaml") || report(t.Context(), &bytes.Buffer{}, "x", r.exit(false)) != exitError {
		t.Errorf("problem %q", r.problem)
	}
	if state, text := r.status(); state != forge.Failure || !strings.Contains(text, "does not merge") {
		t.Errorf("%s %q", state, text)
	}
}

func TestCISpecErrors(t *testing.T) {
	w := newCIWorld(t)
	w.commit("typo", map[string]string{"web.yaml": strings.Replace(ciVM("web", "256Mi"), "memory", "memroy", 1)})
	r := w.compute()
	var out bytes.Buffer
	(&app{stdout: &out}).annotate(r)
	if !strings.HasPrefix(out.String(), "::error file=web.yaml,line=") || !strings.Contains(out.String(), "memroy") {
		t.Errorf("annotations %q", out.String())
	}
	if md := r.markdown(10_000, ""); !strings.Contains(md, "memroy") {
		t.Error(md)
	}
	if code := report(t.Context(), &bytes.Buffer{}, "x", r.exit(false)); code != exitError {
		t.Errorf("exit code %d", code)
	}
}

// What a pull request brings and cloud-init passes over is warned of, once.
func TestCIWarnings(t *testing.T) {
	w := newCIWorld(t)
	with := func(name, first string) string {
		return ciVM(name, "128Mi") + "  cloudInit:\n    userData:\n      inline: |\n        " + first + "\n        users: []\n"
	}
	w.git("checkout", "-q", "main")
	w.commit("before", map[string]string{"old.yaml": with("old", "# cloud-config")})
	w.report(nil)
	w.git("checkout", "-q", "feature")
	w.git("merge", "-q", "main")
	w.commit("after", map[string]string{"new.yaml": with("new", "# cloud-config"), "good.yaml": with("good", "#cloud-config")})
	r := w.compute()
	var out bytes.Buffer
	(&app{stdout: &out}).annotate(r)
	if want := "::warning file=new.yaml,line=11,col=9::spec.cloudInit.userData.inline: cloud-init passes over a text that begins with \"# cloud-config\" (write #cloud-config and nothing else)\n"; out.String() != want {
		t.Errorf("annotations\n%s, want\n%s", out.String(), want)
	}
	if code := report(t.Context(), &bytes.Buffer{}, "x", r.exit(false)); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// A base that does not load must not keep its fix from being planned.
func TestCIFixesABrokenBase(t *testing.T) {
	w := newCIWorld(t)
	w.git("checkout", "-q", "main")
	good := w.git("rev-parse", "main")
	w.commit("break", map[string]string{"web.yaml": "kind: Nonsense\n"})
	w.git("branch", "-f", "feature", "main")
	w.git("checkout", "-q", "feature")
	w.commit("fix", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	r := w.compute()
	if row := onlyRow(t, r.report); row.Name != "web" || r.report.Incomplete {
		t.Errorf("%+v", r.report.Hosts)
	}
	if notes := strings.Join(r.report.Hosts[0].Notes, "\n"); !strings.Contains(notes, good[:12]) {
		t.Errorf("notes %q", notes)
	}
}

// A report counts if the host that the base names signed it just now.
func TestCIIncomplete(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *ciWorld)
		why    string
	}{
		"missing":       {func(w *ciWorld) { w.git("update-ref", "-d", "refs/reconciler/status/host1") }, "it has reported nothing"},
		"not signed":    {func(w *ciWorld) { w.report(func(r *reporting) { r.key = nil }) }, "not signed"},
		"wrong key":     {func(w *ciWorld) { w.report(func(r *reporting) { r.key = w.signer }) }, "key is not known"},
		"other cluster": {func(w *ciWorld) { w.report(func(r *reporting) { r.recorded.Cluster = "prod" }) }, `cluster "prod"`},
		"other host":    {func(w *ciWorld) { w.report(func(r *reporting) { r.recorded.Host = "host2" }) }, `host "host2"`},
		"stale":         {func(w *ciWorld) { w.now = w.now.Add(15*time.Minute + time.Second) }, "15m1s old, and at most 15m0s"},
		"of the future": {func(w *ciWorld) { w.report(func(r *reporting) { r.recorded.ObservedAt = w.now.Add(time.Hour) }) }, "in the future"},
		"no base":       {func(w *ciWorld) { w.report(func(r *reporting) { r.recorded.Applied = nil }) }, "too old to report"},
		"garbage":       {func(w *ciWorld) { w.report(func(r *reporting) { r.raw = []byte("{") }) }, "state.json"},
		"the key comes with the pull request": {func(w *ciWorld) {
			w.report(func(r *reporting) { r.key = w.signer })
			w.commit("another key", map[string]string{"base.yaml": w.base(w.signer.Public())})
		}, "key is not known"},
		"no key in the base": {func(w *ciWorld) {
			w.git("checkout", "-q", "main")
			w.commit("no key", map[string]string{"base.yaml": w.base("")})
			w.git("checkout", "-q", "feature")
		}, "the base has no spec.signingKey for Host/host1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCIWorld(t)
			w.commit("more memory", map[string]string{"web.yaml": ciVM("web", "256Mi")})
			c.change(w)
			r := w.compute()
			h := r.report.Hosts[0]
			if !r.report.Incomplete || !strings.Contains(h.Problem, c.why) || len(h.IDs) != 0 {
				t.Fatalf("incomplete %v, problem %q, ids %v", r.report.Incomplete, h.Problem, h.IDs)
			}
			if code := report(t.Context(), &bytes.Buffer{}, "x", r.exit(false)); code != exitIncomplete {
				t.Errorf("exit code %d", code)
			}
			if state, text := r.status(); state != forge.Failure || !strings.HasPrefix(text, "incomplete: host1: ") || !strings.Contains(text, c.why) {
				t.Errorf("%s %q", state, text)
			}
			if err := r.approvable(""); err == nil || !strings.Contains(err.Error(), "host1") {
				t.Errorf("approvable: %v", err)
			}
		})
	}
}

// A signing key that a pull request replaces is said, and the plan is complete.
func TestCIKeyRotation(t *testing.T) {
	w := newCIWorld(t)
	w.commit("another key", map[string]string{"base.yaml": w.base(w.signer.Public())})
	h := w.compute().report.Hosts[0]
	if h.Problem != "" || !strings.Contains(strings.Join(h.Notes, "\n"), "changes its signing key") {
		t.Errorf("%+v", h)
	}
}

func TestCINewHost(t *testing.T) {
	w := newCIWorld(t)
	w.commit("host2", map[string]string{"host2.yaml": "apiVersion: reconciler/v1alpha1\nkind: Host\nmetadata: {name: host2}\nspec: {roles: [Hypervisor], addresses: {management: 127.0.0.2}}\n"})
	r := w.compute()
	if len(r.report.Hosts) != 2 || r.report.Incomplete || !r.report.Hosts[1].New || len(r.report.Hosts[1].IDs) == 0 {
		t.Errorf("%+v", r.report.Hosts)
	}
}

// fakeForge keeps what it is told.
type fakeForge struct {
	statuses []forge.Status
	commits  []string
	comments []string
	err      error
}

func (f *fakeForge) SetStatus(_ context.Context, commit string, s forge.Status) error {
	f.statuses, f.commits = append(f.statuses, s), append(f.commits, commit)
	return f.err
}

func (f *fakeForge) Comment(_ context.Context, _ int, marker, body string) (string, error) {
	if !strings.HasPrefix(body, marker) || len(body) > f.CommentLimit() {
		return "", errors.New("no marker, or too long")
	}
	f.comments = append(f.comments, body)
	return "url", f.err
}

func (f *fakeForge) CommentLimit() int { return 65536 }

func TestCIPosts(t *testing.T) {
	w := newCIWorld(t)
	head := w.commit("more memory", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	w.git("update-ref", "refs/pull/7/head", "feature")
	f := &fakeForge{}
	p := ciPost{job: w.job(func(s *ciSetup) { s.pull, s.head = 7, "" }), forge: f, context: "reconciler/plan", shown: "https://run"}
	if _, err := p.plan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.statuses) != 1 || f.commits[0] != head || f.statuses[0].State != forge.Success || f.statuses[0].Context != "reconciler/plan" ||
		f.statuses[0].URL != "https://run" || !strings.Contains(f.statuses[0].Description, "1 update") {
		t.Errorf("%+v", f.statuses)
	}
	if len(f.comments) != 1 || !strings.Contains(f.comments[0], "VirtualMachine/web") {
		t.Errorf("%+v", f.comments)
	}
	if want := []string{"Comment  url", "Status   reconciler/plan of " + head[:12] + " is success"}; !slices.Equal(p.told, want) {
		t.Errorf("the job tells of %q, not of %q", p.told, want)
	}
	if strings.Contains(f.comments[0], "signed by") {
		t.Errorf("nobody signed this:\n%s", f.comments[0])
	}
	// A job that was overtaken says so to its own commit only.
	w.commit("more still", map[string]string{"web.yaml": ciVM("web", "512Mi")})
	w.git("update-ref", "refs/pull/7/head", "feature")
	p.job = w.job(func(s *ciSetup) { s.pull, s.head = 7, head })
	r, err := p.plan(t.Context())
	if err != nil || !r.moved || len(f.comments) != 1 || f.commits[1] != head {
		t.Errorf("%v, moved %v, %d comments", err, r.moved, len(f.comments))
	}
	if err := r.approvable(""); err == nil {
		t.Error("a plan that was overtaken is approved")
	}
	f.err = errors.New("the forge is down")
	if r, err := p.plan(t.Context()); err == nil || r == nil {
		t.Errorf("the outcome is lost with the forge: %v %v", r, err)
	}
	// What nobody could see is not signed, and its status is no success.
	p.job, p.key, p.valid = w.job(func(s *ciSetup) { s.pull, s.head = 7, "" }), ciKey(t), time.Hour
	told := len(f.statuses)
	if _, err := p.plan(t.Context()); err == nil || len(f.statuses) != told+1 || f.statuses[told].State != forge.Errored {
		t.Errorf("a plan that could not be shown: %v, %+v", err, f.statuses[told:])
	}
	if files, _, err := p.job.specs.ReadFiles(t.Context(), p.job.setup.approvals, 10); len(files) > 0 {
		t.Errorf("a plan that could not be shown is approved: %d files, %v", len(files), err)
	}
	f.err, f.comments = nil, nil
	if _, err := p.plan(t.Context()); err != nil || !strings.Contains(strings.Join(f.comments, ""), "is signed by `"+p.key.Fingerprint()+"`") {
		t.Errorf("the comment does not say who signs: %v, %q", err, f.comments)
	}
}

// In a terminal it is enough to name the forge: the rest follows from --repo.
func TestCIForgeFollowsFromRepo(t *testing.T) {
	s := ciSetup{repo: "https://git.example.org/ops/cluster.git", ciFlags: ciFlags{forge: "gitea", forgeToken: "token", pull: 7}}
	if f, err := s.poster(); err != nil || f.Repository() != "ops/cluster" {
		t.Errorf("%v", err)
	}
	s.pull = 0
	if f, err := s.poster(); f != nil || err != nil {
		t.Errorf("without a pull request: %v, %v", f, err)
	}
}

// A plan that could not be made must not leave an older success in force.
func TestCIStatusOfFailure(t *testing.T) {
	w := newCIWorld(t)
	head := w.commit("more memory", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	f := &fakeForge{}
	p := ciPost{job: w.job(func(s *ciSetup) { s.base, s.env.head = "nowhere", head }), forge: f, context: "reconciler/plan"}
	if _, err := p.plan(t.Context()); err == nil || len(f.statuses) != 1 || f.statuses[0].State != forge.Errored || f.commits[0] != head {
		t.Errorf("%v, %+v", err, f.statuses)
	}
}

func (w *ciWorld) records() map[string][]byte {
	w.t.Helper()
	files, _, err := w.open().ReadFiles(w.t.Context(), "refs/reconciler/approvals", 100)
	if err != nil && !errors.Is(err, gitrepo.ErrRevisionMissing) {
		w.t.Fatal(err)
	}
	return files
}

func TestCIApprove(t *testing.T) {
	w := newCIWorld(t)
	w.commit("more memory", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	j := w.job(nil)
	r, err := j.compute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	records, err := j.approve(t.Context(), r, w.signer, time.Hour, false)
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	// The repository has them in the form that hosts read.
	s, ok := review.ApprovalOf(w.records(), r.merge.Tree, "host1")
	if !ok {
		t.Fatalf("no approval among %v", slices.Collect(maps.Keys(w.records())))
	}
	keys, err := trust.ParsePublicKeys([]string{w.signer.Public()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Verify(s.Data, s.Signature, trust.NamespaceApproval, w.now); err != nil {
		t.Error(err)
	}
	rec, err := review.ParseApproval(s.Data)
	if err != nil || rec.Base != w.git("rev-parse", "main") || !slices.Equal(rec.IDs, r.report.Hosts[0].IDs) ||
		rec.State != w.git("rev-parse", "refs/reconciler/status/host1") || rec.Check("demo", "host1", w.now) != nil {
		t.Errorf("%+v, %v", rec, err)
	}
	// Another pull request's joins it.
	w.git("checkout", "-q", "-B", "feature", "main")
	w.commit("another", map[string]string{"one.yaml": ciVM("one", "128Mi")})
	j = w.job(nil)
	if r, err = j.compute(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := j.approve(t.Context(), r, w.signer, time.Hour, false); err != nil {
		t.Fatal(err)
	}
	if n := len(w.records()); n != 4 {
		t.Errorf("%d files, want two records with their signatures", n)
	}
}

// Two jobs at a time lose no record of each other's.
func TestCIApprovalsRace(t *testing.T) {
	w := newCIWorld(t)
	w.commit("more memory", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	const jobs = 4
	errs := make(chan error, jobs)
	for i := range jobs {
		j := w.job(nil)
		s, err := sign(review.Override{
			Cluster: "demo", Host: "host1", IDs: []string{fmt.Sprintf("%064x", i)}, Reason: "test", Signed: w.now, Until: w.now.Add(time.Hour),
		}.Encode, review.Override{Host: "host1", IDs: []string{fmt.Sprintf("%064x", i)}}.Path, w.signer, trust.NamespaceOverride)
		if err != nil {
			t.Fatal(err)
		}
		go func() { errs <- j.push(t.Context(), "override", []review.Signed{s}) }()
	}
	for range jobs {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := len(w.records()); n != 2*jobs {
		t.Errorf("%d files of %d records are there", n, jobs)
	}
}

// What was shown is what is signed.
func TestCIApproveShown(t *testing.T) {
	w := newCIWorld(t)
	w.commit("more memory", map[string]string{"web.yaml": ciVM("web", "256Mi")})
	shown := filepath.Join(t.TempDir(), "plan.json")
	r := w.compute()
	if err := writeTo(shown, func(f io.Writer) error { return json.NewEncoder(f).Encode(r.report) }); err != nil {
		t.Fatal(err)
	}
	if err := w.compute().approvable(shown); err != nil {
		t.Errorf("the same plan: %v", err)
	}
	// What an approval holds beside the actions of the moment is a part of it.
	more := w.compute()
	more.report.Hosts[0].Also = append(more.report.Hosts[0].Also, strings.Repeat("f", 64))
	if err := more.approvable(shown); err == nil || !strings.Contains(err.Error(), "not the one that was shown") {
		t.Errorf("a plan that approves more: %v", err)
	}
	// The host goes back to nothing meanwhile.
	w.report(func(r *reporting) {
		r.recorded.Objects, r.recorded.Applied = []status.RecordedObject{}, []status.RecordedApplied{}
	})
	if err := w.compute().approvable(shown); err == nil || !strings.Contains(err.Error(), "not the one that was shown") {
		t.Errorf("another plan: %v", err)
	}
}

func TestCIEnv(t *testing.T) {
	event := `{"pull_request":{"number":7,"head":{"sha":"` + strings.Repeat("b", 40) + `"},"base":{"ref":"main"}}}`
	for name, c := range map[string]struct {
		env  map[string]string
		want ciEnv
	}{
		"nothing": {nil, ciEnv{}},
		"GitHub": {map[string]string{"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "o/r",
			"GITHUB_RUN_ID": "12", "GITHUB_RUN_NUMBER": "3", "GITHUB_EVENT_PATH": "/event", "GITHUB_STEP_SUMMARY": "/summary"},
			ciEnv{forge: "github", url: "https://github.com", repository: "o/r", clone: "https://github.com/o/r.git", pull: 7, base: "main",
				head: strings.Repeat("b", 40), run: "https://github.com/o/r/actions/runs/12", summary: "/summary"}},
		"Gitea": {map[string]string{"GITHUB_ACTIONS": "true", "GITEA_ACTIONS": "true", "GITHUB_SERVER_URL": "http://g:3000/", "GITHUB_REPOSITORY": "o/r",
			"GITHUB_RUN_ID": "12", "GITHUB_RUN_NUMBER": "3", "GITHUB_EVENT_PATH": "/event"},
			ciEnv{forge: "gitea", url: "http://g:3000/", repository: "o/r", clone: "http://g:3000/o/r.git", pull: 7, base: "main",
				head: strings.Repeat("b", 40), run: "http://g:3000/o/r/actions/runs/3"}},
		"GitLab": {map[string]string{"GITLAB_CI": "true", "CI_SERVER_URL": "https://gl", "CI_PROJECT_PATH": "g/s/r", "CI_PROJECT_URL": "https://gl/g/s/r",
			"CI_MERGE_REQUEST_IID": "7", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main", "CI_COMMIT_SHA": strings.Repeat("b", 40), "CI_JOB_URL": "https://gl/j"},
			ciEnv{forge: "gitlab", url: "https://gl", repository: "g/s/r", clone: "https://gl/g/s/r.git", pull: 7, base: "main", head: strings.Repeat("b", 40), run: "https://gl/j"}},
		"GitLab, a branch": {map[string]string{"GITLAB_CI": "true", "CI_COMMIT_SHA": strings.Repeat("b", 40)}, ciEnv{forge: "gitlab"}},
	} {
		got, err := readCIEnv(func(k string) string { return c.env[k] }, func(string) ([]byte, error) { return []byte(event), nil })
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v\nwant %+v", name, got, err, c.want)
		}
	}
}
