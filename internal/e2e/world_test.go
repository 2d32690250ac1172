package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/status"
)

// binary is the program under test, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		dir, err := os.MkdirTemp("", "rc-e2e-bin-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "reconciler")
		build := exec.Command("go", "build", "-o", binary, "reconciler/cmd/reconciler")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build: %w\n%s", err, out)
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// deadlines of what tests wait for. TCG guests share two cores with the rest.
const (
	bootTime = 90 * time.Second
	passTime = 120 * time.Second
)

// world is one host with its repository.
type world struct {
	t      *testing.T
	host   string // host1 if empty
	dir    string // marks every process of the world
	bare   string
	work   string
	images string
	portal string
	agent  *exec.Cmd
	log    *os.File
	remote string   // the repository's address; the bare one's if empty
	args   []string // further flags of run
	under  []string // what runs the agent; it must exec
}

// newWorld makes a repository with a cluster, one host, a pool, a network and
// the guest's images; nothing runs yet. What the test leaves running is ended,
// and fails the test if leftovers says so.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "rc-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, dir: dir, bare: filepath.Join(dir, "git", "cluster.git"), work: filepath.Join(dir, "git", "work"),
		images: filepath.Join(dir, "images"), portal: freePort(t),
	}
	t.Cleanup(w.cleanup)
	for _, d := range []string{w.work, w.images} {
		w.must(os.MkdirAll(d, 0o755))
	}
	guest := testbed.Guest(t)
	w.copy(guest.Kernel, filepath.Join(w.images, "k"))
	w.copy(guest.Initrd, filepath.Join(w.images, "i"))
	w.git("init", "-q", "--bare", "-b", "main", w.bare)
	w.git("init", "-q", "-b", "main")
	w.git("config", "user.name", "test")
	w.git("config", "user.email", "test@localhost")
	w.git("remote", "add", "origin", w.bare)
	w.write("base.yaml", w.base())
	log, err := os.Create(filepath.Join(dir, "agent.log"))
	w.must(err)
	w.log = log
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (w *world) copy(from, to string) {
	w.t.Helper()
	in, err := os.Open(from)
	w.must(err)
	defer in.Close()
	out, err := os.Create(to)
	w.must(err)
	_, err = io.Copy(out, in)
	w.must(errors.Join(err, out.Close()))
}

func (w *world) sum(image string) string {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.images, image))
	w.must(err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	w.must(err)
	return hex.EncodeToString(h.Sum(nil))
}

// base is what every test's tree declares beside its machines.
func (w *world) base() string {
	return fmt.Sprintf(`apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: test}
spec: {id: %s}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec:
  host: host1
  capacity: 4Gi
  volumes: {file: {path: pools/fast}}
  target: {embedded: {portals: ["%s"]}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: user}
spec: {user: {}}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: k}
spec: {source: {file: {path: k}}, sha256: "%s"}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: i}
spec: {source: {file: {path: i}}, sha256: "%s"}
`, w.clusterID(), w.portal, w.sum("k"), w.sum("i"))
}

// clusterID is unique on the machine: another world's machine of the same
// identity would, rightly, not be started.
func (w *world) clusterID() string {
	_, port, _ := net.SplitHostPort(w.portal)
	return "test-" + port
}

// disk is the document of a disk.
func disk(name, size string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: %s}\nspec: {pool: fast, size: %s}\n", name, size)
}

// vm is the document of a machine that boots the tiny guest. cmdline steers the
// guest; spec is further YAML of the spec in flow style, without braces.
func vm(name, cmdline, spec string) string {
	return fmt.Sprintf(`---
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: %s}
spec: {host: host1, cpu: {cores: 1}, memory: {size: 128Mi}, boot: {kernel: {image: k}, initrd: {image: i}, cmdline: "console=ttyS0 quiet panic=-1 %s"}, shutdown: {timeout: 30s}, %s}
`, name, cmdline, spec)
}

