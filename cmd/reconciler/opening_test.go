package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/gitrepo"
)

// openingWorld is a repository with one commit, and directories for an agent.
type openingWorld struct{ repo, state, run string }

func newOpeningWorld(t *testing.T) openingWorld {
	t.Helper()
	dir := t.TempDir()
	w := openingWorld{filepath.Join(dir, "g"), filepath.Join(dir, "state"), filepath.Join(dir, "run")}
	if err := os.Mkdir(w.repo, 0o755); err != nil {
		t.Fatal(err)
	}
	w.git(t, "init", "-q", "-b", "main")
	w.git(t, "commit", "-q", "--allow-empty", "-m", "begin")
	return w
}

func (w openingWorld) git(t *testing.T, args ...string) string {
	t.Helper()
	return (&ciWorld{t: t, dir: w.repo}).git(args...)
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
	noRepo := file("config.yaml", "repo: ./g\n")
	noBranch := file("config.yaml", "branch: a..b\n")
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"branch":        {[]string{"--repo", w.repo, "--branch", "a..b"}, `--branch: "a..b" is not the name of a branch`},
		"branch's file": {[]string{"--repo", w.repo, "--config", noBranch}, `:1:9: branch: "a..b" is not the name of a branch`},
		"tag":           {[]string{"--repo", w.repo, "--branch", "refs/tags/v1"}, `--branch: "refs/tags/v1" is no branch`},
		"relative":      {[]string{"--repo", "./nowhere"}, "/nowhere: repository not found"},
		"relative URL":  {[]string{"--repo", "file://g"}, `--repo: "file://g" is not an absolute path (give a URL, or the whole path)`},
		"file's":        {[]string{"--config", noRepo}, `:1:7: repo: "./g" is not an absolute path (give a URL, or the whole path, which is /`},
		"path":          {[]string{"--repo", w.repo, "--path", "../x"}, `--path: "../x" is not a directory of the repository`},
		"no path":       {[]string{"--repo", w.repo, "--path", "clusters/demo"}, "clusters: not a directory"},
		"no repository": {[]string{"--repo", w.repo + "-none"}, "repository not found"},
		"no CA":         {[]string{"--repo", "https://127.0.0.1:1/x.git", "--config", noCA}, "caFile: open /none/ca.pem: no such file"},
		"bad CA":        {[]string{"--repo", "https://127.0.0.1:1/x.git", "--config", badCA}, "no PEM certificate"},
		"no key":        {[]string{"--repo", "ssh://git@127.0.0.1/x.git"}, "ssh needs a private key (sshKeyFile) and"},
		"no status key": {[]string{"--repo", w.repo, "--config", noStatus}, "ssh needs a private key (sshKeyFile) and"},
	} {
		for _, command := range []string{"plan", "apply", "run"} {
			if command == "run" && (name == "no path" || name == "no repository" || name == "relative") {
				continue // an agent goes on and tries again
			}
			code, stderr := w.command(t, append([]string{command}, tt.args...)...)
			if code == exitDone || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") > 2 {
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
		want := fmt.Sprintf("%s: cache is in use by another process: %d, ", filepath.Join(w.state, "git"), os.Getpid())
		if code != exitError || !strings.Contains(stderr, want) || !strings.Contains(stderr, "--run-dir") {
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

// A directory of the repository is the same however it is written, and so is a
// branch, wherever it is said.
func TestSpellings(t *testing.T) {
	w := newOpeningWorld(t)
	dir := filepath.Join(w.repo, "clusters", "demo")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte((&ciWorld{}).base("")), 0o644); err != nil {
		t.Fatal(err)
	}
	w.git(t, "add", "-A")
	w.git(t, "commit", "-q", "-m", "declare")
	t.Chdir(filepath.Dir(w.repo))
	here := openingWorld{repo: "./g", state: "./state", run: "run"}
	if code, stderr := here.command(t, "plan", "--repo", here.repo, "--path", "clusters/demo", "--base", "main", "--against", "base"); code != exitDone {
		t.Errorf("relative directories: exit code %d, %q", code, stderr)
	}
	for _, path := range []string{"clusters/demo", "./clusters/demo", "clusters/demo/", "/clusters//demo/."} {
		for _, branch := range []string{"main", "refs/heads/main"} {
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte("branch: "+branch+"\npath: "+path+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"--path", path, "--branch", branch}, {"--config", file}} {
				code, stderr := w.command(t, append([]string{"plan", "--repo", w.repo, "--base", "main", "--against", "base"}, args...)...)
				if code != exitDone {
					t.Errorf("%q: exit code %d, %q", args, code, stderr)
				}
			}
		}
	}
}

// The same holds for the jobs of a forge.
func TestNothingToOpenInCI(t *testing.T) {
	for _, name := range []string{"GITHUB_ACTIONS", "GITEA_ACTIONS", "GITLAB_CI"} {
		t.Setenv(name, "")
	}
	w := newOpeningWorld(t)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"branch":        {[]string{"--repo", w.repo, "--base", "a..b"}, `"a..b" is not the name of a branch`},
		"no branch":     {[]string{"--repo", w.repo, "--base", "nope"}, "its only branch is main"},
		"path":          {[]string{"--repo", w.repo, "--base", "main", "--path", "../x"}, `"../x" is not a directory of the repository`},
		"no repository": {[]string{"--repo", w.repo + "-none", "--base", "main"}, "repository not found"},
		"no CA":         {[]string{"--repo", "https://127.0.0.1:1/x.git", "--base", "main", "--ca-file", "/none/ca.pem"}, "caFile: open /none/ca.pem: no such file"},
		"no key":        {[]string{"--repo", "ssh://git@127.0.0.1/x.git", "--base", "main"}, "ssh needs a private key (sshKeyFile) and"},
		"no status":     {[]string{"--repo", w.repo, "--base", "main", "--status-repo", "ssh://git@127.0.0.1/x.git"}, "ssh needs a private key (sshKeyFile) and"},
	} {
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, now: time.Now}
		code := a.run(t.Context(), append([]string{"ci", "plan", "--head", "main"}, tt.args...))
		if code == exitDone || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("%s: exit code %d, %q, want %q", name, code, errs.String(), tt.want)
		}
	}
}
