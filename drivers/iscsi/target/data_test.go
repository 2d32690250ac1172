package target

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"reconciler/drivers/iscsi/target/pdu"
)

func keys(kv ...string) (out []pdu.Pair) {
	for i := 0; i < len(kv); i += 2 {
		out = append(out, pdu.Pair{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

// What is written arrives at its place in the file and is read back, whatever
// was negotiated.
func TestData(t *testing.T) {
	b := newBed(t, nil)
	for n, c := range []struct {
		name string
		keys []pdu.Pair
	}{
		{"defaults", nil},
		{"digests", keys("HeaderDigest", "CRC32C", "DataDigest", "CRC32C")},
		{"small bursts", keys("MaxBurstLength", "4096", "FirstBurstLength", "512", "MaxRecvDataSegmentLength", "512")},
		{"large bursts", keys("MaxBurstLength", "1048576", "FirstBurstLength", "262144", "MaxRecvDataSegmentLength", "1048576", "InitialR2T", "No")},
		{"no immediate data", keys("ImmediateData", "No")},
		{"odd segments with digests", keys("MaxRecvDataSegmentLength", "1001", "DataDigest", "CRC32C")},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := b.args()
			a.keys = c.keys
			i := logIn(t, a).ready()
			immediate := i.params["ImmediateData"] != "No"
			first := 8192
			if v := i.params["FirstBurstLength"]; v == "512" {
				first = 512
			}
			for k, size := range []int{512, 4096, 64 << 10, 300 << 10, 3 << 20} {
				want := pattern(size, byte(n*16+k))
				lba := uint32(k * 8192)
				var now []byte
				if immediate {
					now = want[:min(size, first)]
				}
				r := i.must(i.finish(i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, lba, size/512), size, now), want))
				if r.flags != 0 || r.residual != 0 {
					t.Errorf("%d bytes: residual %d, flags %#x", size, r.residual, r.flags)
				}
				got := make([]byte, size)
				f, err := os.Open(b.volume)
				if err != nil {
					t.Fatal(err)
				}
				_, err = f.ReadAt(got, int64(lba)*512)
				f.Close()
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes are not in the file: %v", size, err)
				}
				if !bytes.Equal(i.read(lba, size/512), want) {
					t.Fatalf("%d bytes do not read back", size)
				}
			}
		})
	}
}

// Unsolicited data goes on in Data-Out PDUs that nobody asked for.
func TestUnsolicitedData(t *testing.T) {
	b := newBed(t, nil)
	a := b.args()
	a.keys = keys("InitialR2T", "No", "FirstBurstLength", "65536")
	i := logIn(t, a).ready()
	want := pattern(200<<10, 5)
	itt := i.start(pdu.CommandWrite, rw10(opWrite10, 8, len(want)/512), len(want), want[:8192]) // not final
	if err := i.dataOut(itt, pdu.Reserved, want, 8192, 65536-8192); err != nil {
		t.Fatal(err)
	}
	if r := i.must(i.finish(itt, want)); r.r2ts != 1 {
		t.Errorf("%d R2Ts", r.r2ts)
	}
	if !bytes.Equal(i.read(8, len(want)/512), want) {
		t.Error("does not read back")
	}
}

func TestResiduals(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	for _, c := range []struct {
		name     string
		flags    byte
		op       byte
		blocks   int
		edtl     int
		flag     byte
		residual uint32
	}{
		{"read, exact", pdu.CommandRead, opRead10, 2, 1024, 0, 0},
		{"read, more expected", pdu.CommandRead, opRead10, 1, 4096, pdu.ResidualUnderflow, 3584},
		{"read, less expected", pdu.CommandRead, opRead10, 4, 512, pdu.ResidualOverflow, 1536},
		{"write, more expected", pdu.CommandWrite, opWrite10, 1, 4096, pdu.ResidualUnderflow, 3584},
		{"write, less expected", pdu.CommandWrite, opWrite10, 4, 512, pdu.ResidualOverflow, 1536},
	} {
		out := pattern(c.edtl, 1)
		var now []byte
		if c.flags == pdu.CommandWrite {
			now = out
		}
		r, err := i.finish(i.start(pdu.Final|c.flags, rw10(c.op, 0, c.blocks), c.edtl, now), out)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if r.flags != c.flag || r.residual != c.residual {
			t.Errorf("%s: residual %d, flags %#x; expected %d, %#x", c.name, r.residual, r.flags, c.residual, c.flag)
		}
		if len(r.data) > c.edtl {
			t.Errorf("%s: %d bytes", c.name, len(r.data))
		}
	}
}

