package reconcile

import (
	"strings"
	"testing"

	"reconciler/spec"
)

// A machine changes with the value it uses, the Secret with anything in its
// file; what is encrypted never stands in a plan.
func TestSecrets(t *testing.T) {
	const uses = plainVM + ", cloudInit: {userData: {secret: s, key: a}}"
	tree := func(a, b, recipient string) []string {
		return []string{secretDoc("s", a, b, recipient), vmDoc("v", uses)}
	}
	have, base := world(desired(t, tree("AAAA", "BBBB", "me")...))
	ids := map[string]string{}
	// All documents of a tree are in one file here, so an edited machine is
	// another file around the Secret.
	for _, c := range []struct {
		name           string
		docs           []string
		secret, change string // fields that change
	}{
		{"nothing", tree("AAAA", "BBBB", "me"), "", ""},
		{"the value", tree("CCCC", "BBBB", "me"), "sops spec.data[a]", "spec.cloudInit.userData.key"},
		{"the value again", tree("DDDD", "BBBB", "me"), "sops spec.data[a]", "spec.cloudInit.userData.key"},
		{"another value", tree("AAAA", "CCCC", "me"), "sops spec.data[b]", ""},
		{"who can decrypt it", tree("AAAA", "BBBB", "you"), "sops", ""},
		{"the key", []string{secretDoc("s", "AAAA", "BBBB", "me"), vmDoc("v", strings.Replace(uses, "key: a", "key: b", 1))}, "sops", "spec.cloudInit.userData.key"},
	} {
		p := Diff(desired(t, c.docs...), base, have, testNow)
		fields := func(a *Action) string {
			var list []string
			for _, ch := range a.Changes {
				list = append(list, ch.Field)
			}
			return strings.Join(list, " ")
		}
		secret, vm := find(t, p, spec.KindSecret, "s"), find(t, p, spec.KindVirtualMachine, "v")
		if fields(secret) != c.secret || fields(vm) != c.change {
			t.Errorf("%s: %q and %q change", c.name, fields(secret), fields(vm))
		}
		if c.change != "" && (vm.State != Waiting || vm.Impact != ImpactRestart) || c.secret != "" && secret.Impact != ImpactNone {
			t.Errorf("%s: %s", c.name, text(&p))
		}
		for _, a := range []*Action{secret, vm} {
			if a.ID != "" && ids[a.ID] != "" {
				t.Errorf("%s and %s have one id", c.name, ids[a.ID])
			}
			ids[a.ID] = c.name
		}
		delete(ids, "")
		for _, s := range []string{"ENC[", "AAAA", "CCCC"} {
			if strings.Contains(text(&p), s) {
				t.Errorf("%s: the plan shows %s:\n%s", c.name, s, text(&p))
			}
		}
	}

	renamed := []string{
		strings.Replace(secretDoc("t", "AAAA", "BBBB", "me"), "name: t}", "name: t, movedFrom: [s]}", 1),
		vmDoc("v", strings.Replace(uses, "secret: s", "secret: t", 1)),
	}
	p := Diff(desired(t, renamed...), base, have, testNow)
	if a := find(t, p, spec.KindVirtualMachine, "v"); a.Op != OpUnchanged {
		t.Errorf("a renamed Secret changes the machine:\n%s", text(&p))
	}
}
