package target

import (
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

// Peers that do what no initiator does. After each the server is there, and a
// session that was logged in before goes on.
func TestHostilePeers(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.Login = 300 * time.Millisecond; c.Limits.HalfOpen = 32 })
	b.grant(Access{Epoch: 1, Initiators: []string{name(1), name(2)}})
	good := b.login()
	good.write(0, pattern(512, 1))

	second := func() *ini { return b.loginAs(name(2)) }
	raw := func(h pdu.Header, data []byte) *ini {
		i := dial(t, b.portal)
		_ = i.send(h, data)
		return i
	}
	first := func(text string) pdu.Header {
		h := pdu.Header{pdu.OpLoginRequest | pdu.Immediate, pdu.Transit | 1<<2 | 3}
		h.SetDataLen(len(text))
		return h
	}
	valid := "InitiatorName=" + name(2) + "\x00TargetName=" + testIQN + "\x00"
	for _, c := range []struct {
		name string
		do   func() *ini // the connection that must go
	}{
		{"nothing said", func() *ini { return dial(t, b.portal) }},
		{"half a header", func() *ini {
			i := dial(t, b.portal)
			_, _ = i.nc.Write(make([]byte, 20))
			return i
		}},
		{"a web browser", func() *ini {
			i := dial(t, b.portal)
			_, _ = io.WriteString(i.nc, "GET / HTTP/1.1\r\nHost: target\r\nUser-Agent: somebody that is in the wrong place\r\n\r\n")
			return i
		}},
		{"a command before login", func() *ini { return raw(pdu.Header{pdu.OpSCSICommand, pdu.Final}, nil) }},
		{"TSIH that is not zero", func() *ini {
			h := first(valid)
			binary.BigEndian.PutUint16(h[pdu.OffTSIH:], 1)
			return raw(h, []byte(valid))
		}},
		{"a data segment of 16 MiB at login", func() *ini {
			i := dial(t, b.portal)
			h := first("")
			h.SetDataLen(pdu.MaxDataSegmentLen)
			_, _ = i.nc.Write(h[:])
			return i
		}},
		{"additional headers at login", func() *ini {
			i := dial(t, b.portal)
			h := first("")
			h[4] = 255
			_, _ = i.nc.Write(append(h[:], make([]byte, 1020)...))
			return i
		}},
		{"text without an end", func() *ini { return raw(first("x"), []byte("InitiatorName")) }},
		{"text of zeroes", func() *ini { return raw(first("x"), make([]byte, 8000)) }},
		{"a thousand keys", func() *ini { return raw(first("x"), []byte(valid+strings.Repeat("X-a=1\x00", 1000))) }},
		{"text that never ends", func() *ini {
			h := first("x")
			h[1] = pdu.Continue | 1<<2 | 3
			i := dial(t, b.portal)
			for range 40 {
				_ = i.send(h, []byte(strings.Repeat("a", 4000)))
			}
			return i
		}},
		{"a slow login", func() *ini {
			i := dial(t, b.portal)
			h := first(valid)
			go func() {
				for k := range h {
					if _, err := i.nc.Write(h[k : k+1]); err != nil {
						return
					}
					<-time.After(20 * time.Millisecond)
				}
			}()
			return i
		}},
		{"a login without end", func() *ini {
			i := dial(t, b.portal)
			h := first(valid)
			h[1] = 1<<2 | 3
			go func() {
				for i.send(h, nil) == nil {
					<-time.After(time.Millisecond)
				}
			}()
			return i
		}},
		{"a data segment longer than declared", func() *ini {
			i := second()
			h := i.header(pdu.OpNOPOut|pdu.Immediate, pdu.Final)
			h.SetDataLen(ourMaxRecv + 1)
			_, _ = i.nc.Write(h[:])
			return i
		}},
		{"immediate data past what is expected", func() *ini {
			i := second()
			i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 0, 1), 512, make([]byte, 1024))
			return i
		}},
		{"immediate data with a read", func() *ini {
			i := second()
			i.start(pdu.Final|pdu.CommandRead, rw10(opRead10, 0, 1), 512, make([]byte, 512))
			return i
		}},
		{"unsolicited data that was not agreed upon", func() *ini {
			i := second()
			i.start(pdu.CommandWrite, rw10(opWrite10, 0, 1), 512, nil)
			return i
		}},
		{"a wrong header digest", func() *ini {
			a := b.args()
			a.name, a.keys = name(2), keys("HeaderDigest", "CRC32C")
			i := logIn(t, a)
			h := i.header(pdu.OpNOPOut|pdu.Immediate, pdu.Final)
			_, _ = i.nc.Write(append(h[:], 1, 2, 3, 4))
			return i
		}},
		{"a wrong data digest", func() *ini {
			a := b.args()
			a.name, a.keys = name(2), keys("DataDigest", "CRC32C")
			i := logIn(t, a).ready()
			h := i.header(pdu.OpSCSICommand, pdu.Final|pdu.CommandWrite|1)
			h.PutU32(pdu.OffEDTL, 512)
			copy(h[pdu.OffCDB:], rw10(opWrite10, 0, 1))
			h.SetDataLen(512)
			_, _ = i.nc.Write(append(append(h[:], pattern(512, 66)...), 1, 2, 3, 4))
			return i
		}},
		{"a second login", func() *ini {
			i := second()
			_ = i.send(first(valid), []byte(valid))
			return nil // rejected, not dropped
		}},
		{"an opcode that is none", func() *ini {
			i := second()
			_ = i.send(i.header(0x1d|pdu.Immediate, pdu.Final), nil)
			return nil
		}},
		{"data-out past the transfer length", func() *ini {
			i := second()
			itt := i.start(pdu.Final|pdu.CommandWrite, rw10(opWrite10, 0, 1), 512, nil)
			h, _, err := i.recv()
			if err != nil || h.Opcode() != pdu.OpR2T {
				t.Fatalf("no R2T: %v", err)
			}
			if err := i.dataOut(itt, h.U32(pdu.OffTTT), pattern(1<<20, 66), 0, 1<<20); err != nil {
				t.Fatal(err)
			}
			if r, err := i.finish(itt, nil); err != nil || r.status != 2 || r.sense[2] != 0x0b {
				t.Errorf("data-out past the end: status %d, %x, %v", r.status, r.sense, err)
			}
			return nil
		}},
		{"data-out for no task", func() *ini {
			i := second()
			if err := i.dataOut(12345, 0xabcd0003, pattern(1<<20, 66), 0, 1<<20); err != nil {
				t.Fatal(err)
			}
			i.read(0, 1)
			return nil
		}},
		{"a transfer of 4 GiB", func() *ini {
			i := second()
			cdb := rw16(opRead16, 0, 1<<23-1)
			r, err := i.finish(i.start(pdu.Final|pdu.CommandRead, cdb, 1<<32-1, nil), nil)
			if err != nil || r.status != 2 {
				t.Errorf("read of 4 GiB: status %d, %v", r.status, err)
			}
			return nil
		}},
		{"commands that nobody waits for", func() *ini {
			i := second()
			for range 200 {
				i.start(pdu.Final|pdu.CommandRead, rw10(opRead10, 0, 2048), 2048*512, nil)
			}
			i.nc.Close()
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			good.t = t
			if i := c.do(); i != nil {
				if err := i.gone(); err != nil {
					t.Error(err)
				}
			}
			if got := good.read(0, 1); got[0] != pattern(1, 1)[0] {
				t.Fatal("the block of another session changed")
			}
		})
	}
}

