package target

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

func TestPut(t *testing.T) {
	b := newBed(t, nil)
	if err := b.client.Put(t.Context(), b.export()); err != nil {
		t.Errorf("put again: %v", err)
	}
	i := b.login()
	for _, c := range []struct {
		name   string
		change func(*Export)
		want   error
	}{
		{"another volume", func(e *Export) { e.Path = newVolume(t, b.dir, "other") }, ErrConflict},
		{"another serial", func(e *Export) { e.Serial = "0" }, ErrConflict},
		{"a size that the volume does not have", func(e *Export) { e.Size = testSize + 1 }, ErrConflict},
		{"no portal", func(e *Export) { e.Portals = nil }, ErrInvalid},
		{"a portal by name", func(e *Export) { e.Portals = []string{"localhost:3260"} }, ErrInvalid},
		{"no IQN", func(e *Export) { e.IQN = "disk" }, ErrInvalid},
		{"a relative path", func(e *Export) { e.Path = "v" }, ErrInvalid},
		{"a volume that is not there", func(e *Export) { e.IQN += "2"; e.Path += "2" }, nil},
		{"a volume that another export serves", func(e *Export) { e.IQN += "2" }, nil},
	} {
		e := b.export()
		c.change(&e)
		err := b.client.Put(t.Context(), e)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	i.read(0, 1)
	list, err := b.client.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("%d exports, %v", len(list), err)
	}
	if info, err := os.Stat(socketPath(filepath.Join(b.dir, "r"))); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v", info.Mode(), err)
	}
}

