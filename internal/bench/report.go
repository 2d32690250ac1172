package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// row is one figure.
type row struct {
	what     string
	measured string
	aim      string // empty: for information
	met      bool
}

func (r row) verdict() string {
	switch {
	case r.aim == "":
		return ""
	case r.met:
		return "ok"
	}
	return "short"
}

// printTable writes a Markdown table whose columns are aligned, too.
func printTable(w io.Writer, name string, rows []row) {
	lines := [][]string{{name, "measured", "aim", ""}}
	for _, r := range rows {
		lines = append(lines, []string{r.what, r.measured, r.aim, r.verdict()})
	}
	width := make([]int, len(lines[0]))
	for _, l := range lines {
		for i, cell := range l {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintln(w)
	for n, l := range lines {
		for i, cell := range l {
			fmt.Fprintf(w, "| %s%s ", cell, strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)))
		}
		fmt.Fprintln(w, "|")
		if n == 0 {
			for _, n := range width {
				fmt.Fprint(w, "|", strings.Repeat("-", n+2))
			}
			fmt.Fprintln(w, "|")
		}
	}
}

// spread are repeated measurements of one thing.
type spread []time.Duration

// at returns a quantile between 0 and 1.
func (s spread) at(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (s spread) median() time.Duration { return s.at(0.5) }

func (s spread) String() string {
	switch {
	case len(s) == 1:
		return millis(s[0])
	case len(s) < 20: // no p95 to speak of
		return fmt.Sprintf("%s median, %s most of %d", millis(s.median()), millis(s.at(1)), len(s))
	}
	return fmt.Sprintf("%s median, %s p95 of %d", millis(s.median()), millis(s.at(0.95)), len(s))
}

func millis(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= 10*time.Millisecond:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.2f ms", ms)
	}
}

// within compares a median with the most it may be; no aim, no verdict.
func within(what string, s spread, aim time.Duration) row {
	r := row{what: what, measured: s.String()}
	if aim > 0 {
		r.aim, r.met = "≤ "+millis(aim), s.median() <= aim
	}
	return r
}

// weighs compares an amount of memory, in bytes, with the most it may be.
func weighs(what string, bytes, aim int64) row {
	r := row{what: what, measured: mebi(bytes)}
	if aim > 0 {
		r.aim, r.met = "≤ "+mebi(aim), bytes <= aim
	}
	return r
}

func mebi(bytes int64) string {
	if bytes < 10<<20 {
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d MiB", (bytes+1<<19)>>20)
}

// printMachine says what the figures were measured on.
func printMachine(ctx context.Context, w io.Writer) error {
	qemu, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return fmt.Errorf("qemu-system-x86_64: %w", err)
	}
	first, _, _ := strings.Cut(string(qemu), "\n")
	_, err = fmt.Fprintf(w, "%d processors: %s\n%s, Linux %s, %s\nload average at the start: %s\n",
		runtime.NumCPU(), firstMatch("/proc/cpuinfo", `model name\s*:\s*(.*)`), runtime.Version(),
		firstMatch("/proc/sys/kernel/osrelease", `(\S+)`), first, loadAverage())
	return err
}

func loadAverage() string { return firstMatch("/proc/loadavg", `(\S+ \S+ \S+)`) }

// firstMatch is the first group of an expression in a file, or "unknown".
func firstMatch(file, expression string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	m := regexp.MustCompile(expression).FindSubmatch(data)
	if m == nil {
		return "unknown"
	}
	return string(m[1])
}
