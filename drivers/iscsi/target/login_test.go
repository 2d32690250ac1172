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
