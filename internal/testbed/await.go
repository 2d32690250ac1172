package testbed

import (
	"testing"
	"time"
)

// Await polls a condition of another process or of the kernel, for which there
// is no event, until it holds. After limit the test ends and says what it
// waited for, and what else tells why.
func Await(t testing.TB, limit time.Duration, what string, ok func() bool, tell ...func() string) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			more := ""
			for _, f := range tell {
				more += "\n" + f()
			}
			t.Fatalf("no sign of %s after %s%s", what, limit, more)
		}
	}
}
