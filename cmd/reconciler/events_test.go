package main

import (
	"strings"
	"testing"

	"reconciler/api"
)

// An error of several lines stays on the line of its event, and steers nothing.
func TestEventOfSeveralLines(t *testing.T) {
	var b strings.Builder
	printEvent(&b, "", api.Event{Type: "Warning", Reason: "RevisionRefused", Message: "a.yaml:1:1: wrong\r\nb.yaml:2:2: \x1b[31mwrong\n"})
	if got := b.String(); strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "a.yaml:1:1: wrong; b.yaml:2:2: \uFFFD[31mwrong\n") {
		t.Errorf("%q", got)
	}
}
