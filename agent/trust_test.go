package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"reconciler/api"
	"reconciler/gitrepo"
	"reconciler/revision"
	"reconciler/status"
	"reconciler/trust"
)

// signedWorld is a simulated host that follows a real repository.
type signedWorld struct {
	*sim
	up   string // the repository
	work string // a clone in which people commit
	keys string // allowed signers
	ann  string // private key of somebody who may sign
}

func newSignedWorld(t *testing.T, change func(*Config)) *signedWorld {
	t.Helper()
	w := &signedWorld{up: filepath.Join(t.TempDir(), "up.git"), work: t.TempDir(), keys: filepath.Join(t.TempDir(), "signers")}
	w.sim = &sim{t: t}
	w.command(nil, "", "git", "init", "-q", "--bare", "-b", "main", w.up)
	w.command(nil, "", "git", "init", "-q", "-b", "main", w.work)
	w.git("remote", "add", "origin", w.up)
	w.ann = w.newKey("ann")
	w.allow(w.ann)
	w.write("cluster.yaml", simCluster)
	w.commit("first", w.ann)
	w.sim = newSim(t, func(c *Config) {
		c.Signing = Signing{Required: true, Keys: w.keys}
		if change != nil {
			change(c)
		}
		c.Source = w.open(c.StateDir)
	})
	return w
}

