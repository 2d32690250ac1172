package target

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

// attacker is one peer that means ill, or knows no better.
type attacker struct {
	*rand.Rand
	portal string
	t      *testing.T
}

// junk is n bytes, random or all alike.
func (a *attacker) junk(n int) []byte {
	b := make([]byte, n)
	if a.IntN(2) == 0 {
		for i := range b {
			b[i] = byte(a.Uint32())
		}
	}
	return b
}

func (a *attacker) pick(list ...uint32) uint32 { return list[a.IntN(len(list))] }

// requests are the opcodes that do something; others are drawn now and then.
var requests = []byte{
	pdu.OpSCSICommand, pdu.OpSCSICommand, pdu.OpSCSICommand, pdu.OpDataOut, pdu.OpTaskRequest, pdu.OpTextRequest, pdu.OpNOPOut,
	pdu.OpLoginRequest, pdu.OpLogoutRequest, pdu.OpSNACK,
}

var attackCDBs = []byte{
	0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1d, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x34, 0x35, 0x37, 0x41, 0x42,
	0x55, 0x56, 0x57, 0x5a, 0x5e, 0x5f, 0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa, 0xae, 0xaf, 0xb7,
}

// request is a PDU that is nearly right, and its data segment.
func (a *attacker) request(cmdSN uint32) (pdu.Header, []byte) {
	h := pdu.Header{requests[a.IntN(len(requests))], pdu.Final}
	if a.IntN(20) == 0 {
		h[0] = byte(a.Uint32())
	}
	if a.IntN(4) == 0 {
		h[0] |= pdu.Immediate
	}
	if a.IntN(3) == 0 {
		h[1] = byte(a.Uint32())
	}
	h.PutU32(pdu.OffITT, a.pick(1, 2, uint32(a.IntN(8)), a.Uint32(), pdu.Reserved))
	h.PutU32(pdu.OffTTT, a.pick(pdu.Reserved, pdu.Reserved, 1<<16|uint32(a.IntN(140)), a.Uint32()))
	h.PutU32(pdu.OffCmdSN, cmdSN+a.pick(0, 0, 0, 0, 0, 1, 2, 127, 128, 1<<31))
	n := 0
	switch h.Opcode() {
	case pdu.OpSCSICommand:
		if a.IntN(2) == 0 {
			h[1] |= pdu.CommandWrite
		} else {
			h[1] |= pdu.CommandRead
		}
		h.PutU32(pdu.OffEDTL, a.pick(0, 512, 4096, 1<<16, 1<<20, 1<<24, 1<<32-1, uint32(a.IntN(1<<18))))
		copy(h[pdu.OffCDB:], a.junk(16))
		h[pdu.OffCDB] = attackCDBs[a.IntN(len(attackCDBs))]
		if a.IntN(2) == 0 { // a place that is there, and a length that is
			clear(h[pdu.OffCDB+1 : pdu.OffCDB+16])
			h[pdu.OffCDB+1] = byte(a.pick(0, 0, 1, 2, 3, 4, 5, 0x10, uint32(a.IntN(256))))
			h[pdu.OffCDB+4], h[pdu.OffCDB+8], h[pdu.OffCDB+13] = byte(a.Uint32()), byte(a.Uint32()), byte(a.Uint32())
		}
		if a.IntN(10) == 0 {
			h.PutU32(8, a.Uint32())
		}
		if h[1]&pdu.CommandWrite != 0 {
			n = int(a.pick(0, 24, 512, 4096, 8192, uint32(a.IntN(1<<17))))
		}
	case pdu.OpDataOut:
		n = int(a.pick(0, 512, 8192, 1<<16, uint32(a.IntN(1<<18))))
		h.PutU32(pdu.OffDataSN, a.pick(0, 0, 1, a.Uint32()))
		h.PutU32(pdu.OffBufOffset, a.pick(0, 0, 512, 8192, a.Uint32()))
	case pdu.OpTaskRequest:
		h[1] = pdu.Final | byte(a.IntN(16))
		h.PutU32(pdu.OffRefTag, uint32(a.IntN(8)))
	case pdu.OpTextRequest:
		text := []byte(strings.Repeat("SendTargets=All\x00", int(a.pick(0, 1, 1, 70, 1000))))
		return h, text
	default:
		n = int(a.pick(0, 0, 4, 48, 4096, 1<<18))
	}
	return h, a.junk(n)
}

