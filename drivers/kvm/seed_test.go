package kvm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

// secretYAML is a Secret that nobody can decrypt; the rig hands its text out.
func secretYAML(name, data string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Secret\nmetadata: {name: %s}\n"+
		"spec: {data: {text: \"ENC[AES256_GCM,data:%s,iv:AAAA,tag:AAAA,type:str]\"}}\n"+
		"sops: {mac: x, lastmodified: x, age: [{recipient: x}]}\n", name, data)
}

const (
	seedCanary = "canary-5d41402abc4b2a76"
	seedYAML   = `cloudInit: {userData: {secret: s, key: text}, metaData: {inline: "{role: web}"}, networkConfig: {inline: "version: 2"}}`
	showSeed   = "rt.cidata=show"
)

// The guest reads the seed, also after the agent and the run directory are
// gone; it is the last disk, and it is written nowhere.
func TestSeed(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.User = &User{65534, 65534} })
	for _, dir := range []string{filepath.Dir(r.cfg.StateDir), r.cfg.StateDir} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	r.secrets = map[string]claim.Secret{"spec.cloudInit.userData": claim.NewSecret("#cloud-config\n# " + seedCanary + "\n")}
	web := vmYAML("web", showSeed, "disks: [{disk: root}]", seedYAML)
	r.up("web", diskYAML("root", "16Mi"), secretYAML("s", "AAAA"), web)
	uid := r.key("web").UID
	r.sees("web", `^DISK add vda serial=`+spec.Serial(r.uid(spec.KindDisk, "root")))
	r.sees("web", `^DISK add vdb serial=cidata`)
	meta := r.serial.Wait(t, `^CIDATA meta-data "(.*)"$`, 60*time.Second)[1]
	for _, want := range []string{"role: web", `instance-id: \"` + uid + `-`, `local-hostname: \"web\"`} {
		if !strings.Contains(meta, want) {
			t.Errorf("the meta-data is %s, without %s", meta, want)
		}
	}
	r.serial.Wait(t, `^CIDATA network-config "version: 2"$`, 20*time.Second)
	r.serial.Wait(t, `^CIDATA user-data "#cloud-config\\n# `+seedCanary+`\\n"$`, 20*time.Second)
	if list := r.plan(); len(list) > 0 {
		t.Fatalf("the plan is not empty:\n%s", describe(list))
	}
	before := r.vm("web")
	r.writtenNowhere(before.VM.PID)
	r.dumpedNowhere(before.VM.PID)

	// Another agent, no run directory, a guest that boots again.
	if err := os.RemoveAll(r.cfg.RunDir); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if live := r.vm("web"); live.VM.PID != before.VM.PID {
		t.Fatalf("after a new driver: %+v, before: %+v", live.VM, before.VM)
	}
	if list := r.plan(); len(list) > 0 {
		t.Fatalf("the plan of another agent is not empty:\n%s", describe(list))
	}
	r.reset("web")
	r.serial.Wait(t, `^CIDATA user-data ".*`+seedCanary, 60*time.Second)

	// Who takes the disk away is seen, and it is back at the next start.
	conn, err := r.d.machine(uid).link.connection(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Do(t.Context(), "device_del", map[string]any{"id": seedDevice}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the loss of the seed to be seen", func() error {
		list := r.plan()
		if len(list) != 1 || list[0].Cause != reconcile.CauseDrift || list[0].State != reconcile.Waiting || list[0].Impact != reconcile.ImpactRestart {
			return fmt.Errorf("the plan is\n%s", describe(list))
		}
		return nil
	})
}

// writtenNowhere fails if the seed's secret is in a file or a command line.
func (r *rig) writtenNowhere(pid int) {
	r.t.Helper()
	files := []string{fmt.Sprintf("/proc/%d/cmdline", pid), fmt.Sprintf("/proc/%d/environ", pid)}
	for _, dir := range []string{r.cfg.StateDir, r.cfg.RunDir} {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			// The guest of the tests tells its secrets on the console.
			if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".console.log") {
				files = append(files, path)
			}
			return err
		}); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		if strings.Contains(string(b), seedCanary) {
			r.t.Errorf("the secret is in %s", path)
		}
	}
}

