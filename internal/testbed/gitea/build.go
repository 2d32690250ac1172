package gitea

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"reconciler/internal/testbed/cache"
)

// Version is the release that tests run against; sum pins its source.
const (
	Version = "1.24.6"
	module  = "code.gitea.io/gitea@v" + Version
	sum     = "h1:BrHATK2cfr/hkJc8cc2W/1lWTVhyCxa1NQMHvEVeLWM="
)

// Files are where a build of Gitea is.
type Files struct {
	Program string
	Static  string // its templates, options and public files
}

// Ensure returns Gitea, building it first from the Go module proxy where it is
// not there, which takes minutes. It may be called by several processes at once.
func Ensure(ctx context.Context) (Files, error) {
	root, err := cache.Dir()
	if err != nil {
		return Files{}, err
	}
	dir := filepath.Join(root, "gitea-"+Version+"-quick")
	files := Files{Program: filepath.Join(dir, "gitea"), Static: dir}
	if cache.Exists(files.Program) {
		return files, nil
	}
	// Not the lock of the test guest, whose users need not wait this long.
	unlock, err := cache.Lock(ctx, dir+".lock")
	if err != nil {
		return Files{}, err
	}
	defer unlock()
	if cache.Exists(files.Program) {
		return files, nil
	}
	if err := cache.Atomically(dir, func(tmp string) error { return build(ctx, tmp) }); err != nil {
		return Files{}, fmt.Errorf("build Gitea %s: %w", Version, err)
	}
	return files, nil
}

func build(ctx context.Context, dir string) error {
	// Outside of our own module, whose go.mod is nobody's business here.
	out, err := run(ctx, os.TempDir(), "go", "mod", "download", "-json", module)
	if err != nil {
		return err
	}
	var source struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &source); err != nil {
		return fmt.Errorf("go mod download: %w", err)
	}
	if source.Sum != sum {
		return fmt.Errorf("the source has the sum %s, not %s", source.Sum, sum)
	}
	// Its own directory, because `go install` refuses a module that replaces
	// others. Not optimised, which takes longer, and tests ask little of it.
	_, err = run(ctx, source.Dir, "go", "build", "-trimpath", "-buildvcs=false", "-gcflags=all=-N -l",
		"-tags", "sqlite sqlite_unlock_notify", "-ldflags", "-s -w -X main.Version="+Version,
		"-o", filepath.Join(dir, "gitea"), ".")
	if err != nil {
		return err
	}
	for _, name := range []string{"options", "public", "templates"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(source.Dir, name))); err != nil {
			return err
		}
	}
	return nil
}

// run returns what a command writes; what it says of an error goes into ours.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "GO111MODULE=on", "CGO_ENABLED=1", "CGO_CFLAGS=-O0")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		said := stderr.String()
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, said[max(0, len(said)-4096):])
	}
	return out.Bytes(), nil
}
