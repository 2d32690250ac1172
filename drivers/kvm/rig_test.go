package kvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"reconciler/claim"
	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

// rig is a host for tests: a driver, a target, and the part of the agent that
// plans and hands grants to the driver.
type rig struct {
	t       *testing.T
	cluster string // of its own: other tests' machines must not have the same UUID
	cfg     Config
	d       *Driver
	tgtd    *tgtd
	portal  string // where QEMU finds the target
	prober  *prober
	base    reconcile.Base
	want    *reconcile.Desired
	files   map[string]string
	secrets map[string]claim.Secret // as the agent decrypted them
	serial  *testbed.Serial
}

// prober answers for the storage as the test says.
type prober struct {
	mu     sync.Mutex
	err    error
	silent bool
	asked  int
}

func (p *prober) Answers(ctx context.Context, _ []string) error {
	p.mu.Lock()
	p.asked++
	err, silent := p.err, p.silent
	p.mu.Unlock()
	if silent {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (p *prober) set(err error, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.silent = err, silent
}

func newRig(t *testing.T, opts ...func(*Config)) *rig {
	t.Helper()
	dir := shortDir(t)
	r := &rig{t: t, prober: &prober{}, base: reconcile.Base{}, cluster: "t" + uuid.NewString()[:8]}
	r.cfg = Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Accel: AccelTCG,
		Storage: r.prober, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		UnplugTimeout: 10 * time.Second, ObserveTimeout: 5 * time.Second, StorageTimeout: time.Second,
	}
	for _, o := range opts {
		o(&r.cfg)
	}
	testbed.Reap(t, dir) // every path of QEMU's is below it
	r.restart()
	t.Cleanup(func() {
		r.d.Close()
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(r.d.dir, "*.log"))
			for _, log := range logs {
				t.Logf("%s:\n%s", log, testbed.Tail(log, 15))
			}
		}
	})
	r.tgtd = newTgtd(t)
	r.portal = r.tgtd.portal
	guest := testbed.Guest(t)
	r.files = map[string]string{"kernel": guest.Kernel, "initrd": guest.Initrd}
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// restart replaces the driver, as after the death of the agent.
func (r *rig) restart() {
	r.t.Helper()
	if r.d != nil {
		r.d.Close()
	}
	d, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.d = d
}

const preamble = `
apiVersion: reconciler/v1alpha1
kind: Cluster
metadata: {name: CLUSTER}
---
apiVersion: reconciler/v1alpha1
kind: Host
metadata: {name: host1}
spec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}
---
apiVersion: reconciler/v1alpha1
kind: StoragePool
metadata: {name: fast}
spec: {host: host1, capacity: 20Gi, volumes: {file: {path: pools/fast}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}}
---
apiVersion: reconciler/v1alpha1
kind: Network
metadata: {name: out}
spec: {user: {}}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: k}
spec: {source: {file: {path: k}}, sha256: "` + zeros + `"}
---
apiVersion: reconciler/v1alpha1
kind: Image
metadata: {name: i}
spec: {source: {file: {path: i}}, sha256: "` + zeros + `"}
`

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

func diskYAML(name, size string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: %s}\nspec: {pool: fast, size: %s}\n", name, size)
}

func bridgeYAML(name, bridge string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: %s}\nspec: {bridge: {name: %s}}\n", name, bridge)
}

// vmYAML is a machine with the test guest; more are further lines of its spec.
func vmYAML(name, cmdline string, more ...string) string {
	y := fmt.Sprintf(`---
apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: %s}
spec:
  host: host1
  cpu: {cores: 1, model: max}
  memory: {size: 128Mi}
  boot: {kernel: {image: k}, initrd: {image: i}, cmdline: "%s %s"}
`, name, testbed.Cmdline, cmdline)
	for _, m := range more {
		y += "  " + m + "\n"
	}
	return y
}

// declare makes a tree the wanted one and the target serve its disks.
func (r *rig) declare(yaml ...string) {
	r.t.Helper()
	r.read(yaml...)
	for k, o := range r.want.Objects {
		if k.Kind == spec.KindDisk {
			r.tgtd.serve(r.t, k.UID, o.Spec.(*spec.Disk).Size)
		}
	}
}

// read makes a tree the wanted one; everything but machines is as it should be.
func (r *rig) read(yaml ...string) {
	r.t.Helper()
	objects, err := spec.Parse("test.yaml", []byte(strings.Replace(preamble, "CLUSTER", r.cluster, 1)+strings.Join(yaml, "")))
	if err != nil {
		r.t.Fatal(err)
	}
	set, err := spec.Build(objects)
	if err != nil {
		r.t.Fatal(err)
	}
	r.want = reconcile.NewDesired(set, "host1", "rev")
	for k, o := range r.want.Objects {
		if k.Kind != spec.KindVirtualMachine {
			r.base[k] = &reconcile.Applied{Object: *o, Done: true}
		}
	}
	for k := range r.base {
		if r.want.Objects[k] == nil && k.Kind != spec.KindVirtualMachine {
			delete(r.base, k)
		}
	}
}

func (r *rig) key(name string) reconcile.Key {
	return reconcile.Key{Kind: spec.KindVirtualMachine, UID: r.uid(spec.KindVirtualMachine, name)}
}

func (r *rig) uid(kind spec.Kind, name string) string {
	return spec.UID(r.cluster, kind, spec.Meta{Name: name})
}

