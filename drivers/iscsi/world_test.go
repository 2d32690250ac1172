package iscsi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/claim"
	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
	"reconciler/reconcile"
	"reconciler/spec"

	"reconciler/internal/testbed"
)

// The test binary is also the target process: state directory, run directory.
const (
	envTarget = "ISCSI_TEST_TARGET"
	targetArg = "target-process" // started by target.Ensure
)

func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == targetArg {
		os.Exit(keepTarget(os.Args[2], os.Args[3], len(os.Args) > 4 && os.Args[4] == target.SuperviseFlag))
	}
	if dirs := os.Getenv(envTarget); dirs != "" {
		os.Exit(serveTarget(dirs))
	}
	os.Exit(m.Run())
}

func ensureConfig(state, run string) target.EnsureConfig {
	return target.EnsureConfig{Exe: os.Args[0], Args: []string{targetArg, state, run}, StateDir: state, RunDir: run}
}

func keepTarget(state, run string, supervise bool) int {
	if !supervise {
		return serveTarget(state + ":" + run)
	}
	if err := target.Supervise(context.Background(), ensureConfig(state, run), slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serveTarget(dirs string) int {
	state, run, _ := strings.Cut(dirs, ":")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := target.Serve(ctx, target.Config{StateDir: state, RunDir: run, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// world is one storage host: directories, a target, a driver, a tree.
type world struct {
	t      testing.TB
	dir    string
	portal string
	client *target.Client
	d      *Driver
	log    *syncBuffer
	base   reconcile.Base

	mu  sync.Mutex
	now time.Time
	up  volume.Uptime

	stopTarget func()
	process    *exec.Cmd // where the target is a process
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := newWorldAt(t, tmpfs(t, "256M"))
	w.startTarget()
	w.open()
	return w
}

func newWorldAt(t testing.TB, dir string) *world {
	w := &world{
		t: t, dir: dir, portal: freePortal(t), log: &syncBuffer{}, base: reconcile.Base{},
		now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), up: volume.Uptime{BootID: "boot-1", Up: time.Hour},
	}
	for _, sub := range []string{"state", "run", "images"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.client = target.NewClient(filepath.Join(dir, "run"))
	t.Cleanup(w.client.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", w.log)
		}
	})
	return w
}

// tmpfs mounts a small file system.
func tmpfs(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func freePortal(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startTarget runs a target in this process.
func (w *world) startTarget() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- target.Serve(ctx, target.Config{
			StateDir: filepath.Join(w.dir, "target"), RunDir: filepath.Join(w.dir, "run"),
			Logger: slog.New(slog.NewTextHandler(w.log, nil)),
		})
	}()
	var once sync.Once
	w.stopTarget = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("target: %v", err)
			}
		})
	}
	w.t.Cleanup(w.stopTarget)
	w.awaitTarget()
}

// startTargetProcess runs it as a process of its own.
func (w *world) startTargetProcess() {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envTarget+"="+filepath.Join(w.dir, "target")+":"+filepath.Join(w.dir, "run"))
	cmd.Stderr = w.log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.process = cmd
	var once sync.Once
	w.stopTarget = func() {
		once.Do(func() {
			_ = cmd.Process.Signal(syscall.SIGCONT)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	w.t.Cleanup(w.stopTarget)
	w.awaitTarget()
}

func signalTarget(t *testing.T, w *world, name string) {
	t.Helper()
	sig := map[string]syscall.Signal{"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "KILL": syscall.SIGKILL}[name]
	if err := w.process.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	if sig != syscall.SIGSTOP {
		return
	}
	await(t, "every thread of the target to stop", func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", w.process.Process.Pid))
		for _, f := range threads {
			stat, rerr := os.ReadFile(f)
			err = errors.Join(err, rerr)
			if !bytes.Contains(stat, []byte(") T ")) {
				return fmt.Errorf("%s", stat)
			}
		}
		return err
	})
}

func (w *world) awaitTarget() {
	w.t.Helper()
	await(w.t, "the target to answer", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := w.client.Ping(ctx)
		return err
	})
}

func await(t testing.TB, what string, try func() error) {
	t.Helper()
	var err error
	testbed.Await(t, 20*time.Second, what, func() bool { err = try(); return err == nil }, func() string { return err.Error() })
}

func (w *world) config() Config {
	return Config{
		StateDir: filepath.Join(w.dir, "state"), ImageDir: filepath.Join(w.dir, "images"),
		AllowedRoots: []Root{{Path: filepath.Join(w.dir, "mnt")}}, Host: "host1",
		Target: w.client, Log: slog.New(slog.NewTextHandler(w.log, nil)),
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now
		},
		Uptime: func() (volume.Uptime, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.up, nil
		},
	}
}

// open makes a new driver over the same directories, as a restart does.
func (w *world) open() {
	w.t.Helper()
	d, err := New(w.config())
	if err != nil {
		w.t.Fatal(err)
	}
	w.d = d
}

// pass lets wall clock and uptime go on.
func (w *world) pass(wall, up time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(wall)
	w.up.Up += up
}

