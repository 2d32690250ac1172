package reconcile

import (
	"strings"
	"testing"

	"reconciler/spec"
)

// A digest stands there to be pasted, so only where it would release something.
func TestDigestIsShownWhereItReleases(t *testing.T) {
	p := &Plan{
		Hosts:   []HostDigest{{Host: "host1", Digest: "sha256:00"}},
		Actions: []Action{{Kind: spec.KindVirtualMachine, Name: "web", Op: OpUpdate, Cause: CauseDrift, State: Held, Reason: "drift is reported"}},
	}
	if got := text(p); strings.Contains(got, "Digest") {
		t.Errorf("nothing but drift is held:\n%s", got)
	}
	p.Actions[0].ID, p.Actions[0].Cause = "0123456789abcdef", CauseRevision
	if got := text(p); !strings.Contains(got, "Digest   sha256:00 (host1, for reconciler allow)\n") {
		t.Errorf("an action of a commit is held:\n%s", got)
	}
}

// A field says why it waits where the action does not say the same.
func TestReasonsAreSaidOnce(t *testing.T) {
	a := Action{
		Kind: spec.KindVirtualMachine, Name: "web", Op: OpUpdate, State: Waiting, Reason: "needs a restart",
		Changes: []Change{{Field: "spec.memory.size", From: "1Gi", To: "2Gi", Impact: ImpactRestart, Waits: "needs a restart"}},
	}
	if got := text(&Plan{Actions: []Action{a}}); strings.Count(got, "# needs a restart") != 1 {
		t.Errorf("of an action that waits:\n%s", got)
	}
	a.State, a.Reason = Ready, ""
	if got := text(&Plan{Actions: []Action{a}}); !strings.Contains(got, "2Gi  (restart)  # needs a restart\n") {
		t.Errorf("of a field that waits:\n%s", got)
	}
}
