// Package image builds the kernel and the initramfs of the test guest, once
// for each machine and state of the guest's sources.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"reconciler/internal/testbed/cache"
)

// kernelRecipe and guestRecipe change with what this package does; the guest's
// own sources are part of the key as they are.
const (
	kernelRecipe = "2"
	guestRecipe  = "2"
)

// Files are the two that QEMU's -kernel and -initrd take.
type Files struct {
	Kernel string
	Initrd string
}

// Ensure returns the guest's files, building first what is not there. It may
// be called by several processes at once; the directory is RECONCILER_TESTBED,
// or reconciler-testbed in the user's cache directory.
func Ensure(ctx context.Context) (Files, error) {
	root, err := cache.Dir()
	if err != nil {
		return Files{}, err
	}
	key, err := guestKey()
	if err != nil {
		return Files{}, err
	}
	kernelDir := filepath.Join(root, "kernel-"+kernelRecipe)
	guestDir := filepath.Join(root, "guest-"+key)
	files := Files{Kernel: filepath.Join(kernelDir, "k"), Initrd: filepath.Join(guestDir, "i")}
	if cache.Exists(files.Kernel) && cache.Exists(files.Initrd) {
		return files, nil
	}

	unlock, err := cache.Lock(ctx, filepath.Join(root, "lock"))
	if err != nil {
		return Files{}, err
	}
	defer unlock()
	if !cache.Exists(files.Kernel) {
		err := cache.Atomically(kernelDir, func(tmp string) error { return buildKernel(ctx, tmp) })
		if err != nil {
			return Files{}, fmt.Errorf("test guest's kernel: %w", err)
		}
	}
	if !cache.Exists(files.Initrd) {
		err := cache.Atomically(guestDir, func(tmp string) error { return buildInitrd(ctx, kernelDir, tmp) })
		if err != nil {
			return Files{}, fmt.Errorf("test guest's initramfs: %w", err)
		}
		if err := prune(root, guestDir); err != nil {
			return Files{}, err
		}
	}
	return files, nil
}

// prune removes guests of earlier sources, but for those that another checkout
// may still use.
func prune(root, keep string) error {
	const unused = 7 * 24 * time.Hour
	guests, err := filepath.Glob(filepath.Join(root, "guest-*"))
	if err != nil {
		return err
	}
	for _, dir := range guests {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if dir != keep && time.Since(info.ModTime()) > unused {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// Export copies the files to dir as k and i.
func (f Files) Export(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for from, name := range map[string]string{f.Kernel: "k", f.Initrd: "i"} {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// guestKey is over everything of ours that goes into the initramfs.
func guestKey() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %s %q %q %q\n", kernelRecipe, guestRecipe, modules, programs, udhcpcScript)
	for _, pkg := range []string{"internal/testbed/guestd", "internal/testbed/record"} {
		files, err := filepath.Glob(filepath.Join(root, pkg, "*.go"))
		if err != nil {
			return "", err
		}
		if len(files) == 0 {
			return "", fmt.Errorf("no sources of the guest in %s", filepath.Join(root, pkg))
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				return "", err
			}
			fmt.Fprintln(h, filepath.Base(name), len(b))
			h.Write(b)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// moduleRoot finds the module this process was started in: go test and go run
// start in it, and the guest is built from its sources.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if cache.Exists(filepath.Join(dir, "go.mod")) && cache.Exists(filepath.Join(dir, "internal/testbed/guestd")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not in the source tree, from which the test guest is built")
		}
		dir = parent
	}
}
