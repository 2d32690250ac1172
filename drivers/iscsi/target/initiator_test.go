package target

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

// ini is an initiator that does what the test says, right or wrong.
type ini struct {
	t      testing.TB
	nc     net.Conn
	cmdSN  uint32
	itt    uint32
	params map[string]string // what the target answered
	hd, dd bool
	last   pdu.Header // of the last login response
	status uint16
}

type loginArgs struct {
	portal, target, name string
	isid                 [6]byte
	user, password       string
	mutualUser, mutual   string // checked where not empty
	algorithm            string // CHAP_A; "5" when empty
	discovery            bool
	keys                 []pdu.Pair // operational keys offered
	tsih                 uint16
}

// waitLimit bounds every wait of a test.
const waitLimit = 20 * time.Second

func dial(t testing.TB, portal string) *ini {
	t.Helper()
	nc, err := net.Dial("tcp", portal)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(waitLimit))
	return &ini{t: t, nc: nc, cmdSN: 100, itt: 1, params: map[string]string{}}
}

// send writes a PDU with what was negotiated.
func (i *ini) send(h pdu.Header, data []byte) error {
	h.SetDataLen(len(data))
	b := append([]byte(nil), h[:]...)
	if i.hd {
		b = binary.LittleEndian.AppendUint32(b, pdu.Digest(h[:]))
	}
	if len(data) > 0 {
		b = append(b, data...)
		b = append(b, make([]byte, pdu.Pad(len(data)))...)
		if i.dd {
			b = binary.LittleEndian.AppendUint32(b, pdu.Digest(data))
		}
	}
	_, err := i.nc.Write(b)
	return err
}

func (i *ini) recv() (h pdu.Header, data []byte, err error) {
	if _, err = io.ReadFull(i.nc, h[:]); err != nil {
		return
	}
	var sum [4]byte
	if i.hd {
		if _, err = io.ReadFull(i.nc, sum[:]); err != nil {
			return
		}
		if !pdu.CheckDigest(sum[:], pdu.Digest(h[:])) {
			return h, nil, errHeaderDigest
		}
	}
	data = make([]byte, h.DataLen()+pdu.Pad(h.DataLen()))
	if _, err = io.ReadFull(i.nc, data); err != nil {
		return
	}
	if i.dd && len(data) > 0 {
		if _, err = io.ReadFull(i.nc, sum[:]); err != nil {
			return
		}
		if !pdu.CheckDigest(sum[:], pdu.Digest(data)) {
			return h, nil, errDataDigest
		}
	}
	return h, data[:h.DataLen()], nil
}

// loginStep sends one Login Request and takes the answer's keys.
func (i *ini) loginStep(a loginArgs, csg, nsg byte, transit bool, keys []pdu.Pair) error {
	h := pdu.Header{pdu.OpLoginRequest | pdu.Immediate, csg<<2 | nsg}
	if transit {
		h[1] |= pdu.Transit
	}
	copy(h[pdu.OffISID:], a.isid[:])
	binary.BigEndian.PutUint16(h[pdu.OffTSIH:], a.tsih)
	h.PutU32(pdu.OffITT, i.itt)
	h.PutU32(pdu.OffCmdSN, i.cmdSN)
	var text []byte
	for _, kv := range keys {
		text = pdu.AppendText(text, kv.Key, kv.Value)
	}
	if err := i.send(h, text); err != nil {
		return err
	}
	h, data, err := i.recv()
	if err != nil {
		return err
	}
	if h.Opcode() != pdu.OpLoginResponse {
		return fmt.Errorf("opcode %#02x during login", h.Opcode())
	}
	i.last = h
	if i.status = binary.BigEndian.Uint16(h[pdu.OffLoginState:]); i.status != 0 {
		return fmt.Errorf("login status %#04x", i.status)
	}
	pairs, err := pdu.ParseText(data, maxPairs)
	for _, kv := range pairs {
		i.params[kv.Key] = kv.Value
	}
	return err
}

// tryLogin logs in and returns why it could not.
func (i *ini) tryLogin(a loginArgs) error {
	first := []pdu.Pair{{Key: "InitiatorName", Value: a.name}}
	if a.discovery {
		first = append(first, pdu.Pair{Key: "SessionType", Value: "Discovery"})
	} else {
		first = append(first, pdu.Pair{Key: "TargetName", Value: a.target})
	}
	if a.user != "" {
		if err := i.loginStep(a, 0, 1, true, append(first, pdu.Pair{Key: "AuthMethod", Value: "CHAP,None"})); err != nil {
			return err
		}
		if i.params["AuthMethod"] == "CHAP" {
			if err := i.chap(a); err != nil {
				return err
			}
		}
		first = nil
	}
	if err := i.loginStep(a, 1, 3, true, append(first, a.keys...)); err != nil {
		return err
	}
	if i.last[1]&pdu.Transit == 0 {
		return fmt.Errorf("no transition to full feature phase")
	}
	i.itt++
	i.hd = i.params["HeaderDigest"] == "CRC32C"
	i.dd = i.params["DataDigest"] == "CRC32C"
	return nil
}