func (w *world) reboot(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up = volume.Uptime{BootID: id, Up: time.Minute}
}

const clusterYAML = `apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: demo}
spec: {}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}
`

func (w *world) poolYAML(extra string) string {
	return fmt.Sprintf(`---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec:
  host: host1
  capacity: 256Mi
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: [%q]}}
%s`, w.portal, extra)
}

func diskYAML(name, more string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: %s}\nspec: {pool: fast, %s}\n", name, more)
}

// tree parses a whole tree.
func (w *world) tree(docs ...string) *reconcile.Desired {
	w.t.Helper()
	set, err := spec.Load(fstest.MapFS{"all.yaml": {Data: []byte(clusterYAML + strings.Join(docs, ""))}})
	if err != nil {
		w.t.Fatal(err)
	}
	return reconcile.NewDesired(set, "host1", "rev")
}

func (w *world) observe(want *reconcile.Desired) reconcile.State {
	w.t.Helper()
	s, err := w.d.Observe(w.ctx(), want)
	if err != nil {
		w.t.Fatalf("observe: %v", err)
	}
	return s // nothing is known of machines, so that no claim counts as leaked
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

// plan is what is to be done now.
func (w *world) plan(want *reconcile.Desired) (reconcile.Plan, reconcile.State) {
	w.t.Helper()
	if err := w.d.Ensure(w.ctx()); err != nil {
		w.t.Fatalf("ensure: %v", err)
	}
	s := w.observe(want)
	return reconcile.Diff(want, w.base, s, w.d.cfg.Now()), s
}

// converge plans and applies until nothing is ready, and returns the last state.
func (w *world) converge(want *reconcile.Desired) reconcile.State {
	w.t.Helper()
	for range 10 {
		p, s := w.plan(want)
		did := false
		for _, a := range p.Actions {
			if a.State != reconcile.Ready || a.Op == reconcile.OpUnchanged {
				if a.Op == reconcile.OpUnchanged {
					w.base.Finish(&a)
				}
				continue
			}
			did = true
			if err := w.apply(a); err != nil {
				w.t.Fatalf("%s %s/%s: %v", a.Op, a.Kind, a.Name, err)
			}
			w.base.Finish(&a)
		}
		if !did {
			return s
		}
	}
	p, _ := w.plan(want)
	w.t.Fatalf("does not converge: %+v", p.Actions)
	panic("unreachable")
}

func (w *world) apply(a reconcile.Action) error {
	switch a.Kind {
	case spec.KindStoragePool, spec.KindDisk, spec.KindImage:
	default:
		return nil
	}
	_, err := w.d.Apply(w.ctx(), a, reconcile.Inputs{})
	return err
}

// action is the plan's for one object.
func (w *world) action(want *reconcile.Desired, kind spec.Kind, name string) reconcile.Action {
	w.t.Helper()
	p, _ := w.plan(want)
	for _, a := range p.Actions {
		if a.Kind == kind && a.Name == name {
			return a
		}
	}
	w.t.Fatalf("no action for %s/%s", kind, name)
	panic("unreachable")
}

func uidOf(kind spec.Kind, name string) string {
	return spec.UID("demo", kind, spec.Meta{Name: name})
}

func liveDisk(t *testing.T, s reconcile.State, name string) *reconcile.Live {
	t.Helper()
	k := reconcile.Key{Kind: spec.KindDisk, UID: uidOf(spec.KindDisk, name)}
	if why, ok := s.Unknown[k]; ok {
		t.Fatalf("disk %s is unknown: %s", name, why)
	}
	l := s.Objects[k]
	if l == nil {
		t.Fatalf("disk %s is not there", name)
	}
	return l
}

func owner(launch string) claim.Owner {
	return claim.Owner{Host: "host1", BootID: "boot-1", VM: "11111111-1111-4111-8111-111111111111", Launch: launch}
}

func mustClaim(t *testing.T, w *world, disk string, o claim.Owner) claim.Grant {
	t.Helper()
	g, err := w.d.Claim(w.ctx(), disk, o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// qemuIO runs commands of qemu-io against a disk as its owner, with QEMU's own
// initiator.
func qemuIO(g claim.Grant, commands ...string) (string, error) {
	args := []string{"--object", "secret,id=chap,data=" + g.Password.Reveal(), "-t", "none"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	args = append(args, "--image-opts", fmt.Sprintf(
		"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=%d,file.user=%s,file.password-secret=chap,file.initiator-name=%s,file.timeout=5",
		g.Portal, g.Target, g.LUN, g.User, g.Initiator))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-io", args...).CombinedOutput()
	if err == nil && strings.Contains(string(out), "failed") {
		err = errors.New("a command failed")
	}
	if err != nil {
		err = fmt.Errorf("qemu-io: %w: %s", err, out)
	}
	return string(out), err
}

func mustIO(t *testing.T, g claim.Grant, commands ...string) {
	t.Helper()
	if out, err := qemuIO(g, commands...); err != nil {
		t.Fatal(err)
	} else if strings.Contains(out, "Pattern verification failed") {
		t.Fatal(out)
	}
}

func sha256Hex(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
