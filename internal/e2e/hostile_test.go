package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/status"
)

// besieged is a host that follows signed commits only, with one disk.
type besieged struct {
	*world
	good string // the revision in force
}

func newBesieged(t *testing.T) *besieged {
	t.Helper()
	w := &besieged{world: newWorld(t)}
	ann, bob := w.key("ann"), w.key("bob")
	w.key("eve")
	w.key("host")
	w.allow("ann@example.org " + ann + "\nbob@example.org " + bob)
	w.config(fmt.Sprintf("interval: 24h\nsigning: {required: true, keys: %s}\nhostKeyFile: %s\n", w.file("signers"), w.file("host")))
	for k, v := range map[string]string{"gpg.format": "ssh", "user.signingkey": w.file("ann"), "commit.gpgsign": "true"} {
		w.git("config", k, v)
	}
	w.commit("first")
	w.write("disk.yaml", disk("data", "1Mi"))
	w.good = w.commit("second")
	w.start()
	w.reconcile()
	w.applied("at first")
	return w
}

// allow lists who may sign.
func (w *besieged) allow(signers string) {
	w.t.Helper()
	w.must(os.WriteFile(w.file("signers"), []byte(signers+"\n"), 0o600))
}

// up runs git in the repository that the host follows.
func (w *besieged) up(stdin []byte, args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "git", args...)
	cmd.Dir, cmd.Stdin = w.bare, bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_CONFIG_COUNT=2",
		"GIT_CONFIG_KEY_0=user.name", "GIT_CONFIG_VALUE_0=Eve", "GIT_CONFIG_KEY_1=user.email", "GIT_CONFIG_VALUE_1=eve@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// point moves the branch to a commit, whatever that is.
func (w *besieged) point(commit string) {
	w.t.Helper()
	w.must(os.WriteFile(filepath.Join(w.bare, "refs/heads/main"), []byte(commit+"\n"), 0o644))
}

// signedTree makes a commit of a raw tree on top of what is in force, signed by Ann.
func (w *besieged) signedTree(entries ...string) string {
	w.t.Helper()
	var tree bytes.Buffer
	for _, e := range entries {
		head, name, _ := strings.Cut(e, "\t")
		mode, hash, _ := strings.Cut(head, " ")
		raw, err := hex.DecodeString(hash)
		w.must(err)
		fmt.Fprintf(&tree, "%s %s\x00%s", mode, name, raw)
	}
	h := w.up(tree.Bytes(), "hash-object", "-t", "tree", "--literally", "-w", "--stdin")
	return w.up(nil, "-c", "gpg.format=ssh", "-c", "user.signingkey="+w.file("ann"), "commit-tree", "-S", "-p", w.good, "-m", "raw", h)
}

// restore brings the branch, and the clone people work in, back to what is in force.
func (w *besieged) restore() {
	w.t.Helper()
	w.git("checkout", "-q", "-f", "-B", "main", w.good)
	w.git("clean", "-q", "-f", "-d")
	w.up(nil, "update-ref", "refs/heads/main", w.good)
}

// applied checks that what is in force stayed so, and its disk.
func (w *besieged) applied(when string) {
	w.t.Helper()
	var s status.Host
	w.json(&s, "status")
	if s.LastAppliedRevision != w.good {
		w.t.Errorf("%s: %s is applied, not %s", when, s.LastAppliedRevision, w.good)
	}
	if o := w.objects("disks")["Disk/data"]; o.Sync != status.Synced || o.Quarantined {
		w.t.Errorf("%s: the disk is %+v", when, o)
	}
}