// Many writes that are longer than a first burst share the session's credit:
// all are served, in turns.
func TestWriteCredit(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	const size, n = 8 << 20, 7 // more than outCredit
	want := pattern(size, 9)
	for k := range n {
		i.start(pdu.Final|pdu.CommandWrite, rw16(opWrite16, uint64(k*size/512), size/512), size, nil)
	}
	left := n
	for left > 0 {
		h, data, err := i.recv()
		if err != nil {
			t.Fatalf("with %d writes to go: %v", left, err)
		}
		switch h.Opcode() {
		case pdu.OpR2T:
			if err := i.dataOut(h.ITT(), h.U32(pdu.OffTTT), want, int(h.U32(pdu.OffBufOffset)), int(h.U32(pdu.OffR2TLength))); err != nil {
				t.Fatal(err)
			}
		case pdu.OpSCSIResponse:
			if h[3] != 0 {
				t.Fatalf("write of task %d: status %#x, %x", h.ITT(), h[3], data)
			}
			left--
		default:
			t.Fatalf("opcode %#x", h.Opcode())
		}
	}
	if !bytes.Equal(i.read(0, 512), want[:512*512]) {
		t.Error("does not read back")
	}
}

// Commands are acted upon in the order of their numbers, and those outside of
// the window not at all (RFC 7143 §4.2.2.1).
func TestCommandOrder(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	next := i.cmdSN
	one, two := pattern(512, 1), pattern(512, 2)
	send := func(sn uint32, data []byte) uint32 {
		i.cmdSN = sn
		return i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 0, 1), 512, data)
	}
	send(next-1, two)    // an old number
	send(next+5000, two) // beyond the window
	second := send(next+1, two)
	if err := i.nop(); err != nil { // nothing of these is answered before
		t.Fatal(err)
	}
	first := send(next, one)
	for _, want := range []uint32{first, second} {
		i.must(i.finish(want, nil))
	}
	i.cmdSN = next + 2
	if !bytes.Equal(i.read(0, 1), two) {
		t.Error("the later command did not win")
	}
}

// The window is what the limits say, and every answer opens it again.
func TestWindow(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.QueueDepth = 8 })
	i := b.login()
	for range 100 {
		i.must(i.finish(i.start(pdu.Final, make([]byte, 16), 0, nil), nil))
	}
	itt := i.start(pdu.Final, make([]byte, 16), 0, nil)
	h, _, err := i.recv()
	if err != nil || h.ITT() != itt {
		t.Fatal(h.ITT(), err)
	}
	if exp, top := h.U32(pdu.OffExpCmdSN), h.U32(pdu.OffMaxCmdSN); exp != i.cmdSN || top != exp+7 {
		t.Errorf("ExpCmdSN %d, MaxCmdSN %d with %d next", exp, top, i.cmdSN)
	}
}

// An ORDERED task waits for all before it, and all after it wait for it.
func TestOrderedTask(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	release := b.gate.holdOpcode(opWrite10)
	defer release()
	start := func(attr byte, data []byte) uint32 {
		h := i.header(pdu.OpSCSICommand, pdu.Final|pdu.CommandWrite|attr)
		h.PutU32(pdu.OffEDTL, 512)
		copy(h[pdu.OffCDB:], rw10(opWrite10, 0, 1))
		if err := i.send(h, data); err != nil {
			t.Fatal(err)
		}
		return h.ITT()
	}
	order := []uint32{
		start(pdu.AttrSimple, pattern(512, 1)),
		start(pdu.AttrOrdered, pattern(512, 2)),
		start(pdu.AttrSimple, pattern(512, 3)),
		start(pdu.AttrOrdered, pattern(512, 4)),
	}
	<-b.gate.in
	if err := i.nop(); err != nil {
		t.Fatal(err)
	}
	aborted := start(pdu.AttrSimple, pattern(512, 5))
	if got := i.task(pdu.TaskAbort, aborted); got != pdu.TaskComplete {
		t.Errorf("abort of a task that waits its turn: %d", got)
	}
	select {
	case <-b.gate.in:
		t.Fatal("a second task is at the volume")
	default:
	}
	release()
	for _, itt := range order {
		i.must(i.finish(itt, nil))
	}
	if !bytes.Equal(i.read(0, 1), pattern(512, 4)) {
		t.Error("the last task did not win")
	}
}

