package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// canaries are what must never be seen: the values of the fixtures of package
// secret, and the key that decrypts them.
var canaries = []string{
	"canary-one-7d793037a076", "canary-two-8277e0910d75", "canary-meta-0cc175b9c0f1", "canary-token-92eb5ffee6ae", "AGE-SECRET-KEY-1",
}

// sealed is a Secret named web, as sops wrote it.
func sealed(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "secret", "testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// newSecretWorld is a world whose host has an age key.
func newSecretWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.ageKey("host")
	w.config("secrets: {ageKeyFile: " + w.file("age.txt") + "}\n")
	w.write("secret.yaml", sealed(t, "machine"))
	return w
}

// ageKey gives the host one of the fixtures' keys.
func (w *world) ageKey(name string) {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "secret", "testdata", name+".txt"))
	w.must(err)
	w.must(os.WriteFile(w.file("age.txt"), data, 0o600))
}

const (
	showSeed   = "rt.cidata=show"
	secretSeed = "cloudInit: {userData: {secret: web, key: user-data}, metaData: {secret: web, key: meta-data}, networkConfig: {inline: \"version: 2\"}}"
)

// pid is the process of a machine; the test fails if it has none.
func (w *world) pid(name string) int {
	w.t.Helper()
	uid := w.uid("VirtualMachine/" + name)
	for _, p := range w.qemus() {
		if strings.Contains(p.Cmdline, " -uuid "+uid+" ") {
			return p.PID
		}
	}
	w.t.Fatalf("%s has no process", name)
	return 0
}

// The guest is told what the Secret says. A changed value waits for a restart,
// which brings it; a key for another host changes nothing that runs.
func TestSecretReachesTheGuest(t *testing.T) {
	w := newSecretWorld(t)
	w.write("vm.yaml", disk("root", "16Mi")+vm("web", showSeed, "disks: [{disk: root}], "+secretSeed))
	w.commit("a machine with a secret")
	w.start()
	w.reconcile()
	w.settled()
	serial := w.serial("web")
	meta := serial.Wait(t, `^CIDATA meta-data "(.*)"$`, bootTime)[1]
	if !strings.Contains(meta, "role: canary-meta-0cc175b9c0f1") || !strings.Contains(meta, `local-hostname: \"web\"`) || !strings.Contains(meta, w.uid("VirtualMachine/web")) {
		t.Errorf("the meta-data is %s", meta)
	}
	serial.Wait(t, `^CIDATA network-config "version: 2"$`, 20*time.Second)
	serial.Wait(t, `^CIDATA user-data "#cloud-config\\n# canary-one-7d793037a076\\n"$`, 20*time.Second)
	first := w.pid("web")

	w.write("secret.yaml", sealed(t, "machine-recipient"))
	w.commit("another host may decrypt it")
	w.reconcile()
	w.settled()
	if w.pid("web") != first {
		t.Error("a new recipient restarted the machine")
	}

	w.write("secret.yaml", sealed(t, "machine-value"))
	rev := w.commit("another value")
	w.reconcile()
	p := w.plan()
	const want = `VirtualMachine/web spec.cloudInit.userData.key: user-data`
	if got := strings.Join(lines(&p), "\n"); !strings.Contains(got, want) || !strings.Contains(got, "VirtualMachine/web update restart waiting") || p.Revision != rev {
		t.Errorf("the plan of another value is\n%s", got)
	}
	if w.pid("web") != first {
		t.Error("another value restarted the machine by itself")
	}
	w.kill()
	w.start()
	w.reconcile()
	w.cli("restart", "vm/web")
	w.reconcile()
	w.settled()
	serial.Wait(t, `^CIDATA user-data "#cloud-config\\n# canary-two-8277e0910d75\\n"$`, bootTime)

	// The agent is gone and the cache has the tree: machines start without Git.
	w.write("secret.yaml", sealed(t, "machine-rotated"))
	w.write("vm.yaml", strings.Replace(disk("root", "16Mi")+vm("web", showSeed, "disks: [{disk: root}], "+secretSeed), "metaData: {secret: web, key: meta-data}", `metaData: {inline: "{instance-id: mine}"}`, 1))
	w.commit("own instance-id")
	w.reconcile()
	w.stop()
	w.must(os.Rename(w.bare, w.bare+".away"))
	before := w.qemus()
	for _, p := range before {
		w.must(signalKill(p.PID))
	}
	w.start()
	serial.Wait(t, `^CIDATA meta-data "instance-id: mine\\nlocal-hostname: \\"web\\"\\n"$|^CIDATA meta-data "{instance-id: mine, local-hostname: \\"web\\"}\\n"$`, bootTime)
	serial.Wait(t, `^CIDATA user-data "#cloud-config\\n# canary-one-7d793037a076\\n"$`, 20*time.Second)
	w.must(os.Rename(w.bare+".away", w.bare))
}

