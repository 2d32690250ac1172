package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"reconciler/gitrepo"
	"reconciler/trust"
)

// A proposal names files from the repository's root, also where a path of it is
// followed, and is signed by the host.
func TestProposalBelowAPath(t *testing.T) {
	up := filepath.Join(t.TempDir(), "up.git")
	git := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Stdin = up, strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.Mkdir(up, 0o755); err != nil {
		t.Fatal(err)
	}
	git("", "init", "-q", "--bare", "-b", "main")
	git("commit refs/heads/main\ncommitter A <a@example.org> 1700000000 +0000\ndata 0\nM 100644 inline clusters/demo/a.yaml\ndata 2\na\n\n", "fast-import", "--quiet")
	repo, err := gitrepo.Open(gitrepo.Config{URL: up, Branch: "main", Path: "clusters/demo", CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	c, err := repo.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	b := &branches{repo, func() (*trust.Key, error) { return key, nil }}
	const name, ref = "clusters/demo/a.yaml", "refs/heads/reconciler-drift/host1"
	if data, err := b.File(t.Context(), c.Hash, name); err != nil || string(data) != "a\n" {
		t.Fatalf("%q, %v", data, err)
	}
	if _, err := b.Propose(t.Context(), ref, c.Hash, map[string][]byte{name: []byte("b\n")}, "drift"); err != nil {
		t.Fatal(err)
	}
	if files := git("", "ls-tree", "-r", "--name-only", ref); files != name {
		t.Errorf("the proposal has %s", files)
	}
	signers := filepath.Join(t.TempDir(), "signers")
	if err := os.WriteFile(signers, []byte("host1 "+key.Public()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	git("", "-c", "gpg.format=ssh", "-c", "gpg.ssh.allowedSignersFile="+signers, "verify-commit", ref)
	if err := b.Withdraw(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if refs := git("", "for-each-ref", "refs/heads/reconciler-drift"); refs != "" {
		t.Errorf("left: %s", refs)
	}
}