func TestReadOnlyGrant(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{name(1)}}, Access{Epoch: 2, Initiators: []string{name(2)}, ReadOnly: true})
	w, r := b.loginAs(name(1)), b.loginAs(name(2))
	w.write(0, pattern(512, 3))
	if !bytes.Equal(r.read(0, 1), pattern(512, 3)) {
		t.Error("the reader does not see the data")
	}
	got, err := r.finish(r.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 0, 1), 512, pattern(512, 4)), nil)
	if err != nil || got.status != 2 || got.sense[2]&0xf != 7 {
		t.Errorf("a write of the reader: status %d, sense %x, %v", got.status, got.sense, err)
	}
	for _, f := range []byte{pdu.TaskLUReset, pdu.TaskWarmReset, pdu.TaskColdReset, pdu.TaskClearSet} {
		if got := r.task(f, 0); got != pdu.TaskNotAuthorized {
			t.Errorf("function %d of the reader: response %d", f, got)
		}
	}
	if !bytes.Equal(w.read(0, 1), pattern(512, 3)) {
		t.Error("the reader changed the data")
	}
}

func TestTextNop(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	if err := i.nop(); err != nil {
		t.Fatal(err)
	}
	h := i.header(pdu.OpSNACK|pdu.Immediate, pdu.Final)
	if err := i.send(h, nil); err != nil {
		t.Fatal(err)
	}
	if r, data, err := i.recv(); err != nil || r.Opcode() != pdu.OpReject || r[2] != pdu.RejectNotSupported || len(data) != pdu.HeaderLen {
		t.Errorf("SNACK at level 0: %x %v", r[:4], err)
	}
}

// A target asks silent initiators whether they live, and drops those that do not
// answer.
func TestKeepAlive(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.Nop = 200e6 })
	i := b.login()
	pings := 0
	for {
		h, _, err := i.recv()
		if err != nil {
			break
		}
		if h.Opcode() == pdu.OpNOPIn && h.ITT() == pdu.Reserved {
			pings++
			if pings == 1 {
				r := pdu.Header{pdu.OpNOPOut | pdu.Immediate, pdu.Final}
				r.PutU32(pdu.OffITT, pdu.Reserved)
				r.PutU32(pdu.OffTTT, h.U32(pdu.OffTTT))
				r.PutU32(pdu.OffCmdSN, i.cmdSN)
				if err := i.send(r, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if pings != 2 {
		t.Errorf("%d pings before the connection went", pings)
	}
	waitFor(t, "the session's end", func() bool { return len(b.status().Sessions) == 0 })
}

func TestLogout(t *testing.T) {
	b := newBed(t, nil)
	i := b.login()
	h := i.header(pdu.OpLogoutRequest|pdu.Immediate, pdu.Final)
	if err := i.send(h, nil); err != nil {
		t.Fatal(err)
	}
	r, _, err := i.recv()
	if err != nil || r.Opcode() != pdu.OpLogoutResponse || r[2] != 0 {
		t.Fatalf("logout: %x %v", r[:4], err)
	}
	if err := i.gone(); err != nil {
		t.Error(err)
	}
	waitFor(t, "the session's end", func() bool { return len(b.status().Sessions) == 0 })
}

func BenchmarkRead4K(b *testing.B) {
	bed := newBed(b, nil)
	i := bed.login()
	cdb := rw10(opRead10, 0, 8)
	b.ReportAllocs()
	buf := make([]byte, pdu.HeaderLen+4096)
	for b.Loop() {
		i.start(pdu.Final|pdu.CommandRead, cdb, 4096, nil)
		if _, err := readFull(i, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func readFull(i *ini, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := i.nc.Read(buf[n:])
		if err != nil {
			return n, fmt.Errorf("after %d bytes: %w", n, err)
		}
		n += m
	}
	return n, nil
}
