package review

import (
	"fmt"
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

func big(n int) *Report {
	r := &Report{Revision: strings.Repeat("b", 40), Base: strings.Repeat("a", 40), Summary: map[reconcile.Op]int{}, Pending: map[reconcile.Op]int{}}
	for h := range 40 {
		host := Host{Host: fmt.Sprintf("host%02d", h), Digest: "sha256:" + strings.Repeat("d", 64), IDs: []string{"x"}}
		if h < 30 {
			host.Problem = "its report is 16m old"
		}
		r.Hosts = append(r.Hosts, host)
	}
	for i := range n {
		a := reconcile.Action{
			Kind: spec.KindVirtualMachine, Name: fmt.Sprintf("machine-%05d", i), UID: fmt.Sprint(i), Host: fmt.Sprintf("host%02d", i%40),
			Op: reconcile.OpUpdate, Cause: reconcile.CauseRevision, Impact: reconcile.ImpactLive, State: reconcile.Ready,
			Changes: []reconcile.Change{{Field: "spec.memory.size", From: "128Mi", To: "256Mi", Impact: reconcile.ImpactLive}},
		}
		switch {
		case i%1000 == 7:
			a.Kind, a.Op, a.Impact = spec.KindDisk, reconcile.OpQuarantine, reconcile.ImpactDestroy
		case i%100 == 3:
			a.Op, a.Impact = reconcile.OpRestart, reconcile.ImpactRestart
		}
		o := PullRequest
		if i%3 == 0 {
			o = Pending
		}
		r.Actions = append(r.Actions, Row{Action: a, Origin: o})
	}
	r.Incomplete = true
	r.sum()
	return r
}

// Whatever the plan, the comment fits, is closed, and says what is worst first.
func TestMarkdownIsBounded(t *testing.T) {
	for _, n := range []int{0, 1, 30, 200, 10_000} {
		r := big(n)
		for _, limit := range []int{0, MinComment, 8000, 20_000, 60_000, 262_144, 1_000_000} {
			md := r.Markdown(limit, "https://forge.example/run/1")
			if most := max(limit, MinComment); len(md) > most {
				t.Errorf("%d actions: %d bytes, at most %d are allowed", n, len(md), most)
			}
			if open, closed := strings.Count(md, "<details>"), strings.Count(md, "</details>"); open != closed {
				t.Errorf("%d actions in %d bytes: %d folds, %d closed:\n%s", n, limit, open, closed, md)
			}
			if strings.Count(md, "```")%2 != 0 {
				t.Errorf("%d actions in %d bytes: an open fence", n, limit)
			}
			if !strings.HasPrefix(md, "### INCOMPLETE: the state of 30 of 40 hosts") {
				t.Errorf("it begins with %.60q", md)
			}
			if n == 10_000 {
				if shortened := strings.Contains(md, "https://forge.example/run/1"); !shortened && limit < 1_000_000 {
					t.Errorf("%d bytes: it does not say where the rest is", limit)
				}
				destroy, table := strings.Index(md, "**Destroys data ("), strings.Index(md, "| | object |")
				if destroy < 0 || table >= 0 && table < destroy {
					t.Errorf("%d bytes: what destroys data does not come first:\n%.2000s", limit, md)
				}
			}
		}
	}
}

// What has no room is counted by host, impact and operation.
func TestMarkdownSumsUp(t *testing.T) {
	r := big(10_000)
	for i := range r.Hosts {
		r.Hosts[i].Problem = ""
	}
	r.Incomplete = false
	md := r.Markdown(60_000, "")
	for _, part := range []string{
		"### Plan: 7 quarantine, 66 restart, 6593 update; impact destroy",
		"and **", "more**, of impact live or less", "| `host39` | live | ", "#### Caused by this pull request",
		"Pending or drifted before: 3334",
	} {
		if !strings.Contains(md, part) {
			t.Errorf("no %q in\n%.6000s", part, md)
		}
	}
	for _, a := range r.rows(true) {
		if a.Impact == reconcile.ImpactDestroy && !strings.Contains(md, "**`Disk/"+a.Name+"`**") {
			t.Errorf("%s is not named", a.Name)
		}
	}
}

// Nothing that stands in a spec or a report gets out of its place in the
// comment: no mention, no link, no markup, no table cell, no command of a forge.
func TestMarkdownEscapes(t *testing.T) {
	const evil = "x` | @everyone <script>alert(1)</script> [a](http://evil) ![b](http://evil) #1 \\| **b**\n/approve\n```\n/merge\r\n</details>\u202e\\"
	r := &Report{Revision: strings.Repeat("b", 40), Base: strings.Repeat("a", 40), Summary: map[reconcile.Op]int{}, Pending: map[reconcile.Op]int{}, Refused: evil,
		Hosts: []Host{{Host: "host1", Problem: evil}, {Host: "h2", Notes: []string{evil}}}}
	for _, o := range []Origin{PullRequest, Pending} {
		r.Actions = append(r.Actions, Row{Origin: o, Note: evil, Action: reconcile.Action{
			Kind: spec.KindVirtualMachine, Name: evil, Host: evil, Op: reconcile.OpUpdate, Impact: reconcile.ImpactDestroy, State: reconcile.Waiting, Reason: evil,
			Changes: []reconcile.Change{{Field: evil, From: evil, To: evil, Waits: evil}, {Field: "f", From: "a`b", Waits: "```"}},
		}})
	}
	r.Cancelled = r.Actions[:1]
	r.sum()
	md := r.Markdown(60_000, "")
	if strings.Count(md, "```") != 2 {
		t.Errorf("the fence can be left:\n%s", md)
	}
	if strings.ContainsRune(md, '\u202e') || strings.ContainsRune(md, '\r') {
		t.Error("marks that reorder text get through")
	}
	fenced := false
	for i, l := range strings.Split(md, "\n") {
		if strings.HasPrefix(l, "```") {
			fenced = !fenced
			continue
		}
		if strings.HasPrefix(l, "/") {
			t.Errorf("line %d is a command: %q", i, l)
		}
		if fenced {
			continue
		}
		// Outside of code spans nothing of it may be left.
		outside := ""
		for j, part := range strings.Split(l, "`") {
			if j%2 == 0 {
				outside += part
			}
		}
		if strings.Count(l, "`")%2 != 0 {
			t.Errorf("line %d leaves a code span open: %q", i, l)
		}
		if strings.Contains(outside, "</details>") && l != "</details>" {
			t.Errorf("line %d ends a fold: %q", i, l)
		}
		if strings.ContainsAny(outside, "@[") || strings.Contains(outside, "evil") || strings.Contains(outside, "script") {
			t.Errorf("line %d: %q", i, outside)
		}
		if strings.HasPrefix(l, "| `") && strings.Count(l, "|") != 8 && strings.Contains(l, "Virtual") {
			t.Errorf("line %d has %d cells: %q", i, strings.Count(l, "|")-1, l)
		}
	}
}

// A network is known to every host: one row for all of them.
func TestSharedObjectsAreOneRow(t *testing.T) {
	base, merge := tree(t, host2), tree(t, host2, "apiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: back}\nspec: {user: {}}\n")
	md := Compare(input(base, merge, applied(base, "host1"), applied(base, "host2"))).Markdown(60_000, "")
	if n := strings.Count(md, "| `Network/back` |"); n != 1 || !strings.Contains(md, "`host1`, `host2`") {
		t.Errorf("%d rows:\n%s", n, md)
	}
}

func TestMarkdownOfNothing(t *testing.T) {
	base := tree(t, vm("a", "128Mi"))
	md := Compare(input(base, base, applied(base, "host1"))).Markdown(60_000, "")
	if !strings.HasPrefix(md, "### Plan: this pull request changes nothing that runs") || strings.Contains(md, "Caused by") {
		t.Error(md)
	}
}

func TestFieldsInTextAndMarkdown(t *testing.T) {
	r := &Report{Summary: map[reconcile.Op]int{}, Pending: map[reconcile.Op]int{}, Hosts: []Host{{Host: "host1", Digest: "sha256:00", IDs: []string{"x"}}}, Actions: []Row{{
		Origin: PullRequest,
		Action: reconcile.Action{
			Kind: spec.KindVirtualMachine, Name: "web", Host: "host1", Op: reconcile.OpUpdate, State: reconcile.Waiting, Reason: "needs a restart",
			Changes: []reconcile.Change{{Field: "spec.cpu.cores", From: "1", To: "2", Impact: reconcile.ImpactRestart, Waits: "needs a restart"}},
		},
	}}}
	r.sum()
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		b.String():           "      # needs a restart\n      ~ spec.cpu.cores = 1 -> 2  (restart)\n\nDigest   sha256:00 (host1, 1 id)\n",
		r.Markdown(8000, ""): "\n! spec.cpu.cores = 1 -> 2  (restart)\n```",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	if got := r.Markdown(8000, ""); !strings.Contains(got, ", 1 host.\n") {
		t.Errorf("one host is counted otherwise:\n%s", got)
	}
}
