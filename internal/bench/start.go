package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reconciler/claim"
	"reconciler/drivers/kvm"
	"reconciler/reconcile"
	"reconciler/spec"
)

// startSuite compares starts of a machine with QEMU started by hand with the
// same arguments. Each start has its counterpart next to it, in turns before
// and after, so that both meet the same load.
func startSuite(ctx context.Context, b *bench) ([]row, error) {
	rounds := b.pick(30, 3)
	driver, hand, err := driverStarts(ctx, b, rounds)
	if err != nil {
		return nil, err
	}
	rows := []row{
		within("start by the driver: record, exec, read-back, guest let run", driver, 0),
		within("the same arguments by hand, until QMP greets", hand.greets, 0),
		within("— until it answers a first command", hand.answers, 0),
		within("the driver's own time in a start: the first less the second", difference(driver, hand.greets), 40*time.Millisecond),
	}
	apply, hand, err := applyStarts(ctx, b, rounds)
	if err != nil {
		return rows, err
	}
	return append(rows,
		within("`reconciler apply` of a commit that adds a machine, beside 1 to 30 others", apply, 0),
		within("the same arguments by hand, until QMP greets", hand.greets, 0),
		within("all that is not QEMU in such an apply", difference(apply, hand.greets), 0),
	), nil
}

func difference(a, b spread) spread {
	out := make(spread, len(a))
	for i := range a {
		out[i] = a[i] - b[i]
	}
	return out
}

// noDisks is the storage of machines that have none.
type noDisks struct{}

func (noDisks) Answers(context.Context, []string) error { return nil }

// byHand are starts of QEMU without the agent.
type byHand struct{ greets, answers spread }

func (h *byHand) start(ctx context.Context, dir string, argv []string) error {
	greets, answers, err := qemuByHand(ctx, dir, argv)
	h.greets, h.answers = append(h.greets, greets), append(h.answers, answers)
	return err
}

func driverStarts(ctx context.Context, b *bench, rounds int) (driver spread, hand byHand, err error) {
	dir, err := b.sub("start")
	if err != nil {
		return nil, hand, err
	}
	d, err := kvm.New(kvm.Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Accel: kvm.AccelTCG, Storage: noDisks{}})
	if err != nil {
		return nil, hand, err
	}
	defer d.Close()
	var argv []string
	// The first start asks QEMU for its machine types, once in the driver's life.
	for i := -1; i < rounds; i++ {
		want := bareMachine(i + 1)
		byDriver := func() error {
			began := time.Now()
			_, err := d.Apply(ctx, reconcile.Action{Kind: want.Kind, Name: want.Name, UID: want.UID, Op: reconcile.OpCreate, Want: want},
				reconcile.Inputs{Launch: fmt.Sprint("launch", i+1), Networks: map[string]*spec.Network{"front": {User: &spec.UserNetwork{}}}, Grants: map[string]claim.Grant{}})
			if i >= 0 {
				driver = append(driver, time.Since(began))
			}
			return err
		}
		withoutDriver := func() error {
			if i < 0 {
				return nil
			}
			return hand.start(ctx, dir, argv)
		}
		turns := []func() error{byDriver, withoutDriver}
		if i%2 == 1 {
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return nil, hand, err
			}
		}
		if argv, err = recordedArgv(filepath.Join(dir, "state"), want.UID); err != nil {
			return nil, hand, err
		}
		_, err := d.Apply(ctx, reconcile.Action{Kind: want.Kind, Name: want.Name, UID: want.UID, Op: reconcile.OpDelete}, reconcile.Inputs{Force: true})
		if err != nil {
			return nil, hand, err
		}
	}
	return driver, hand, nil
}