// Ten thousand connections that say nothing cost bounded memory, and a login gets
// through all the same.
func TestManyConnections(t *testing.T) {
	n := 10000
	if testing.Short() {
		n = 1000
	}
	b := newBed(t, nil)
	good := b.login()
	good.write(0, pattern(512, 1))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	open := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for k := range n {
		c, err := net.Dial("tcp", b.portal)
		if err != nil {
			t.Fatalf("connection %d: %v", k, err)
		}
		open = append(open, c)
		if k%1000 == 999 {
			b.login().nc.Close() // one that is in earnest
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse); grown > 64<<20 {
		t.Errorf("%d connections cost %d MiB", n, grown>>20)
	}
	b.login().read(0, 1)
}

// A peer that asks and asks and never reads what it is answered makes the target
// hold no more than so much.
func TestPeerThatDoesNotRead(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{name(1), name(2)}})
	good := b.login()
	bad := b.loginAs(name(2))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	// Reads by workers, so that one of them is stuck in sending, and then pings.
	_ = bad.nc.SetDeadline(time.Now().Add(3 * time.Second))
	for range 64 {
		bad.start(pdu.Final|pdu.CommandRead, rw10(opRead10, 0, 2048), 2048*512, nil)
	}
	h := bad.header(pdu.OpNOPOut|pdu.Immediate, pdu.Final)
	for bad.send(h, make([]byte, 64<<10)) == nil { // until the deadline: the target takes no more
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 128<<20 {
		t.Errorf("%d MiB are held", grown>>20)
	}
	good.read(0, 1)
}
