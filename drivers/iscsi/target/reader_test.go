package target

import (
	"bytes"
	"testing"

	"reconciler/drivers/iscsi/target/pdu"
)

// An access that reads, even one that was given the machine's own name, does not
// disturb the session that writes: not by its login, not by as many as it likes,
// not by what it sends.
func TestReaderBesideAWriter(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.Sessions = 2 })
	b.grant(
		Access{Epoch: 1, Initiators: []string{name(1)}, User: "machine", Password: secret("correct horse")},
		Access{Epoch: 2, Initiators: []string{name(1), name(2), name(3)}, User: "reader", Password: secret("battery staple"), ReadOnly: true},
	)
	as := func(n, user, password string) loginArgs {
		a := b.args()
		a.name, a.user, a.password = n, user, password
		return a
	}
	machine := as(name(1), "machine", "correct horse")
	w := logIn(t, machine).ready()
	w.write(0, pattern(512, 1))
	r := logIn(t, as(name(1), "reader", "battery staple")).ready()
	logIn(t, as(name(2), "reader", "battery staple")).ready()
	third := dial(t, b.portal)
	if err := third.tryLogin(as(name(3), "reader", "battery staple")); third.status != pdu.LoginOutOfResources {
		t.Errorf("a third session of one access: status %#04x, %v", third.status, err)
	}
	if got := r.read(0, 1); !bytes.Equal(got, pattern(512, 1)) {
		t.Error("the reader does not see the data")
	}
	command := func(out []byte, cdb ...byte) {
		t.Helper()
		flags := byte(pdu.Final)
		if len(out) > 0 {
			flags |= pdu.CommandWrite
		}
		if _, err := r.finish(r.start(flags, append(cdb, make([]byte, 16-len(cdb))...), len(out), out), out); err != nil {
			t.Fatal(err)
		}
	}
	command([]byte{0, 0, 0, 0, 0x0a, 10, 2, 0x10, 8, 0, 0, 0, 0xff, 0xff, 0, 0}, 0x15, 0x10, 0, 0, 16, 0) // MODE SELECT, SWP
	command(nil, 0x16, 0, 0, 0, 0, 0)                                                                     // RESERVE
	command([]byte{15: 7, 23: 0}, 0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0)                                       // REGISTER
	command([]byte{7: 7, 23: 0}, 0x5f, 1, 1, 0, 0, 0, 0, 0, 24, 0)                                        // RESERVE
	w.write(0, pattern(512, 2))
	// The machine's place is its own also when it comes back.
	w = logIn(t, machine).ready()
	w.write(0, pattern(512, 3))
	if got := r.read(0, 1); !bytes.Equal(got, pattern(512, 3)) {
		t.Error("the reader's session ended with the machine's")
	}
}
