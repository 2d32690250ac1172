package agent

import (
	"errors"
	"strings"
	"testing"
)

// There is one agent for a host of a cluster, also if another one follows
// another repository with directories of its own, and learns its cluster later.
func TestOneAgentForHostOfCluster(t *testing.T) {
	cluster := "lock-test-" + t.TempDir() // the kernel's names are the whole machine's
	agent := func(repo string) *Agent {
		a := newSim(t, func(c *Config) { c.Repo, c.RunDir = repo+cluster, t.TempDir() }).agent
		a.mem.Cluster = cluster
		return a
	}
	first, known, later := agent("a"), agent("b"), agent("c")
	free, err := first.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := known.lock(); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "of cluster") {
		t.Errorf("a second agent of the host: %v", err)
	}
	later.mem.Cluster = ""
	freeLater, err := later.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer freeLater()
	if err := later.lockCluster(cluster); !errors.Is(err, ErrRunning) {
		t.Errorf("a second agent that learns of its cluster: %v", err)
	}
	free()
	if err := later.lockCluster(cluster); err != nil {
		t.Errorf("when the first one is gone: %v", err)
	}
	// The one that was refused gave back what it held.
	if _, err := known.lock(); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "of cluster") {
		t.Errorf("the agent that was refused, once more: %v", err)
	}
}
