package target

import (
	"strings"
	"testing"

	"reconciler/drivers/iscsi/target/pdu"
)

func TestLoginAccess(t *testing.T) {
	b := newBed(t, nil)
	b.grant(
		Access{Epoch: 1, Initiators: []string{name(1)}, User: "alice", Password: secret("correct horse"), MutualUser: "disk", MutualPassword: secret("battery staple")},
		Access{Epoch: 2, Initiators: []string{name(2), name(3)}, ReadOnly: true},
	)
	for _, c := range []struct {
		name   string
		change func(*loginArgs)
		status uint16
	}{
		{"one-way CHAP", func(a *loginArgs) {}, 0},
		{"CHAP with SHA-256", func(a *loginArgs) { a.algorithm = "9,7,5" }, 0},
		{"mutual CHAP", func(a *loginArgs) { a.mutualUser, a.mutual = "disk", "battery staple" }, 0},
		{"mutual CHAP with SHA-256", func(a *loginArgs) { a.algorithm, a.mutualUser, a.mutual = "7", "disk", "battery staple" }, 0},
		{"wrong password", func(a *loginArgs) { a.password = "wrong" }, pdu.LoginAuthFailed},
		{"wrong user", func(a *loginArgs) { a.user = "bob" }, pdu.LoginAuthFailed},
		{"unknown algorithm", func(a *loginArgs) { a.algorithm = "9" }, pdu.LoginAuthFailed},
		{"no CHAP where it is asked for", func(a *loginArgs) { a.user = "" }, pdu.LoginAuthFailed},
		{"a name that has no access", func(a *loginArgs) { a.name = name(9) }, pdu.LoginForbidden},
		{"another target", func(a *loginArgs) { a.target = testIQN + "2" }, pdu.LoginNotFound},
		{"no target", func(a *loginArgs) { a.target = "" }, pdu.LoginMissingParam},
		{"no name", func(a *loginArgs) { a.name = "" }, pdu.LoginMissingParam},
		{"a name that is none", func(a *loginArgs) { a.name = "host1" }, pdu.LoginInitiatorError},
		{"a session that does not exist", func(a *loginArgs) { a.tsih = 99 }, pdu.LoginNoSession},
		{"a grant without CHAP", func(a *loginArgs) { a.name, a.user = name(2), "" }, 0},
		{"CHAP offered where none is needed", func(a *loginArgs) { a.name = name(3) }, 0},
		{"a key with a value out of range", func(a *loginArgs) { a.keys = []pdu.Pair{{Key: "MaxBurstLength", Value: "0"}} }, pdu.LoginInitiatorError},
		{"a key twice", func(a *loginArgs) {
			a.keys = []pdu.Pair{{Key: "MaxBurstLength", Value: "512"}, {Key: "MaxBurstLength", Value: "1024"}}
		}, pdu.LoginInitiatorError},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := b.args()
			a.user, a.password = "alice", "correct horse"
			c.change(&a)
			i := dial(t, b.portal)
			err := i.tryLogin(a)
			if i.status != c.status || (err == nil) != (c.status == 0) {
				t.Errorf("status %#04x (%v), expected %#04x", i.status, err, c.status)
			}
		})
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{testName}, User: "alice", Password: secret("correct horse")})
	for _, a := range b.status().Access {
		if a.User != "alice" || !a.Password.IsZero() {
			t.Errorf("listed as %+v", a)
		}
	}
}

func TestNegotiation(t *testing.T) {
	b := newBed(t, nil)
	for _, c := range []struct{ key, value, want string }{
		{"HeaderDigest", "CRC32C,None", "CRC32C"},
		{"HeaderDigest", "None,CRC32C", "None"},
		{"DataDigest", "SHA,CRC32C", "CRC32C"},
		{"DataDigest", "SHA", "Reject"},
		{"MaxConnections", "8", "1"},
		{"InitialR2T", "No", "No"},
		{"InitialR2T", "Yes", "Yes"},
		{"ImmediateData", "No", "No"},
		{"MaxBurstLength", "16776192", "1048576"},
		{"MaxBurstLength", "0x8000", "32768"},
		{"FirstBurstLength", "65536", "65536"},
		{"MaxOutstandingR2T", "16", "1"},
		{"DataPDUInOrder", "No", "Yes"},
		{"DataSequenceInOrder", "No", "Yes"},
		{"ErrorRecoveryLevel", "2", "0"},
		{"DefaultTime2Wait", "2", "2"},
		{"DefaultTime2Retain", "20", "0"},
		{"IFMarker", "Yes", "No"},
		{"iSCSIProtocolLevel", "1", "1"},
		{"X-com.example.key", "1", "NotUnderstood"},
		{"TaskReporting", "ResponseFence,RFC3720", "RFC3720"},
	} {
		a := b.args()
		a.keys = []pdu.Pair{{Key: c.key, Value: c.value}}
		i := logIn(t, a)
		if got := i.params[c.key]; got != c.want {
			t.Errorf("%s=%s answered with %q, expected %q", c.key, c.value, got, c.want)
		}
		if i.params["TargetPortalGroupTag"] != "1" {
			t.Errorf("portal group %q", i.params["TargetPortalGroupTag"])
		}
	}
}