// send writes a PDU; sometimes it lies about its length, or breaks off.
func (a *attacker) send(nc net.Conn, h pdu.Header, data []byte) error {
	h.SetDataLen(len(data))
	b := append([]byte(nil), h[:]...)
	if a.IntN(20) == 0 {
		ahs := a.junk(4 * a.IntN(256))
		b[4] = byte(len(ahs) / 4)
		b = append(b, ahs...)
	}
	b = append(append(b, data...), make([]byte, pdu.Pad(len(data)))...)
	switch a.IntN(100) {
	case 0:
		b[5], b[6], b[7] = byte(a.Uint32()), byte(a.Uint32()), byte(a.Uint32())
	case 1:
		b = b[:a.IntN(len(b))]
	}
	_, err := nc.Write(b)
	return err
}

// loginText is the text of a login that says most of what it must.
func (a *attacker) loginText(args loginArgs) []byte {
	keys := []string{
		"InitiatorName=" + args.name, "TargetName=" + args.target, "SessionType=" + []string{"Discovery", "Normal", "x"}[a.IntN(3)],
		"AuthMethod=CHAP,None", "AuthMethod=None", "CHAP_A=5,7", "CHAP_N=u", "CHAP_R=0x" + strings.Repeat("ab", a.IntN(40)), "CHAP_I=1", "CHAP_C=0b" + strings.Repeat("A", a.IntN(3000)),
		"HeaderDigest=CRC32C,None", "DataDigest=CRC32C", "MaxRecvDataSegmentLength=" + fmt.Sprint(a.Uint32()), "MaxBurstLength=512", "FirstBurstLength=16777215",
		"InitialR2T=No", "ImmediateData=Yes", "X-" + strings.Repeat("k", a.IntN(300)) + "=1", "=", string(a.junk(50)),
	}
	var b []byte
	for _, k := range keys {
		if a.IntN(3) > 0 {
			b = append(append(b, k...), 0)
		}
	}
	return b
}

func (a *attacker) loginHeader() pdu.Header {
	h := pdu.Header{pdu.OpLoginRequest | pdu.Immediate, byte(a.pick(0x87, 0x81, 0x04, 0x00, 0x40, 0x44, a.Uint32()))}
	if a.IntN(10) == 0 {
		copy(h[8:], a.junk(40))
	}
	return h
}

// once makes one connection and does its worst.
func (a *attacker) once(args loginArgs) {
	nc, err := net.DialTimeout("tcp", a.portal, time.Second)
	if err != nil {
		return
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(2 * time.Second))
	mode := a.IntN(10)
	if a.IntN(2) == 0 || mode < 2 {
		// Some read what they are answered, others do not.
		go func() { _, _ = io.Copy(io.Discard, nc) }()
		if mode > 4 {
			mode = 4
		}
	}
	switch mode {
	case 0:
		_, _ = nc.Write(a.junk(a.IntN(1 << 16)))
	case 1:
		for range a.IntN(40) {
			h, data := a.request(1)
			if a.send(nc, h, data) != nil {
				return
			}
		}
	case 2, 3, 4:
		for range 1 + a.IntN(40) {
			if a.send(nc, a.loginHeader(), a.loginText(args)) != nil {
				return
			}
		}
	default:
		i := &ini{t: a.t, nc: nc, cmdSN: 100, itt: 1, params: map[string]string{}}
		args.discovery = mode == 5
		if mode == 6 {
			args.keys = keys("ImmediateData", "Yes", "InitialR2T", "No", "FirstBurstLength", "262144", "MaxRecvDataSegmentLength", fmt.Sprint(512<<a.IntN(12)))
		}
		if i.tryLogin(args) != nil {
			return
		}
		if a.IntN(2) == 0 {
			go func() { _, _ = io.Copy(io.Discard, nc) }()
		}
		for range a.IntN(400) {
			h, data := a.request(i.cmdSN)
			if a.send(nc, h, data) != nil {
				return
			}
			if h[0]&pdu.Immediate == 0 && h.U32(pdu.OffCmdSN) == i.cmdSN && h.Opcode() != pdu.OpDataOut && h.Opcode() != pdu.OpSNACK {
				i.cmdSN++
			}
		}
	}
}

func procField(t *testing.T, pid int, field string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("the server: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	t.Fatalf("no %s of process %d", field, pid)
	return 0
}

func openFiles(pid int) int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(list)
}

