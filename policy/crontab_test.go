package policy

import (
	"os"
	"strings"
	"testing"
	"time"

	"reconciler/reconcile"
)

// Windows open on the days on which Debian's cron would run.
func TestCrontab(t *testing.T) {
	text, err := os.ReadFile("testdata/crontab.txt")
	if err != nil {
		t.Fatal(err)
	}
	first := time.Date(2026, 1, 1, 2, 0, 0, 0, time.UTC)
	for line := range strings.Lines(string(text)) {
		schedule, days, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok {
			continue
		}
		m, err := NewMaintenance("w", schedule, time.Hour, time.UTC, reconcile.ImpactRestart)
		if days == "bad" {
			if err == nil {
				t.Errorf("%s: accepted", schedule)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", schedule, err)
			continue
		}
		var got strings.Builder
		for i := range len(days) {
			at := first.AddDate(0, 0, i)
			if m.Next(at.Add(-time.Second)).Equal(at) {
				got.WriteByte('#')
			} else {
				got.WriteByte('.')
			}
		}
		if got.String() != days {
			t.Errorf("%s:\n got %s\nwant %s", schedule, got.String(), days)
		}
	}
}
