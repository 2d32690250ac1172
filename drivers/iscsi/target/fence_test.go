package target

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

func (b *bed) block(lba int64) []byte {
	b.t.Helper()
	f, err := os.Open(b.volume)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 512)
	if _, err := f.ReadAt(got, lba*512); err != nil {
		b.t.Fatal(err)
	}
	return got
}

// A write that is held up, a reconnect with a new ISID as libiscsi makes it, an
// overwrite of the same block: the new data stands. Meanwhile others log in and
// are served.
func TestDelayedWriteAndReconnect(t *testing.T) {
	for _, inline := range []bool{true, false} {
		b := newBed(t, nil)
		b.grant(Access{Epoch: 1, Initiators: []string{name(1), name(2)}})
		old := b.login()
		other := b.loginAs(name(2))
		release := b.gate.holdOpcode(opWrite10)
		defer release()
		cdb := rw10(opWrite10, 8, 1)
		if !inline {
			cdb[1] = 0x08 // FUA
		}
		old.start(pdu.Final|pdu.CommandWrite, cdb, 512, pattern(512, 1))
		<-b.gate.in

		// The old connection still answers pings, and other sessions are served.
		if err := old.nop(); err != nil {
			t.Fatalf("NOP behind a write that hangs: %v", err)
		}
		other.read(0, 1)

		a := b.args()
		a.isid = [6]byte{0x80, 9, 9}
		again := dial(t, b.portal)
		answered := make(chan error, 1)
		go func() { answered <- again.tryLogin(a) }()
		if err := old.gone(); err != nil {
			t.Fatal(err)
		}
		third := b.args()
		third.name = name(2)
		login2 := logIn(t, third).ready() // by another name: not held up
		login2.read(0, 1)
		select {
		case err := <-answered:
			t.Fatalf("the login was answered while a write of the old session was at the volume: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		release()
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		want := pattern(512, 2)
		again.ready().write(8, want)
		if !bytes.Equal(b.block(8), want) {
			t.Fatal("the old write landed on the new one")
		}
	}
}

// A login that waits for its own old session gives way to a later one of the same
// initiator, and in the end is refused rather than kept.
func TestReconnectWaits(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.Drain = 300 * time.Millisecond })
	old := b.login()
	release := b.gate.holdOpcode(opWrite10)
	defer release()
	old.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 8, 1), 512, pattern(512, 1))
	<-b.gate.in
	first, second := dial(t, b.portal), dial(t, b.portal)
	answers := make(chan uint16, 2)
	go func() { _ = first.tryLogin(b.args()); answers <- first.status }()
	if err := old.gone(); err != nil { // the first login waits now
		t.Fatal(err)
	}
	go func() { _ = second.tryLogin(b.args()); answers <- second.status }()
	for range 2 {
		if s := <-answers; s != pdu.LoginUnavailable {
			t.Errorf("status %#04x", s)
		}
	}
	release()
	b.login()
}

func TestFenceWaits(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	release := b.gate.holdOpcode(opWrite10)
	defer release()
	i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 8, 1), 512, pattern(512, 1))
	<-b.gate.in
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := b.client.Fence(ctx, testIQN, 1); !errors.Is(err, ErrDraining) {
		t.Fatalf("fence with a write at the volume: %v", err)
	}
	late := dial(t, b.portal)
	if err := late.tryLogin(b.args()); late.status != pdu.LoginForbidden {
		t.Fatalf("a login of a fenced epoch: %v", err)
	}
	if st := b.status(); len(st.Sessions) != 1 || !st.Sessions[0].Draining {
		t.Errorf("sessions: %+v", st.Sessions)
	}
	done := make(chan error, 1)
	go func() { done <- b.client.Fence(t.Context(), testIQN, 1) }()
	select {
	case err := <-done:
		t.Fatalf("fence returned %v with a write at the volume", err)
	case <-time.After(100 * time.Millisecond):
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := b.client.SetAccess(t.Context(), testIQN, []Access{{Epoch: 1, Initiators: []string{testName}}}); !errors.Is(err, ErrFenced) {
		t.Errorf("a fenced epoch was admitted again: %v", err)
	}
	b.grant(Access{Epoch: 2, Initiators: []string{testName}})
	b.login().write(8, pattern(512, 2))
}

