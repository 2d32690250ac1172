package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"reconciler/api"
)

// world is one host with its repository, run by the real program.
type world struct {
	dir     string
	program string
	portal  string
	agent   *exec.Cmd
	ended   <-chan struct{}
	*api.Client
}

// newWorld makes a repository with a cluster, a host, a pool and a network.
// Nothing runs yet.
func newWorld(ctx context.Context, b *bench, name string) (*world, error) {
	dir, err := b.sub(name)
	if err != nil {
		return nil, err
	}
	portal, err := freePortal()
	if err != nil {
		return nil, err
	}
	h := &world{dir: dir, program: b.program, portal: portal}
	for _, args := range [][]string{
		{"init", "-q", "--bare", "-b", "main", h.bare()},
		{"init", "-q", "-b", "main", h.work()},
		{"-C", h.work(), "remote", "add", "origin", h.bare()},
		{"-C", h.work(), "config", "user.name", "bench"},
		{"-C", h.work(), "config", "user.email", "bench@localhost"},
	} {
		if err := git(ctx, dir, nil, args...); err != nil {
			return nil, err
		}
	}
	return h, h.commit(ctx, map[string]string{
		"cluster.yaml": document("Cluster", "bench", "{id: bench}"),
		"host.yaml":    document("Host", "host1", "{roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}"),
		"pool.yaml": document("StoragePool", "fast", fmt.Sprintf(
			`{host: host1, capacity: 64Gi, volumes: {file: {path: pools/fast}}, target: {embedded: {portals: ["%s"]}}}`, h.portal)),
		"network.yaml": document("Network", "front", "{user: {}}"),
	})
}

func (h *world) bare() string  { return filepath.Join(h.dir, "cluster.git") }
func (h *world) work() string  { return filepath.Join(h.dir, "work") }
func (h *world) state() string { return filepath.Join(h.dir, "state") }
func (h *world) runs() string  { return filepath.Join(h.dir, "run") }

func (h *world) log() string { return filepath.Join(h.dir, "agent.log") }

func (h *world) flags() []string {
	return []string{"--state-dir", h.state(), "--run-dir", h.runs(), "--repo", "file://" + h.bare(), "--branch", "main", "--host", "host1", "--accel", "tcg"}
}

// machineText declares a machine without a kernel; disk and nics may be empty.
func machineText(name, disk, nics string) string {
	spec := "host: host1, cpu: {cores: 1, model: qemu64}, memory: {size: 32Mi}, shutdown: {timeout: 1s}"
	if disk != "" {
		spec += ", disks: [{disk: " + disk + "}]"
	}
	if nics != "" {
		spec += ", nics: [" + nics + "]"
	}
	return document("VirtualMachine", name, "{"+spec+"}")
}

func diskText(name string, mib int) string {
	return document("Disk", name, fmt.Sprintf("{pool: fast, size: %dMi}", mib))
}

// commit pushes files to the branch.
func (h *world) commit(ctx context.Context, files map[string]string) error {
	for path, content := range files {
		path = filepath.Join(h.work(), path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", "change"}, {"push", "-q", "origin", "HEAD:main"}} {
		if err := git(ctx, h.work(), nil, args...); err != nil {
			return err
		}
	}
	return nil
}

func (h *world) command(ctx context.Context, verb string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, h.program, append([]string{verb}, args...)...)
}

// start runs the agent and waits until it answers.
func (h *world) start(ctx context.Context) error {
	h.agent = h.command(ctx, "run", h.flags()...)
	var err error
	if h.ended, err = background(h.agent, h.log()); err != nil {
		return err
	}
	return poll(ctx, 30*time.Second, "the agent to answer", func() (bool, error) {
		if err := over(h.ended); err != nil {
			return false, fmt.Errorf("%w: %s", err, h.lastWords())
		}
		h.Client, err = api.Dial(h.runs())
		return err == nil, nil
	})
}

// stop ends the agent; machines and target go on.
func (h *world) stop(ctx context.Context) error {
	if h.agent == nil {
		return nil
	}
	if err := h.agent.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-h.ended:
		h.agent = nil
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("the agent does not end: " + h.lastWords())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lastWords is the end of the agent's log.
func (h *world) lastWords() string {
	data, err := os.ReadFile(h.log())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// poll waits for what no event tells of.
func poll(ctx context.Context, limit time.Duration, what string, ok func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		done, err := ok()
		switch {
		case err != nil:
			return fmt.Errorf("waiting for %s: %w", what, err)
		case done:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("waited %s for %s", limit, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