// open reads through a cache in a state directory.
func (w *signedWorld) open(stateDir string) *revision.Source {
	w.t.Helper()
	repo, err := gitrepo.Open(gitrepo.Config{URL: w.up, Branch: "main", CacheDir: filepath.Join(stateDir, "git")})
	if err != nil {
		w.t.Fatal(err)
	}
	source, err := revision.New(repo, filepath.Join(stateDir, "git", "parsed"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { source.Close(); repo.Close() })
	return source
}

// reinstall goes on with an empty state directory.
func (w *signedWorld) reinstall() {
	w.t.Helper()
	w.cfg.StateDir = w.t.TempDir()
	w.cfg.Source = w.open(w.cfg.StateDir)
	w.restart()
}

func (w *signedWorld) command(stdin []byte, dir, name string, args ...string) string {
	w.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Ann", "GIT_AUTHOR_EMAIL=ann@example.org", "GIT_COMMITTER_NAME=Ann", "GIT_COMMITTER_EMAIL=ann@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (w *signedWorld) git(args ...string) string {
	w.t.Helper()
	return w.command(nil, w.work, "git", args...)
}

func (w *signedWorld) newKey(name string) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name)
	w.command(nil, "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path)
	return path
}

// allow makes some keys those that may sign; more are options.
func (w *signedWorld) allow(keys ...string) {
	w.t.Helper()
	var b strings.Builder
	for _, k := range keys {
		path, options, _ := strings.Cut(k, " ")
		public, err := os.ReadFile(path + ".pub")
		if err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s@example.org %s %s", filepath.Base(path), options, public)
	}
	if err := os.WriteFile(w.keys, []byte(b.String()), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *signedWorld) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.work, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// commit commits what is written, signed if a key is given, and pushes it.
func (w *signedWorld) commit(message, key string, more ...string) string {
	w.t.Helper()
	w.git("add", "-A")
	w.git(append(w.signing(key), append([]string{"commit", "-q", "--allow-empty", "-m", message}, more...)...)...)
	return w.push()
}

func (w *signedWorld) signing(key string) []string {
	if key == "" {
		return []string{"-c", "commit.gpgsign=false"}
	}
	return []string{"-c", "gpg.format=ssh", "-c", "user.signingkey=" + key, "-c", "commit.gpgsign=true"}
}

func (w *signedWorld) push() string {
	w.t.Helper()
	w.git("push", "-q", "-f", "origin", "HEAD:main")
	return w.git("rev-parse", "HEAD")
}

// refused is a pass whose newest revision is refused for a reason.
func (w *signedWorld) refused(what, reason string, words ...string) {
	w.t.Helper()
	before := w.agent.mem.Good
	_, err := w.pass()
	r, ok := errors.AsType[*refusal](err)
	if !ok || r.reason != reason {
		w.t.Errorf("%s: %v, want a refusal %s", what, err, reason)
		return
	}
	for _, word := range words {
		if !strings.Contains(r.message, word) {
			w.t.Errorf("%s: %q does not say %q", what, r.message, word)
		}
	}
	if w.agent.mem.Good != before {
		w.t.Errorf("%s: %s came into force", what, w.agent.mem.Good)
	}
	h, err := w.agent.Status(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range h.Conditions {
		if c.Type == status.Stalled && (c.Reason != reason || c.Status != status.True) {
			w.t.Errorf("%s: the condition is %+v", what, c)
		}
	}
}

func (w *signedWorld) inForce(what, hash string) {
	w.t.Helper()
	if _, err := w.pass(); err != nil || w.agent.mem.Good != hash {
		w.t.Errorf("%s: %v; in force is %s, want %s", what, err, w.agent.mem.Good, hash)
	}
}

// has says that an event was written, and returns its message.
func (w *signedWorld) has(reason string) string {
	w.t.Helper()
	events, err := w.agent.Events(context.Background(), 0, false)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, e := range events {
		if e.Reason == reason {
			return e.Message
		}
		all = append(all, e.Reason)
	}
	w.t.Errorf("no event %s among %v", reason, all)
	return ""
}

func TestSignaturesOfAllCommits(t *testing.T) {
	w := newSignedWorld(t, nil)
	bob, eve := w.newKey("bob"), w.newKey("eve")
	w.inForce("signed", w.git("rev-parse", "HEAD"))

	unsigned := w.commit("sneaky", "")
	w.refused("unsigned", "Unsigned", unsigned[:12], "sneaky", "Ann", "is not signed")
	w.commit("signed on top", w.ann)
	w.refused("an unsigned commit below a signed one", "Unsigned", unsigned[:12])
	w.git("reset", "-q", "--hard", "HEAD~2")

	w.commit("by a stranger", eve)
	w.refused("unknown key", "UntrustedSignature", "not known", "SHA256:")
	w.git("reset", "-q", "--hard", "HEAD~1")

	byBob := w.commit("by Bob", bob)
	w.refused("a key that is not listed yet", "UntrustedSignature", byBob[:12])
	w.allow(w.ann, bob+` valid-before="20261101"`)
	w.refused("expired", "UntrustedSignature", "was valid before 2026-11-01")
	w.allow(w.ann, bob+` namespaces="file"`)
	w.refused("not for git", "UntrustedSignature", "not for git")
	w.allow(w.ann, bob)
	w.inForce("the key is listed now", byBob)
	w.allow(w.ann)
	w.inForce("the key of what is in force is removed", byBob)
	w.commit("by Bob again", bob)
	w.refused("removed key", "UntrustedSignature", "not known")
	w.git("reset", "-q", "--hard", "HEAD~1")

	// A branch with an unsigned commit, merged with a good signature.
	w.git("checkout", "-q", "-b", "side")
	w.write("other.yaml", simDisk("d1"))
	parent := w.commit("unsigned work", "")
	w.git("checkout", "-q", "-B", "main", byBob)
	w.git(append(w.signing(w.ann), "merge", "-q", "--no-ff", "-m", "merge side", "side")...)
	merged := w.push()
	w.refused("an unsigned parent", "Unsigned", parent[:12])
	w.cfg.Signing.Merges = true
	w.agent.cfg.Signing.Merges = true
	w.inForce("only merges must be signed", merged)
	w.git("checkout", "-q", "side")
	w.git("merge", "-q", "--no-ff", "-m", "unsigned merge", merged)
	w.push()
	w.refused("an unsigned merge", "Unsigned")
	w.has("RevisionRefused")

	if err := os.WriteFile(w.keys, []byte("ann cert-authority ssh-ed25519 AAAA\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.refused("a list of keys that cannot be read", "SigningKeysUnreadable", w.keys)
}

// What a signature for another purpose says does not count, and the commit it
// stands in is found by its content.
func TestSignatureForAnotherPurpose(t *testing.T) {
	w := newSignedWorld(t, nil)
	good := w.git("rev-parse", "HEAD")
	w.inForce("signed", good)
	payload := fmt.Sprintf("tree %s\nparent %s\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n\nx\n", w.git("rev-parse", "HEAD^{tree}"), good)
	signature := w.command([]byte(payload), "", "ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", w.ann)
	signature = signature[strings.Index(signature, "-----BEGIN"):]
	head, message, _ := strings.Cut(payload, "\n\n")
	commit := head + "\ngpgsig " + strings.ReplaceAll(signature, "\n", "\n ") + "\n\n" + message
	hash := w.command([]byte(commit), w.work, "git", "hash-object", "-t", "commit", "-w", "--stdin")
	w.git("reset", "-q", "--hard", hash)
	w.push()
	w.refused("for files", "UntrustedSignature", "another purpose", `"file"`)
}

func TestTrustedBase(t *testing.T) {
	w := newSignedWorld(t, nil)
	w.write("old.yaml", simDisk("d0"))
	base := w.commit("unsigned past", "")
	tip := w.commit("signed", w.ann)
	w.refused("the whole history must be signed", "Unsigned", base[:12])
	w.agent.cfg.Signing.TrustedBase = base
	w.inForce("after the trusted base", tip)
	// An unsigned commit that somebody has looked at is passed by moving the base.
	looked := w.commit("unsigned, but looked at", "")
	w.refused("unsigned", "Unsigned", looked[:12])
	w.agent.cfg.Signing.TrustedBase = looked
	w.inForce("the base was moved", looked)

	w.agent.cfg.Signing.TrustedBase = strings.Repeat("1", 40)
	next := w.commit("signed", w.ann)
	w.inForce("a base that is nowhere does not matter after the first revision", next)
	w.cfg.Signing.TrustedBase = strings.Repeat("1", 40)
	w.cfg.StatusRef = "refs/reconciler/elsewhere/"
	w.reinstall()
	w.refused("a first revision that does not descend from the base", "UntrustedHistory", "111111111111")
}

func TestRollbackAfterLostState(t *testing.T) {
	key, _, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	w := newSignedWorld(t, func(c *Config) { c.HostKey = key })
	const ref = "refs/reconciler/status/host1"
	first := w.git("rev-parse", "HEAD")
	w.write("disk.yaml", simDisk("d1"))
	second := w.commit("second", w.ann)
	w.inForce("second", second)
	report := w.command(nil, w.up, "git", "rev-parse", ref)

	w.git("reset", "-q", "--hard", first)
	w.push()
	w.refused("rolled back", "NonFastForward", "rolled back")
	for range 2 { // the report of the refusal must not forget what was in force
		w.reinstall()
		w.refused("rolled back, the state is lost", "RolledBack", second[:12], "reconciler accept "+first[:12])
		w.has("ReportFound")
		w.restart()
		w.refused("after a restart", "RolledBack", second[:12])
	}
	if again := w.command(nil, w.up, "git", "rev-parse", ref); again == report {
		t.Error("the refusal was not reported")
	}
	w.git("checkout", "-q", "--orphan", "fresh")
	w.commit("another history", w.ann)
	w.refused("a rewritten history", "RolledBack")
	w.git("checkout", "-q", "-B", "main", second)
	w.write("disk2.yaml", simDisk("d2"))
	third := w.commit("third", w.ann)
	w.inForce("what descends from it", third)

	// A repository that cannot be read is no reason to overwrite the report.
	w.reinstall()
	report = w.command(nil, w.up, "git", "rev-parse", ref)
	w.command(nil, w.up, "git", "update-ref", "-d", "refs/heads/main")
	w.command(nil, w.up, "git", "update-ref", "refs/reconciler/status/kept", report)
	if _, err := w.pass(); err == nil {
		t.Error("a branch that is not there was followed")
	}
	w.git("reset", "-q", "--hard", first)
	w.push()
	w.refused("rolled back after an outage", "RolledBack", third[:12])
	if err := w.agent.Accept(context.Background(), acceptRequest(first)); err != nil {
		t.Fatal(err)
	}
	w.inForce("accepted", first)

	// Somebody else writes the report: it speaks of an old revision.
	w.git("reset", "-q", "--hard", third)
	w.push()
	w.inForce("third", third)
	forged := w.command(nil, w.up, "git", "-c", "user.name=Eve", "-c", "user.email=reconciler@localhost", "commit-tree", "-m", "forged", ref+"^{tree}")
	w.command(nil, w.up, "git", "update-ref", ref, forged)
	w.cfg.Heartbeat = 1
	w.restart()
	w.inForce("third", third)
	if m := w.has("ReportReplaced"); !strings.Contains(m, forged[:12]) {
		t.Errorf("%s does not name the forgery", m)
	}
	w.command(nil, w.up, "git", "update-ref", ref, forged)
	w.reinstall()
	w.refused("a forged report", "ForgedReport", "is not signed", ref)
	if now := w.command(nil, w.up, "git", "rev-parse", ref); now != forged {
		t.Error("the evidence was overwritten")
	}
	w.command(nil, w.up, "git", "update-ref", "-d", ref)
	w.inForce("without a report", third)
}

func TestNewHostKeyGoesOn(t *testing.T) {
	w := newSignedWorld(t, nil)
	first := w.git("rev-parse", "HEAD")
	w.inForce("first", first)
	old := w.agent.hostKey.Public()
	w.reinstall()
	w.inForce("with a new key", first)
	if w.agent.hostKey.Public() == old {
		t.Error("the key outlived its directory")
	}
	if m := w.has("HostKeyNew"); !strings.Contains(m, w.agent.hostKey.Fingerprint()) || !strings.Contains(m, "Host.spec.signingKey") {
		t.Errorf("event %q", m)
	}
	// The key has signed now: if only the memory goes, its report counts.
	w.write("d.yaml", simDisk("d1"))
	second := w.commit("second", w.ann)
	w.inForce("second", second)
	if err := os.Remove(filepath.Join(w.cfg.StateDir, "agent", stateFile)); err != nil {
		t.Fatal(err)
	}
	w.git("reset", "-q", "--hard", first)
	w.push()
	w.restart()
	w.refused("the memory is lost", "RolledBack", second[:12])
}

func TestHostKeySignsReports(t *testing.T) {
	w := newSignedWorld(t, nil)
	w.inForce("first", w.git("rev-parse", "HEAD"))
	signers := filepath.Join(t.TempDir(), "signers")
	if err := os.WriteFile(signers, []byte("host1 "+w.agent.hostKey.Public()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.command(nil, w.up, "git", "-c", "gpg.format=ssh", "-c", "gpg.ssh.allowedSignersFile="+signers, "verify-commit", "refs/reconciler/status/host1")

	other, _, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []*trust.Key{other, w.agent.hostKey} {
		w.write("cluster.yaml", strings.Replace(simCluster, "roles:", "signingKey: "+key.Public()+" comment, roles:", 1))
		w.inForce("a Host with a key", w.commit("key", w.ann))
		h, err := w.agent.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		differs := false
		for _, c := range h.Conditions {
			differs = differs || c.Type == signingKey && c.Status == status.False && strings.Contains(c.Message, w.agent.hostKey.Fingerprint())
		}
		if differs != (key == other) {
			t.Errorf("declared %s: conditions %+v", key, h.Conditions)
		}
	}
	w.has("SigningKeyDiffers")
}

func TestHostKeyIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	keys := make([]string, 8)
	for i := range keys {
		wg.Go(func() {
			k, err := HostKey(dir)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = k.Public()
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Errorf("%s and %s", k, keys[0])
		}
	}
	st, err := os.Stat(filepath.Join(dir, "agent", hostKeyFile))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "agent")); err != nil || len(left) != 1 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "agent", hostKeyFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := HostKey(dir); err == nil || strings.Contains(err.Error(), "rubbish") {
		t.Errorf("a damaged key: %v", err)
	}
}

func acceptRequest(rev string) api.AcceptRequest {
	return api.AcceptRequest{Rev: rev, Reason: "test"}
}