// bareMachine has no kernel and no disk: its firmware ends with nothing to boot.
func bareMachine(i int) *reconcile.Object {
	name := "bare-" + strconv.Itoa(i)
	vm := &spec.VirtualMachine{
		PowerState: spec.PowerRunning, Memory: spec.Memory{Size: 32 * spec.MiB},
		CPU:  spec.CPU{Sockets: 1, Cores: 1, Threads: 1, Model: "qemu64"},
		NICs: []spec.NIC{{Name: "front", Network: "front"}},
	}
	return &reconcile.Object{Kind: spec.KindVirtualMachine, Name: name, UID: spec.UID("bench", spec.KindVirtualMachine, spec.Meta{Name: name}), Spec: vm}
}

func applyStarts(ctx context.Context, b *bench, rounds int) (apply spread, hand byHand, err error) {
	h, err := newWorld(ctx, b, "apply")
	if err != nil {
		return nil, hand, err
	}
	// The first brings up the target and asks QEMU for its machine types.
	for i := range rounds + 1 {
		name := fmt.Sprintf("vm-%02d", i)
		if err := h.commit(ctx, map[string]string{"vms/" + name + ".yaml": machineText(name, "", "")}); err != nil {
			return nil, hand, err
		}
		began := time.Now()
		if out, err := h.command(ctx, "apply", h.flags()...).CombinedOutput(); err != nil {
			return nil, hand, fmt.Errorf("apply: %w: %s", err, out)
		}
		took := time.Since(began)
		argv, err := recordedArgv(h.state(), spec.UID("bench", spec.KindVirtualMachine, spec.Meta{Name: name}))
		if err != nil {
			return nil, hand, err
		}
		if i == 0 {
			continue
		}
		apply = append(apply, took)
		if err := hand.start(ctx, h.dir, argv); err != nil {
			return nil, hand, err
		}
	}
	return apply, hand, nil
}

// recordedArgv is the command line a machine was last started with.
func recordedArgv(state, uid string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(state, "vms", uid+".json"))
	if err != nil {
		return nil, err
	}
	var record struct {
		Launch struct {
			Argv []string `json:"argv"`
		} `json:"launch"`
	}
	if err := json.Unmarshal(data, &record); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(record.Launch.Argv, func(s string) bool { return strings.HasPrefix(filepath.Base(s), "qemu-system-") })
	if i < 0 {
		return nil, fmt.Errorf("the record of machine %s has no command line", uid)
	}
	argv := record.Launch.Argv[i:]
	// It must not be taken for a second process of the same machine.
	for i, arg := range argv {
		argv[i] = strings.NewReplacer(uid, "00000000-0000-4000-8000-000000000000", "reconciler.", "by-hand...").Replace(arg)
	}
	return argv, nil
}

// qemuByHand runs QEMU as the driver does, with its sockets made beforehand,
// and says how long it took to the QMP greeting, and to the answer to a command.
func qemuByHand(ctx context.Context, dir string, argv []string) (greets, answers time.Duration, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	var monitor string
	for i := range 3 { // monitor, rescue monitor, console
		path := filepath.Join(dir, "hand"+strconv.Itoa(i))
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return 0, 0, err
		}
		defer l.Close()
		f, err := l.File()
		if err != nil {
			return 0, 0, err
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		if i == 0 {
			monitor = path
		}
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // "signal: killed"
	}()
	conn, err := net.Dial("unix", monitor)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(began.Add(time.Minute)); err != nil {
		return 0, 0, err
	}
	lines := bufio.NewReader(conn)
	expect := func(what string) (time.Duration, error) {
		line, err := lines.ReadString('\n')
		if err != nil || !strings.Contains(line, what) {
			return 0, fmt.Errorf("QEMU by hand says %q: %w: %s", line, err, stderr.String())
		}
		return time.Since(began), nil
	}
	if greets, err = expect(`"QMP"`); err != nil {
		return 0, 0, err
	}
	if _, err := conn.Write([]byte(`{"execute": "qmp_capabilities"}`)); err != nil {
		return 0, 0, err
	}
	answers, err = expect(`"return"`)
	return greets, answers, err
}
