package target

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"reconciler/drivers/iscsi/target/pdu"
)

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// skipping sends requests of size bytes from the one after the next on, for as long
// as the target takes them.
func (i *ini) skipping(n, size int) {
	data := make([]byte, size)
	i.cmdSN++
	for range n {
		h := i.header(pdu.OpTextRequest, pdu.Final)
		h.PutU32(pdu.OffTTT, pdu.Reserved)
		if i.send(h, data) != nil {
			return
		}
	}
}

// Sessions that list targets need no authentication: they are few, short, and make
// the target hold next to nothing.
func TestDiscoveryIsBounded(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.Discoveries = 8 })
	before := heap()
	discovery := loginArgs{portal: b.portal, name: name(9), discovery: true}
	var all []*ini
	for range 100 {
		i := logIn(t, discovery)
		if got := i.params["MaxRecvDataSegmentLength"]; got != fmt.Sprint(loginMaxRecv) {
			t.Fatalf("takes data segments of %s bytes", got)
		}
		i.skipping(126, loginMaxRecv)
		all = append(all, i)
	}
	for _, i := range all[:92] {
		if err := i.gone(); err != nil {
			t.Fatal(err)
		}
	}
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("discovery makes the target hold %d KiB", grown>>10)
	}
	// The youngest are served, one request after the other, also without a pause.
	last := logIn(t, discovery)
	last.sendTargets()
	for range 2 {
		h := last.header(pdu.OpTextRequest, pdu.Final)
		h.PutU32(pdu.OffTTT, pdu.Reserved)
		if err := last.send(h, pdu.AppendText(nil, "SendTargets", "All")); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if h, _, err := last.recv(); err != nil || h.Opcode() != pdu.OpTextResponse {
			t.Fatalf("the second of two requests: %x, %v", h[:2], err)
		}
	}
	big := logIn(t, discovery)
	big.skipping(1, loginMaxRecv+4)
	if err := big.gone(); err != nil {
		t.Error(err)
	}
	b.login().read(0, 1)
}

func TestDiscoveryEnds(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.Login = 300 * time.Millisecond })
	i := logIn(t, loginArgs{portal: b.portal, name: name(1), discovery: true})
	for {
		h := i.header(pdu.OpNOPOut|pdu.Immediate, pdu.Final)
		if i.send(h, nil) != nil {
			break
		}
		if _, _, err := i.recv(); err != nil {
			break
		}
	}
	b.login().read(0, 1) // whose session goes on
}

// Connections that are in the middle of a login hold their small buffer, be it
// that they have begun a request.
func TestHalfOpenMemory(t *testing.T) {
	b := newBed(t, nil)
	before := heap()
	for range 200 {
		if _, err := dial(t, b.portal).nc.Write(make([]byte, 20)); err != nil {
			t.Fatal(err)
		}
	}
	b.login() // after they were read
	if grown := heap() - before; grown > 6<<20 {
		t.Errorf("200 half requests make the target hold %d KiB", grown>>10)
	}
}

// A login says no more than so much in all its requests together.
func TestLoginTextIsBounded(t *testing.T) {
	b := newBed(t, nil)
	i := dial(t, b.portal)
	a := b.args()
	var err error
	for n := 0; n < 20 && err == nil; n++ {
		pairs := []pdu.Pair{{Key: fmt.Sprintf("X-%d", n), Value: strings.Repeat("a", 4000)}}
		if n == 0 {
			pairs = append(pairs, pdu.Pair{Key: "InitiatorName", Value: a.name}, pdu.Pair{Key: "TargetName", Value: a.target})
		}
		err = i.loginStep(a, 1, 1, false, pairs)
	}
	if i.status != pdu.LoginInitiatorError {
		t.Errorf("80 KB of text: status %#04x, %v", i.status, err)
	}
}

// What waits for a request that does not come is bounded, for a session and for all.
func TestHeldRequestsAreBounded(t *testing.T) {
	b := newBed(t, nil)
	var names []string
	for i := range 60 {
		names = append(names, name(i+1))
	}
	b.grant(Access{Epoch: 1, Initiators: names})
	good := b.loginAs(name(60))
	before := heap()
	greedy := b.loginAs(name(1))
	greedy.skipping(126, ourMaxRecv)
	if err := greedy.gone(); err != nil {
		t.Error(err)
	}
	var all []*ini
	for _, n := range names[1:59] {
		i := b.loginAs(n)
		i.skipping(3, ourMaxRecv)
		all = append(all, i)
	}
	ended := 0
	for _, i := range all {
		if i.nop() != nil {
			ended++
		}
	}
	if ended < 10 || ended > 30 {
		t.Errorf("%d of 58 sessions that hold 768 KiB each were ended", ended)
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("held requests make the target hold %d MiB", grown>>20)
	}
	good.read(0, 1)
	for _, i := range all {
		i.nc.Close()
	}
	waitFor(t, "the sessions' end", func() bool { return len(b.status().Sessions) == 1 })
	// What they held is free again.
	last := b.loginAs(name(2))
	last.skipping(3, ourMaxRecv)
	if err := last.nop(); err != nil {
		t.Error(err)
	}
}

// Strangers do not fill the file system that the log is on.
func TestStrangersLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		srv := newServer(t.Context(), Config{Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		for range 1000 {
			srv.logStranger(slog.LevelInfo, "login refused")
		}
		if n := strings.Count(lines.String(), "\n"); n != strangerLines {
			t.Errorf("%d lines", n)
		}
		<-time.After(strangerSpan)
		lines.Reset()
		srv.logStranger(slog.LevelInfo, "login refused")
		if got := lines.String(); !strings.Contains(got, fmt.Sprintf("linesLeftOut=%d", 1000-strangerLines)) {
			t.Errorf("then %q", got)
		}
	})
	dir := t.TempDir()
	if err := os.WriteFile(logPath(dir), make([]byte, maxLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	trimLog(dir)
	if info, err := os.Stat(logPath(dir)); err != nil || info.Size() != 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

// A request that comes early while another ends the session is dropped.
func TestEarlyRequestOfAClosedSession(t *testing.T) {
	s := &session{srv: newServer(t.Context(), Config{Logger: slog.New(slog.DiscardHandler)}), closed: true}
	if err := s.holdLocked(&pdu.Header{pdu.OpTextRequest}, nil, make([]byte, 100)); err == nil {
		t.Error("it is kept")
	}
}

// Whoever opens connections without end crowds out itself, and nobody who comes from
// elsewhere.
func TestFloodCrowdsOutItself(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Limits.HalfOpen = 16 })
	half := dial(t, b.portal) // from 127.0.0.1, in the middle of its login
	a := b.args()
	a.user, a.password = "u", "password"
	b.grant(Access{Epoch: 1, Initiators: []string{testName}, User: a.user, Password: secret(a.password)})
	first := []pdu.Pair{{Key: "InitiatorName", Value: a.name}, {Key: "TargetName", Value: a.target}, {Key: "AuthMethod", Value: "CHAP"}}
	if err := half.loginStep(a, 0, 1, false, first); err != nil {
		t.Fatal(err)
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var flood []net.Conn
	for range 200 {
		nc, err := d.Dial("tcp", b.portal)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		flood = append(flood, nc)
	}
	for _, nc := range flood[:184] {
		_ = nc.SetDeadline(time.Now().Add(waitLimit))
		var ne net.Error
		if _, err := nc.Read(make([]byte, 1)); err == nil || errors.As(err, &ne) && ne.Timeout() {
			t.Fatalf("it is still open: %v", err)
		}
	}
	if err := half.chap(a); err != nil {
		t.Errorf("a login beside a flood: %v", err)
	}
}