// refused checks that the newest revision is refused, and that the condition,
// an event and the report say so.
func (w *besieged) refused(reason string, words ...string) {
	w.t.Helper()
	out, code := w.try("reconcile", "--wait")
	if code == 0 {
		w.t.Errorf("reconcile succeeds:\n%s", out)
	}
	var s status.Host
	w.json(&s, "status")
	stalled := ""
	for _, c := range s.Conditions {
		if c.Type == status.Stalled && c.Status == status.True && c.Reason == reason {
			stalled = c.Message
		}
	}
	report := w.up(nil, "show", "refs/reconciler/status/host1:status.yaml")
	for _, word := range words {
		if !strings.Contains(stalled, word) {
			w.t.Errorf("the condition %s does not say %q: %q, of %+v", reason, word, stalled, s.Conditions)
		}
	}
	if !strings.Contains(report, "reason: "+reason) {
		w.t.Errorf("the report does not say %s:\n%s", reason, report)
	}
	if reason != "FetchFailed" { // of which there would be one with every pass
		w.event("RevisionRefused", words...)
	}
}

// event waits for an event that contains some words.
func (w *besieged) event(reason string, words ...string) {
	w.t.Helper()
	w.await(20*time.Second, fmt.Sprintf("an event %s with %q", reason, words), func() bool {
		var events []api.Event
		w.json(&events, "events")
		for _, e := range events {
			all := e.Reason == reason
			for _, word := range words {
				all = all && strings.Contains(e.Message, word)
			}
			if all {
				return true
			}
		}
		return false
	})
}

// TestHostileHistories shows that none of these comes into force, that the host
// says why, and that it goes on where it was.
func TestHostileHistories(t *testing.T) {
	w := newBesieged(t)
	for _, tt := range []struct {
		name   string
		do     func() (words []string)
		reason string
	}{
		{"unsigned", func() []string {
			w.remove("disk.yaml")
			w.git("config", "commit.gpgsign", "false")
			defer w.git("config", "commit.gpgsign", "true")
			return []string{w.commit("take the disk away")[:12], "take the disk away", "test@localhost", "is not signed"}
		}, "Unsigned"},
		{"signed by a stranger", func() []string {
			w.remove("disk.yaml")
			w.git("config", "user.signingkey", w.file("eve"))
			defer w.git("config", "user.signingkey", w.file("ann"))
			return []string{w.commit("take the disk away")[:12], "the signing key is not known: SHA256:"}
		}, "UntrustedSignature"},
		{"signed by a removed key", func() []string {
			signers, err := os.ReadFile(w.file("signers"))
			w.must(err)
			ann, _, _ := strings.Cut(string(signers), "\n")
			w.allow(ann)
			w.remove("disk.yaml")
			w.git("config", "user.signingkey", w.file("bob"))
			defer w.git("config", "user.signingkey", w.file("ann"))
			return []string{w.commit("take the disk away")[:12], "the signing key is not known: SHA256:"}
		}, "UntrustedSignature"},
		{"merge of an unsigned parent", func() []string {
			w.git("checkout", "-q", "-b", "side")
			w.remove("disk.yaml")
			w.git("commit", "-q", "-a", "--no-gpg-sign", "-m", "side")
			side := w.git("rev-parse", "HEAD")
			w.git("checkout", "-q", "main")
			w.git("merge", "-q", "--no-ff", "-S", "-m", "merge", "side")
			w.git("branch", "-q", "-D", "side")
			w.git("push", "-q", "origin", "HEAD:main")
			return []string{side[:12], "is not signed"}
		}, "Unsigned"},
		{"force-pushed", func() []string {
			w.git("checkout", "-q", "--orphan", "fresh")
			w.git("commit", "-q", "-m", "another history")
			w.git("push", "-q", "-f", "origin", "HEAD:main")
			return []string{"does not descend from " + w.good[:12], "reconciler accept"}
		}, "NonFastForward"},
		{"rolled back", func() []string {
			w.point(w.git("rev-parse", w.good+"~1"))
			return []string{"rolled back", "reconciler accept"}
		}, "NonFastForward"},
		{"emptied", func() []string {
			w.git("rm", "-q", "-r", ".")
			w.commit("nothing")
			return []string{"declares nothing"}
		}, "EmptyTree"},
		{"a ref to a missing commit", func() []string {
			w.point(strings.Repeat("1", 40))
			return []string{"incomplete", "111111111111"}
		}, "FetchFailed"},
		{"half-pushed", func() []string {
			// The commit and its tree are there, a file of it is not.
			missing := strings.Repeat("2", 40)
			w.point(w.signedTree("100644 " + missing + "\tbase.yaml"))
			return []string{"incomplete", "base.yaml"}
		}, "FetchFailed"},
		{"a spec of 100 MB", func() []string {
			f, err := os.Create(filepath.Join(w.work, "big.yaml"))
			w.must(err)
			w.must(f.Truncate(100 << 20))
			w.must(f.Close())
			w.commit("big")
			return []string{"big.yaml", "too large", "1048576"}
		}, "Invalid"},
		{"path traversal", func() []string {
			blob := w.up([]byte("x"), "hash-object", "-w", "--stdin")
			sub := w.up([]byte("100644 blob "+blob+"\tcron.yaml\n"), "mktree")
			w.point(w.signedTree("40000 "+sub+"\t..", "100644 "+w.up(nil, "rev-parse", w.good+":base.yaml")+"\tbase.yaml"))
			return []string{"..", "unsafe name"}
		}, "Invalid"},
		{"a link out of the tree", func() []string {
			w.must(os.Symlink("/etc/passwd", filepath.Join(w.work, "link.yaml")))
			w.commit("link")
			return []string{"link.yaml", "symbolic link"}
		}, "Invalid"},
		{"this host is gone", func() []string {
			w.write("base.yaml", strings.Replace(w.base(), "name: host1", "name: host2", 1))
			w.write("base.yaml", strings.ReplaceAll(strings.Replace(w.base(), "name: host1", "name: host2", 1), "host: host1", "host: host2"))
			w.commit("another host")
			return []string{"Host/host1"}
		}, "HostMissing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outer := w.t
			w.t = t
			defer func() { w.t = outer }()
			words := tt.do()
			w.refused(tt.reason, words...)
			w.applied("after it")
			w.restore()
			w.reconcile()
			w.applied("after the branch was restored")
		})
	}
}