func TestAccessRules(t *testing.T) {
	b := newBed(t, nil)
	for _, c := range []struct {
		name string
		list []Access
	}{
		{"two writers", []Access{{Epoch: 1, Initiators: []string{name(1)}}, {Epoch: 2, Initiators: []string{name(2)}}}},
		{"an epoch twice", []Access{{Epoch: 1, Initiators: []string{name(1)}}, {Epoch: 1, Initiators: []string{name(2)}, ReadOnly: true}}},
		{"nobody", []Access{{Epoch: 1}}},
		{"a user without a password", []Access{{Epoch: 1, Initiators: []string{name(1)}, User: "u"}}},
		{"the same secret both ways", []Access{{Epoch: 1, Initiators: []string{name(1)}, User: "u", Password: secret("s"), MutualUser: "v", MutualPassword: secret("s")}}},
	} {
		if err := b.client.SetAccess(t.Context(), testIQN, c.list); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := b.client.SetAccess(t.Context(), testIQN+"2", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("access to what is not exported: %v", err)
	}
	// A session whose grant stays is not disturbed by what comes and goes beside it.
	i := b.login()
	b.grant(Access{Epoch: 1, Initiators: []string{testName}, Kind: "vm"}, Access{Epoch: 2, Initiators: []string{name(2)}, Incoming: true})
	incoming := b.loginAs(name(2))
	incoming.read(0, 1)
	b.grant(Access{Epoch: 1, Initiators: []string{testName}})
	if err := incoming.gone(); err != nil {
		t.Error(err)
	}
	i.read(0, 1)
	// One that changes its credentials is another.
	b.grant(Access{Epoch: 1, Initiators: []string{testName}, User: "u", Password: secret("p")})
	if err := i.gone(); err != nil {
		t.Error(err)
	}
}

func TestGrow(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	if err := b.client.Grow(t.Context(), testIQN, 2*testSize); err != nil {
		t.Fatal(err)
	}
	r, err := i.finish(i.start(pdu.Final, make([]byte, 16), 0, nil), nil)
	if err != nil || r.status != 2 || r.sense[2] != 6 || r.sense[12] != 0x2a || r.sense[13] != 9 {
		t.Errorf("no CAPACITY DATA HAS CHANGED: status %d, sense %x, %v", r.status, r.sense, err)
	}
	i.write(testSize/512, pattern(512, 1))
	if err := b.client.Grow(t.Context(), testIQN, testSize); err == nil {
		t.Error("a volume was made smaller")
	}
	if st := b.status(); st.Size != 2*testSize || st.Export.Size != 2*testSize {
		t.Errorf("size %d, recorded %d", st.Size, st.Export.Size)
	}
}

func TestRemove(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	if err := b.client.Remove(t.Context(), testIQN); err != nil {
		t.Fatal(err)
	}
	h, _, err := i.recv()
	if err != nil || h.Opcode() != pdu.OpAsync || h[36] != pdu.AsyncDropSession {
		t.Errorf("no asynchronous event: %x, %v", h[:4], err)
	}
	if err := i.gone(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", b.portal); err == nil {
		c.Close()
		t.Error("the portal of the last export is still there")
	}
	if err := b.client.Remove(t.Context(), testIQN); err != nil {
		t.Errorf("remove again: %v", err)
	}
	// Its volume is free for another.
	e := b.export()
	e.IQN += "2"
	if err := b.client.Put(t.Context(), e); err != nil {
		t.Error(err)
	}
}

func TestSessionsAreListed(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	i.write(0, pattern(4096, 1))
	i.read(0, 16)
	s := b.status().Sessions
	if len(s) != 1 {
		t.Fatalf("%d sessions", len(s))
	}
	if s[0].Initiator != testName || s[0].Address != i.nc.LocalAddr().String() || s[0].Epoch != 1 ||
		s[0].BytesWritten != 4096 || s[0].BytesRead != 8192 || s[0].Commands < 2 || time.Since(s[0].Since) > waitLimit {
		t.Errorf("listed as %+v", s[0])
	}
}

// After a restart, before anybody asks: the same exports, epochs and credentials.
func TestRestart(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 7, Initiators: []string{testName}, User: "u", Password: secret("password"), Owner: `{"vm":"x"}`, Kind: "vm"})
	if err := b.client.Fence(t.Context(), testIQN, 3); err != nil {
		t.Fatal(err)
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	records(t, b.dir)
	b.client, b.stop = serveTest(t, b.dir, nil)
	a := b.args()
	a.user, a.password = "u", "password"
	logIn(t, a).ready().write(0, pattern(512, 1))
	st := b.status()
	if len(st.Access) != 1 || st.Access[0].Epoch != 7 || st.Access[0].Owner != `{"vm":"x"}` || fmt.Sprint(st.Fenced) != "[3]" {
		t.Errorf("after the restart: %+v", st)
	}
	if err := b.client.SetAccess(t.Context(), testIQN, []Access{{Epoch: 3, Initiators: []string{testName}}}); !errors.Is(err, ErrFenced) {
		t.Errorf("a fenced epoch after the restart: %v", err)
	}
}