// Under load of several sessions nothing changes once fence has returned. The
// long form runs a thousand times.
func TestFenceUnderLoad(t *testing.T) {
	rounds := 40
	if os.Getenv("RECONCILER_SOAK") != "" {
		rounds = 1000
	}
	b := newBed(t, nil)
	for round := range rounds {
		epoch := uint64(round + 10)
		b.grant(Access{Epoch: epoch, Initiators: []string{name(1), name(2), name(3)}})
		begun := make(chan struct{}, 3)
		for n := range 3 {
			i := b.loginAs(name(n + 1))
			go func() {
				// Written without waiting: whatever arrives may be on its way to
				// the volume when the fence comes.
				for k := 0; ; k++ {
					var cdb []byte
					data := pattern(4096, byte(rand.IntN(256)))
					cdb = rw10(opWrite10, uint32(rand.IntN(64))*8, 8)
					if k%4 == 3 {
						cdb[1] = 0x08
					}
					h := i.header(pdu.OpSCSICommand, pdu.Final|pdu.CommandWrite|pdu.AttrSimple)
					h.PutU32(pdu.OffEDTL, 4096)
					copy(h[pdu.OffCDB:], cdb)
					if i.send(h, data) != nil {
						return
					}
					if _, _, err := i.recv(); err != nil {
						return
					}
					if k == 5 {
						begun <- struct{}{}
					}
				}
			}()
		}
		for range 3 {
			<-begun
		}
		if err := b.client.Fence(t.Context(), testIQN, epoch); err != nil {
			t.Fatal(err)
		}
		before := b.region()
		<-time.After(time.Duration(rand.IntN(3)) * time.Millisecond) // a late write would come now
		if !bytes.Equal(before, b.region()) {
			t.Fatalf("round %d: the volume changed after the fence", round)
		}
	}
}

func (b *bed) region() []byte {
	b.t.Helper()
	f, err := os.Open(b.volume)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 64*4096)
	if _, err := f.ReadAt(p, 0); err != nil {
		b.t.Fatal(err)
	}
	return p
}

func TestTaskManagement(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{name(1), name(2)}})
	i, other := b.login(), b.loginAs(name(2))

	if got := i.task(pdu.TaskAbort, 4711); got != pdu.TaskNotExist {
		t.Errorf("abort of nothing: %d", got)
	}
	if got := i.task(pdu.TaskQuery, 4711); got != pdu.TaskComplete {
		t.Errorf("query of nothing: %d", got)
	}
	if got := i.task(pdu.TaskReassign, 1); got != pdu.TaskNoReassign {
		t.Errorf("reassign: %d", got)
	}

	// A task that waits for data is gone at once; one at the volume is answered
	// for when it is over, and its own status is never sent.
	itt := i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 0, 1), 512, nil)
	if h, _, err := i.recv(); err != nil || h.Opcode() != pdu.OpR2T {
		t.Fatalf("no R2T: %v", err)
	}
	if got := i.task(pdu.TaskAbort, itt); got != pdu.TaskComplete {
		t.Errorf("abort of a task without its data: %d", got)
	}
	for _, f := range []byte{pdu.TaskAbort, pdu.TaskAbortSet, pdu.TaskClearSet, pdu.TaskLUReset, pdu.TaskWarmReset} {
		release := b.gate.holdOpcode(opWrite10)
		itt := i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 0, 1), 512, pattern(512, f))
		<-b.gate.in
		h := i.header(pdu.OpTaskRequest|pdu.Immediate, pdu.Final|f)
		h.PutU32(pdu.OffRefTag, itt)
		if err := i.send(h, nil); err != nil {
			t.Fatal(err)
		}
		if err := i.nop(); err != nil {
			t.Fatalf("function %d: %v", f, err)
		}
		if got := other.task(pdu.TaskQuery, itt); got != pdu.TaskComplete {
			t.Errorf("another session sees the task: %d", got)
		}
		release()
		r, _, err := i.recv()
		if err != nil || r.ITT() != h.ITT() || r.Opcode() != pdu.OpTaskResponse || r[2] != pdu.TaskComplete {
			t.Fatalf("function %d: answered with %x, %v", f, r[:20], err)
		}
		i.ready()
		other.ready()
	}
	// A cold reset ends all sessions, the asker's after its answer.
	if got := i.task(pdu.TaskColdReset, 0); got != pdu.TaskComplete {
		t.Errorf("cold reset: %d", got)
	}
	for _, s := range []*ini{i, other} {
		if err := s.gone(); err != nil {
			t.Error(err)
		}
	}
	b.login()
}