func signalKill(pid int) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

// What is edited in a Secret by hand is seen, and touches no machine that runs.
// (None could start with it: the file is authenticated as a whole.)
func TestSecretEdits(t *testing.T) {
	w := newSecretWorld(t)
	tree := func(secret string) {
		w.write("vm.yaml", vm("web", "", "cloudInit: {userData: {secret: "+secret+", key: user-data}}"))
	}
	tree("web")
	w.commit("a machine with a secret")
	w.start()
	w.reconcile()
	w.settled()
	first := w.pid("web")
	const digest = `sops: sha256:[0-9a-f]{8} → sha256:[0-9a-f]{8} none`
	for _, c := range []struct {
		name, metadata, data, secret string
		plan                         []string // expressions, one a line
	}{
		{"label", "labels: {tier: a}", "", "web", []string{`Secret/web metadata.labels\[tier\]: → a none`, `Secret/web ` + digest, `Secret/web update none ready`}},
		{"annotation", "labels: {tier: a}\n    annotations: {x: y}", "", "web", []string{`Secret/web metadata.annotations\[x\]: → y none`, `Secret/web ` + digest, `Secret/web update none ready`}},
		{"drift", "labels: {tier: a}\n    annotations: {x: y}\n    drift: Off", "", "web", []string{`Secret/web metadata.drift: → Off none`, `Secret/web ` + digest, `Secret/web update none ready`}},
		{"value that nobody uses", "drift: Correct", "token", "web", []string{
			`Secret/web metadata.annotations\[x\]: y → none`, `Secret/web metadata.drift: Off → Correct none`, `Secret/web metadata.labels\[tier\]: a → none`,
			`Secret/web ` + digest, `Secret/web spec.data\[token\]: \(sensitive\) \([0-9a-f]{8}\) → \(sensitive\) \([0-9a-f]{8}\) none`, `Secret/web update none ready`}},
		{"name", "drift: Correct\n    movedFrom: [web]", "token", "db", []string{`Secret/db metadata.movedFrom: → web none`, `Secret/db metadata.name: web → db none`, `Secret/db ` + digest, `Secret/db update none ready`}},
		{"incarnation", "drift: Correct\n    movedFrom: [web]\n    incarnation: 1", "token", "db", []string{
			`Secret/db create none ready`, `Secret/db delete none ready`,
			`VirtualMachine/web spec.cloudInit.userData.secret: web → db restart`, `VirtualMachine/web update restart waiting`}},
	} {
		text := strings.Replace(sealed(t, "machine"), "    name: web\n", "    name: "+c.secret+"\n    "+c.metadata+"\n", 1)
		if c.data != "" {
			text = strings.Replace(text, c.data+": ENC[AES256_GCM,data:", c.data+": ENC[AES256_GCM,data:AAAA", 1)
		}
		w.write("secret.yaml", text)
		tree(c.secret)
		p := w.plan("--rev", w.propose(c.name))
		got, want := strings.Join(lines(&p), "\n"), "^"+strings.Join(c.plan, "\n")+"$"
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: the plan is\n%s\nwant\n%s", c.name, got, want)
		}
		w.git("push", "-q", "origin", "HEAD:main")
		w.reconcile()
		if w.pid("web") != first {
			t.Fatalf("%s: the machine was restarted", c.name)
		}
		if c.name != "incarnation" {
			w.settled()
		}
	}
}

// propose commits the work tree where the agent does not look by itself.
func (w *world) propose(message string) string {
	w.t.Helper()
	w.git("add", "-A")
	w.git("commit", "-q", "-m", message)
	w.git("push", "-q", "-f", "origin", "HEAD:refs/heads/next")
	return w.git("rev-parse", "HEAD")
}

