package kvm

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/spec"
)

// tgtd is an iSCSI target that is not ours, with a target for each disk.
type tgtd struct {
	control int
	portal  string
	dir     string
	next    int
	disks   map[string]*target // by disk UID
}

type target struct {
	id   int
	file string
	iqn  string
}

var controlPort atomic.Int32

// newTgtd starts one on a port of its own; it ends with the test.
func newTgtd(t *testing.T) *tgtd {
	t.Helper()
	dir := shortDir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := l.Addr().String()
	l.Close()
	g := &tgtd{
		control: 1 + (os.Getpid()+1000*int(controlPort.Add(1)))%32767, portal: portal, dir: dir, disks: map[string]*target{},
	}
	cmd := exec.Command("tgtd", "-f", "-C", strconv.Itoa(g.control), "--iscsi", "portal="+portal)
	cmd.Env = append(os.Environ(), "TGT_IPC_SOCKET="+filepath.Join(dir, "ipc"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, 10*time.Second, "tgtd to listen", func() error {
		_, err := g.tgtadm("--lld", "iscsi", "--op", "show", "--mode", "target")
		return err
	})
	return g
}

func (g *tgtd) tgtadm(args ...string) (string, error) {
	cmd := exec.Command("tgtadm", append([]string{"-C", strconv.Itoa(g.control)}, args...)...)
	cmd.Env = append(os.Environ(), "TGT_IPC_SOCKET="+filepath.Join(g.dir, "ipc"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("tgtadm %v: %w: %s", args, err, out)
	}
	return string(out), nil
}

func (g *tgtd) must(t *testing.T, args ...string) {
	t.Helper()
	if _, err := g.tgtadm(append([]string{"--lld", "iscsi"}, args...)...); err != nil {
		t.Fatal(err)
	}
}

const testPassword = "a-secret-of-16-b"

// serve makes a disk of this size if it is not there, or grows it.
func (g *tgtd) serve(t *testing.T, uid string, size spec.Size) {
	t.Helper()
	d, ok := g.disks[uid]
	if !ok {
		g.next++
		d = &target{id: g.next, file: filepath.Join(g.dir, uid), iqn: "iqn.2026-11.test:" + uid}
		g.disks[uid] = d
		f, err := os.Create(d.file)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if info, err := os.Stat(d.file); err != nil || info.Size() >= int64(size) {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.Truncate(d.file, int64(size)); err != nil {
		t.Fatal(err)
	}
	tid := strconv.Itoa(d.id)
	if ok { // tgtd learns a size only when a unit is made
		g.must(t, "--op", "update", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "--params", "online=0")
		g.must(t, "--op", "delete", "--mode", "logicalunit", "--tid", tid, "--lun", "1")
	} else {
		g.must(t, "--op", "new", "--mode", "target", "--tid", tid, "-T", d.iqn)
		g.must(t, "--op", "new", "--mode", "account", "--user", "u"+tid, "--password", testPassword)
		g.must(t, "--op", "bind", "--mode", "account", "--tid", tid, "--user", "u"+tid)
		g.must(t, "--op", "bind", "--mode", "target", "--tid", tid, "-I", "ALL")
	}
	g.must(t, "--op", "new", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "-b", d.file)
}

func (g *tgtd) grant(uid, portal string) claim.Grant {
	d := g.disks[uid]
	return claim.Grant{
		Disk: uid, Epoch: 1, Portal: portal, Target: d.iqn, LUN: 1,
		Initiator: "iqn.2026-11.test:initiator", User: "u" + strconv.Itoa(d.id), Password: claim.NewSecret(testPassword),
	}
}

// shortDir is a temporary directory whose name leaves room for a socket's.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kvmtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// eventually asks until there is no error.
func eventually(t testing.TB, timeout time.Duration, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited %v for %s: %v", timeout, what, err)
		case <-tick.C:
		}
	}
}
