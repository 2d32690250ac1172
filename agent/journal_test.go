package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"reconciler/api"
)

func journalAt(t *testing.T, dir string) *journal {
	t.Helper()
	now := func() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }
	j, err := openJournal(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (j *journal) all(t *testing.T) []api.Event {
	t.Helper()
	list, err := j.after(t.Context(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestJournal(t *testing.T) {
	dir := t.TempDir()
	j := journalAt(t, dir)
	j.audit("VirtualMachine/web", "Restart", "asked for", "grace")
	long := strings.Repeat("x", 500)
	const n = 20000 // more than the file may hold
	for range n {
		j.normal("VirtualMachine/web", "Updated", long)
	}
	path := filepath.Join(dir, eventsFile)
	if info, err := os.Stat(path); err != nil || info.Size() > j.events.bytes+1000 {
		t.Fatalf("the file is not bounded: %v, %v", info.Size(), err)
	}
	// A crash tears the last line.
	appendTo(t, path, `{"seq":99999,"mess`)
	j = journalAt(t, dir)
	if list := j.all(t); list[0].By != "grace" || len(list) < 1000 {
		t.Fatalf("what repeats has crowded out what an operator asked for: %d events, the first %+v", len(list), list[0])
	}
	j.audit("Disk/d", "Access", "lent", "ada")
	list, err := j.after(t.Context(), n+1, false)
	if err != nil || len(list) != 1 || list[0].Seq != n+2 || list[0].By != "ada" {
		t.Fatalf("after the torn line: %+v, %v", list, err)
	}
	// Who follows is woken by the next event.
	got := make(chan string, 1)
	go func() {
		list, err := j.after(t.Context(), n+2, true)
		if err != nil || len(list) == 0 {
			got <- "nothing"
			return
		}
		got <- list[0].Reason
	}()
	j.warn("", "Failed", "boom")
	select {
	case reason := <-got:
		if reason != "Failed" {
			t.Errorf("the follower got %q", reason)
		}
	case <-time.After(10 * time.Second):
		t.Error("the follower was not woken within 10s")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := j.after(ctx, n+3, true); err == nil {
		t.Error("a follower whose caller left waits on")
	}
}

// A text of others of any length takes nothing away: neither the events nor the
// lines that were written before it was bounded.
func TestJournalOfLongTexts(t *testing.T) {
	dir := t.TempDir()
	huge := strings.Repeat("é", 3<<20)
	appendTo(t, filepath.Join(dir, eventsFile),
		`{"seq":1,"type":"Normal","reason":"One"}`+"\n"+
			`{"seq":2,"type":"Audit","reason":"Suspended","by":"ada"}`+"\n"+
			`{"seq":3,"type":"Warning","reason":"Huge","message":"`+huge+`"}`+"\n"+
			`{"seq":4,"type":"Audit","reason":"Resumed","by":"ada"}`+"\n")
	for range 2 { // the second reads what the first has moved
		j := journalAt(t, dir)
		list := j.all(t)
		if len(list) != 4 {
			t.Fatalf("%d of 4 events are read", len(list))
		}
		for i, e := range list {
			if e.Seq != uint64(i+1) || len(e.Message) > maxText || !utf8.ValidString(e.Message) {
				t.Errorf("event %d: %d, %d bytes", i, e.Seq, len(e.Message))
			}
		}
		if n := len(j.audits.list); n != 2 {
			t.Errorf("%d audits are in their file, want 2", n)
		}
	}
	j := journalAt(t, dir)
	j.audit("", "Accepted", huge, "ada")
	j.warn("", "RevisionRefused", huge)
	for range 5000 {
		j.warn("", "Failed", huge[:2*maxText])
	}
	list := journalAt(t, dir).all(t)
	if list[0].Reason != "Suspended" || list[1].Reason != "Resumed" || list[2].Reason != "Accepted" {
		t.Errorf("the audits are gone: %+v", list[:3])
	}
}

func TestBounded(t *testing.T) {
	lines := strings.Repeat("clusters/demo/x.yaml:1:1: wrong\n", 1000)
	for _, c := range []struct{ in, begins, ends string }{
		{"short\nand two lines", "short\nand two lines", "two lines"},
		{lines, "clusters/demo/x.yaml:1:1: wrong\n", "wrong\nand 874 more"},
		{strings.Repeat("é", 5000), "éé", "é… and 5968 more bytes"},
		{strings.Repeat("a", 5000) + "\nb\nc\n", "aaa", "… and 968 more bytes\nand 2 more"},
		{"\n\n" + strings.Repeat("a", 5000), "aaa", "… and 968 more bytes"},
		{strings.Repeat("a", maxText-64) + "\n" + lines, "aaa", "and 1000 more"},
		{"x\xff", "x\uFFFD", "\uFFFD"},
	} {
		got := bounded(c.in)
		if !strings.HasPrefix(got, c.begins) || !strings.HasSuffix(got, c.ends) || len(got) > maxText || !utf8.ValidString(got) {
			t.Errorf("%.20q…: %d bytes, ends %q, want %q", c.in, len(got), got[max(0, len(got)-60):], c.ends)
		}
	}
}

// A disk that is full, and one that takes half a line, cost no event that comes
// later; what was asked for by name has its room.
func TestJournalOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size=512k"); err != nil {
		t.Skip("needs root, to mount a small file system and fill it:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	j := journalAt(t, dir)
	j.audit("", "Suspended", "before", "ada")
	guest, err := os.Create(filepath.Join(dir, "guest"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = guest.Close() }()
	for err == nil {
		_, err = guest.Write(make([]byte, 4096))
	}
	for i := range 100 {
		j.warn("", "Failed", fmt.Sprint(i, strings.Repeat(" text", 100)))
		if i%20 == 0 {
			j.audit("", "Restart", fmt.Sprint(i), "ada")
		}
	}
	if n := len(journalAt(t, dir).audits.list); n != 6 {
		t.Errorf("%d audits are on the full disk, want 6", n)
	}
	if err := guest.Truncate(0); err != nil {
		t.Fatal(err)
	}
	j.normal("", "Room", "again")
	list := journalAt(t, dir).all(t)
	if len(list) != 107 {
		t.Fatalf("%d of 107 events are on the disk", len(list))
	}
	for i, e := range list {
		if e.Seq != uint64(i+1) {
			t.Fatalf("event %d is %d", i+1, e.Seq)
		}
	}
}

// Who follows a journal that was lost follows the new one.
func TestJournalLost(t *testing.T) {
	j := journalAt(t, t.TempDir())
	j.normal("", "First", "")
	j.normal("", "Second", "")
	for after, want := range map[uint64]int{0: 2, 1: 1, 2: 0, 3: 2, 700: 2} {
		list, err := j.after(context.Background(), after, false)
		if err != nil || len(list) != want {
			t.Errorf("after %d: %d events, %v, want %d", after, len(list), err, want)
		}
	}
}

// A commit with a thousand faults in a file with a long path is refused, in few
// words and everywhere.
func TestHugeRefusal(t *testing.T) {
	s := newSim(t, nil)
	s.commit(machines(simVM("a", ", memory: {size: 512Mi}")))
	s.mustPass()
	s.agent.events.audit("", "Suspended", "why", "ada")
	s.commit(map[string]string{strings.Repeat(strings.Repeat("d", 200)+"/", 9) + "x.yaml": strings.Repeat("kind: Nonsense\n---\n", 1100)})
	_, err := s.pass()
	if err == nil || len(err.Error()) > maxText || !strings.Contains(err.Error(), " more") {
		t.Fatalf("%.200v", err)
	}
	s.restart()
	if n := len(s.agent.mem.Refused); n == 0 || n > maxText {
		t.Errorf("%d bytes are remembered of why it is refused", n)
	}
	st, err := s.agent.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Conditions {
		if len(c.Message) > maxText {
			t.Errorf("condition %s has %d bytes", c.Type, len(c.Message))
		}
	}
	audits := 0
	for _, e := range s.agent.events.all(t) {
		if e.Type == typeAudit {
			audits++
		}
		if len(e.Message) > maxText {
			t.Errorf("event %s has %d bytes", e.Reason, len(e.Message))
		}
	}
	if audits != 1 {
		t.Errorf("%d audits, want 1", audits)
	}
}