// A Secret that cannot be decrypted holds up the machines that need it to
// start, says why, and nothing else: what runs goes on, others are changed.
func TestSecretThatCannotBeRead(t *testing.T) {
	w := newSecretWorld(t)
	// Nobody waits for a guest that has not booted yet and hears no button.
	impatient := strings.NewReplacer("timeout: 30s", "timeout: 1s")
	other := func(memory string) string { return strings.Replace(vm("other", "", ""), "128Mi", memory, 1) }
	tree := func(memory string) {
		w.write("vm.yaml", impatient.Replace(vm("web", "", secretSeed)+"---\n"+other(memory)))
	}
	tree("128Mi")
	w.commit("two machines")
	w.start()
	w.reconcile()
	w.settled()
	first := w.pid("web")

	tampered := strings.Replace(sealed(t, "machine"), "name: web", "name: web\n    labels: {a: b}", 1)
	for i, c := range []struct {
		name, why string
		break_    func()
		mend      func()
	}{
		{"no key", "no such file", func() { w.must(os.Remove(w.file("age.txt"))) }, func() { w.ageKey("host") }},
		{"readable key", "its mode is 0644 (chmod 600)", func() { w.must(os.Chmod(w.file("age.txt"), 0o644)) }, func() { w.must(os.Chmod(w.file("age.txt"), 0o600)) }},
		{"other key", "this host's age key is for none of the recipients", func() { w.ageKey("other") }, func() { w.ageKey("host") }},
		{"other recipient", "this host's age key is for none of the recipients", func() { w.write("secret.yaml", sealed(t, "machine-foreign")) }, func() { w.write("secret.yaml", sealed(t, "machine")) }},
		{"tampered", "its authentication code does not match", func() { w.write("secret.yaml", tampered) }, func() { w.write("secret.yaml", sealed(t, "machine")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.break_()
			memory := fmt.Sprintf("%dMi", 144+16*i)
			tree(memory)
			w.commit(c.name)
			w.cli("reconcile", "--wait")
			w.cli("restart", "vm/web")
			w.cli("restart", "vm/other")
			w.await(passTime, "the other machine to have "+memory, func() bool {
				return strings.Contains(w.cli("describe", "vm/other"), memory) && !strings.Contains(w.cli("plan"), "VirtualMachine/other")
			})
			var out string
			w.await(passTime, "the machine to say what is wrong", func() bool {
				out = w.cli("describe", "vm/web")
				return strings.Contains(out, c.why)
			})
			for _, want := range []string{"Secret/web (secret.yaml)", c.why} {
				if !strings.Contains(out, want) {
					t.Errorf("what is said of the machine is without %q:\n%s", want, out)
				}
			}
			if now := w.pid("web"); now != first {
				t.Errorf("the machine was restarted: process %d, was %d", now, first)
			}
			w.clean(out)
			c.mend()
			w.commit("mended")
			w.await(passTime, "the restart to be carried out", func() bool {
				w.try("reconcile", "--wait")
				return w.pid("web") != first
			})
			w.settled()
			first = w.pid("web")
		})
	}
}

// What is secret is nowhere but in the guest: not in a file, a ref, a plan, a
// log or an error, whether it is decrypted or cannot be.
func TestSecretIsSeenNowhere(t *testing.T) {
	w := newSecretWorld(t)
	w.args = []string{"--log-level", "debug"}
	machine := strings.Replace(vm("web", "", "disks: [{disk: root}], "+secretSeed), "{name: web}", "{name: web, drift: Report}", 1)
	w.write("vm.yaml", disk("root", "16Mi")+machine)
	first := w.commit("a machine with a secret")
	w.start()
	w.reconcile()
	w.settled()
	w.serial("web").Wait(t, `^DISK add vdb serial=cidata`, bootTime)
	// The guest has it, and does not tell.
	w.types("web", "mkdir /tmp/s; mount -t iso9660 /dev/vdb /tmp/s && grep -q canary-one /tmp/s/user-data && echo IT IS THE'RE'")
	w.serial("web").Wait(t, `^IT IS THERE$`, 30*time.Second)
	if p := w.plan(); len(lines(&p)) > 0 {
		t.Errorf("the plan is %v", lines(&p))
	}
	w.nowhere(first)

	w.write("secret.yaml", sealed(t, "machine-value"))
	second := w.commit("another value")
	w.reconcile()
	w.qmp("web", "device_del", `{"id": "seed"}`)
	w.await(passTime, "the loss of the seed to be seen", func() bool {
		w.try("reconcile", "--wait")
		p := w.plan()
		return strings.Contains(strings.Join(lines(&p), "\n"), "spec.cloudInit.networkConfig.inline")
	})
	w.nowhere(first, second)

	w.ageKey("other")
	w.cli("restart", "vm/web")
	fails := func(why string) {
		t.Helper()
		w.await(passTime, "the restart to fail: "+why, func() bool { return strings.Contains(w.cli("events"), why) })
	}
	fails("this host's age key is for none of the recipients")
	w.write("secret.yaml", strings.Replace(sealed(t, "machine-value"), "name: web", "name: web\n    labels: {a: b}", 1))
	third := w.commit("tampered")
	w.ageKey("host")
	fails("its authentication code does not match")
	w.write("secret.yaml", "apiVersion: reconciler/v1alpha1\nkind: Secret\nmetadata: {name: web}\nspec: {data: {user-data: canary-one-7d793037a076, pin: canary-token-92eb5ffee6ae}}\n")
	w.commit("in the clear")
	out, code := w.try("reconcile", "--wait")
	if code == 0 || !strings.Contains(out, "is not encrypted") {
		t.Errorf("a Secret in the clear: %d\n%s", code, out)
	}
	w.clean(out)
	out, _ = w.try("status")
	w.clean(out)
	// It is in the repository now, by the hand of its owner: the rest is not
	// looked at any more but for what this host wrote.
	w.nowhere(first, second, third)
}

// clean fails if something that was printed has a secret in it.
func (w *world) clean(out string) {
	w.t.Helper()
	for _, c := range canaries {
		if strings.Contains(out, c) {
			w.t.Errorf("%s is in\n%s", c, out)
		}
	}
}

// nowhere looks for secrets in everything that the program wrote or prints.
func (w *world) nowhere(revisions ...string) {
	w.t.Helper()
	looked := 0
	look := func(where string, data []byte) {
		w.t.Helper()
		looked++
		for _, c := range canaries {
			if bytes.Contains(data, []byte(c)) {
				w.t.Errorf("%s is in %s", c, where)
			}
		}
	}
	for _, args := range [][]string{
		{"plan"}, {"plan", "-o", "markdown"}, {"plan", "-o", "json"}, {"get", "all"}, {"get", "all", "-o", "json"}, {"get", "all", "-o", "yaml"},
		{"get", "secrets", "-o", "json"}, {"describe", "vm/web"}, {"describe", "secret/web"}, {"status"}, {"status", "-o", "json"}, {"events"}, {"events", "-o", "json"},
		{"console", "web", "--log"},
	} {
		out, code := w.try(args...)
		if code != 0 && !strings.Contains(out, "is not encrypted") { // which the newest revision is refused for
			w.t.Errorf("reconciler %v: %d\n%s", args, code, out)
		}
		look("reconciler "+strings.Join(args, " "), []byte(out))
	}
	for _, rev := range revisions {
		for _, format := range []string{"text", "markdown", "json"} {
			out, _ := w.try("plan", "--rev", rev, "-o", format)
			look("the plan of "+rev+" as "+format, []byte(out))
		}
	}
	for _, dir := range []string{w.state(), filepath.Join(w.dir, "run"), w.log.Name()} {
		w.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err == nil {
				look(path, data)
			}
			return err
		}))
	}
	for _, p := range w.qemus() {
		for _, what := range []string{"cmdline", "environ"} {
			path := fmt.Sprintf("/proc/%d/%s", p.PID, what)
			data, err := os.ReadFile(path)
			w.must(err)
			look(path, data)
		}
	}
	// Every object of every ref but the branch that people push to.
	list := w.git("--git-dir", w.bare, "for-each-ref", "--format=%(refname)")
	refs := 0
	for ref := range strings.Lines(list) {
		if ref = strings.TrimSpace(ref); ref == "refs/heads/main" {
			continue
		}
		refs++
		for line := range strings.Lines(w.git("--git-dir", w.bare, "rev-list", "--objects", ref, "--not", "refs/heads/main")) {
			hash, name, _ := strings.Cut(strings.TrimSpace(line), " ")
			cmd := exec.Command("git", "--git-dir", w.bare, "cat-file", "-p", hash)
			data, err := cmd.Output()
			w.must(err)
			look(ref+" "+name, data)
		}
	}
	if refs == 0 || looked < 60 {
		w.t.Errorf("only %d things and %d refs were looked at", looked, refs)
	}
}

// types types a line on a machine's console.
func (w *world) types(name, line string) {
	w.t.Helper()
	serial := w.serial(name)
	serial.Skip()
	w.typeOn(w.uid("VirtualMachine/"+name), line)
	serial.Wait(w.t, regexp.QuoteMeta(line), 20*time.Second) // its echo
}

// qmp gives a machine's QEMU a command behind the agent's back.
func (w *world) qmp(name, command, arguments string) {
	w.t.Helper()
	conn, err := net.Dial("unix", w.state("vms", w.uid("VirtualMachine/"+name)+".qmp"))
	w.must(err)
	defer conn.Close()
	w.must(conn.SetDeadline(time.Now().Add(20 * time.Second)))
	in := bufio.NewReader(conn)
	for _, request := range []string{`{"execute": "qmp_capabilities"}`, fmt.Sprintf(`{"execute": %q, "arguments": %s}`, command, arguments)} {
		_, err = fmt.Fprintln(conn, request)
		w.must(err)
		for answer := ""; !strings.Contains(answer, `"return"`); {
			answer, err = in.ReadString('\n')
			w.must(err)
			if strings.Contains(answer, `"error"`) {
				w.t.Fatalf("%s: %s", request, answer)
			}
		}
	}
}