// Peers that send what is nearly right, before and after a login, to list targets, to
// read and to write: the server does not end, holds bounded memory and descriptors,
// and a machine beside them goes on. The long form goes on for ten minutes.
func TestAttackUnderLoad(t *testing.T) {
	length := 3 * time.Second
	if os.Getenv("RECONCILER_SOAK") != "" {
		length = 10 * time.Minute
	}
	dir, cfg, c := ensured(t)
	portal := freePortal(t)
	victim, loot := testIQN, testIQN+"-2"
	for _, e := range []string{victim, loot} {
		if err := c.Put(t.Context(), Export{IQN: e, Path: newVolume(t, dir, filepath.Base(e)), Portals: []string{portal}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetAccess(t.Context(), victim, []Access{{Epoch: 1, Initiators: []string{name(1)}, User: "vm", Password: secret("correct horse")}, {Epoch: 2, Initiators: []string{name(2)}, ReadOnly: true}}); err != nil {
		t.Fatal(err)
	}
	epoch := uint64(1)
	lend := func() error {
		return c.SetAccess(t.Context(), loot, []Access{{Epoch: epoch, Initiators: []string{name(3), name(4)}}})
	}
	if err := lend(); err != nil {
		t.Fatal(err)
	}
	machine := logIn(t, loginArgs{portal: portal, target: victim, name: name(1), user: "vm", password: "correct horse"}).ready()
	pid := serverPID(t, c)

	seed := uint64(time.Now().UnixNano())
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	var connections atomic.Int64
	for n := range 6 {
		a := &attacker{rand.New(rand.NewPCG(seed, uint64(n))), portal, t}
		wg.Go(func() {
			for time.Now().Before(end) {
				as := []loginArgs{
					{portal: portal, target: victim, name: name(2)}, {portal: portal, target: loot, name: name(3)}, {portal: portal, target: loot, name: name(4)},
				}[a.IntN(3)]
				a.once(as)
				connections.Add(1)
			}
		})
	}
	// What an agent does meanwhile.
	wg.Go(func() {
		for n := 0; time.Now().Before(end); n++ {
			var err error
			switch n % 4 {
			case 0:
				err = c.ClearReservations(t.Context(), loot)
			case 1:
				err = c.Grow(t.Context(), loot, 0)
			case 2:
				err = c.Fence(t.Context(), loot, epoch)
				epoch++
			case 3:
				err = lend()
			}
			if err != nil {
				t.Errorf("seed %d: request %d: %v", seed, n%4, err)
				return
			}
			<-time.After(20 * time.Millisecond)
		}
	})
	most, files := 0, 0
	for n := uint32(0); time.Now().Before(end); n++ {
		_ = machine.nc.SetDeadline(time.Now().Add(waitLimit))
		block := bytes.Repeat(binary.BigEndian.AppendUint32(nil, n), 1024)
		machine.write(n%1000*8, block)
		if got := machine.read(n%1000*8, 8); !bytes.Equal(got, block) {
			t.Fatalf("seed %d: block %d is not as it was written", seed, n)
		}
		most, files = max(most, procField(t, pid, "VmRSS")), max(files, openFiles(pid))
	}
	wg.Wait()
	if now := serverPID(t, c); now != pid {
		out, _ := os.ReadFile(logPath(cfg.RunDir))
		t.Fatalf("seed %d: the server ended: %s", seed, out[max(0, len(out)-8000):])
	}
	waitFor(t, "the attackers' sessions to end", func() bool {
		list, err := c.List(t.Context())
		return err == nil && len(list[0].Sessions)+len(list[1].Sessions) == 1
	})
	log, err := os.ReadFile(logPath(cfg.RunDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"panic", "DATA RACE"} {
		if i := bytes.Index(log, []byte(bad)); i >= 0 {
			t.Errorf("seed %d: %s", seed, log[i:min(len(log), i+4000)])
		}
	}
	if most > 512<<10 || files > 400 {
		t.Errorf("seed %d: the server had %d MiB and %d files", seed, most>>10, files)
	}
	waitFor(t, "their connections to be closed", func() bool { return openFiles(pid) < 30 })
	t.Logf("seed %d: %d connections; at most %d MiB and %d files, at the end %d MiB; log of %d KiB", seed, connections.Load(), most>>10, files, procField(t, pid, "VmRSS")>>10, len(log)>>10)
}
