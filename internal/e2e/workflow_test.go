package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"reconciler/reconcile"
)

// thief is a workflow that takes what it can get, on every occasion.
const thief = `on:
  push:
  create:
  pull_request:
  pull_request_target:
jobs:
  plan:
    runs-on: ubuntu-latest
    steps:
    - env:
        KEY: ${{ secrets.RECONCILER_PLAN_KEY }}
        TOKEN: ${{ secrets.RECONCILER_TOKEN }}
      run: echo "stolen $KEY $TOKEN"
`

// A pull request is planned by the workflow, the keys and the program of the
// base, whatever it says about any of them.
func TestPullRequestAgainstItsReview(t *testing.T) {
	w := newForgeWorld(t)
	first := w.begin()
	w.start()
	w.allow("the first commit")
	w.awaitStatus(passTime, first, hostContext, "success")

	t.Log("one that is not planned, with a status and an approval of its author's own")
	w.write("own.yaml", disk("own", "1Mi"))
	p := w.propose("own", "An own disk")
	w.refusesMerge(p)
	w.repo.SetStatus(t, w.ada, p.Head.SHA, planContext, "success", "1 create")
	merged := w.merge(p)
	w.reconcile()
	w.expect("Disk/own", reconcile.Held, "not in the approved plan")
	w.awaitStatus(passTime, merged, hostContext, "pending")
	w.key("ada")
	w.secret("ada.token", w.ada.Token)
	if out, code := w.outside("approve", "--base", first, "--head", p.Head.SHA, "--token-file", w.file("ada.token"), "--key", w.file("ada")); code != 0 {
		t.Fatalf("ci approve: exit %d\n%s", code, out)
	}
	w.reconcile()
	w.expect("Disk/own", reconcile.Held, "not in the approved plan")
	if told := w.cli("events"); !strings.Contains(told, "RecordRefused") || !strings.Contains(told, "NotReviewed") {
		t.Errorf("the events tell nothing of it:\n%s", told)
	}
	w.allow("looked at it on the host")
	w.awaitStatus(passTime, merged, hostContext, "success")
	first = merged

	w.startCI()
	t.Log("one from a fork that replaces the workflow")
	eve := w.g.NewUser(t, "eve")
	fork := w.repo.Fork(t, eve)
	edit := map[string][]byte{"more.yaml": []byte(disk("more", "1Mi")), ".github/workflows/plan.yaml": []byte(thief)}
	for _, name := range w.workflowFiles() {
		edit[name] = []byte(thief)
	}
	fork.Commit(t, eve, "more", "add a disk", edit)
	p = w.repo.NewPull(t, eve, "eve:more", "main", "Add a disk")
	if plan := w.planOf(p, "success"); !strings.Contains(plan, "Disk/more") {
		t.Errorf("the comment does not tell of Disk/more:\n%s", plan)
	}
	w.nothingStolen()

	t.Log("branches, tags and files of one who may push")
	w.git("checkout", "-q", "-b", "theft")
	for _, name := range append(w.workflowFiles(), ".github/workflows/plan.yaml") {
		w.write(name, thief)
		w.git("add", "-A")
		w.git("commit", "-q", "-m", "theft")
		for _, ref := range []string{"refs/heads/theft", "refs/heads/reconciler-drift/host1", "refs/tags/theft", "refs/heads/main"} {
			if out, err := w.push("HEAD:" + ref); err == nil {
				t.Errorf("the forge takes %s in %s: %s", name, ref, out)
			}
		}
		w.git("reset", "-q", "--hard", "HEAD~1")
	}
	w.nothingStolen()

	t.Log("one that names another key for the host's reports")
	own, err := os.ReadFile(w.file("ada.pub"))
	w.must(err)
	w.git("checkout", "-q", "--detach", first)
	base := w.keyed(strings.TrimSpace(string(own)))
	w.write("base.yaml", base)
	p = w.propose("another-key", "Another key")
	if plan := w.planOf(p, "success"); strings.Contains(plan, "INCOMPLETE") || !strings.Contains(plan, "checked against the base's") {
		t.Errorf("the report of the host does not count any more:\n%s", plan)
	}

	t.Log("and the report that was made with it")
	w.stop()
	w.forgeStatus("ada")
	w.git("checkout", "-q", "--detach", first)
	w.write("base.yaml", base+disk("more", "1Mi"))
	p = w.propose("forged", "Another key and a report made with it")
	approvals := w.tip("refs/reconciler/approvals")
	plan := w.planOf(p, "failure")
	for _, want := range []string{"INCOMPLETE", "host1", "the signature of its report"} {
		if !strings.Contains(plan, want) {
			t.Errorf("the comment does not say %q:\n%s", want, plan)
		}
	}
	if now := w.tip("refs/reconciler/approvals"); now != approvals {
		t.Errorf("an incomplete plan was approved: %s", w.git("show", "--stat", now))
	}
	w.nothingStolen()
}

// workflowFiles are the paths of the workflows in the repository.
func (w *forgeWorld) workflowFiles() []string {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.work, ".gitea/workflows/*"))
	w.must(err)
	for i := range files {
		files[i] = ".gitea/workflows/" + filepath.Base(files[i])
	}
	return files
}

// nothingStolen fails if a job of somebody's own workflow had the pipeline's
// secrets, or if one is to be read in any log.
func (w *forgeWorld) nothingStolen() {
	w.t.Helper()
	signer, err := os.ReadFile(w.file("signer"))
	w.must(err)
	body := strings.Split(string(signer), "\n")[2]
	for _, run := range w.runner.Runs() {
		own := strings.Contains(run.Source, "stolen")
		if own && (run.Secrets["RECONCILER_PLAN_KEY"] != "" || run.Secrets["RECONCILER_TOKEN"] != "") {
			w.t.Errorf("a workflow that is not the base's has the secrets: %v", run)
		}
		if strings.Contains(run.Log, "stolen") || strings.Contains(run.Log, body) || strings.Contains(run.Log, w.token) {
			w.t.Errorf("a log tells a secret: %v", run)
		}
	}
}

// outside runs a command for pipelines as somebody outside of one.
func (w *forgeWorld) outside(command string, args ...string) (string, int) {
	w.t.Helper()
	args = append([]string{"ci", command, "--repo", w.repo.URL()}, args...)
	cmd := exec.CommandContext(w.t.Context(), binary, args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// push pushes as ada and says what becomes of it.
func (w *forgeWorld) push(refspec string) (string, error) {
	cmd := exec.CommandContext(w.t.Context(), "git", "push", "-q", "-f", "origin", refspec)
	cmd.Dir = w.work
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tip fetches a ref of the forge; it is empty if there is none.
func (w *forgeWorld) tip(ref string) string {
	w.t.Helper()
	if w.git("ls-remote", "origin", ref) == "" {
		return ""
	}
	w.git("fetch", "-q", "origin", ref)
	return w.git("rev-parse", "FETCH_HEAD")
}

// forgeStatus replaces the host's report by one with the same content that is
// signed with another key.
func (w *forgeWorld) forgeStatus(key string) {
	w.t.Helper()
	tip := w.tip("refs/reconciler/status/host1")
	forged := w.git("-c", "gpg.format=ssh", "-c", "user.signingkey="+w.file(key), "commit-tree", "-S", "-m", w.git("log", "-1", "--format=%B", tip), tip+"^{tree}")
	if out, err := w.push(forged + ":refs/reconciler/status/host1"); err != nil {
		w.t.Fatalf("push the forged report: %s", out)
	}
}