// Refs that are none of the agent's business are left alone, however they are
// called and however many there are.
func TestHostileRefs(t *testing.T) {
	w := newBesieged(t)
	unsigned := w.up(nil, "commit-tree", "-m", "eve's", w.good+"^{tree}")
	theirs := []string{"refs/heads/reconciler", "refs/heads/reconciler-drift/x", "refs/heads/reconciler-drift/host1", "refs/tags/main", "refs/heads/origin/main", "refs/reconciler/status/host2"}
	packed := "# pack-refs with: sorted\n"
	for i := range 5000 {
		packed += fmt.Sprintf("%s refs/heads/noise/%05d\n", unsigned, i)
	}
	w.must(os.WriteFile(filepath.Join(w.bare, "packed-refs"), []byte(packed), 0o644))
	for _, ref := range theirs {
		w.up(nil, "update-ref", ref, unsigned)
	}
	commit := func(message string) string {
		w.git("add", "-A")
		w.git("commit", "-q", "-m", message)
		w.git("push", "-q", "origin", "HEAD:refs/heads/main") // there is a tag of that name
		return w.git("rev-parse", "HEAD")
	}
	w.write("more.yaml", disk("more", "1Mi"))
	w.good = commit("more")
	began := time.Now()
	w.reconcile()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("with 5,000 refs a pass takes %s", took)
	}
	w.applied("with 5,000 refs")
	if _, ok := w.objects("disks")["Disk/more"]; !ok {
		t.Error("the newest revision is not applied")
	}
	for _, ref := range theirs {
		if now := w.up(nil, "rev-parse", ref); now != unsigned {
			t.Errorf("%s was moved to %s", ref, now)
		}
	}
	// A ref where the directory of the reports belongs: they cannot be written,
	// and that is all.
	w.up(nil, "update-ref", "-d", "refs/reconciler/status/host1")
	w.up(nil, "update-ref", "-d", "refs/reconciler/status/host2")
	w.must(os.RemoveAll(filepath.Join(w.bare, "refs/reconciler/status")))
	w.up(nil, "update-ref", "refs/reconciler/status", unsigned)
	w.remove("more.yaml")
	w.good = commit("less")
	w.reconcile()
	w.applied("with a ref in the way of the reports")
	w.event("StatusNotWritten", "refs/reconciler/status")
}

