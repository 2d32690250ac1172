package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"
)

// childArg makes this program one of children: what is measured with its
// memory, or must start cold, has a process of its own.
const childArg = "child"

// children are the programs, by name. What they return goes to the parent as JSON.
var children = map[string]func(args json.RawMessage) (any, error){
	"plan":   func(args json.RawMessage) (any, error) { return withArgs(args, planChild) },
	"review": func(args json.RawMessage) (any, error) { return withArgs(args, reviewChild) },
	"load":   func(args json.RawMessage) (any, error) { return withArgs(args, loadChild) },
}

func withArgs[A any](raw json.RawMessage, f func(A) (any, error)) (any, error) {
	var a A
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	return f(a)
}

// child is run as: child NAME ARGS DIRECTORY PROFILE. The directory only marks
// the process.
func child(argv []string) int {
	err := func() error {
		if len(argv) != 4 || children[argv[0]] == nil {
			return fmt.Errorf("usage: bench %s NAME ARGS DIRECTORY PROFILE", childArg)
		}
		if argv[3] != "" {
			f, err := os.Create(argv[3])
			if err != nil {
				return err
			}
			defer f.Close()
			if err := pprof.StartCPUProfile(f); err != nil {
				return err
			}
			defer pprof.StopCPUProfile()
		}
		out, err := children[argv[0]](json.RawMessage(argv[1]))
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// spawn runs a child and reads what it returns. label names its profile.
func spawn(ctx context.Context, b *bench, name, label string, args, out any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	profile := ""
	if b.profile != "" {
		profile = filepath.Join(b.profile, label+".pprof")
	}
	cmd := exec.CommandContext(ctx, self, childArg, name, string(raw), b.dir, profile)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	data, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", label, err, stderr.String())
	}
	return json.Unmarshal(data, out)
}

// memoryOf reads a field of /proc/PID/status, in bytes. VmHWM is the most that
// was resident since the program was loaded; rusage would count what the parent
// had at the fork.
func memoryOf(pid, field string) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %s has no %s", pid, field)
}

// processorTime is what a process and its threads have used so far.
func processorTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	// utime and stime are the fields 14 and 15; field 2 may hold spaces.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks time.Duration
	for _, field := range f[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += time.Duration(n)
	}
	return ticks * time.Second / 100, nil // USER_HZ is 100 on every Linux
}
