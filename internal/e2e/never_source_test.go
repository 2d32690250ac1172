package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reconciler/reconcile"
)

// Never 3: an outage or a broken tree is not a deletion. Every tree here lacks
// a machine and a disk that exist; none of it may count, nor after a restart of
// the agent. Guards: agent.examine and agent.belongs, the boot from the cache.
func TestNeverDeleteByAccident(t *testing.T) {
	w := newQuickWorld(t)
	w.write("victim.yaml", disk("victim", "1Mi")+off("victim", "victim"))
	w.apply0()
	older := w.git("rev-parse", "HEAD")
	w.mark("victim", 0x77)
	w.write("more.yaml", disk("more", "1Mi"))
	w.apply("one more")
	good := w.git("rev-parse", "HEAD")
	before := w.objects("all")

	untouched := func(t *testing.T) {
		t.Helper()
		for name, o := range w.objects("all") {
			if before[name].UID != o.UID || o.Quarantined {
				t.Errorf("%s: %+v", name, o)
			}
			delete(before, name)
		}
		for name := range before {
			t.Errorf("%s is gone", name)
		}
		before = w.objects("all")
	}
	base, err := os.ReadFile(filepath.Join(w.work, "base.yaml"))
	w.must(err)
	only := func(tree string) func() {
		return func() {
			w.git("rm", "-q", "-r", ".") // leaves no directory if it was the last file
			w.must(os.MkdirAll(w.work, 0o755))
			if tree != "" {
				w.write("base.yaml", tree)
			}
			w.commit("a broken tree")
		}
	}
	documents := strings.Split(string(base), "---\n")
	for _, c := range []struct {
		name, reason string
		push         func()
	}{
		{"an empty tree", "EmptyTree", only("")},
		{"a tree of comments", "EmptyTree", only("# nothing\n")},
		{"broken YAML", "Invalid", only(string(base) + "---\n{")},
		{"an unknown field", "Invalid", only(strings.Replace(string(base), "spec: {id", "spec: {ids", 1))},
		{"another cluster", "OtherCluster", only(strings.Replace(string(base), "id: "+w.clusterID(), "id: another", 1))},
		{"this host is missing", "HostMissing", only(documents[0] + "---\n" + strings.Replace(documents[1], "name: host1", "name: host2", 1))},
		{"rolled back by force", "NonFastForward", func() { w.git("push", "-qf", "origin", older+":main") }},
		{"rewritten", "NonFastForward", func() {
			w.git("checkout", "-q", "--orphan", "other")
			w.git("rm", "-q", "-rf", ".")
			w.write("base.yaml", string(base))
			w.git("add", "-A")
			w.git("commit", "-qm", "another history")
			w.git("push", "-qf", "origin", "HEAD:main")
			w.git("checkout", "-q", "main")
		}},
		{"the repository is gone", "FetchFailed", func() { w.must(os.Rename(w.bare, w.bare+".away")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			outer := w.t
			w.t = t
			defer func() { w.t = outer }()
			c.push()
			w.refused(c.reason)
			untouched(t)
			w.kill()
			w.start()
			w.await(passTime, "the revision to be refused again", func() bool { return w.stalled() == c.reason })
			w.refused(c.reason)
			untouched(t)

			if _, err := os.Stat(w.bare); err != nil {
				w.must(os.Rename(w.bare+".away", w.bare))
			} else {
				w.git("reset", "-q", "--hard", good)
				w.write("fixed.yaml", "# "+c.name+"\n")
				w.git("add", "-A")
				w.git("commit", "-qm", "fixed")
				w.git("push", "-qf", "origin", "HEAD:main")
				good = w.git("rev-parse", "HEAD")
			}
			w.reconcile()
			w.settled()
			if s := w.stalled(); s != "" {
				t.Errorf("stalled after the fix: %s", s)
			}
		})
	}

	// What an operator accepts comes into force, once.
	w.git("push", "-qf", "origin", older+":main")
	w.refused("NonFastForward")
	w.cli("accept", older, "--reason", "test")
	w.reconcile()
	if o := w.byUID("quarantine", before["Disk/more"].UID); o == nil {
		t.Error("the accepted revision is not in force")
	}
	w.git("push", "-q", "origin", good+":main")
	w.reconcile()
	w.settled()
	w.git("push", "-qf", "origin", older+":main")
	w.refused("NonFastForward")
	untouched(t)
	w.marked("victim", 0x77)
}

// Never 4: the budget holds over commits and restarts, and only an operator on
// the host lifts it. Guards: policy.budget, the ledger in the agent's memory.
func TestNeverBeyondBudget(t *testing.T) {
	w := newWorld(t)
	names := []string{"a", "b", "c", "d", "e"}
	for _, n := range names {
		w.write(n+".yaml", disk(n, "1Mi")+off(n, n))
	}
	w.apply0()
	kept := func(n string) bool {
		all := w.objects("all")
		_, vm := all["VirtualMachine/"+n]
		d, disk := all["Disk/"+n]
		if vm != (disk && !d.Quarantined) {
			t.Errorf("machine %s there: %v, its disk %+v", n, vm, d)
		}
		return vm
	}
	for i, n := range names[:4] {
		w.remove(n + ".yaml")
		w.apply("remove " + n)
		if kept(n) != (i >= 2) {
			t.Errorf("removal %d is carried out: %v", i+1, !kept(n))
		}
		w.kill()
		w.start()
	}
	w.reconcile()
	if !kept("c") || !kept("d") {
		t.Error("a restart of the agent lifts the budget")
	}
	vm := w.expect("VirtualMachine/c", reconcile.Held, "the limit is 2")
	w.cli("allow", vm.ID[:12], "--for", "1h", "--reason", "test")
	w.reconcile()
	if _, ok := w.objects("all")["VirtualMachine/c"]; ok {
		t.Error("the allowed removal is not carried out")
	}
	disk := w.expect("Disk/c", reconcile.Held, "the limit is 2")
	w.cli("allow", disk.ID, "--for", "1h", "--reason", "test")
	w.reconcile()
	if kept("c") || !kept("d") {
		t.Error("an allowance releases another removal than the one allowed, or none")
	}
	w.revert() // of d
	w.settled()

	// The last of its kind is never removed by a commit alone.
	w.stop()
	w.hostConfig("limits: {budget: {count: 100}}\n")
	w.start()
	for _, n := range names[3:] {
		w.remove(n + ".yaml")
	}
	w.apply("remove all")
	p := w.plan()
	held := map[string]int{}
	for i := range p.Actions {
		if a := &p.Actions[i]; a.State == reconcile.Held && strings.Contains(a.Reason, "the last of") {
			held[fmt.Sprint(a.Kind)]++
		}
	}
	if held["VirtualMachine"] != 1 {
		t.Errorf("held because they are the last: %v", held)
	}
}
