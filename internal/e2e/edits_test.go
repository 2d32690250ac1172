package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"gopkg.in/yaml.v3"

	"reconciler/internal/testbed"
	"reconciler/reconcile"
	"reconciler/spec"
)

// edit is one commit: one field of one object gets another value.
type edit struct {
	object string // KIND/NAME
	field  string // path as users write it
	to     any    // new value; nil takes the field away
	// with are fields that the language only allows to be edited together with it.
	with []set
	// plan is everything the plan must say, as lines makes it.
	plan string
	// why must be in the reason of what does not run now.
	why string
	// refused, instead of plan, is why the whole revision does not come into force.
	refused string
	// check looks at the world once the edit is carried out.
	check func(e *edits)
	// restart are machines to restart then, with all that waits for it by now.
	restart []string
	// undo takes back an edit that waits.
	undo bool
}

// set is a field of an object, a field of another one included.
type set struct {
	object, field string
	to            any
}

// edits is a world whose tree is edited field by field.
type edits struct {
	*world
	tree map[string]map[string]any // documents by KIND/NAME
	// pending are the plan's lines that wait for a restart, and what is to be
	// checked after it.
	pending []string
	checks  []func(*edits)
	console *testbed.Serial // of VirtualMachine/web
	memory  int             // bytes it told of last
}

// parse takes YAML documents into the tree.
func (e *edits) parse(text string) {
	e.t.Helper()
	dec := yaml.NewDecoder(strings.NewReader(text))
	for {
		var doc map[string]any
		if err := dec.Decode(&doc); err != nil {
			break
		}
		if doc != nil {
			e.tree[doc["kind"].(string)+"/"+doc["metadata"].(map[string]any)["name"].(string)] = doc
		}
	}
}

// save writes the tree to the work tree.
func (e *edits) save() {
	e.t.Helper()
	names := make([]string, 0, len(e.tree))
	for name := range e.tree {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		doc, err := yaml.Marshal(e.tree[name])
		e.must(err)
		b.WriteString("---\n" + string(doc))
	}
	e.write("base.yaml", b.String())
}

// set edits a field of the tree; the keys in its path are those of the entries.
func (e *edits) set(s set) {
	e.t.Helper()
	doc, ok := e.tree[s.object]
	if !ok {
		e.t.Fatalf("there is no %s", s.object)
	}
	parts := strings.Split(s.field, ".")
	at := doc
	for _, part := range parts[:len(parts)-1] {
		name, key, isEntry := strings.Cut(strings.TrimSuffix(part, "]"), "[")
		if isEntry {
			at = entryOf(e.t, at[name], key)
			continue
		}
		next, ok := at[name].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[name] = next
		}
		at = next
	}
	last := parts[len(parts)-1]
	if s.to == nil {
		delete(at, last)
	} else {
		at[last] = s.to
	}
	if s.field == "metadata.name" {
		kind, _, _ := strings.Cut(s.object, "/")
		delete(e.tree, s.object)
		e.tree[kind+"/"+s.to.(string)] = doc
	}
}

func entryOf(t *testing.T, list any, key string) map[string]any {
	t.Helper()
	for _, item := range list.([]any) {
		if m := item.(map[string]any); m["name"] == key {
			return m
		}
	}
	t.Fatalf("there is no entry %s in %v", key, list)
	return nil
}

// propose commits the tree where the agent does not look by itself.
func (e *edits) propose(message string) string {
	e.t.Helper()
	e.save()
	e.git("commit", "-q", "-a", "-m", message)
	e.git("push", "-q", "-f", "origin", "HEAD:refs/heads/next")
	return e.git("rev-parse", "HEAD")
}

// merge makes the proposed commit the one to follow.
func (e *edits) merge() {
	e.t.Helper()
	e.git("--git-dir", e.bare, "update-ref", "refs/heads/main", e.git("rev-parse", "HEAD"))
	e.reconcile()
}

