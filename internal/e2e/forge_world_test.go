package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/internal/testbed/gitea"
	"reconciler/internal/testbed/runner"
	"reconciler/reconcile"
)

// jobTime bounds what waits for a job of the forge's CI.
const jobTime = 90 * time.Second

// contexts of commit statuses.
const (
	planContext = "reconciler/plan"
	hostContext = "reconciler/host1"
)

// forgeWorld is a world whose repository is on a real forge, set up as the
// how-to says: people, a protected branch, a webhook, and CI that reviews.
type forgeWorld struct {
	*world
	g      *gitea.Gitea
	repo   gitea.Repo
	runner *runner.Runner

	owner gitea.User // of the repository
	ada   gitea.User // proposes
	bob   gitea.User // reviews
	robot gitea.User // the host's agent
	ci    gitea.User // what the pipeline writes as
	token string     // of ci
}

// newForgeWorld is newWorld on a forge. The first commit of the work tree is
// made by push, with what the test adds to it before that; from then on the
// branch is protected.
func newForgeWorld(t *testing.T) *forgeWorld {
	t.Helper()
	w := &forgeWorld{world: newWorld(t), g: gitea.Start(t)}
	w.owner, w.ada, w.bob = w.g.NewUser(t, "owner"), w.g.NewUser(t, "ada"), w.g.NewUser(t, "bob")
	w.robot, w.ci = w.g.NewUser(t, "host1-agent"), w.g.NewUser(t, "pipeline")
	w.repo = w.g.NewRepo(t, w.owner, "cluster")
	for _, u := range []gitea.User{w.ada, w.bob, w.robot, w.ci} {
		w.repo.Collaborator(t, u, "write")
	}
	w.git("remote", "set-url", "origin", w.repo.PushURL(w.ada))
	w.remote = w.repo.URL()

	w.secret("read.token", w.g.NewToken(t, w.robot, "read", "read:repository"))
	w.secret("write.token", w.g.NewToken(t, w.robot, "write", "write:repository"))
	w.secret("forge.token", w.g.NewToken(t, w.robot, "forge", "write:repository", "write:issue", "read:user"))
	w.secret("webhook.secret", "between the forge and the host")
	w.write("base.yaml", w.keyed(w.key("host")))
	w.workflows()
	w.token = w.g.NewToken(t, w.ci, "pipeline", "write:repository", "write:issue", "read:user")
	w.repo.Secret(t, "RECONCILER_TOKEN", w.token)
	signer := w.key("signer")
	pem, err := os.ReadFile(w.file("signer"))
	w.must(err)
	w.repo.Secret(t, "RECONCILER_PLAN_KEY", string(pem))

	hook := freePort(t)
	w.config(fmt.Sprintf(`
# Nothing but the webhook and what happens on the host wakes the agent.
interval: 1h
limits: {budget: {count: 100}}
credentials:
  tokenFile: %[1]s/read.token
  write: {tokenFile: %[1]s/write.token}
hostKeyFile: %[1]s/host
forge: {kind: gitea, url: "%[2]s", tokenFile: %[1]s/forge.token}
webhook: {listen: "%[3]s", secretFile: %[1]s/webhook.secret}
requireReviewedPlan: true
planSigners: ["%[4]s"]
`, w.dir, w.g.URL, hook, signer))
	_, port, err := net.SplitHostPort(hook)
	w.must(err)
	w.repo.Hook(t, "http://127.0.0.1:"+port+"/", "between the forge and the host")
	return w
}

// secret writes a file that only we may read.
func (w *world) secret(name, content string) {
	w.t.Helper()
	w.must(os.WriteFile(w.file(name), []byte(content+"\n"), 0o600))
}

