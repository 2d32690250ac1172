package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"
)

// idleSessions is how many sessions are held open, doing nothing.
const idleSessions = 32

// idleMemory returns what an idle session adds to the resident memory of the
// embedded target, in bytes.
func idleMemory(dir, file string) (int64, error) {
	url, stop, err := startOurs(dir, file)
	if err != nil {
		return 0, err
	}
	defer stop()
	pid, err := serverPID(dir)
	if err != nil {
		return 0, err
	}
	before, err := resident(pid)
	if err != nil {
		return 0, err
	}
	for i := range idleSessions {
		opts := fmt.Sprintf("driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=%s,file.initiator-name=%s:%d",
			portalOf(url), targetOf(url), lunOf(url), initiator, i)
		cmd := exec.Command("qemu-io", "-r", "--image-opts", opts)
		in, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		defer func() { _ = in.Close(); _ = cmd.Wait() }()
	}
	if err := waitSessions(dir, idleSessions); err != nil {
		return 0, err
	}
	after, err := resident(pid)
	return (after - before) / idleSessions, err
}

func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS of %d", pid)
}

// profile writes a CPU profile until the returned function is called.
func profile(path string) func() {
	f, err := os.Create(path)
	if err != nil {
		return func() {}
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return func() { _ = f.Close() }
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }
}

const sessionDeadline = 20 * time.Second
