package kvm

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"reconciler/drivers/kvm/qmp"
	"reconciler/reconcile"
	"reconciler/spec"
)

// proxy stands between QEMU and the target. Mute, it accepts everything and
// passes nothing on.
type proxy struct {
	addr   string
	target string

	mu    sync.Mutex
	mute  chan struct{} // closed when it may go on
	conns []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String(), target: target, mute: make(chan struct{})}
	close(p.mute)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			c.Close()
		}
	})
	return p
}

func (p *proxy) gate() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mute
}

func (p *proxy) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = make(chan struct{})
}

func (p *proxy) speak() { close(p.gate()) }

func (p *proxy) serve(c net.Conn) {
	p.mu.Lock()
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	<-p.gate()
	up, err := net.Dial("tcp", p.target)
	if err != nil {
		c.Close()
		return
	}
	pass := func(dst, src net.Conn) {
		defer dst.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := src.Read(b)
			<-p.gate()
			if n > 0 {
				if _, err := dst.Write(b[:n]); err != nil {
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					src.Close()
				}
				return
			}
		}
	}
	go pass(up, c)
	go pass(c, up)
}

// While the target accepts and says nothing, the guest's writes hang and
// nothing else does; when it is back, the guest goes on.
func TestOutage(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.ObserveTimeout = 2 * time.Second })
	p := newProxy(t, r.tgtd.portal)
	r.portal = p.addr
	one := vmYAML("web", writer, "shutdown: {timeout: 1s}", "disks: [{disk: root}]")
	other := vmYAML("other", "rt.mode=idle")
	r.up("web", diskYAML("root", "64Mi"), diskYAML("data", "64Mi"), one, other)
	r.serial.Wait(t, `^REC 3 `, 20*time.Second)

	p.silence()
	r.prober.set(nil, true)
	r.serial.Skip()
	for range 5 {
		begun := time.Now()
		if live := r.vm("web"); live.VM.Power != reconcile.PowerRunning {
			t.Fatalf("in the outage: %+v", live.VM)
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("observing took %v", d)
		}
	}
	p.speak()
	r.prober.set(nil, false)
	r.serial.Wait(t, `^REC \d+ `, 60*time.Second)

	// The storage falls silent just after it said that it answers: QEMU hangs
	// in blockdev-add until its timeout, the driver and other machines do not.
	p.silence()
	two := strings.Replace(one, "disks: [{disk: root}]", "disks: [{disk: root}, {disk: data}]", 1)
	r.declare(diskYAML("root", "64Mi"), diskYAML("data", "64Mi"), two, other)
	a := r.plan()[0]
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begun := time.Now()
	_, err := r.d.Apply(ctx, a, r.inputs(&a))
	var silent *qmp.SilentError
	if !errors.As(err, &silent) {
		t.Fatalf("attach: %v, want a SilentError", err)
	}
	s := r.observe()
	if why := s.Unknown[r.key("web")]; !strings.Contains(why, "does not answer") {
		t.Errorf("the machine is unknown because %q", why)
	}
	if live := s.Objects[r.key("other")]; live == nil || live.VM.Power != reconcile.PowerRunning {
		t.Errorf("the other machine: %+v", live)
	}
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("the driver was held up for %v", d)
	}

	// It can be ended nevertheless, and is not asked to close its disks.
	r.prober.set(nil, true)
	stop := reconcile.Action{Kind: a.Kind, Name: a.Name, UID: a.UID, Op: reconcile.OpStop, Want: a.Want, Have: a.Have}
	begun = time.Now()
	if err := r.apply(stop); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("the stop took %v", d)
	}
	p.speak()
	r.prober.set(nil, false)
	r.converge()
	r.serial.Wait(t, `^GUEST up`, 60*time.Second)
	if live := r.vm("web"); len(live.VM.Disks) != 2 {
		t.Errorf("disks %v", live.VM.Disks)
	}
}

// A guest at a disk that refuses every write stops again as soon as it is
// resumed. Asked to restart, it is stopped and starts anew.
func TestRestartAtADiskThatFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tree := []string{diskYAML("root", "64Mi"), vmYAML("web", writer, "shutdown: {timeout: 2s}", "disks: [{disk: root}]")}
	r.up("web", tree...)
	r.serial.Wait(t, `^REC 3 `, 60*time.Second)
	tid := strconv.Itoa(r.tgtd.disks[r.uid(spec.KindDisk, "root")].id)
	refuse := func(value string) {
		r.tgtd.must(t, "--op", "update", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "--params", "readonly="+value)
	}
	refuse("1")
	before := r.waitPower("web", reconcile.PowerIOError)
	if err := r.apply(r.plan()[0]); err != nil { // it is resumed, to no effect
		t.Fatal(err)
	}
	r.waitPower("web", reconcile.PowerIOError)

	r.want.Restart[r.key("web")] = reconcile.Restart{Why: "asked for", Launch: before.VM.Launch}
	list := r.plan()
	if len(list) != 1 || list[0].Op != reconcile.OpRestart || list[0].State != reconcile.Ready {
		t.Fatalf("the plan of a restart:\n%s", describe(list))
	}
	stop := list[0]
	stop.Op = reconcile.OpStop
	if err := r.apply(stop); err != nil {
		t.Fatal(err)
	}
	r.noProcess()
	refuse("0")
	delete(r.want.Restart, r.key("web"))
	r.converge()
	if live := r.waitPower("web", reconcile.PowerRunning); live.VM.Launch == before.VM.Launch {
		t.Error("it is the same launch")
	}
}