// key makes an SSH key in a file of the world and returns its public line.
func (w *world) key(name string) string {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", w.file(name)).CombinedOutput()
	if err != nil {
		w.t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	public, err := os.ReadFile(w.file(name + ".pub"))
	w.must(err)
	return strings.TrimSpace(string(public))
}

// keyed is the base tree with the key that signs the host's reports.
func (w *forgeWorld) keyed(public string) string {
	return strings.Replace(w.base(), "addresses: {management: 127.0.0.1}}", "addresses: {management: 127.0.0.1}, signingKey: \""+public+"\"}", 1)
}

// workflows copies the example's, as a user does.
func (w *forgeWorld) workflows() {
	w.t.Helper()
	const from = "../../examples/cluster-repo/.gitea/workflows"
	files, err := filepath.Glob(from + "/*")
	w.must(err)
	if len(files) == 0 {
		w.t.Fatalf("there is no workflow in %s", from)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		w.must(err)
		w.write(".gitea/workflows/"+filepath.Base(f), string(text))
	}
}

// begin pushes the work tree as the owner and protects the repository.
func (w *forgeWorld) begin() string {
	w.t.Helper()
	w.git("add", "-A")
	w.git("commit", "-q", "-m", "begin")
	w.git("push", "-q", w.repo.PushURL(w.owner), "HEAD:main")
	w.protect()
	return w.git("rev-parse", "HEAD")
}

// protect has main changed by reviewed pull requests only, and workflows by
// nothing else: a branch or tag with a workflow of its own would run with the
// pipeline's secrets.
func (w *forgeWorld) protect() {
	w.t.Helper()
	post := func(path string, in map[string]any) {
		w.t.Helper()
		if code, body := w.g.Do(w.t, w.owner, "POST", "/repos/"+w.repo.String()+path, in, nil); code/100 != 2 {
			w.t.Fatalf("%s: %d %s", path, code, body)
		}
	}
	post("/branch_protections", map[string]any{
		"rule_name": "main", "priority": 1, "enable_push": false, "required_approvals": 1, "dismiss_stale_approvals": true,
		"block_admin_merge_override": true, "block_on_outdated_branch": true, "enable_status_check": true, "status_check_contexts": []string{planContext},
	})
	post("/branch_protections", map[string]any{
		"rule_name": "**", "priority": 2, "enable_push": true, "enable_force_push": true, "protected_file_patterns": ".gitea/**;.github/**",
	})
	post("/tag_protections", map[string]any{"name_pattern": "**", "whitelist_usernames": []string{w.owner.Name}})
}

// startCI lets the pipeline take up its work.
func (w *forgeWorld) startCI() {
	w.t.Helper()
	w.runner = runner.Start(w.t, w.g, w.repo, runner.Config{Path: []string{filepath.Dir(binary)}})
}

// allow releases what the host holds because nobody reviewed it: the first
// commit is not made by a pull request.
func (w *forgeWorld) allow(reason string) {
	w.t.Helper()
	var digest string
	w.await(passTime, "a plan that awaits review", func() bool {
		p := w.plan()
		digest = p.Hosts[0].Digest
		return p.Count(reconcile.Held) > 0
	})
	w.cli("allow", digest, "--for", "1h", "--reason", reason)
}

// follow moves the work tree to the tip of main.
func (w *forgeWorld) follow() {
	w.t.Helper()
	w.git("fetch", "-q", "origin", "main")
	w.git("checkout", "-q", "--detach", "FETCH_HEAD")
}

// propose pushes the work tree as a branch of ada's and opens a pull request.
func (w *forgeWorld) propose(branch, title string) gitea.Pull {
	w.t.Helper()
	w.git("fetch", "-q", "origin", "main")
	w.git("checkout", "-q", "-B", branch, "FETCH_HEAD")
	w.git("add", "-A")
	w.git("commit", "-q", "-m", title)
	w.git("push", "-q", "origin", "HEAD:refs/heads/"+branch)
	return w.repo.NewPull(w.t, w.ada, branch, "main", title)
}

// awaitStatus waits until a commit's status is as wanted.
func (w *forgeWorld) awaitStatus(limit time.Duration, commit, context, state string) gitea.Status {
	w.t.Helper()
	var s gitea.Status
	w.await(limit, fmt.Sprintf("the status %s %s of %s", context, state, commit), func() bool {
		s = w.repo.Status(w.t, commit, context)
		return s.State == state
	})
	return s
}

// planOf waits for the review of a pull request and returns its comment.
func (w *forgeWorld) planOf(p gitea.Pull, state string) string {
	w.t.Helper()
	w.awaitStatus(jobTime, p.Head.SHA, planContext, state)
	var body string
	w.await(jobTime, fmt.Sprintf("the pipeline's comment on pull request %d", p.Number), func() bool {
		for _, c := range w.repo.Comments(w.t, p.Number) {
			if c.User.Login == w.ci.Name {
				body = c.Body
			}
		}
		return body != ""
	})
	return body
}

// merge has bob approve and ada merge; the work tree follows.
func (w *forgeWorld) merge(p gitea.Pull) string {
	w.t.Helper()
	w.repo.Review(w.t, w.bob, p.Number, "APPROVED")
	merged := w.repo.Merge(w.t, w.ada, p.Number)
	w.follow()
	return merged
}
