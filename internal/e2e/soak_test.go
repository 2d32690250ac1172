//go:build soak

package e2e

import "testing"

// soakKills is the number that docs/reliability.md reports on.
const soakKills = 200

func TestSoakKillAgent(t *testing.T) { killAgent(t, soakKills) }