func (w *world) git(args ...string) string {
	w.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = w.work
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (w *world) write(path, content string) {
	w.t.Helper()
	w.must(os.MkdirAll(filepath.Dir(filepath.Join(w.work, path)), 0o755))
	w.must(os.WriteFile(filepath.Join(w.work, path), []byte(content), 0o644))
}

func (w *world) remove(path string) { w.t.Helper(); w.must(os.Remove(filepath.Join(w.work, path))) }

// commit pushes the work tree and returns the commit.
func (w *world) commit(message string) string {
	w.t.Helper()
	w.git("add", "-A")
	w.git("commit", "-q", "--allow-empty", "-m", message)
	w.git("push", "-q", "origin", "HEAD:main")
	return w.git("rev-parse", "HEAD")
}

func (w *world) state(path ...string) string {
	return filepath.Join(append([]string{w.dir, "state"}, path...)...)
}

func (w *world) flags() []string {
	repo := w.remote
	if repo == "" {
		repo = "file://" + w.bare
	}
	list := []string{"--state-dir", w.state(), "--run-dir", filepath.Join(w.dir, "run"), "--image-dir", w.images,
		"--repo", repo, "--branch", "main", "--host", cmp.Or(w.host, "host1"), "--accel", "tcg"}
	if _, err := os.Stat(w.file("config.yaml")); err == nil {
		list = append(list, "--config", w.file("config.yaml"))
	}
	return list
}

// file is the path of a file beside the repository, such as a key.
func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// config writes the host's configuration, which the next start reads.
func (w *world) config(yaml string) {
	w.t.Helper()
	w.must(os.WriteFile(w.file("config.yaml"), []byte(yaml), 0o600))
}

// start starts the daemon and waits until it answers.
func (w *world) start() {
	w.t.Helper()
	argv := append(append(append(slices.Clone(w.under), binary, "run"), w.flags()...), w.args...)
	w.agent = exec.Command(argv[0], argv[1:]...)
	w.agent.Stdout, w.agent.Stderr = w.log, w.log
	w.must(w.agent.Start())
	w.await(20*time.Second, "the agent to answer", func() bool { _, code := w.try("status"); return code == 0 })
}

// kill ends the daemon as a crash would.
func (w *world) kill() {
	w.t.Helper()
	w.must(w.agent.Process.Kill())
	_ = w.agent.Wait() // "signal: killed"
	w.agent = nil
}

// stop ends the daemon as an operator would.
func (w *world) stop() {
	w.t.Helper()
	w.must(w.agent.Process.Signal(syscall.SIGTERM))
	if err := w.agent.Wait(); err != nil {
		w.t.Errorf("the agent did not end cleanly: %v", err)
	}
	w.agent = nil
}

// try runs a command against the daemon.
func (w *world) try(args ...string) (out string, code int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), passTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "--run-dir", filepath.Join(w.dir, "run"))...)
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	err := cmd.Run()
	if ctx.Err() != nil {
		w.t.Fatalf("reconciler %s: no end after %s\n%s", strings.Join(args, " "), passTime, both.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return both.String(), cmd.ProcessState.ExitCode()
}

// cli runs a command that must succeed.
func (w *world) cli(args ...string) string {
	w.t.Helper()
	out, code := w.try(args...)
	if code != 0 {
		w.t.Fatalf("reconciler %s: exit %d\n%s\n%s", strings.Join(args, " "), code, out, w.tail())
	}
	return out
}

func (w *world) tail() string {
	return "the agent's last words:\n" + testbed.Tail(w.log.Name(), 40)
}

// json reads what a command prints as JSON.
func (w *world) json(into any, args ...string) {
	w.t.Helper()
	out := w.cli(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		w.t.Fatalf("reconciler %s prints no JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// reconcile brings the newest commit into force.
func (w *world) reconcile() { w.t.Helper(); w.cli("reconcile", "--wait") }

func (w *world) plan(args ...string) reconcile.Plan {
	w.t.Helper()
	var p reconcile.Plan
	w.json(&p, append([]string{"plan"}, args...)...)
	return p
}

// settled fails unless the next plan has nothing to do at all.
func (w *world) settled() {
	w.t.Helper()
	p := w.plan()
	for i := range p.Actions {
		if p.Actions[i].Op != reconcile.OpUnchanged {
			var b strings.Builder
			_ = p.WriteText(&b)
			w.t.Fatalf("the next plan is not empty:\n%s\n%s", b.String(), w.tail())
		}
	}
}

func (w *world) objects(what string) map[string]status.Object {
	w.t.Helper()
	var list []status.Object
	w.json(&list, "get", what)
	m := make(map[string]status.Object, len(list))
	for _, o := range list {
		m[string(o.Kind)+"/"+o.Name] = o
	}
	return m
}

// uid is the identity of an object that exists.
func (w *world) uid(object string) string {
	w.t.Helper()
	o, ok := w.objects("all")[object]
	if !ok {
		w.t.Fatalf("%s does not exist", object)
	}
	return o.UID
}

// serial is the console log of a machine.
func (w *world) serial(name string) *testbed.Serial { return testbed.NewSerial(w.serialPath(name)) }

func (w *world) serialPath(name string) string {
	w.t.Helper()
	return w.state("vms", w.uid("VirtualMachine/"+name)+".console.log")
}

// typeOn types a line on a machine's serial console, by its UID.
func (w *world) typeOn(uid, line string) {
	w.t.Helper()
	in, err := os.OpenFile(filepath.Join(w.dir, "run", "vms", uid, "console.in"), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	w.must(err)
	_, err = fmt.Fprintln(in, line)
	w.must(errors.Join(err, in.Close()))
}

// await polls a condition until its deadline; there is no event to wait for
// across processes.
func (w *world) await(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	testbed.Await(w.t, limit, what, ok, w.tail)
}

// qemus are the QEMU processes of the world.
func (w *world) qemus() []testbed.Process {
	w.t.Helper()
	all, err := testbed.Processes(w.dir)
	w.must(err)
	var list []testbed.Process
	for _, p := range all {
		if strings.Contains(p.Cmdline, "qemu-system") {
			list = append(list, p)
		}
	}
	return list
}

func (w *world) cleanup() {
	if w.agent != nil {
		_ = w.agent.Process.Kill()
		_ = w.agent.Wait()
	}
	if err := testbed.KillAll(w.dir); err != nil {
		w.t.Errorf("end what the test left: %v", err)
	}
	if w.t.Failed() && w.log != nil {
		w.t.Log(w.tail())
	}
	if w.log != nil {
		_ = w.log.Close()
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Error(err)
	}
}
