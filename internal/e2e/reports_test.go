package e2e

import (
	"strings"
	"testing"
)

// Reports may go to a repository of their own, so that an agent needs no right
// to write the one it follows.
func TestReportsElsewhere(t *testing.T) {
	w := newWorld(t)
	reports := w.file("git/reports.git")
	w.git("init", "-q", "--bare", "-b", "main", reports)
	w.config("statusRepo: {url: \"file://" + reports + "\"}\n")
	rev := w.commit("first")
	w.start()
	w.reconcile()
	const ref = "refs/reconciler/status/host1"
	w.await(passTime, "the report of "+rev, func() bool {
		return strings.Contains(w.git("--git-dir", reports, "for-each-ref"), ref) &&
			strings.Contains(w.git("--git-dir", reports, "show", ref+":state.json"), rev)
	})
	if refs := w.git("--git-dir", w.bare, "for-each-ref", "refs/reconciler"); refs != "" {
		t.Errorf("the followed repository has refs of the agent:\n%s", refs)
	}
	if p := w.plan("--against", "status"); p.Incomplete || len(p.Actions) == 0 {
		t.Errorf("the report is not read where it is: incomplete %v, %d actions", p.Incomplete, len(p.Actions))
	}
}