// revert takes the last commit back.
func (e *edits) revert() {
	e.t.Helper()
	e.git("revert", "--no-edit", "HEAD")
	e.git("push", "-q", "origin", "HEAD:main")
	e.tree = map[string]map[string]any{}
	text, err := os.ReadFile(filepath.Join(e.work, "base.yaml"))
	e.must(err)
	e.parse(string(text))
	e.reconcile()
}

// lines writes a plan as "KIND/NAME OP IMPACT STATE", and below each action
// its changes as "FIELD: FROM → TO IMPACT". Of a whole object that is made or
// goes, the fields are left out.
func lines(p *reconcile.Plan) []string {
	var list []string
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Op == reconcile.OpUnchanged {
			continue
		}
		name := string(a.Kind) + "/" + a.Name
		list = append(list, fmt.Sprintf("%s %s %s %s", name, a.Op, a.Impact, a.State))
		switch a.Op {
		case reconcile.OpCreate, reconcile.OpDelete, reconcile.OpQuarantine:
			continue
		}
		for _, c := range a.Changes {
			list = append(list, fmt.Sprintf("%s %s: %s → %s %s", name, c.Field, c.From, c.To, c.Impact))
		}
	}
	for i, line := range list {
		list[i] = strings.Join(strings.Fields(line), " ") // a value may be empty
	}
	slices.Sort(list)
	return list
}