// Names fold case (RFC 7143 §4.2.7.1): an initiator is the same by any spelling, also
// by one that an older record has, and has one session.
func TestNamesFoldCase(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{"iqn.2026-11.test:WIN-Abc"}, User: "u", Password: secret("password")})
	var last *ini
	for n, name := range []string{"iqn.2026-11.test:WIN-Abc", "iqn.2026-11.test:win-abc", "IQN.2026-11.TEST:WIN-ABC"} {
		a := b.args()
		a.name, a.user, a.password, a.isid[5] = name, "u", "password", byte(n)
		a.target = []string{testIQN, strings.ToUpper(testIQN), "iqn.2026-11.Test:Disk"}[n]
		next := logIn(t, a).ready()
		next.read(0, 1)
		if last != nil {
			if err := last.gone(); err != nil {
				t.Errorf("%s beside another spelling: %v", name, err)
			}
		}
		last = next
		if s := b.status().Sessions; len(s) != 1 || s[0].Initiator != "iqn.2026-11.test:win-abc" || s[0].Replaced != n || (s[0].ReplacedFrom != "") != (n > 0) {
			t.Errorf("%s is listed as %+v", name, s)
		}
		i := logIn(t, loginArgs{portal: b.portal, name: name, discovery: true})
		if got := i.sendTargets(); !strings.HasPrefix(got, "TargetName="+testIQN+" ") {
			t.Errorf("%s sees %q", name, got)
		}
	}
	// What was registered under one spelling is held under the other.
	last.reserve(7)
	b.grant(Access{Epoch: 1, Initiators: []string{"iqn.2026-11.test:win-ABC"}, User: "u", Password: secret("password")})
	if r := b.status().Reservations; len(r) != 1 {
		t.Errorf("reservations %+v", r)
	}
}

// Discovery shows an initiator its own targets and no others.
func TestDiscovery(t *testing.T) {
	b := newBed(t, nil)
	other := Export{IQN: testIQN + "2", Path: newVolume(t, b.dir, "v2"), Portals: []string{b.portal, freePortal(t)}}
	if err := b.client.Put(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := b.client.SetAccess(t.Context(), other.IQN, []Access{{Epoch: 1, Initiators: []string{name(2)}, User: "u", Password: secret("password")}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, user, password, want string }{
		{name(1), "", "", testIQN},
		{name(2), "u", "password", other.IQN},
		{name(2), "", "", other.IQN},
		{name(3), "", "", ""},
	} {
		i := logIn(t, loginArgs{portal: b.portal, name: c.name, user: c.user, password: c.password, discovery: true})
		got := i.sendTargets()
		if c.want == "" && got != "" || !strings.HasPrefix(got, "TargetName="+c.want) && c.want != "" || strings.Count(got, "TargetName") > 1 {
			t.Errorf("%s sees %q, expected %q", c.name, got, c.want)
		}
	}
	i := dial(t, b.portal)
	if err := i.tryLogin(loginArgs{portal: b.portal, name: name(2), user: "u", password: "wrong", discovery: true}); i.status != pdu.LoginAuthFailed {
		t.Errorf("discovery with a wrong password: %v", err)
	}
	if got := b.login().sendTargets(); !strings.HasPrefix(got, "TargetName="+testIQN) {
		t.Errorf("a normal session sees %q", got)
	}
}

// Where discovery authenticates, names alone show nothing, known or not.
func TestDiscoveryWithCHAP(t *testing.T) {
	b := newBed(t, nil)
	e := b.export()
	e.DiscoveryCHAP = true
	if err := b.client.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	b.grant(
		Access{Epoch: 1, Initiators: []string{name(1)}, User: "alice", Password: secret("correct horse")},
		Access{Epoch: 2, Initiators: []string{name(2)}, ReadOnly: true},
	)
	try := func(n, user, password string) (*ini, uint16) {
		i := dial(t, b.portal)
		_ = i.tryLogin(loginArgs{portal: b.portal, name: n, user: user, password: password, discovery: true})
		return i, i.status
	}
	for _, c := range []struct{ name, user, password string }{
		{name(1), "", ""}, {name(2), "", ""}, {name(3), "", ""},
		{name(1), "alice", "wrong"}, {name(2), "alice", "correct horse"}, {name(3), "alice", "correct horse"},
	} {
		if _, status := try(c.name, c.user, c.password); status != pdu.LoginAuthFailed {
			t.Errorf("%+v: status %#04x", c, status)
		}
	}
	i, status := try(name(1), "alice", "correct horse")
	if status != 0 || !strings.HasPrefix(i.sendTargets(), "TargetName="+testIQN) {
		t.Errorf("with CHAP: status %#04x", status)
	}
	// It is remembered, and can be taken back.
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	b.client, b.stop = serveTest(t, b.dir, nil)
	if _, status := try(name(1), "", ""); status != pdu.LoginAuthFailed {
		t.Errorf("after a restart: status %#04x", status)
	}
	if err := b.client.Put(t.Context(), b.export()); err != nil {
		t.Fatal(err)
	}
	if _, status := try(name(1), "", ""); status != 0 {
		t.Errorf("without it again: status %#04x", status)
	}
}

func (i *ini) sendTargets() string {
	i.t.Helper()
	h := i.header(pdu.OpTextRequest|pdu.Immediate, pdu.Final)
	h.PutU32(pdu.OffTTT, pdu.Reserved)
	what := "All"
	if i.params["TargetPortalGroupTag"] != "" { // a normal session
		what = ""
	}
	if err := i.send(h, pdu.AppendText(nil, "SendTargets", what)); err != nil {
		i.t.Fatal(err)
	}
	r, data, err := i.recv()
	if err != nil || r.Opcode() != pdu.OpTextResponse || r[1]&pdu.Final == 0 {
		i.t.Fatalf("text response %x: %v", r[:2], err)
	}
	return strings.ReplaceAll(string(data), "\x00", " ")
}
