package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"reconciler/cmd/reconciler/config"
	"reconciler/drivers/kvm"
	"reconciler/internal/unixsock"
	"reconciler/spec"
)

// finding is one thing the agent needs of a host.
type finding struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"` // how to put it right
}

// unfit is why something fails, and how to put it right.
type unfit struct{ why, fix string }

func (e *unfit) Error() string { return e.why }

const (
	qemuBinary = "qemu-system-x86_64"
	// probeTimeout bounds one program that is run.
	probeTimeout = 15 * time.Second
	// minSpace is the free space of the state directory, in bytes: records are
	// small, but an image is copied there.
	minSpace = 1 << 30
)

// probeHost tries everything, in order. configFile is where c is from, if it is
// from a file.
func probeHost(ctx context.Context, c config.Config, configFile string) []finding {
	var list []finding
	try := func(name string, probe func() (string, error)) {
		message, err := probe()
		f := finding{Name: name, OK: err == nil, Message: message}
		var u *unfit
		if errors.As(err, &u) {
			f.Fix = u.fix
		}
		if err != nil {
			f.Message = err.Error()
		}
		list = append(list, f)
	}
	try("privileges", probeRoot)
	try("qemu", func() (string, error) { return probeVersion(ctx, qemuBinary, "qemu-system-x86") })
	try("qemu-img", func() (string, error) { return probeVersion(ctx, "qemu-img", "qemu-utils") })
	try("iscsi module", func() (string, error) { return probeISCSI(ctx) })
	try("accelerator", func() (string, error) { return probeAccel(ctx, c.Accel) })
	try("tap devices", probeTun)
	try("netlink", func() (string, error) { return probeNetlink(c.Allowed.Bridges) })
	try("state dir", func() (string, error) { return probeState(c.StateDir) })
	try("run dir", func() (string, error) { return probeRun(c.RunDir) })
	type file struct{ name, path string }
	for _, f := range []file{
		{"token", c.Credentials.TokenFile}, {"ssh key", c.Credentials.SSHKeyFile},
		{"token to push", c.Credentials.Write.TokenFile}, {"key to push", c.Credentials.Write.SSHKeyFile},
		{"status token", c.Status.Credentials.TokenFile}, {"status key", c.Status.Credentials.SSHKeyFile},
		{"forge token", c.Forge.TokenFile}, {"host key", c.HostKeyFile}, {"age key", c.Secrets.AgeKeyFile},
		{"webhooks", c.Webhook.SecretFile}, {"webhook key", c.Webhook.KeyFile},
	} {
		if f.path != "" {
			try(f.name, func() (string, error) { return probeSecret(f.path) })
		}
	}
	for _, f := range []file{
		{"config", configFile}, {"signers", c.Signing.Keys}, {"gpg signers", c.Signing.GPGKeys},
		{"known hosts", c.Credentials.KnownHostsFile}, {"ca file", c.Credentials.CAFile}, {"forge ca", c.Forge.CAFile},
	} {
		if f.path != "" {
			try(f.name, func() (string, error) { return probeTrusted(f.path) })
		}
	}
	return list
}

func probeRoot() (string, error) {
	if uid := os.Geteuid(); uid != 0 {
		return "", &unfit{fmt.Sprintf("this is user %d", uid), "run the agent as root"}
	}
	return "this is root", nil
}

func probeVersion(ctx context.Context, program, pkg string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", &unfit{fmt.Sprintf("%s: %v", program, err), "apt install " + pkg}
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// probeISCSI has QEMU open a disk at a port that is closed: with the module it
// fails to connect, without it does not know the driver. That its name is in a
// list proves nothing, since modules are loaded when they are used.
func probeISCSI(ctx context.Context) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	closed := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemuBinary, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
		"-blockdev", "driver=iscsi,node-name=probe,transport=tcp,target=iqn.2026-11.local.reconciler:probe,lun=0,timeout=2,portal="+closed).CombinedOutput()
	if strings.Contains(string(out), "iSCSI: ") {
		return "QEMU opens iSCSI disks by itself", nil
	}
	why := strings.TrimSpace(string(out))
	if why == "" && err != nil {
		why = err.Error()
	}
	return "", &unfit{"QEMU cannot open iSCSI disks: " + why, "apt install qemu-block-extra"}
}

// nobody answers for the disks of a machine that has none.
type nobody struct{}

