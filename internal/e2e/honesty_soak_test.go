//go:build soak

package e2e

import (
	"testing"
	"time"
)

// soakHonestEdits are the pull requests of a soak, another sequence each time.
const soakHonestEdits = 60

func TestSoakPlansAreHonest(t *testing.T) {
	plansAreHonest(t, soakHonestEdits, uint64(time.Now().UnixNano()))
}