func (i *ini) chap(a loginArgs) error {
	alg := a.algorithm
	if alg == "" {
		alg = "5"
	}
	if err := i.loginStep(a, 0, 1, false, []pdu.Pair{{Key: "CHAP_A", Value: alg}}); err != nil {
		return err
	}
	answer := func(id byte, secret string, c []byte) []byte {
		in := append(append([]byte{id}, secret...), c...)
		if i.params["CHAP_A"] == "7" {
			sum := sha256.Sum256(in)
			return sum[:]
		}
		sum := md5.Sum(in)
		return sum[:]
	}
	id, _ := strconv.Atoi(i.params["CHAP_I"])
	c, _ := pdu.Binary(i.params["CHAP_C"], 1024)
	keys := []pdu.Pair{{Key: "CHAP_N", Value: a.user}, {Key: "CHAP_R", Value: "0x" + hex.EncodeToString(answer(byte(id), a.password, c))}}
	own := []byte("sixteen bytes ab")
	if a.mutualUser != "" {
		keys = append(keys, pdu.Pair{Key: "CHAP_I", Value: "9"}, pdu.Pair{Key: "CHAP_C", Value: "0x" + hex.EncodeToString(own)})
	}
	if err := i.loginStep(a, 0, 1, true, keys); err != nil {
		return err
	}
	if a.mutualUser != "" {
		got, _ := pdu.Binary(i.params["CHAP_R"], 64)
		if i.params["CHAP_N"] != a.mutualUser || !bytes.Equal(got, answer(9, a.mutual, own)) {
			return fmt.Errorf("the target did not prove itself")
		}
	}
	return nil
}

func logIn(t testing.TB, a loginArgs) *ini {
	t.Helper()
	i := dial(t, a.portal)
	if err := i.tryLogin(a); err != nil {
		t.Fatalf("login: %v", err)
	}
	return i
}

// header begins a request; a command that is not immediate takes a CmdSN.
func (i *ini) header(op, flags byte) pdu.Header {
	h := pdu.Header{op, flags}
	h.PutU32(pdu.OffITT, i.itt)
	h.PutU32(pdu.OffCmdSN, i.cmdSN)
	i.itt++
	if op&pdu.Immediate == 0 {
		i.cmdSN++
	}
	return h
}

func rw10(op byte, lba uint32, blocks int) []byte {
	cdb := make([]byte, 16)
	cdb[0] = op
	binary.BigEndian.PutUint32(cdb[2:], lba)
	binary.BigEndian.PutUint16(cdb[7:], uint16(blocks))
	return cdb
}

func rw16(op byte, lba uint64, blocks int) []byte {
	cdb := make([]byte, 16)
	cdb[0] = op
	binary.BigEndian.PutUint64(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[10:], uint32(blocks))
	return cdb
}

const (
	opRead10  = 0x28
	opWrite10 = 0x2a
	opRead16  = 0x88
	opWrite16 = 0x8a
)

// start sends a SCSI Command with as much immediate data as given.
func (i *ini) start(flags byte, cdb []byte, edtl int, immediate []byte) (itt uint32) {
	i.t.Helper()
	h := i.header(pdu.OpSCSICommand, flags|pdu.AttrSimple)
	h.PutU32(pdu.OffEDTL, uint32(edtl))
	copy(h[pdu.OffCDB:], cdb)
	if err := i.send(h, immediate); err != nil {
		i.t.Fatalf("command: %v", err)
	}
	return h.ITT()
}

// reply is what came of a command.
type reply struct {
	status   byte
	sense    []byte
	data     []byte
	residual uint32
	flags    byte
	r2ts     int
}