// expected are the lines of an edit's plan, beside those that wait already.
func (e *edits) expected(d *edit) []string {
	list := slices.Clone(e.pending)
	for line := range strings.Lines(d.plan) {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			list = append(list, line)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// compare returns what the plan really says.
func (e *edits) compare(when string, p *reconcile.Plan, want []string) []string {
	e.t.Helper()
	got := lines(p)
	if !slices.Equal(got, want) {
		e.t.Errorf("%s:\n got\n\t%s\nwant\n\t%s\n%s", when, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"), reasons(p))
	}
	return got
}

var hexID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// run commits an edit and checks the plan before, what was done, and the plan
// after.
func (e *edits) run(d *edit) {
	e.t.Helper()
	e.t.Logf("%s %s = %v", d.object, d.field, d.to)
	before := e.launches()
	for _, s := range append(slices.Clone(d.with), set{d.object, d.field, d.to}) {
		e.set(s)
	}
	want := e.expected(d)
	rev := e.propose(d.object + " " + d.field)
	if d.refused != "" {
		e.refused(d, rev)
		return
	}
	p := e.plan("--rev", rev)
	want = e.compare("the plan of the edit", &p, want)
	if p.Revision != rev {
		e.t.Errorf("the plan is of revision %s, not %s", p.Revision, rev)
	}
	ids, ready, interrupts := map[string]string{}, 0, false
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Op == reconcile.OpUnchanged {
			continue
		}
		if a.Cause != reconcile.CauseRevision || !hexID.MatchString(a.ID) {
			e.t.Errorf("%s/%s: cause %q, id %q", a.Kind, a.Name, a.Cause, a.ID)
		}
		ids[string(a.Kind)+"/"+a.UID] = a.ID
		if a.State == reconcile.Ready {
			ready++
			interrupts = interrupts || a.Kind == spec.KindVirtualMachine && a.Op != reconcile.OpUpdate
		}
	}
	if d.why != "" && !strings.Contains(reasons(&p), d.why) {
		e.t.Errorf("the plan does not say %q but:\n%s", d.why, reasons(&p))
	}
	e.console.Skip()
	e.merge()

	p = e.plan()
	if now := e.launches(); reflect.DeepEqual(now, before) == interrupts {
		e.t.Fatalf("the processes are %v, were %v", now, before)
	}
	switch waits := strings.Contains(d.plan, " waiting"); {
	case strings.Contains(d.plan, " blocked "):
		e.compare("the plan after a blocked edit", &p, e.unready(want, ready))
		e.revert()
		p = e.plan()
		e.compare("the plan after the revert", &p, e.pending)
		if now := e.launches(); !reflect.DeepEqual(now, before) {
			e.t.Errorf("the processes are %v after the revert, were %v", now, before)
		}
	case waits:
		want = e.unready(want, ready)
		e.compare("the plan while the edit waits", &p, want)
		for i := range p.Actions {
			a := &p.Actions[i]
			if id := ids[string(a.Kind)+"/"+a.UID]; a.Op != reconcile.OpUnchanged && a.ID != id {
				e.t.Errorf("%s/%s: the id was %s and is %s", a.Kind, a.Name, id, a.ID)
			}
		}
		if d.undo {
			e.revert()
			p = e.plan()
			e.compare("the plan after the revert", &p, e.pending)
			return
		}
		e.pending = want
		if d.check != nil {
			e.checks = append(e.checks, d.check)
		}
		if d.restart != nil {
			e.restart(d.restart...)
		}
		return
	default:
		e.compare("the plan after the edit", &p, e.pending)
	}
	if d.check != nil {
		d.check(e)
	}
}

// refused checks that a revision does not come into force, and takes it back.
func (e *edits) refused(d *edit, rev string) {
	e.t.Helper()
	if out, code := e.try("plan", "--rev", rev); code != 1 || !strings.Contains(out, d.refused) {
		e.t.Errorf("the plan ends with %d: %s", code, out)
	}
	e.git("push", "-q", "origin", "HEAD:main")
	if out, code := e.try("reconcile", "--wait"); code != 1 || !strings.Contains(out, d.refused) {
		e.t.Errorf("reconcile ends with %d: %s", code, out)
	}
	if out := e.cli("status"); !strings.Contains(out, d.refused) {
		e.t.Errorf("the status does not tell of it:\n%s", out)
	}
	e.revert()
	e.settled()
}

// unready are the lines without the actions that were carried out.
func (e *edits) unready(want []string, ready int) []string {
	if ready == 0 {
		return want
	}
	var gone []string
	for _, line := range want {
		if name, rest, _ := strings.Cut(line, " "); strings.HasSuffix(rest, " ready") {
			gone = append(gone, name)
		}
	}
	return slices.DeleteFunc(slices.Clone(want), func(line string) bool {
		name, _, _ := strings.Cut(line, " ")
		return slices.Contains(gone, name)
	})
}

func reasons(p *reconcile.Plan) string {
	var b strings.Builder
	for i := range p.Actions {
		a := &p.Actions[i]
		if a.Reason != "" {
			fmt.Fprintf(&b, "%s/%s: %s\n", a.Kind, a.Name, a.Reason)
		}
		for _, c := range a.Changes {
			if c.Waits != "" {
				fmt.Fprintf(&b, "%s/%s %s: %s\n", a.Kind, a.Name, c.Field, c.Waits)
			}
		}
	}
	return b.String()
}

// restart restarts machines, carries out what waits for it, and checks that
// nothing is left.
func (e *edits) restart(machines ...string) {
	e.t.Helper()
	before := e.launches()
	e.console.Skip()
	for _, name := range machines {
		name = nameOf(name)
		e.cli("restart", "vm/"+name)
	}
	e.reconcile()
	now := e.launches()
	for _, name := range machines {
		uid := e.uid(name)
		if now[uid] == 0 || now[uid] == before[uid] {
			e.t.Errorf("%s was not restarted: process %d, was %d", name, now[uid], before[uid])
		}
	}
	e.settled()
	e.pending = nil
	for _, check := range e.checks {
		check(e)
	}
	e.checks = nil
}

var uuidArg = regexp.MustCompile(` -uuid (\S+) `)

// launches are the machines' processes by UID.
func (e *edits) launches() map[string]int {
	e.t.Helper()
	m := map[string]int{}
	for _, p := range e.qemus() {
		found := uuidArg.FindStringSubmatch(p.Cmdline)
		if found == nil || m[found[1]] != 0 {
			e.t.Fatalf("an unexpected QEMU: %s", p)
		}
		m[found[1]] = p.PID
	}
	return m
}

// argv is the command line of a machine's process.
func (e *edits) argv(machine string) string {
	e.t.Helper()
	uid := e.uid(machine)
	for _, p := range e.qemus() {
		if strings.Contains(p.Cmdline, " -uuid "+uid+" ") {
			return p.Cmdline
		}
	}
	e.t.Fatalf("%s has no process", machine)
	return ""
}

// started expects arguments in the command line of a machine's process.
func started(machine string, args ...string) func(*edits) {
	return func(e *edits) {
		e.t.Helper()
		argv := e.argv(machine)
		for _, a := range args {
			if !strings.Contains(argv, a) {
				e.t.Errorf("%s does not run with %q: %s", machine, a, argv)
			}
		}
	}
}

// guest expects a line on the console of web.
func guest(pattern string) func(*edits) {
	return func(e *edits) { e.t.Helper(); e.console.Wait(e.t, pattern, bootTime) }
}

// bridge makes a bridge of the test's own.
func bridge(t *testing.T, suffix string) string {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("rt%d%s", os.Getpid(), suffix)
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatalf("make bridge %s: %v", attrs.Name, err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})
	return attrs.Name
}

// taps expects as many taps on a bridge.
func (e *edits) taps(name string, count int) {
	e.t.Helper()
	master, err := netlink.LinkByName(name)
	e.must(err)
	e.await(5*time.Second, fmt.Sprintf("%d taps on %s", count, name), func() bool {
		all, err := netlink.LinkList()
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return false
		}
		e.must(err)
		found := 0
		for _, l := range all {
			if l.Attrs().MasterIndex == master.Attrs().Index {
				found++
			}
		}
		return found == count
	})
}