// records checks that nobody else may read the records.
func records(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "s"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A volume that is not there at a restart is an export in error, tried again
// until it is back, and never forgotten.
func TestRestartWithoutVolume(t *testing.T) {
	b := newBed(t, nil)
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	away := b.volume + ".away"
	if err := os.Rename(b.volume, away); err != nil {
		t.Fatal(err)
	}
	b.client, b.stop = serveTest(t, b.dir, func(c *Config) { c.Limits.Retry = 20 * time.Millisecond })
	if st := b.status(); st.Error == "" || len(st.Access) != 1 {
		t.Errorf("without its volume: %+v", st)
	}
	i := dial(t, b.portal)
	if err := i.tryLogin(b.args()); i.status != pdu.LoginUnavailable {
		t.Errorf("login: %v", err)
	}
	if err := os.Rename(away, b.volume); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the volume", func() bool { return b.status().Error == "" })
	b.login().read(0, 1)
}

// A record that is damaged takes down its own export and no other, and nobody is
// admitted to it until it is put anew and the claims are told; one of a later
// build stays as it is.
func TestDamagedRecord(t *testing.T) {
	later := fmt.Sprintf(`{"version":%d}`, recordVersion+1)
	for how, content := range map[string]string{"empty": "", "cut off": "{", "zeroes": "\x00\x00\x00", "of a later build": later} {
		t.Run(how, func(t *testing.T) {
			b := newBed(t, nil)
			other := filepath.Join(b.dir, "other.img")
			if err := os.WriteFile(other, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			e := b.status().Export
			e2 := e
			e2.IQN, e2.Path, e2.Serial, e2.UID = e.IQN+"-2", other, "other", "00000000-0000-5000-8000-000000000002"
			if err := b.client.Put(t.Context(), e2); err != nil {
				t.Fatal(err)
			}
			before := b.status()
			if err := b.stop(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(b.dir, "s", "exports", recordName(testIQN))
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			b.client, b.stop = serveTest(t, b.dir, nil)
			list, err := b.client.List(t.Context())
			if err != nil || len(list) != 1 || list[0].IQN != e2.IQN || list[0].Error != "" {
				t.Fatalf("served: %+v, %v", list, err)
			}
			if i := dial(t, b.portal); i.tryLogin(b.args()) == nil {
				t.Error("somebody is let in to what is not known")
			}
			err = b.client.Put(t.Context(), before.Export)
			if content == later {
				if got, rerr := os.ReadFile(path); err == nil || !strings.Contains(err.Error(), "newer reconciler") || rerr != nil || string(got) != later {
					t.Errorf("%v; %s, %v", err, got, rerr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if i := dial(t, b.portal); i.tryLogin(b.args()) == nil {
				t.Error("somebody is let in before the claims are told")
			}
			if aside, err := os.ReadFile(path + ".damaged"); err != nil || string(aside) != content {
				t.Errorf("what was there is not kept: %q, %v", aside, err)
			}
		})
	}
}

// A portal that somebody else has is an error that is told, and goes away with
// them.
func TestForeignPortal(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.Retry = 20 * time.Millisecond })
	foreign, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	e := Export{IQN: testIQN + "2", Path: newVolume(t, b.dir, "v2"), Portals: []string{foreign.Addr().String()}}
	if err := b.client.Put(t.Context(), e); err == nil || !strings.Contains(err.Error(), foreign.Addr().String()) {
		t.Errorf("put: %v", err)
	}
	portalError := func() string {
		list, err := b.client.List(t.Context())
		if err != nil || len(list) != 2 {
			t.Fatalf("%d exports, %v", len(list), err)
		}
		return list[1].PortalErrors[foreign.Addr().String()]
	}
	if portalError() == "" {
		t.Error("the list does not tell")
	}
	foreign.Close()
	waitFor(t, "the portal", func() bool { return portalError() == "" })
	if err := b.client.Put(t.Context(), e); err != nil {
		t.Error(err)
	}
}

// An export is reached through its own portals only.
func TestPortals(t *testing.T) {
	b := newBed(t, nil)
	second := freePortal(t)
	e := Export{IQN: testIQN + "2", Path: newVolume(t, b.dir, "v2"), Portals: []string{second}}
	if err := b.client.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	a := b.args()
	a.portal = second
	i := dial(t, second)
	if err := i.tryLogin(a); i.status != pdu.LoginNotFound {
		t.Errorf("through a portal that is another's: %v", err)
	}
	moved := b.export()
	moved.Portals = []string{second, b.portal}
	if err := b.client.Put(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	logIn(t, a).ready().read(0, 1)
}

// A second server does not touch what the first one serves.
func TestTwoServers(t *testing.T) {
	b := newBed(t, nil)
	err := Serve(t.Context(), Config{StateDir: filepath.Join(b.dir, "s"), RunDir: filepath.Join(b.dir, "r2"), Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, ErrRunning) {
		t.Errorf("a second server: %v", err)
	}
	i := b.login()
	i.write(1, pattern(512, 7))
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.block(1), pattern(512, 7)) {
		t.Error("what was written is not in the file")
	}
}
