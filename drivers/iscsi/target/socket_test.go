package target

import (
	"os"
	"testing"
)

// The run directory is lost under a session: the session goes on, and the
// server can be spoken to again.
func TestLostRunDirectory(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{testName}})
	i := logIn(t, b.args()).ready()
	if err := os.RemoveAll(b.client.path[:len(b.client.path)-len("/target.sock")]); err != nil {
		t.Fatal(err)
	}
	b.client.Close()
	waitFor(t, "the control socket to be made anew", func() bool {
		_, err := b.client.Ping(t.Context())
		return err == nil
	})
	i.write(0, pattern(512, 1))
	if st := b.status(); len(st.Sessions) != 1 {
		t.Errorf("%d sessions, want the one of before", len(st.Sessions))
	}
}
