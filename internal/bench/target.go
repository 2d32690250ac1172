package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// load is what the initiator asks of a target.
type load struct {
	name  string
	size  int   // bytes of one request
	depth int   // requests at a time, in each session
	step  int64 // from one request to the next; 0 is sequential
	write bool
	count int // requests of one run, all sessions together
}

// scattered walks the volume without locality: the step has no factor in
// common with the number of blocks.
const scattered = 4096 * 104729

var loads = []load{
	{"4K random read, depth 32", 4096, 32, scattered, false, 60_000},
	{"4K random write, depth 32", 4096, 32, scattered, true, 60_000},
	{"4K random read, depth 1", 4096, 1, scattered, false, 12_000},
	{"256K sequential read, depth 8", 256 << 10, 8, 0, false, 4_000},
	{"256K sequential write, depth 8", 256 << 10, 8, 0, true, 3_000},
}

// served is a target at work.
type served struct {
	pid         int
	portal, iqn string
	lun         int
}

// atLeast is how many times as fast as tgtd the embedded target is meant to be.
const atLeast = 1.5

// targetSuite compares the embedded target with tgtd: the same file, in the
// page cache, and the same initiator, QEMU's. Both run all the time and are
// asked in turns; each round gives a ratio, and their median counts.
func targetSuite(ctx context.Context, b *bench) ([]row, error) {
	dir, err := b.sub("iscsi")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "volume")
	if err := fill(file, int64(b.pick(512, 64))<<20); err != nil {
		return nil, err
	}
	ours, err := serveEmbedded(ctx, b, dir, file)
	if err != nil {
		return nil, err
	}
	tgtd, err := serveTgtd(ctx, dir, file)
	if err != nil {
		return nil, err
	}
	var rows []row
	// Memory first: what loads leave behind, a session can use.
	for _, t := range []struct {
		name string
		at   served
	}{{"embedded", ours}, {"tgtd", tgtd}} {
		n, err := idleSession(ctx, t.at)
		if err != nil {
			return rows, err
		}
		rows = append(rows, weighs("memory of an idle session, "+t.name, n, 0))
	}
	for _, sessions := range []int{1, 8} {
		for _, l := range loads {
			if b.short {
				l.count /= 100
			}
			r, err := compare(ctx, l, sessions, b.pick(15, 1), ours, tgtd)
			if err != nil {
				return rows, err
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// compare runs a load against both in turns.
func compare(ctx context.Context, l load, sessions, rounds int, ours, tgtd served) (row, error) {
	var ratios []float64
	var a, b []outcome
	for i := range rounds {
		sides := []struct {
			at   served
			into *[]outcome
		}{{ours, &a}, {tgtd, &b}}
		if i%2 == 1 {
			slices.Reverse(sides)
		}
		for _, side := range sides {
			o, err := drive(ctx, side.at, l, sessions)
			if err != nil {
				return row{}, fmt.Errorf("%s: %w", l.name, err)
			}
			*side.into = append(*side.into, o)
		}
		ratios = append(ratios, a[i].rate/b[i].rate)
	}
	slices.Sort(ratios)
	ratio := ratios[len(ratios)/2]
	return row{
		what: fmt.Sprintf("%s, %s", l.name, plural(sessions, "session")),
		measured: fmt.Sprintf("%.2f × tgtd (%.2f–%.2f): %s against %s", ratio, ratios[0], ratios[len(ratios)-1],
			middle(a, l), middle(b, l)),
		aim: fmt.Sprintf("≥ %.1f ×", atLeast), met: ratio >= atLeast,
	}, nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// outcome is one run of a load.
type outcome struct {
	rate float64       // requests per second, all sessions together
	cost time.Duration // processor time of the target for one request
}

// middle prints the medians of runs of a load.
func middle(runs []outcome, l load) string {
	var rates []float64
	var costs spread
	for _, r := range runs {
		rates, costs = append(rates, r.rate), append(costs, r.cost)
	}
	slices.Sort(rates)
	rate := rates[len(rates)/2]
	how := fmt.Sprintf("%.1fk/s", rate/1000)
	if l.step == 0 {
		how = fmt.Sprintf("%.0f MiB/s", rate*float64(l.size)/(1<<20))
	}
	return fmt.Sprintf("%s at %.1f µs", how, float64(costs.median())/float64(time.Microsecond))
}

// completed is what qemu-img bench prints.
var completed = regexp.MustCompile(`Run completed in ([0-9.]+) seconds`)

// drive runs a load in several sessions at once.
func drive(ctx context.Context, at served, l load, sessions int) (outcome, error) {
	each := max(l.count/sessions, 1)
	args := []string{"bench", "-t", "none", "-c", strconv.Itoa(each), "-d", strconv.Itoa(l.depth), "-s", strconv.Itoa(l.size)}
	if l.step != 0 {
		args = append(args, "-S", strconv.FormatInt(l.step, 10))
	}
	if l.write {
		args = append(args, "-w")
	}
	before, err := processorTime(at.pid)
	if err != nil {
		return outcome{}, err
	}
	took, errs := make([]float64, sessions), make([]error, sessions)
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			out, err := exec.CommandContext(ctx, "qemu-img", append(slices.Clone(args), "--image-opts", at.options(i))...).CombinedOutput()
			m := completed.FindSubmatch(out)
			if err != nil || m == nil {
				errs[i] = fmt.Errorf("qemu-img bench: %w: %s", err, out)
				return
			}
			took[i], errs[i] = strconv.ParseFloat(string(m[1]), 64)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return outcome{}, err
	}
	after, err := processorTime(at.pid)
	n := each * sessions
	return outcome{float64(n) / slices.Max(took), (after - before) / time.Duration(n)}, err
}

// options name the volume to QEMU's block layer, as the i-th initiator.
func (s served) options(i int) string {
	return fmt.Sprintf("driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=%d,file.initiator-name=%s",
		s.portal, s.iqn, s.lun, initiatorName(i))
}

func initiatorName(i int) string { return fmt.Sprintf("iqn.2026-11.local.bench:initiator%d", i) }

// fill makes a volume whose blocks are all allocated and in the page cache. It
// is written in the blocks of a guest: what is written at once, ext4 caches in
// one large folio (Linux 6.16), and goes through all its blocks for each 4K
// write.
func fill(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 4<<10)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for off := int64(0); off < size; off += int64(len(block)) {
		if _, err := f.WriteAt(block, off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// idleSessions are held open to see what one takes.
const idleSessions = 32

// idleSession is what a session that does nothing adds to a target's memory.
func idleSession(ctx context.Context, at served) (int64, error) {
	pid := strconv.Itoa(at.pid)
	before, err := memoryOf(pid, "VmRSS")
	if err != nil {
		return 0, err
	}
	for i := range idleSessions {
		cmd := exec.CommandContext(ctx, "qemu-io", "-r", "--image-opts", at.options(i))
		in, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		defer func() { _ = in.Close(); _ = cmd.Wait() }()
		// It answers when it has logged in and read the capacity.
		if _, err := in.Write([]byte("length\n")); err != nil {
			return 0, err
		}
		if err := answer(out); err != nil {
			return 0, fmt.Errorf("session %d: %w", i, err)
		}
	}
	after, err := memoryOf(pid, "VmRSS")
	return (after - before) / idleSessions, err
}

// answer reads until qemu-io has printed a length.
func answer(out interface{ Read([]byte) (int, error) }) error {
	var text strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(text.String(), "iB") {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			return fmt.Errorf("qemu-io answered %q: %w", text.String(), err)
		}
	}
	return nil
}

// freePortal is an address nobody listens on.
func freePortal() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
