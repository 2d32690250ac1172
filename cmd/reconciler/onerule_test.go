package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What validate says of a directory is what a host says of the revision.
func TestValidateAsHosts(t *testing.T) {
	good := (&ciWorld{}).base("")
	for name, tt := range map[string]struct {
		links   map[string]string // by name
		files   map[string]string
		refused string // empty if it is valid
	}{
		"plain":                     {files: map[string]string{"notes.txt": "{{{"}},
		"a link to a file":          {links: map[string]string{"clusters/demo/AGENTS.md": "README.md"}},
		"a link upwards":            {links: map[string]string{"clusters/demo/GUIDE": "../../README.md"}},
		"a link to a directory":     {links: map[string]string{"clusters/demo/machines": "vms"}, files: map[string]string{"clusters/demo/vms/x.txt": ""}},
		"a link that leads nowhere": {links: map[string]string{"clusters/demo/x": "none"}},
		"a link out of it":          {links: map[string]string{"clusters/demo/x": "../../../README.md"}, refused: "clusters/demo/x"},
		"an absolute link":          {links: map[string]string{"clusters/demo/x": "/etc/passwd"}, refused: "clusters/demo/x"},
		"a spec that is a link":     {links: map[string]string{"clusters/demo/x.yaml": "all.yaml"}, refused: "clusters/demo/x.yaml"},
		"a name of no characters":   {files: map[string]string{"clusters/demo/n\xff.txt": "", `clusters/demo/n\o.txt`: "", "clusters/demo/n\x1b.txt": ""}},
		"a spec of such a name":     {files: map[string]string{`clusters/demo/n\o.yaml`: "# nothing\n"}, refused: "clusters/demo/n"},
		"a directory of such":       {files: map[string]string{"clusters/demo/n\x1b/x.yaml": "# nothing\n"}, refused: "clusters/demo/"},
		"a pointer of LFS":          {files: map[string]string{"clusters/demo/x.yaml": "version https://git-lfs.github.com/spec/v1\n"}, refused: "Git LFS"},
		"capitals":                  {files: map[string]string{"clusters/demo/x.YAML": "{{{"}},
		"hidden":                    {files: map[string]string{"clusters/demo/.x/x.yaml": "{{{", "clusters/demo/.y.yaml": "{{{"}, links: map[string]string{"clusters/demo/.z": "/etc"}},
		"too long":                  {files: map[string]string{"clusters/demo/x.yaml": "#" + strings.Repeat("x", 1<<20)}, refused: "clusters/demo/x.yaml"},
		"a submodule":               {files: map[string]string{"clusters/demo/lib/README.md": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOpeningWorld(t)
			for at, text := range map[string]string{"clusters/demo/all.yaml": good, "clusters/demo/README.md": "", "README.md": ""} {
				w.write(t, at, text)
			}
			for at, text := range tt.files {
				w.write(t, at, text)
			}
			for at, target := range tt.links {
				if err := os.Symlink(target, filepath.Join(w.repo, at)); err != nil {
					t.Fatal(err)
				}
			}
			if name == "a submodule" {
				lib := filepath.Join(w.repo, "clusters/demo/lib")
				sub := &ciWorld{t: t, dir: lib}
				sub.git("init", "-q")
				sub.git("add", "-A")
				sub.git("commit", "-q", "-m", "lib")
			}
			w.git(t, "add", "-A")
			w.git(t, "commit", "-q", "-m", name)
			if name == "a submodule" && !strings.HasPrefix(w.git(t, "ls-tree", "HEAD", "clusters/demo/lib"), "160000 ") {
				t.Fatal("it is no submodule")
			}
			var out, errs bytes.Buffer
			validated := (&app{stdout: &out, stderr: &errs}).run(t.Context(), []string{"validate", filepath.Join(w.repo, "clusters/demo")})
			planned, stderr := w.command(t, "plan", "--repo", w.repo, "--path", "clusters/demo", "--against", "base", "--base", "main")
			want := exitDone
			if tt.refused != "" {
				want = exitError
			}
			if validated != want || tt.refused != "" && !strings.Contains(errs.String(), tt.refused) {
				t.Errorf("validate: exit code %d, want %d, and %q in %q", validated, want, tt.refused, errs.String())
			}
			if planned != want || tt.refused != "" && !strings.Contains(stderr, tt.refused) {
				t.Errorf("plan: exit code %d, want %d, and %q in %q", planned, want, tt.refused, stderr)
			}
		})
	}
}

func (w openingWorld) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(w.repo, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
