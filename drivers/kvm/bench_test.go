package kvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"reconciler/claim"
	"reconciler/drivers/kvm/qmp"
	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

// bare is a driver with machines that have no disks and no kernel.
func bare(b testing.TB) (*Driver, string) {
	b.Helper()
	dir := shortDir(b)
	testbed.Reap(b, dir)
	d, err := New(Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Accel: AccelTCG, Storage: &prober{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	return d, dir
}

func bareVM(i int) reconcile.Action {
	name := "vm" + strconv.Itoa(i)
	vm := &spec.VirtualMachine{
		PowerState: spec.PowerRunning, CPU: spec.CPU{Sockets: 1, Cores: 1, Threads: 1, Model: "qemu64"}, Memory: spec.Memory{Size: 16 * spec.MiB},
		NICs: []spec.NIC{{Name: "n", Network: "out"}},
	}
	want := &reconcile.Object{Kind: spec.KindVirtualMachine, Name: name, UID: uuid.NewString(), Spec: vm}
	return reconcile.Action{Kind: want.Kind, Name: name, UID: want.UID, Op: reconcile.OpCreate, Want: want}
}

func startBare(b testing.TB, d *Driver, i int) *reconcile.Object {
	b.Helper()
	a := bareVM(i)
	in := reconcile.Inputs{Launch: fmt.Sprint("launch", i), Grants: map[string]claim.Grant{}, Networks: map[string]*spec.Network{"n": {User: &spec.UserNetwork{}}}}
	if _, err := d.Apply(b.Context(), a, in); err != nil {
		b.Fatal(err)
	}
	return a.Want
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkStart compares a start by the driver with QEMU started by hand with
// the same arguments up to the same point: the guest runs.
func BenchmarkStart(b *testing.B) {
	d, dir := bare(b)
	var ours, hand, own []time.Duration
	for i := 0; b.Loop(); i++ {
		begun := time.Now()
		want := startBare(b, d, i)
		a := time.Since(begun)
		argv := d.machine(want.UID).snapshot().Launch.Argv
		stop := reconcile.Action{Kind: want.Kind, Name: want.Name, UID: want.UID, Op: reconcile.OpDelete}
		if _, err := d.Apply(b.Context(), stop, reconcile.Inputs{Force: true}); err != nil {
			b.Fatal(err)
		}
		h := byHand(b, dir, argv)
		ours, hand, own = append(ours, a), append(hand, h), append(own, a-h)
	}
	b.ReportMetric(ms(median(ours)), "ms/start")
	b.ReportMetric(ms(median(hand)), "ms/by-hand")
	b.ReportMetric(ms(median(own)), "ms/own")
}

// byHand runs QEMU itself, without the shell around it, and lets its guest run.
func byHand(b testing.TB, dir string, argv []string) time.Duration {
	b.Helper()
	var files []*os.File
	for i := range 3 {
		f, err := listen(filepath.Join(dir, "s"+strconv.Itoa(i)))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	i := slices.Index(argv, "qemu-system-x86_64")
	begun := time.Now()
	cmd := exec.Command(argv[i], argv[i+1:]...)
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Second)
	defer cancel()
	conn, err := qmp.Dial(ctx, filepath.Join(dir, "s0"))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Raw(ctx).Cont(); err != nil {
		b.Fatal(err)
	}
	return time.Since(begun)
}

// BenchmarkObserve reads 50 running machines back: all anew, and with what
// events have not made invalid.
func BenchmarkObserve(b *testing.B) {
	d, _ := bare(b)
	want := &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{}}
	for i := range 50 {
		o := startBare(b, d, i)
		want.Objects[o.Key()] = o
	}
	observe := func(b *testing.B, f func(context.Context, *reconcile.Desired) (reconcile.State, error)) {
		var all []time.Duration
		for b.Loop() {
			begun := time.Now()
			s, err := f(b.Context(), want)
			if err != nil || len(s.Objects) != 50 || len(s.Unknown) > 0 {
				b.Fatalf("%d objects, unknown %v, %v", len(s.Objects), s.Unknown, err)
			}
			all = append(all, time.Since(begun))
		}
		b.ReportMetric(ms(median(all)), "ms/median")
	}
	b.Run("fresh", func(b *testing.B) { observe(b, d.ObserveFresh) })
	b.Run("cached", func(b *testing.B) { observe(b, d.Observe) })
	if rss := residentMiB(b); rss > 0 {
		b.Logf("resident set of the driver with 50 machines: %d MiB", rss)
	}
}

func residentMiB(b *testing.B) int {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return kb >> 10
}