// dumpedNowhere fails if a crash of QEMU would write the guest's memory, and
// with it what the guest read of its seed, to a core dump.
func (r *rig) dumpedNowhere(pid int) {
	r.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		r.t.Fatal(err)
	}
	memory := regexp.MustCompile(`(?s)\nSize: +131072 kB\n.*?VmFlags:([a-z ]*)\n`).FindStringSubmatch(string(b)) // 128Mi
	if memory == nil || !strings.Contains(memory[1]+" ", " dd ") {
		r.t.Errorf("the guest's memory goes into a core dump: %q", memory)
	}
}

// reset presses the guest's reset button.
func (r *rig) reset(name string) {
	r.t.Helper()
	conn, err := r.d.machine(r.key(name).UID).link.connection(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := conn.Do(r.t.Context(), "system_reset", nil, nil); err != nil {
		r.t.Fatal(err)
	}
}

// A changed text waits for a restart, which brings it, under another instance
// id; a restart for another reason does not change the id.
func TestSeedFollowsTheSpec(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	inline := func(text, memory string) string {
		y := vmYAML("web", showSeed, "cloudInit: {userData: {inline: \""+text+"\"}}", "updatePolicy: {restart: Manual}")
		return strings.Replace(y, "128Mi", memory, 1)
	}
	tell := func(text string) (id string) {
		t.Helper()
		meta := r.serial.Wait(t, `^CIDATA meta-data "(.*)"$`, 60*time.Second)[1]
		r.serial.Wait(t, `^CIDATA user-data "`+text+`"$`, 20*time.Second)
		_, id, _ = strings.Cut(meta, `instance-id: \"`)
		return id
	}
	again := func() {
		t.Helper()
		list := r.plan()
		if len(list) != 1 || list[0].State != reconcile.Waiting || list[0].Impact != reconcile.ImpactRestart {
			t.Fatalf("the plan is\n%s", describe(list))
		}
		a := list[0]
		for _, op := range []reconcile.Op{reconcile.OpStop, reconcile.OpStart} {
			a.Op, a.Have = op, r.vm("web")
			if err := r.apply(a); err != nil {
				t.Fatal(err)
			}
		}
		if list := r.plan(); len(list) > 0 {
			t.Fatalf("after the restart the plan is\n%s", describe(list))
		}
	}
	r.up("web", inline("one", "128Mi"))
	first := tell("one")
	r.declare(inline("one", "144Mi"))
	again()
	if id := tell("one"); id != first {
		t.Errorf("the instance id was %s and is %s", first, id)
	}
	r.declare(inline("two", "144Mi"))
	again()
	if id := tell("two"); id == first {
		t.Errorf("the instance id is still %s", id)
	}
	r.declare(strings.Replace(inline("", "144Mi"), `cloudInit: {userData: {inline: ""}}`, "", 1))
	again()
	r.serial.Wait(t, `^GUEST up`, 60*time.Second)
	if r.vm("web"); r.d.machine(r.key("web").UID).snapshot().Launch.Seed {
		t.Error("the machine still has a seed")
	}
}

// Without the text of a Secret nothing is started.
func TestNoSeedNoStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.declare(secretYAML("s", "AAAA"), vmYAML("web", "", seedYAML))
	list := r.plan()
	if len(list) != 1 {
		t.Fatal(describe(list))
	}
	if err := r.apply(list[0]); err == nil || !strings.Contains(err.Error(), "spec.cloudInit.userData: Secret s was not decrypted") {
		t.Errorf("error %v", err)
	}
	r.secrets = map[string]claim.Secret{"spec.cloudInit.userData": claim.NewSecret("x"), "spec.cloudInit.metaData": claim.NewSecret(seedCanary)}
	r.declare(secretYAML("s", "AAAA"), vmYAML("web", "", `cloudInit: {userData: {secret: s, key: text}, metaData: {secret: s, key: text}}`))
	err := r.apply(r.plan()[0])
	if err == nil || !strings.Contains(err.Error(), "not a YAML mapping") || strings.Contains(err.Error(), seedCanary) {
		t.Errorf("error %v", err)
	}
	r.noProcess()
}
