package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"reconciler/gitrepo"
)

// openingWorld is a repository with one commit, and directories for an agent.
type openingWorld struct{ repo, state, run string }

func newOpeningWorld(t *testing.T) openingWorld {
	t.Helper()
	dir := t.TempDir()
	w := openingWorld{filepath.Join(dir, "g"), filepath.Join(dir, "state"), filepath.Join(dir, "run")}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main", w.repo},
		{"-C", w.repo, "-c", "user.name=ada", "-c", "user.email=ada@example.org", "commit", "-q", "--allow-empty", "-m", "begin"},
	} {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	return w
}

// command runs one in this process, with the directories of the agent.
func (w openingWorld) command(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
	code = a.run(t.Context(), append(args, "--state-dir", w.state, "--run-dir", w.run, "--host", "host1", "--accel", "tcg"))
	return code, errs.String()
}

// What cannot be opened is an error of every command, which names it.
func TestNothingToOpen(t *testing.T) {
	w := newOpeningWorld(t)
	file := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	noCA := file("config.yaml", "credentials: {caFile: /none/ca.pem}\n")
	badCA := file("config.yaml", "credentials: {caFile: "+file("ca.pem", "no certificate")+"}\n")
	noStatus := file("config.yaml", "statusRepo: {url: 'ssh://git@127.0.0.1/status.git'}\n")
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"branch":        {[]string{"--repo", w.repo, "--branch", "a..b"}, `"a..b"`},
		"relative":      {[]string{"--repo", "./g"}, `"./g"`},
		"path":          {[]string{"--repo", w.repo, "--path", "../x"}, `"../x"`},
		"no path":       {[]string{"--repo", w.repo, "--path", "clusters/demo"}, "clusters: not a directory"},
		"no repository": {[]string{"--repo", w.repo + "-none"}, "repository not found"},
		"no CA":         {[]string{"--repo", "https://127.0.0.1:1/x.git", "--config", noCA}, "/none/ca.pem"},
		"bad CA":        {[]string{"--repo", "https://127.0.0.1:1/x.git", "--config", badCA}, "no PEM certificate"},
		"no key":        {[]string{"--repo", "ssh://git@127.0.0.1/x.git"}, "ssh needs a private key"},
		"no status key": {[]string{"--repo", w.repo, "--config", noStatus}, "ssh needs a private key"},
	} {
		for _, command := range []string{"plan", "apply", "run"} {
			if command == "run" && (name == "no path" || name == "no repository") {
				continue // an agent goes on and tries again
			}
			code, stderr := w.command(t, append([]string{command}, tt.args...)...)
			if code == exitDone || !strings.Contains(stderr, tt.want) {
				t.Errorf("%s: %s: exit code %d, %q, want %q", name, command, code, stderr, tt.want)
			}
		}
	}
}

// One cache has one process. Another one, whatever it is, says so.
func TestCacheInUse(t *testing.T) {
	w := newOpeningWorld(t)
	held, err := gitrepo.Open(gitrepo.Config{URL: w.repo, CacheDir: filepath.Join(w.state, "git")})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"plan", "apply", "run"} {
		code, stderr := w.command(t, command, "--repo", w.repo)
		if code != exitError || !strings.Contains(stderr, "in use by another process") {
			t.Errorf("%s: exit code %d, %q", command, code, stderr)
		}
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if code, stderr := w.command(t, "plan", "--repo", w.repo); strings.Contains(stderr, "in use") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}
