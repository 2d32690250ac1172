//go:build soak

package e2e

import "testing"

// The numbers that docs/reliability.md reports on.
const (
	soakKills       = 200
	soakTargetKills = 100
)

func TestSoakKillAgent(t *testing.T)  { killAgent(t, soakKills) }
func TestSoakKillTarget(t *testing.T) { killTarget(t, soakTargetKills) }
