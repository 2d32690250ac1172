package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The real go test runs small modules; what it prints is counted.
func TestCounts(t *testing.T) {
	const good = `func TestA(t *testing.T) {}
func TestB(t *testing.T) { t.Run("sub", func(t *testing.T) {}) }`
	for _, tt := range []struct {
		name string
		body string
		code int
		want []string // parts of the output
		last string
	}{
		{"good", good, 0, []string{"ok    example/x"}, "3 passed, 0 failed"},
		{"skip", good + "\n" + `func TestC(t *testing.T) { t.Skip("why") }`, 0, []string{"why"}, "3 passed, 0 failed, 1 skipped"},
		{"fail", good + "\n" + `func TestC(t *testing.T) { t.Log("said before"); t.Error("wrong") }`, 1,
			[]string{"said before", "wrong", "--- FAIL: TestC", "FAIL  example/x"}, "3 passed, 1 failed"},
		{"panic", good + "\n" + `func TestC(t *testing.T) { panic("boom") }`, 1, []string{"boom", "TestC"}, "3 passed, 1 failed"},
		{"exit", good + "\n" + `func TestC(t *testing.T) { os.Exit(3) }`, 1, []string{"TestC"}, "3 passed, 1 failed"},
		{"build", "func TestA(t *testing.T) { undefined() }", 1, []string{"undefined: undefined"}, "0 passed, 1 failed"},
		{"none", "", 1, nil, "0 passed, 1 failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "go.mod"), "module example/x\n")
			write(t, filepath.Join(dir, "x_test.go"), "package x\nimport (\"os\"; \"testing\")\nvar _ = os.Exit\nvar _ testing.TB\n"+tt.body+"\n")
			cmd := exec.Command("go", "test", "-json", "./...")
			cmd.Dir = dir
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			var got strings.Builder
			c := newCounter(&got)
			if err := c.read(strings.NewReader(string(out))); err != nil {
				t.Fatal(err)
			}
			if code := c.finish(err); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, part := range tt.want {
				if !strings.Contains(got.String(), part) {
					t.Errorf("%q is missing", part)
				}
			}
			lines := strings.Split(strings.TrimSpace(got.String()), "\n")
			if last := lines[len(lines)-1]; last != tt.last {
				t.Errorf("last line %q, want %q", last, tt.last)
			}
			if t.Failed() {
				t.Logf("printed:\n%s\nstderr:\n%s", got.String(), stderr.String())
			}
		})
	}
}

func TestReadKeepsWhatIsNotJSON(t *testing.T) {
	var got strings.Builder
	err := newCounter(&got).read(strings.NewReader("warning: strange\nand more\n"))
	if err == nil || !strings.Contains(got.String(), "and more") {
		t.Errorf("got %v and %q", err, got.String())
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