// leaves lists the fields with a value of a kind, list entries without a key.
func leaves(t reflect.Type, path string) []string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var list []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch at := path + "." + name; {
		case name == "-": // not part of the language
		case f.Tag.Get("world") != "":
			list = append(list, at)
		case f.Type.Kind() == reflect.Slice:
			list = append(list, leaves(f.Type.Elem(), at+"[]")...)
		default:
			list = append(list, leaves(f.Type, at)...)
		}
	}
	return list
}

var kinds = map[spec.Kind]reflect.Type{
	spec.KindCluster:        reflect.TypeFor[spec.Cluster](),
	spec.KindHost:           reflect.TypeFor[spec.Host](),
	spec.KindStoragePool:    reflect.TypeFor[spec.StoragePool](),
	spec.KindImage:          reflect.TypeFor[spec.Image](),
	spec.KindSecret:         reflect.TypeFor[spec.Secret](),
	spec.KindNetwork:        reflect.TypeFor[spec.Network](),
	spec.KindDisk:           reflect.TypeFor[spec.Disk](),
	spec.KindVirtualMachine: reflect.TypeFor[spec.VirtualMachine](),
}

var entryKey = regexp.MustCompile(`\[[^\]]*\]`)

// fields lists every field with a value, as KIND PATH.
func fields(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, kind := range spec.Kinds {
		if kinds[kind] == nil {
			t.Fatalf("the type of kind %s is not known here", kind)
		}
		for _, path := range append(leaves(reflect.TypeFor[spec.Meta](), "metadata"), leaves(kinds[kind], "spec")...) {
			list = append(list, string(kind)+" "+path)
		}
	}
	return list
}

// covered fails for a field that no edit changes, and for an edit of what is
// no field.
func covered(t *testing.T, table []edit) {
	t.Helper()
	all := fields(t)
	left := map[string]bool{}
	for _, field := range all {
		left[field] = otherwise[field] == ""
	}
	for field := range otherwise {
		if !slices.Contains(all, field) {
			t.Errorf("%s is no field", field)
		}
	}
	for _, d := range table {
		for _, s := range append(slices.Clone(d.with), set{object: d.object, field: d.field}) {
			kind, _, _ := strings.Cut(s.object, "/")
			left[kind+" "+entryKey.ReplaceAllString(s.field, "[]")] = false
		}
	}
	edited := 0
	for _, field := range all {
		if left[field] {
			t.Errorf("no edit changes %s", field)
		} else if otherwise[field] == "" {
			edited++
		}
	}
	t.Logf("%d edits of %d of %d fields", len(table), edited, len(all))
}
