// Command testcount runs "go test -json" with the arguments given and prints a
// line for each package, everything that a failed test wrote, and at the end
// how many passed and failed.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testcount:", err)
		return 1
	}
	c := newCounter(os.Stdout)
	readErr := c.read(out)
	return c.finish(errors.Join(readErr, cmd.Wait()))
}

// event is one line of go test -json (go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

type key struct{ pkg, test string }

type counter struct {
	w                       io.Writer
	passed, failed, skipped int
	output                  map[key][]string  // of tests that have not ended, by package and test
	build                   map[string]string // compiler output by import path
	count                   map[string]int    // tests that ended, by package
	failures                map[string]int    // tests that failed, by package
}

func newCounter(w io.Writer) *counter {
	return &counter{
		w:      w,
		output: map[key][]string{}, build: map[string]string{},
		count: map[string]int{}, failures: map[string]int{},
	}
}

func (c *counter) read(r io.Reader) error {
	dec := json.NewDecoder(r)
	for {
		var ev event
		err := dec.Decode(&ev)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			// What follows must still be read, or go test would block.
			_, copyErr := io.Copy(c.w, io.MultiReader(dec.Buffered(), r))
			return errors.Join(fmt.Errorf("testcount: output of go test: %w", err), copyErr)
		}
		c.handle(ev)
	}
}

func (c *counter) handle(ev event) {
	k := key{ev.Package, ev.Test}
	switch ev.Action {
	case "build-output":
		c.build[ev.ImportPath] += ev.Output
	case "run":
		c.output[k] = []string{} // known from here on, silent or not
	case "output":
		c.output[k] = append(c.output[k], ev.Output)
	case "pass", "fail", "skip":
		if ev.Test == "" {
			c.endPackage(ev)
		} else {
			c.endTest(ev)
		}
	}
}

func (c *counter) endTest(ev event) {
	k := key{ev.Package, ev.Test}
	c.count[ev.Package]++
	switch ev.Action {
	case "pass":
		c.passed++
	case "skip":
		c.skipped++
		c.print(k)
	case "fail":
		c.failed++
		c.failures[ev.Package]++
		c.print(k)
	}
	delete(c.output, k)
}

func (c *counter) endPackage(ev event) {
	pkg := key{pkg: ev.Package}
	switch {
	case ev.Action == "fail":
		fmt.Fprint(c.w, c.build[ev.FailedBuild])
		// Tests that never ended: a panic, a timeout, os.Exit.
		for k := range c.output {
			if k.pkg == ev.Package && k.test != "" {
				c.failed++
				c.failures[ev.Package]++
				fmt.Fprintf(c.w, "did not end: %s\n", k.test)
				c.print(k)
				delete(c.output, k)
			}
		}
		c.print(pkg)
		if c.failures[ev.Package] == 0 { // it did not come to its tests
			c.failed++
		}
		fmt.Fprintf(c.w, "FAIL  %s  %.1fs\n", ev.Package, ev.Elapsed)
	case c.count[ev.Package] > 0:
		fmt.Fprintf(c.w, "ok    %s  %.1fs  %d tests\n", ev.Package, ev.Elapsed, c.count[ev.Package])
	}
	delete(c.output, pkg)
}

// print shows what a test wrote, without the lines that only say it ran.
func (c *counter) print(k key) {
	for _, text := range c.output[k] {
		if !strings.HasPrefix(text, "=== ") && !strings.HasPrefix(text, "ok  \t") {
			fmt.Fprint(c.w, text)
		}
	}
}

// finish prints the counts and returns the exit code. A run without a test, or
// that go test itself calls failed, is a failure even if no test was.
func (c *counter) finish(err error) int {
	if err != nil && c.failed == 0 || c.passed+c.failed == 0 {
		c.failed++
		fmt.Fprintf(c.w, "go test ended without a test that failed: %v\n", err)
	}
	fmt.Fprintf(c.w, "%d passed, %d failed", c.passed, c.failed)
	if c.skipped > 0 {
		fmt.Fprintf(c.w, ", %d skipped", c.skipped)
	}
	fmt.Fprintln(c.w)
	if c.failed > 0 {
		return 1
	}
	return 0
}
