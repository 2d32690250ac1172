package testbed

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"reconciler/internal/testbed/record"
)

// Serial reads the log file of a guest's serial console while it grows.
type Serial struct {
	path   string
	offset int64 // of the first byte not yet looked at
}

// NewSerial reads from the start of path, which need not exist yet.
func NewSerial(path string) *Serial { return &Serial{path: path} }

// Wait returns the next line that matches, with the submatches of pattern, and
// goes on after it at the next call. It fails the test after timeout.
func (s *Serial) Wait(t testing.TB, pattern string, timeout time.Duration) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	match, err := s.Next(ctx, pattern)
	if err != nil {
		t.Fatalf("wait for /%s/ on %s: %v within %v; its last lines:\n%s", pattern, s.path, err, timeout, Tail(s.path, 20))
	}
	return match
}

// Next is Wait for those who handle the error: it returns ctx's when no line
// came.
func (s *Serial) Next(ctx context.Context, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		match, err := s.scan(re)
		if match != nil || err != nil {
			return match, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// Skip passes over everything that is there, so that the next wait is for what
// comes from now on.
func (s *Serial) Skip() {
	if info, err := os.Stat(s.path); err == nil {
		s.offset = info.Size()
	}
}

func (s *Serial) scan(re *regexp.Regexp) ([]string, error) {
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < s.offset { // the log was turned over
		s.offset = 0
	}
	text := make([]byte, info.Size()-s.offset)
	n, err := f.ReadAt(text, s.offset)
	if n < len(text) && err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // still being written
		}
		s.offset += int64(len(line))
		if match := re.FindStringSubmatch(strings.TrimRight(line, "\r\n")); match != nil {
			return match, nil
		}
	}
	return nil, nil
}

// Tail returns the last n lines of a file, for messages.
func Tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

var (
	writerStart = regexp.MustCompile(`^WRITER start \S+ serial=(\S+) writer=([0-9a-f]{16}) from=\d+\r?\n`)
	recLine     = regexp.MustCompile(`^REC (\d+) \S+ (\S+)\r?\n`)
)

// Acks reads in serial logs what writers were told is durable on the disk with
// this guest serial ("" for any disk). Only whole lines count. The logs may be
// those of several guests that had the disk, one after the other.
func Acks(serial string, logs ...string) ([]record.Ack, error) {
	var acks []record.Ack
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		current := -1 // the writer of this log that is under way
		for line := range strings.Lines(string(b)) {
			if m := writerStart.FindStringSubmatch(line); m != nil && (serial == "" || serial == m[1]) {
				id, err := strconv.ParseUint(m[2], 16, 64)
				if err != nil {
					return nil, err
				}
				acks = append(acks, record.Ack{Writer: id})
				current = len(acks) - 1
			}
			if m := recLine.FindStringSubmatch(line); m != nil && (serial == "" || serial == m[2]) {
				n, err := strconv.ParseUint(m[1], 10, 64)
				if err != nil {
					return nil, err
				}
				if current < 0 { // the log no longer shows its start
					acks = append(acks, record.Ack{})
					current = len(acks) - 1
				}
				acks[current].Last = n
			}
		}
	}
	return acks, nil
}
