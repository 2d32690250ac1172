package target

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

// fuzzServer is a server that both fuzz targets talk to.
func fuzzServer(f *testing.F) *bed {
	b := newBed(f, func(c *Config) {
		c.Limits.Login = 2 * time.Second
		c.Logger = slog.New(slog.DiscardHandler)
	})
	return b
}

// FuzzLoginText sends a login whose text is the input: it may be refused, and
// the server must go on.
func FuzzLoginText(f *testing.F) {
	names := "InitiatorName=" + testName + "\x00TargetName=" + testIQN + "\x00"
	for _, s := range []string{
		names, names + "AuthMethod=CHAP,None\x00", names + "HeaderDigest=CRC32C\x00MaxBurstLength=0x1000\x00",
		"InitiatorName=" + testName + "\x00SessionType=Discovery\x00", "=\x00", "\x00\x00", "AuthMethod=\x00CHAP_A=5\x00",
		names + "FirstBurstLength=99999999999\x00", names + "DataDigest=Foo,Bar\x00IFMarker=Yes\x00",
	} {
		f.Add([]byte(s), byte(0x87))
		f.Add([]byte(s), byte(0x81))
	}
	b := fuzzServer(f)
	f.Fuzz(func(t *testing.T, text []byte, flags byte) {
		if len(text) > loginMaxRecv {
			text = text[:loginMaxRecv]
		}
		nc, err := netDial(b.portal)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		i := &ini{t: t, nc: nc}
		h := pdu.Header{pdu.OpLoginRequest | pdu.Immediate, flags}
		if i.send(h, text) != nil {
			return
		}
		r, _, err := i.recv()
		if err != nil {
			return
		}
		if r.Opcode() != pdu.OpLoginResponse {
			t.Errorf("answered with opcode %#02x", r.Opcode())
		}
		if r[1]&pdu.Transit != 0 && r[1]&3 == pdu.StageFullFeature && binary.BigEndian.Uint16(r[pdu.OffTSIH:]) == 0 {
			t.Error("full feature phase without a session")
		}
	})
}

// FuzzFullFeature sends the input after a login. Whatever comes of it, the next
// initiator is served.
func FuzzFullFeature(f *testing.F) {
	cmd := pdu.Header{pdu.OpSCSICommand, pdu.Final | pdu.CommandRead | 1}
	cmd.PutU32(pdu.OffITT, 1)
	cmd.PutU32(pdu.OffCmdSN, 100)
	cmd.PutU32(pdu.OffEDTL, 512)
	copy(cmd[pdu.OffCDB:], rw10(opRead10, 0, 1))
	f.Add(cmd[:])
	write := cmd
	write[1] = pdu.Final | pdu.CommandWrite | 1
	copy(write[pdu.OffCDB:], rw10(opWrite10, 0, 1))
	f.Add(write[:])
	write.SetDataLen(512)
	f.Add(append(write[:], make([]byte, 512)...))
	out := pdu.Header{pdu.OpDataOut, pdu.Final}
	out.PutU32(pdu.OffTTT, pdu.Reserved)
	f.Add(append(write[:], out[:]...))
	for _, op := range []byte{pdu.OpTaskRequest, pdu.OpTextRequest, pdu.OpLogoutRequest, pdu.OpNOPOut, pdu.OpSNACK, pdu.OpLoginRequest} {
		h := pdu.Header{op | pdu.Immediate, pdu.Final | 5}
		f.Add(h[:])
		h[4] = 2
		f.Add(append(h[:], 0, 5, 1, 0, 1, 2, 3, 4))
	}
	b := fuzzServer(f)
	f.Fuzz(func(t *testing.T, stream []byte) {
		nc, err := netDial(b.portal)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		i := &ini{t: t, nc: nc, cmdSN: 100, itt: 1, params: map[string]string{}}
		if err := i.tryLogin(b.args()); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(stream); err != nil {
			return
		}
		if err := nc.(*net.TCPConn).CloseWrite(); err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, nc)
	})
}
