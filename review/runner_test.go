package review

import (
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

// Runners read what a job prints for commands: "::" where a line begins, spaces
// aside, and "##[" anywhere. A pull request gives none through its plan.
func TestTextHasNoRunnerCommands(t *testing.T) {
	const evil = "::add-mask::destroy\n::stop-commands::x\r::error::y ##[add-mask]destroy"
	r := &Report{Revision: strings.Repeat("b", 40), Base: strings.Repeat("a", 40), Summary: map[reconcile.Op]int{}, Pending: map[reconcile.Op]int{}, Refused: evil,
		Hosts: []Host{{Host: "host1", Problem: evil}, {Host: "h2", Notes: []string{evil}}}}
	r.Actions = append(r.Actions, Row{Origin: PullRequest, Note: evil, Action: reconcile.Action{
		Kind: spec.KindVirtualMachine, Name: evil, Host: "host1", Op: reconcile.OpUpdate, State: reconcile.Waiting, Reason: evil,
		Changes: []reconcile.Change{{Field: evil, From: evil, To: evil, Waits: evil}},
	}})
	r.sum()
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for i, l := range strings.FieldsFunc(b.String(), func(c rune) bool { return c == '\n' || c == '\r' }) {
		if strings.HasPrefix(strings.TrimSpace(l), "::") || strings.Contains(l, "##[") {
			t.Errorf("line %d gives a command: %q", i, l)
		}
	}
}