// observe returns the state, with everything but machines as it should be.
func (r *rig) observe() reconcile.State {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	kvm, err := r.d.ObserveFresh(ctx, r.want)
	if err != nil {
		r.t.Fatal(err)
	}
	others := reconcile.Base{}
	for k, b := range r.base {
		if k.Kind != spec.KindVirtualMachine {
			others[k] = b
		}
	}
	s := reconcile.StateFromBase(others)
	s.Merge(kvm)
	return s
}

func (r *rig) vm(name string) *reconcile.Live {
	r.t.Helper()
	s := r.observe()
	if why, ok := s.Unknown[r.key(name)]; ok {
		r.t.Fatalf("%s is unknown: %s", name, why)
	}
	live := s.Objects[r.key(name)]
	if live == nil {
		r.t.Fatalf("%s is not there", name)
	}
	return live
}

// plan returns the actions on machines that are not unchanged.
func (r *rig) plan() []reconcile.Action {
	r.t.Helper()
	p := reconcile.Diff(r.want, r.base, r.observe(), time.Now())
	var list []reconcile.Action
	for _, a := range p.Actions {
		if a.Op != reconcile.OpUnchanged && a.Kind == spec.KindVirtualMachine {
			list = append(list, a)
		}
	}
	return list
}

func describe(list []reconcile.Action) string {
	var b strings.Builder
	for _, a := range list {
		fmt.Fprintf(&b, "%s %s %s %s (%s)\n", a.Op, a.Kind, a.Name, a.State, a.Reason)
		for _, c := range a.Changes {
			fmt.Fprintf(&b, "   %s: %q -> %q %s %s\n", c.Field, c.From, c.To, c.Impact, c.Waits)
		}
	}
	return b.String()
}

// inputs are what the executor would give for an action.
func (r *rig) inputs(a *reconcile.Action) reconcile.Inputs {
	in := reconcile.Inputs{
		Launch: uuid.NewString(), Grants: map[string]claim.Grant{}, Networks: map[string]*spec.Network{}, Files: r.files, Secrets: r.secrets,
	}
	in.BootID, _ = readBootID()
	if a.Have != nil && a.Have.VM.Launch != "" && a.Op != reconcile.OpStart {
		in.Launch = a.Have.VM.Launch
	}
	if a.Want != nil {
		for _, ref := range a.Want.Refs {
			if entry, ok := entryOf(ref.Path, "spec.disks["); ok {
				in.Grants[entry] = r.tgtd.grant(ref.To.UID, r.portal)
			}
			if name, ok := entryOf(ref.Path, "spec.nics["); ok {
				in.Networks[name] = ref.To.Spec.(*spec.Network)
			}
		}
	}
	in.Progress = func(format string, args ...any) { r.t.Logf(format, args...) }
	return in
}

func (r *rig) apply(a reconcile.Action) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), 90*time.Second)
	defer cancel()
	_, err := r.d.Apply(ctx, a, r.inputs(&a))
	if err == nil {
		if a.Want != nil {
			r.base[a.Key()] = &reconcile.Applied{Object: *a.Want, Done: true}
		} else {
			delete(r.base, a.Key())
		}
	}
	return err
}

// converge applies plans until nothing is ready. Like the agent, it asks again
// when a guest has not released a device; other errors fail the test.
func (r *rig) converge() {
	r.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for time.Now().Before(deadline) {
		list := slices.DeleteFunc(r.plan(), func(a reconcile.Action) bool { return a.State != reconcile.Ready })
		if len(list) == 0 {
			return
		}
		for _, a := range list {
			var holds *GuestHoldsError
			if err := r.apply(a); err != nil && !errors.As(err, &holds) {
				r.t.Fatalf("%v\n%s", err, describe(list))
			}
		}
	}
	r.t.Fatalf("does not converge:\n%s", describe(r.plan()))
}

// up declares, converges and waits for the guest of a machine.
func (r *rig) up(name string, yaml ...string) {
	r.t.Helper()
	r.declare(yaml...)
	r.converge()
	r.waitUp(name)
}

func (r *rig) waitUp(name string) {
	r.t.Helper()
	r.follow(name)
	r.serial.Wait(r.t, `^GUEST up`, 60*time.Second)
}

// follow reads the machine's console log from its start.
func (r *rig) follow(name string) {
	r.serial = testbed.NewSerial(r.d.consoleLog(r.key(name).UID))
}

// sees waits for a line anywhere in the machine's console log.
func (r *rig) sees(name, pattern string) {
	r.t.Helper()
	testbed.NewSerial(r.d.consoleLog(r.key(name).UID)).Wait(r.t, pattern, 60*time.Second)
}

func (r *rig) types(name, line string) {
	r.t.Helper()
	input, _ := r.d.ConsoleInput(r.key(name).UID)
	in, err := os.OpenFile(input, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer in.Close()
	if _, err := fmt.Fprintln(in, line); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) waitPower(name string, power reconcile.Power) *reconcile.Live {
	r.t.Helper()
	var live *reconcile.Live
	eventually(r.t, 30*time.Second, name+" to be "+string(power), func() error {
		live = r.vm(name)
		if live.VM.Power != power {
			return fmt.Errorf("it is %s", live.VM.Power)
		}
		return nil
	})
	return live
}

// noProcess fails if a process of the rig is left.
func (r *rig) noProcess() {
	r.t.Helper()
	left, err := testbed.Processes(r.cfg.StateDir)
	if err != nil || len(left) > 0 {
		r.t.Fatalf("processes are left: %v %v", left, err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
