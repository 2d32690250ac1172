package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"reconciler/api"
	"reconciler/reconcile"
)

// Exit codes.
const (
	exitDone       = 0
	exitError      = 1
	exitReady      = 2
	exitWaiting    = 3
	exitIncomplete = 4
	exitUsage      = 64 // EX_USAGE, sysexits.h
)

const (
	outcomesHelp = `Exit codes:
  0   done
  1   error
`
	incompleteHelp = `  4   incomplete: a host's state is missing, stale or unreadable
`
	usageHelp = `  64  usage error`

	detailedHelp = `
With --detailed-exitcode:
  0   nothing is left to do
  2   something is ready to be done
  3   nothing is ready, but something is waiting, held or blocked`
)

// exitCode is an outcome that is not an error.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a command line that makes no sense.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// hinted is an error with the way out of it.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

// planExit is the outcome of a plan under --detailed-exitcode.
func planExit(p *reconcile.Plan) error {
	switch {
	case p.Incomplete:
		return exitCode(exitIncomplete)
	case p.Count(reconcile.Ready) > 0:
		return exitCode(exitReady)
	case p.Count(reconcile.Waiting)+p.Count(reconcile.Held)+p.Count(reconcile.Blocked) > 0:
		return exitCode(exitWaiting)
	}
	return nil
}

// report prints an error and gives the exit code. It is the only place that does.
func report(ctx context.Context, w io.Writer, path string, err error) int {
	var code exitCode
	var usage *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintf(w, "reconciler: %s\n  hint: %s --help\n", clean(usage.msg), path)
		return exitUsage
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(w, "reconciler: interrupted")
		return exitError
	}
	fmt.Fprintf(w, "reconciler: %s\n", cleanLines(err.Error()))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", clean(hint))
	}
	return exitError
}

func hintOf(err error) string {
	var h *hinted
	var e *api.Error
	switch {
	case errors.As(err, &h):
		return h.hint
	case errors.As(err, &e):
		return e.Hint
	case errors.Is(err, api.ErrNoAgent):
		return "start it with reconciler run, or name its run directory with --run-dir"
	}
	return ""
}

// clean keeps what others wrote from steering the terminal, and on one line.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(strings.TrimRight(s, "\r\n"), "\r\n", "\n"), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if steers(r) {
			return '\ufffd'
		}
		return r
	}, s)
}

// steers is C0, DEL and C1 controls, and the marks that reorder text.
func steers(r rune) bool {
	return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// cleanLines is clean for text of several lines.
func cleanLines(s string) string { return eachLine(s, line) }

func eachLine(s string, do func(string) string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = do(lines[i])
	}
	return strings.Join(lines, "\n")
}

// line is clean for what makes up a line, in which a name of others may come
// first: the runners of GitHub, Gitea and GitLab take "::" at its beginning, and
// "##[" anywhere, for a command to them.
func line(s string) string {
	s = strings.ReplaceAll(clean(s), "##[", "## [")
	if strings.HasPrefix(strings.TrimLeft(s, " \t\u00a0"), "::") {
		s = "./" + s
	}
	return s
}