func (nobody) Answers(context.Context, []string) error { return nil }

func probeAccel(ctx context.Context, accel string) (string, error) {
	if accel == string(kvm.AccelTCG) {
		return "tcg: guests are emulated, many times slower", nil
	}
	dir, err := os.MkdirTemp("", "reconciler-check-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	driver, err := kvm.New(kvm.Config{StateDir: dir, RunDir: dir, Storage: nobody{}})
	if err != nil {
		return "", err
	}
	defer driver.Close()
	err = driver.ProveKVM(ctx)
	switch {
	case err == nil:
		return "kvm: a test guest ran", nil
	case accel == string(kvm.AccelAuto):
		return fmt.Sprintf("tcg: guests are emulated, many times slower (%v)", err), nil
	}
	return "", &unfit{err.Error(), "enable virtualization in the firmware and load kvm_intel or kvm_amd; inside a virtual machine, enable nesting; or give --accel tcg and have guests emulated"}
}

func probeTun() (string, error) {
	const dev = "/dev/net/tun"
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &unfit{fmt.Sprintf("%s: %v", dev, err), "modprobe tun"}
	}
	unix.Close(fd)
	return dev + " opens", nil
}

func probeNetlink(bridges []string) (string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return "", &unfit{fmt.Sprintf("list interfaces: %v", err), "run the agent as root"}
	}
	for _, name := range bridges {
		link, err := netlink.LinkByName(name)
		if err != nil || link.Type() != "bridge" {
			return "", &unfit{fmt.Sprintf("allowed.bridges: %s is not a bridge of this host", name), fmt.Sprintf("ip link add %s type bridge, or take it out of the configuration", name)}
		}
	}
	return fmt.Sprintf("%d interfaces, %d allowed bridges", len(links), len(bridges)), nil
}

// probeState looks at what the state directory is on: space, and holes in
// files, by which guests give space back.
func probeState(dir string) (string, error) {
	at, err := writable(dir)
	if err != nil {
		return "", err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	free := st.Bavail * uint64(st.Bsize)
	if free < minSpace {
		return "", &unfit{fmt.Sprintf("%s: %d MiB are free", at, free>>20), "give it at least 1 GiB, or use another --state-dir"}
	}
	f, err := os.CreateTemp(at, ".check-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	err = f.Truncate(1 << 20)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<16)
	}
	if err != nil {
		return "", &unfit{fmt.Sprintf("%s: no holes in files: %v", at, err), "put it on ext4, xfs or btrfs"}
	}
	return fmt.Sprintf("%s: %s free", dir, spec.Size(free&^(1<<20-1))), nil
}

func probeRun(dir string) (string, error) {
	at, err := writable(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(at, fmt.Sprintf(".check-%d", os.Getpid()))
	l, err := unixsock.Listen(path)
	if err != nil {
		return "", &unfit{fmt.Sprintf("no sockets: %v", err), "use another --run-dir, on a local file system"}
	}
	return dir + ": sockets can be made", l.Close()
}

// writable finds the directory, or where it would be made.
func writable(dir string) (string, error) {
	at := dir
	for {
		info, err := os.Stat(at)
		switch {
		case err == nil && !info.IsDir():
			return "", &unfit{at + " is not a directory", "move it away"}
		case err == nil:
			if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
				return "", &unfit{fmt.Sprintf("%s: %v", at, err), "run the agent as root, or use another directory"}
			}
			return at, nil
		case !errors.Is(err, os.ErrNotExist):
			return "", err
		}
		at = filepath.Dir(at)
	}
}

func probeSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", &unfit{err.Error(), "put it there, or take it out of the configuration"}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", &unfit{fmt.Sprintf("%s: others may read it (mode %o)", path, info.Mode().Perm()), "chmod 600 " + path}
	}
	return path + ": only its owner may read it", nil
}

// probeTrusted looks at a file that says whom to believe.
func probeTrusted(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", &unfit{err.Error(), "put it there, or take it out of the configuration"}
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
		return "", &unfit{fmt.Sprintf("%s belongs to user %d", path, owner.Uid), "chown root " + path}
	}
	if info.Mode().Perm()&0o022 != 0 {
		return "", &unfit{fmt.Sprintf("%s: others may write it (mode %o)", path, info.Mode().Perm()), "chmod go-w " + path}
	}
	return path + ": only its owner may write it", nil
}