// finish receives until the command has its status; R2Ts are answered from out.
func (i *ini) finish(itt uint32, out []byte) (reply, error) {
	var r reply
	var sn uint32
	for {
		h, data, err := i.recv()
		if err != nil {
			return r, err
		}
		if h.Opcode() == pdu.OpNOPIn && h.ITT() == pdu.Reserved {
			continue
		}
		if h.ITT() != itt {
			return r, fmt.Errorf("a PDU %#02x of task %d while waiting for %d", h.Opcode(), h.ITT(), itt)
		}
		switch h.Opcode() {
		case pdu.OpDataIn:
			if h.U32(pdu.OffDataSN) != sn || int(h.U32(pdu.OffBufOffset)) != len(r.data) {
				return r, fmt.Errorf("Data-In %d at %d out of order", h.U32(pdu.OffDataSN), h.U32(pdu.OffBufOffset))
			}
			sn++
			r.data = append(r.data, data...)
			if h[1]&pdu.DataInStatus != 0 {
				r.status, r.residual, r.flags = h[3], h.U32(pdu.OffResidual), h[1]&6
				return r, nil
			}
		case pdu.OpSCSIResponse:
			r.status, r.residual, r.flags = h[3], h.U32(pdu.OffResidual), h[1]&6
			if len(data) > 2 {
				r.sense = data[2:]
			}
			return r, nil
		case pdu.OpR2T:
			r.r2ts++
			off, n := int(h.U32(pdu.OffBufOffset)), int(h.U32(pdu.OffR2TLength))
			if err := i.dataOut(itt, h.U32(pdu.OffTTT), out, off, n); err != nil {
				return r, err
			}
		default:
			return r, fmt.Errorf("opcode %#02x", h.Opcode())
		}
	}
}

// dataOut sends a sequence of Data-Out PDUs of 8 KiB.
func (i *ini) dataOut(itt, ttt uint32, out []byte, off, n int) error {
	for sn, end := uint32(0), off+n; off < end; sn++ {
		m := min(8192, end-off)
		h := pdu.Header{pdu.OpDataOut}
		if off+m == end {
			h[1] = pdu.Final
		}
		h.PutU32(pdu.OffITT, itt)
		h.PutU32(pdu.OffTTT, ttt)
		h.PutU32(pdu.OffDataSN, sn)
		h.PutU32(pdu.OffBufOffset, uint32(off))
		if err := i.send(h, out[off:off+m]); err != nil {
			return err
		}
		off += m
	}
	return nil
}

func (i *ini) read(lba uint32, blocks int) []byte {
	i.t.Helper()
	r := i.must(i.finish(i.start(pdu.Final|pdu.CommandRead, rw10(opRead10, lba, blocks), blocks*512, nil), nil))
	return r.data
}

func (i *ini) write(lba uint32, data []byte) {
	i.t.Helper()
	n := min(len(data), 8192)
	itt := i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, lba, len(data)/512), len(data), data[:n])
	i.must(i.finish(itt, data))
}

// must takes a reply that has to be GOOD. Unit attentions are the caller's.
func (i *ini) must(r reply, err error) reply {
	i.t.Helper()
	if err != nil {
		i.t.Fatal(err)
	}
	if r.status != 0 {
		i.t.Fatalf("status %#02x, sense %x", r.status, r.sense)
	}
	return r
}

// ready takes the unit attentions off the nexus.
func (i *ini) ready() *ini {
	i.t.Helper()
	for range 10 {
		r, err := i.finish(i.start(pdu.Final, make([]byte, 16), 0, nil), nil)
		if err != nil {
			i.t.Fatal(err)
		}
		if r.status == 0 {
			return i
		}
	}
	i.t.Fatal("unit attentions do not end")
	return nil
}

// nop pings the target.
func (i *ini) nop() error {
	h := i.header(pdu.OpNOPOut|pdu.Immediate, pdu.Final)
	h.PutU32(pdu.OffTTT, pdu.Reserved)
	if err := i.send(h, []byte("ping")); err != nil {
		return err
	}
	for {
		r, data, err := i.recv()
		if err != nil {
			return err
		}
		if r.Opcode() == pdu.OpNOPIn && r.ITT() == h.ITT() {
			if string(data) != "ping" {
				return fmt.Errorf("NOP came back with %q", data)
			}
			return nil
		}
	}
}

// task sends a task management request and returns the response.
func (i *ini) task(function byte, ref uint32) byte {
	i.t.Helper()
	h := i.header(pdu.OpTaskRequest|pdu.Immediate, pdu.Final|function)
	h.PutU32(pdu.OffRefTag, ref)
	if err := i.send(h, nil); err != nil {
		i.t.Fatal(err)
	}
	for {
		r, _, err := i.recv()
		if err != nil {
			i.t.Fatal(err)
		}
		if r.Opcode() == pdu.OpTaskResponse && r.ITT() == h.ITT() {
			return r[2]
		}
	}
}

// gone waits until the target has closed the connection.
func (i *ini) gone() error {
	for {
		if _, _, err := i.recv(); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				return fmt.Errorf("the connection is still open")
			}
			return nil
		}
	}
}

func netDial(portal string) (net.Conn, error) {
	nc, err := net.Dial("tcp", portal)
	if err == nil {
		_ = nc.SetDeadline(time.Now().Add(waitLimit))
	}
	return nc, err
}
