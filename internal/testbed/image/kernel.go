package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const kernelPackage = "linux-image-cloud-amd64"

// modules the guest loads, in this order; what they need comes before them.
// One that a kernel has built in costs nothing.
var modules = []string{
	"virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net", "virtio_rng",
	"virtio_balloon", "virtio_mem", "virtio_console", "button", "evdev", "pvpanic_pci", "isofs",
}

// buildKernel puts Debian's cloud kernel (k) and the modules the guest loads
// (modules, with their order) into dir. Nothing is installed.
func buildKernel(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp(dir, "unpack-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	deb, err := downloadKernel(ctx, work)
	if err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	if _, err := output(ctx, work, "dpkg-deb", "-x", deb, tree); err != nil {
		return err
	}
	kernels, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return errors.Join(err, fmt.Errorf("%s holds %d kernels, not one", filepath.Base(deb), len(kernels)))
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if err := copyModules(ctx, tree, version, filepath.Join(dir, "modules")); err != nil {
		return err
	}
	// Last: its presence says that the rest is there.
	return os.Rename(kernels[0], filepath.Join(dir, "k"))
}

// downloadKernel fetches the package that the meta package depends on. apt
// needs no privileges for it, only fresh lists.
func downloadKernel(ctx context.Context, dir string) (string, error) {
	try := func() error {
		deps, err := output(ctx, dir, "apt-cache", "depends", "--important", kernelPackage)
		if err != nil {
			return err
		}
		for line := range strings.Lines(deps) {
			name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
			if !ok {
				continue
			}
			// apt as root would download as _apt, which cannot write here.
			_, err := output(ctx, dir, "apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", name)
			return err
		}
		return fmt.Errorf("apt knows no package that %s depends on", kernelPackage)
	}
	err := try()
	if err != nil && os.Geteuid() == 0 {
		if _, updateErr := output(ctx, dir, "apt-get", "-qq", "update"); updateErr != nil {
			return "", errors.Join(err, updateErr)
		}
		err = try()
	}
	if err != nil {
		return "", fmt.Errorf("%w (are apt's package lists fresh? sudo apt-get update)", err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", errors.Join(err, fmt.Errorf("apt left %d packages, not one", len(debs)))
	}
	return debs[0], nil
}

// copyModules copies the files of modules and of all they depend on to dir,
// and their order of loading to the file "order".
func copyModules(ctx context.Context, tree, version, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if _, err := output(ctx, tree, "/sbin/depmod", "-b", tree, version); err != nil {
		return err
	}
	args := append([]string{"-d", tree, "-S", version, "--show-depends", "-a"}, modules...)
	depends, err := output(ctx, tree, "/sbin/modprobe", args...)
	if err != nil {
		return err
	}
	var order []string
	seen := map[string]bool{}
	for line := range strings.Lines(depends) {
		// "insmod PATH", or "builtin NAME"
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
		if !ok || seen[path] {
			continue
		}
		seen[path] = true
		name := filepath.Base(path)
		if filepath.Ext(name) != ".ko" {
			return fmt.Errorf("compressed module %s: only Debian 12's plain ones are supported", name)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
		order = append(order, name)
	}
	return os.WriteFile(filepath.Join(dir, "order"), []byte(strings.Join(order, "\n")+"\n"), 0o644)
}

// output runs a program to its end and returns what it wrote to stdout.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
