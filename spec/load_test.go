package spec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

func TestLoadFromDisk(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret.yaml")
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside, []byte(base), 0o644); err != nil {
		t.Fatal(err)
	}

	// What is not read: other files, hidden ones, and links that stay inside.
	write("base.yaml", base)
	write("README.md", "{{{ not YAML")
	write(".github/workflows/ci.yaml", "on: push\n")
	write("vms/.draft.yaml", "{{{")
	write("vms/web.yml", caseFile("Disk d\nspec: {pool: fast, size: 1Gi}\n"))
	link("vms", "machines")
	link("../base.yaml", "vms/README")
	set, err := Load(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if set.Len() != 12 || set.Get(KindDisk, "d") == nil {
		t.Fatalf("%d objects", set.Len())
	}

	// What a repository has above the directory is no way out.
	link("../../README.md", "vms/GUIDE")
	if set, err = LoadBelow(os.DirFS(dir), "clusters/demo"); err != nil || set.Len() != 12 {
		t.Errorf("below another directory: %v", err)
	}
	if _, err := Load(os.DirFS(dir)); err == nil || !strings.Contains(err.Error(), "vms/GUIDE:1:1: a symbolic link that leads out of the tree") {
		t.Errorf("a link out of the repository: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "vms/GUIDE")); err != nil {
		t.Fatal(err)
	}

	// What is harmless, and what is probably not meant.
	write(`n\otes.txt`, "")
	write("notes\xff.txt", "")
	write("docs/.git", "gitdir: ../.git/modules/docs\n")
	write("docs/README.md", "")
	write("lib/.git", "gitdir: ../.git/modules/lib\n")
	write("lib/vms/web.yaml", "{{{")
	write("web.YAML", "{{{")
	if set, err = Load(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if got, want := set.Warnings().Error(), `lib/vms/web.yaml:1:1: the file is not read: it belongs to a submodule (commit the file itself)
web.YAML:1:1: the file is not read (the name of a spec ends in .yaml or .yml)`; got != want {
		t.Errorf("warnings:\n%s\nwant:\n%s", got, want)
	}

	// What is refused, with one error each.
	write(`b\ad.yaml`, "{{{")
	link(outside, "leak.yaml")
	link("base.yaml", "alias.yaml")
	link("../..", "up")
	link("/etc", "vms/etc")
	write("huge.yaml", "# "+strings.Repeat("x", MaxFileSize))
	if err := unix.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Load(os.DirFS(dir))
	const want = `alias.yaml:1:1: the file is a symbolic link, which is not followed (put the file itself in the tree)
b\ad.yaml:1:1: the name is not fit for a message: it is not UTF-8, or has a backslash or a control character (rename it)
huge.yaml:1:1: the file has 1048578 bytes (at most 1048576 are read)
leak.yaml:1:1: the file is a symbolic link, which is not followed (put the file itself in the tree)
pipe.yaml:1:1: not a regular file (put the file itself in the tree)
up:1:1: a symbolic link that leads out of the tree (put the file itself in the tree)
vms/etc:1:1: a symbolic link that leads out of the tree (put the file itself in the tree)`
	if fmt.Sprint(err) != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

// A file of 100 MB is refused by its size, not read.
func TestLargeFileCostsNothing(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a.yaml")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 100<<20); err != nil {
		t.Fatal(err)
	}
	if got := allocated(func() { _, _ = Load(os.DirFS(dir)) }); got > 4<<20 {
		t.Errorf("%d bytes were allocated", got)
	}
	if _, err := Load(os.DirFS(dir)); err == nil || !strings.Contains(err.Error(), "a.yaml:1:1: the file has 104857600 bytes") {
		t.Errorf("error: %v", err)
	}
}

func TestUnreadableTree(t *testing.T) {
	_, err := Load(os.DirFS(filepath.Join(t.TempDir(), "missing")))
	if err == nil || err.Error() != ".:1:1: no such file or directory" {
		t.Errorf("error: %v", err)
	}
}

// A file that cannot be read must not make the rest look dangling: what it
// defines is unknown.
func TestUnreadableFileIsNotAbsence(t *testing.T) {
	_, err := Load(fstest.MapFS{
		"base.yaml": {Data: []byte(base)},
		"disk.yaml": {Data: make([]byte, MaxFileSize+1)},
		"vm.yaml":   {Data: []byte(caseFile(vm + "  disks: [{disk: elsewhere}]\n"))},
	})
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 1 || errs[0].File != "disk.yaml" {
		t.Errorf("error: %v", err)
	}
}

// allocated is how many bytes a call allocates.
func allocated(call func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	call()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// bombs are files made to cost far more than their size.
func bombs() map[string]string {
	head := "apiVersion: reconciler/v1alpha1\nkind: VirtualMachine\nmetadata:\n  name: x\n"
	laughs := head + "  annotations:\n    a0: &a0 [l, o, l]\n"
	for i := range 30 {
		laughs += fmt.Sprintf("    a%d: &a%d [*a%d, *a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i, i)
	}
	text := strings.Repeat("x", 60000)
	wide := head + "  annotations:\n    a: &a " + text + "\n"
	for i := range 1000 {
		wide += fmt.Sprintf("    b%d: *a\n", i)
	}
	// A quarter of what a file may have shows what the whole would cost.
	const size = MaxFileSize / 4
	fill := func(unit string) string { return strings.Repeat(unit, size/len(unit)) }
	return map[string]string{
		"laughs":          laughs,
		"wide":            wide,
		"self":            head + "spec: &s\n  cpu: *s\n  memory: *s\n  boot: {kernel: *s}\n  disks: [*s, *s]\n",
		"flow sequences":  fill("["),
		"flow mappings":   fill("{a: "),
		"block sequences": fill("- "),
		"entries":         "a: [" + fill("a,") + "]",
		"keys":            "a: {" + fill("a,") + "}",
		"documents":       fill("---\n"),
		"unknown fields":  head + "spec:\n" + fill("  aa: b\n"),
		"labels":          head + "  labels:\n" + fill("    a: b\n"),
		"disks":           head + "spec:\n  disks:\n" + fill("  - disk: a\n"),
		"names":           head + "  movedFrom: [" + fill("a, b, ") + "]\n",
		"comments":        fill("#\n"),
		"long comment":    head + "spec: # " + fill("a # "),
		"question marks":  fill("? "),
		"anchors":         fill("&a "),
		"quotes":          fill("\"a\" "),
		"percent":         fill("%"),
		"literal":         "a: |\n" + fill(" a\n"),
		"indented":        strings.Repeat(" ", size) + "a: b",
		"tabs":            fill("\t"),
		"colons":          fill(": "),
		"blank lines":     fill("\n"),
		"folded":          "a: \"" + fill("a\n\n") + "\"",
	}
}

func TestBombsAreBounded(t *testing.T) {
	for name, text := range bombs() {
		t.Run(name, func(t *testing.T) {
			if len(text) > MaxFileSize {
				t.Fatalf("the bomb has %d bytes and is refused for that", len(text))
			}
			start := time.Now()
			var err error
			bytes := allocated(func() { _, err = Parse("a.yaml", []byte(text)) })
			took := time.Since(start)
			if err == nil && name != "comments" && name != "documents" && name != "blank lines" {
				t.Error("no error")
			}
			t.Logf("%v, %d MiB, %.200v", took.Round(time.Millisecond), bytes>>20, err)
			var errs Errors
			if errors.As(err, &errs) && len(errs) > maxErrors+1 {
				t.Errorf("%d errors", len(errs))
			}
			// What is allocated in all; what is held at a time is less. The time
			// is of a busy machine under the race detector.
			if bytes > 300<<20/4 || took > 20*time.Second {
				t.Errorf("took %v and %d MiB", took, bytes>>20)
			}
		})
	}
}
