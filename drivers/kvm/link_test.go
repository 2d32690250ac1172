package kvm

import (
	"context"
	"testing"
	"time"

	"reconciler/drivers/kvm/qmp"
	"reconciler/reconcile"
)

// Where somebody sits on the agent's socket the agent takes the rescue socket,
// and goes back as soon as it can: that one is for people.
func TestRescueSocketIsGivenBack(t *testing.T) {
	t.Parallel()
	d, _ := bare(t)
	want := startBare(t, d, 20)
	desired := &reconcile.Desired{Objects: map[reconcile.Key]*reconcile.Object{want.Key(): want}}
	d.Close()
	sitting, err := qmp.Dial(t.Context(), d.qmpPath(want.UID))
	for deadline := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		sitting, err = qmp.Dial(ctx, d.qmpPath(want.UID))
		cancel()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer sitting.Close()
	d, err = New(d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	look := func() {
		t.Helper()
		eventually(t, 20*time.Second, "the machine to be observed", func() error {
			s, err := d.ObserveFresh(t.Context(), desired)
			if err == nil && s.Objects[want.Key()] == nil {
				err = errUnknown(s.Unknown[want.Key()])
			}
			return err
		})
	}
	look()
	link := d.machine(want.UID).link
	rescued := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		conn, err := qmp.Dial(ctx, d.rescuePath(want.UID))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if rescued() {
		t.Fatal("the rescue socket is free while the other one is not")
	}
	// An action keeps the connection it has.
	m := d.machine(want.UID)
	if err := m.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := link.connection(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sitting.Close()
	for range 20 {
		if _, err := conn.Raw(t.Context()).QueryStatus(); err != nil {
			t.Fatalf("in the midst of an action: %v", err)
		}
		<-time.After(100 * time.Millisecond)
	}
	m.op.Release(allOps)
	eventually(t, 20*time.Second, "the rescue socket to be free", func() error {
		if !rescued() {
			return errUnknown("it is taken")
		}
		return nil
	})
	look()
}

type errUnknown string

func (e errUnknown) Error() string { return string(e) }
