// Command bench measures what docs/performance.md reports: each figure against
// its aim, and against the same work by hand or by another program in the same
// run where there is one. A figure that falls short is printed as such and is
// no error: a clock is no test.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"reconciler/internal/testbed"
)

// suites are the parts, in the order they are run.
var suites = []struct {
	name string
	run  func(ctx context.Context, b *bench) ([]row, error)
}{
	{"plan", planSuite},
	{"review", reviewSuite},
	{"repository", repositorySuite},
	{"start", startSuite},
	{"host", hostSuite},
	{"iscsi", targetSuite},
}

// bench is what a suite stands on.
type bench struct {
	dir     string // in the command line of every process of the run
	short   bool
	profile string // directory for CPU profiles; empty for none
	program string // the reconciler, built for the run
}

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) > 1 && os.Args[1] == childArg {
		return child(os.Args[2:])
	}
	var b bench
	only := flag.String("run", "", "run the suites whose name matches the expression (plan, review, repository, start, host, iscsi)")
	flag.BoolVar(&b.short, "short", false, "fewer objects and rounds: shows that everything works, and no figures to go by")
	flag.StringVar(&b.profile, "profile", "", "write CPU profiles of the parts that run in a process of the benchmark's to this directory")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "bench:", errors.Join(err, fmt.Errorf("arguments: %q", flag.Args())))
		return 64
	}
	// The first interrupt ends everything that was started; a second one ends
	// this process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	defer stop()
	if err := b.measure(ctx, match); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// measure runs the suites and leaves no process and no file behind.
func (b *bench) measure(ctx context.Context, match *regexp.Regexp) (err error) {
	if b.dir, err = os.MkdirTemp("", "rc-bench-"); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, testbed.KillAll(b.dir), os.RemoveAll(b.dir))
	}()
	if b.profile != "" {
		if b.profile, err = filepath.Abs(b.profile); err != nil {
			return err
		}
		if err := os.MkdirAll(b.profile, 0o755); err != nil {
			return err
		}
	}
	b.program = filepath.Join(b.dir, "reconciler")
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.program, "reconciler/cmd/reconciler").CombinedOutput(); err != nil {
		return fmt.Errorf("build the reconciler: %w\n%s", err, out)
	}
	if err := printMachine(ctx, os.Stdout); err != nil {
		return err
	}
	for _, s := range suites {
		if !match.MatchString(s.name) {
			continue
		}
		rows, err := s.run(ctx, b)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		printTable(os.Stdout, s.name, rows)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		// What a suite leaves running would be measured with the next.
		if err := testbed.KillAll(b.dir); err != nil {
			return err
		}
	}
	fmt.Printf("\nload average at the end: %s\n", loadAverage())
	return nil
}

// sub makes a directory below the run's.
func (b *bench) sub(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// pick is how many of something a run takes.
func (b *bench) pick(full, short int) int {
	if b.short {
		return short
	}
	return full
}
