package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	now := func() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }
	j, err := openJournal(path, now)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 500)
	const n = 5000 // more than the file may hold
	for range n {
		j.normal("VirtualMachine/web", "Updated", long)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > journalBytes+1000 {
		t.Fatalf("the file is not bounded: %v, %v", info.Size(), err)
	}
	// A crash tears the last line.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"seq":99999,"mess`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	j, err = openJournal(path, now)
	if err != nil {
		t.Fatal(err)
	}
	j.audit("Disk/d", "Access", "lent", "ada")
	list, err := j.after(t.Context(), n, false)
	if err != nil || len(list) != 1 || list[0].Seq != n+1 || list[0].By != "ada" {
		t.Fatalf("after the torn line: %+v, %v", list, err)
	}
	// Who follows is woken by the next event.
	got := make(chan string, 1)
	go func() {
		list, err := j.after(t.Context(), n+1, true)
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
	if _, err := j.after(ctx, n+2, true); err == nil {
		t.Error("a follower whose caller left waits on")
	}
}

// Who follows a journal that was lost follows the new one.
func TestJournalLost(t *testing.T) {
	j, err := openJournal(filepath.Join(t.TempDir(), "events.jsonl"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	j.normal("", "First", "")
	j.normal("", "Second", "")
	for after, want := range map[uint64]int{0: 2, 1: 1, 2: 0, 3: 2, 700: 2} {
		list, err := j.after(context.Background(), after, false)
		if err != nil || len(list) != want {
			t.Errorf("after %d: %d events, %v, want %d", after, len(list), err, want)
		}
	}
}
