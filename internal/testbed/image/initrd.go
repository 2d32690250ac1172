package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// programs of Debian that go along, with the libraries they need.
var programs = []string{"/sbin/mke2fs", "/sbin/e2fsck", "/sbin/resize2fs"}

const busybox = "/bin/busybox"

// udhcpcScript is what busybox's DHCP client runs on a lease.
const udhcpcScript = `#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route add default via "${router%% *}" dev "$interface"
`

// buildInitrd writes the initramfs i into dir.
func buildInitrd(ctx context.Context, kernelDir, dir string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	guestd := filepath.Join(dir, "guestd")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", guestd, "./internal/testbed/guestd")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	defer os.Remove(guestd)

	f, err := os.Create(filepath.Join(dir, "i"))
	if err != nil {
		return err
	}
	defer f.Close()
	// Not compressed: a guest without hardware acceleration unpacks slower
	// than QEMU hands it the bytes.
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	a.file("init", guestd, 0o755)
	a.file("bin/busybox", busybox, 0o755)
	applets, err := output(ctx, dir, busybox, "--list")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(applets) {
		if name != "busybox" && name != "mke2fs" {
			a.symlink("bin/"+name, "busybox")
		}
	}
	for _, p := range programs {
		if err := a.program(ctx, p); err != nil {
			return err
		}
	}
	modulesDir := filepath.Join(kernelDir, "modules")
	entries, err := os.ReadDir(modulesDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		a.file("lib/modules/"+e.Name(), filepath.Join(modulesDir, e.Name()), 0o644)
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp"} {
		a.dir(d)
	}
	a.bytes("etc/udhcpc", []byte(udhcpcScript), 0o755)
	// What the kernel opens as the init's stdin, stdout and stderr.
	a.device("dev/console", 5, 1)
	a.close()
	return errors.Join(a.err, w.Flush(), f.Close())
}

var libraryPath = regexp.MustCompile(`/\S+\.so\S*`)

// program adds a program and the shared libraries that ldd lists for it.
func (a *archive) program(ctx context.Context, path string) error {
	libs, err := output(ctx, "/", "ldd", path)
	if err != nil {
		return err
	}
	a.file(strings.TrimPrefix(path, "/"), path, 0o755)
	for _, lib := range libraryPath.FindAllString(libs, -1) {
		a.file(strings.TrimPrefix(lib, "/"), lib, fs.FileMode(0o755))
	}
	return nil
}