// TestHostileReports loses the agent's memory, and somebody writes to the
// repository who wants an old revision to come into force.
func TestHostileReports(t *testing.T) {
	w := newBesieged(t)
	const ref = "refs/reconciler/status/host1"
	old := w.git("rev-parse", w.good+"~1")
	volumes := func() int {
		list, err := filepath.Glob(w.state("pools", "fast", "*"))
		w.must(err)
		return len(list)
	}
	had := volumes()
	forget := func() {
		t.Helper()
		w.stop()
		for _, dir := range []string{"agent", "git"} {
			w.must(os.RemoveAll(w.state(dir)))
		}
		w.start()
	}
	// The report is signed by the host.
	w.up(nil, "-c", "gpg.format=ssh", "-c", "gpg.ssh.allowedSignersFile="+w.hostSigner(), "verify-commit", ref)

	w.point(old)
	forget()
	w.refused("RolledBack", w.good[:12], "this host signed", "reconciler accept "+old[:12])
	w.event("ReportFound", w.good[:12])

	// A forged report names the old revision, under the agent's own name.
	state := strings.ReplaceAll(w.up(nil, "show", ref+":state.json"), w.good, old)
	blob := w.up([]byte(state), "hash-object", "-w", "--stdin")
	tree := w.up([]byte("100644 blob "+blob+"\tstate.json\n"), "mktree")
	for what, sign := range map[string][]string{
		"unsigned":      {"commit-tree", "-m", "status", tree},
		"another's key": {"-c", "gpg.format=ssh", "-c", "user.signingkey=" + w.file("eve"), "commit-tree", "-S", "-m", "status", tree},
	} {
		forged := w.up(nil, append([]string{"-c", "user.name=reconciler", "-c", "user.email=reconciler@localhost"}, sign...)...)
		w.up(nil, "update-ref", ref, forged)
		forget()
		out, code := w.try("reconcile", "--wait")
		if code == 0 || !strings.Contains(out, "was not written by this host") {
			t.Errorf("%s: exit %d\n%s", what, code, out)
		}
		w.event("RevisionRefused", "was not written by this host", ref)
		if now := w.up(nil, "rev-parse", ref); now != forged {
			t.Errorf("%s: the forgery was replaced before anybody looked at it", what)
		}
	}
	if n := volumes(); n != had {
		t.Errorf("%d files in the pool, there were %d", n, had)
	}
	// An operator decides.
	w.point(w.good)
	w.cli("accept", w.good, "--reason", "looked at it")
	w.reconcile()
	w.applied("after an operator accepted it")

	// While the agent runs, a forged report is replaced, and that is told.
	forged := w.up(nil, "commit-tree", "-m", "status", tree)
	w.up(nil, "update-ref", ref, forged)
	w.write("more.yaml", disk("more", "1Mi"))
	w.good = w.commit("more")
	w.reconcile()
	w.event("ReportReplaced", forged[:12], "Eve")
	w.up(nil, "-c", "gpg.format=ssh", "-c", "gpg.ssh.allowedSignersFile="+w.hostSigner(), "verify-commit", ref)
}

// hostSigner is a list with the host's key.
func (w *besieged) hostSigner() string {
	w.t.Helper()
	w.must(os.WriteFile(w.file("hostsigner"), []byte("host1 "+w.cliKey()+"\n"), 0o600))
	return w.file("hostsigner")
}

// cliKey is what reconciler key prints.
func (w *besieged) cliKey() string {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), binary, append([]string{"key"}, w.flags()...)...).Output()
	w.must(err)
	return strings.TrimSpace(string(out))
}
