package main

import (
	"fmt"
	"io"
	"strings"

	"reconciler/reconcile"
)

func printPlan(w io.Writer, format string, p *reconcile.Plan) error {
	if format == "json" {
		return printData(w, format, p)
	}
	// Reasons may repeat what others wrote.
	var b strings.Builder
	write, keep := p.WriteText, line
	if format == "markdown" {
		write, keep = p.WriteMarkdown, clean
	}
	if err := write(&b); err != nil {
		return err
	}
	_, err := io.WriteString(w, eachLine(b.String(), keep))
	return err
}

// progressWriter is where progress goes: not among data.
func (a *app) progressWriter() io.Writer {
	if a.flags.output == "text" {
		return a.stdout
	}
	return a.stderr
}

func progressTo(w io.Writer) func(string) {
	return func(s string) { fmt.Fprintln(w, cleanLines(s)) }
}

// settled shows what is left after a pass.
func (a *app) settled(p *reconcile.Plan, detailed bool) error {
	if err := printPlan(a.stdout, a.flags.output, p); err != nil {
		return err
	}
	if detailed {
		return planExit(p)
	}
	return nil
}
