package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"reconciler/internal/testbed"
	"reconciler/spec"
)

const nics = "nics: [{name: front, network: user}, {name: back, network: user}]"

// Never 7: guest and disk go on without the daemon, and without what keeps the
// target alive. Guards: the sessions of their own that QEMU, the target and its
// supervisor have. Then the host itself goes down and comes up, as another
// boot, while the forge is away: every machine is what it was.
func TestWithoutDaemonAndAfterReboot(t *testing.T) {
	w := newQuickWorld(t)
	bootID := filepath.Join(w.dir, "boot_id")
	w.must(os.WriteFile(bootID, []byte(uuid.NewString()+"\n"), 0o444))
	w.under = []string{"unshare", "-m", "--propagation", "private", "sh", "-c",
		`mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`, bootID}
	machine := func(disks string) string {
		return disk("first", "1Mi") + disk("root", "32Mi") + disk("late", "1Mi") +
			vm("app", "rt.mode=writer rt.disk=serial:"+spec.Serial(w.diskUID("root")), nics+", disks: ["+disks+"]")
	}
	w.write("app.yaml", machine("{disk: first}, {disk: root}"))
	w.apply0()
	serial := w.serial("app")
	serial.Wait(t, `^REC \d+ `, bootTime)
	// The slots come from the machine's history, not from its spec.
	w.write("app.yaml", machine("{disk: late}, {disk: root}"))
	w.apply("one disk goes, another comes")
	w.settled()
	vmUID := w.uid("VirtualMachine/app")
	qemu, slots := w.qemu(vmUID), w.slots("app")
	goesOn := func(what string) {
		t.Helper()
		s := w.quietSerial(vmUID)
		for range 3 {
			s.Wait(t, `^REC \d+ `, time.Minute)
		}
		if now := w.qemu(vmUID); now.PID != qemu.PID {
			t.Fatalf("%s: QEMU was %d, is %d", what, qemu.PID, now.PID)
		}
	}

	w.kill()
	goesOn("the agent is killed")
	was := w.target()
	w.signal(was, syscall.SIGKILL)
	w.await(20*time.Second, "another target, without an agent", func() bool {
		p := w.targets()
		return len(p) == 1 && p[0].PID != was.PID
	})
	goesOn("the target is killed while no agent runs")
	keepers := w.supervisors()
	if len(keepers) != 1 {
		t.Fatalf("supervisors: %v", keepers)
	}
	w.signal(keepers[0], syscall.SIGKILL)
	was = w.target()
	goesOn("its supervisor is killed")
	w.start()
	w.reconcile()
	w.settled()
	w.await(20*time.Second, "another supervisor", func() bool { return len(w.supervisors()) == 1 })
	if now := w.target(); now.PID != was.PID {
		t.Errorf("the target was %d, is %d: it was not adopted", was.PID, now.PID)
	}
	w.signal(w.target(), syscall.SIGKILL)
	goesOn("the adopted target is killed")
	w.stop()
	goesOn("the agent is stopped")

	logs := filepath.Join(w.dir, "before.log")
	w.copy(w.state("vms", vmUID+".console.log"), logs)
	w.must(testbed.KillAll(w.dir))
	w.must(os.RemoveAll(filepath.Join(w.dir, "run")))
	w.must(os.WriteFile(bootID, []byte(uuid.NewString()+"\n"), 0o444))
	w.must(os.Rename(w.bare, w.bare+".away"))
	// The host has a newer QEMU now, say: what is recorded is an older machine.
	w.edit(w.state("vms", vmUID+".json"), func(m map[string]any) { m["machine"] = "pc-q35-7.1" })

	w.start()
	w.quietSerial(vmUID).Wait(t, `^WRITER start .* from=[1-9]`, bootTime)
	if w.stalled() != "FetchFailed" {
		t.Errorf("stalled: %q; the repository is away", w.stalled())
	}
	if p := w.qemu(vmUID); p.PID == 0 || !strings.Contains(p.Cmdline, "pc-q35-7.1") {
		t.Errorf("it came back as %v; its machine was pc-q35-7.1", p)
	}
	if now := w.slots("app"); now != slots {
		t.Errorf("the guest finds its devices at\n%s\nand had them at\n%s", now, slots)
	}
	if n := len(w.qemus()); n != 1 {
		t.Errorf("%d QEMU run after the reboot, want 1: the other machine is off", n)
	}
	w.must(os.Rename(w.bare+".away", w.bare))
	w.reconcile()
	w.settled()
	qemu = w.qemu(vmUID)
	goesOn("the repository is back")
	w.stop()
	w.must(testbed.KillAll(w.dir))
	if err := testbed.CheckLogs(w.volume(w.diskUID("root")), spec.Serial(w.diskUID("root")), logs, w.state("vms", vmUID+".console.log")); err != nil {
		t.Error(err)
	}
}

// diskUID is the identity that a disk of the world has or will have.
func (w *world) diskUID(name string) string {
	return spec.UID(w.clusterID(), spec.KindDisk, spec.Meta{Name: name})
}

// supervisors are the processes that keep the target running.
func (w *world) supervisors() []testbed.Process {
	w.t.Helper()
	all, err := testbed.Processes(w.dir)
	w.must(err)
	var list []testbed.Process
	for _, p := range all {
		if strings.Contains(p.Cmdline, "--supervise") {
			list = append(list, p)
		}
	}
	return list
}

// quietSerial is the console log of a machine from now on; no agent is asked.
func (w *world) quietSerial(uid string) *testbed.Serial {
	s := testbed.NewSerial(w.state("vms", uid+".console.log"))
	s.Skip()
	return s
}

// slots are the places of a guest's disks and cards on the bus, by serial number
// and address, as the guest finds them.
func (w *world) slots(name string) string {
	w.t.Helper()
	uid := w.uid("VirtualMachine/" + name)
	s := w.quietSerial(uid)
	w.typeOn(uid, `for d in /sys/class/block/vd* /sys/class/net/eth*; do echo SLOT $(cat $d/serial $d/address 2>/dev/null) $(readlink -f $d/device/..); done`)
	var found []string
	for range 4 {
		found = append(found, s.Wait(w.t, `^SLOT (\S+ \S+)$`, time.Minute)[1])
	}
	slices.Sort(found)
	return strings.Join(found, "\n")
}

// A pool runs full under a guest that writes: the guest is paused and goes on
// when there is room, no record it was told of is lost, and the rest of the
// host can be changed meanwhile.
func TestFullPool(t *testing.T) {
	w := newQuickWorld(t)
	pool := filepath.Join(w.dir, "small")
	w.must(os.Mkdir(pool, 0o700))
	const size = 64 << 20
	w.must(syscall.Mount("none", pool, "tmpfs", 0, "size="+strconv.Itoa(size)))
	t.Cleanup(func() {
		if w.agent != nil {
			w.kill()
		}
		if err := testbed.KillAll(w.dir); err != nil {
			t.Error(err)
		}
		if err := syscall.Unmount(pool, 0); err != nil {
			t.Errorf("unmount the pool: %v", err)
		}
	})
	w.hostConfig("interval: 2s\nlimits: {budget: {count: 100}}\nallowed: {roots: [" + w.dir + "]}\n")
	_, rest, _ := strings.Cut(w.base(), "kind: StoragePool")
	doc, _, _ := strings.Cut(rest, "---\n")
	doc = strings.NewReplacer("{name: fast}", "{name: small}", "path: pools/fast", "path: "+pool).Replace(doc)
	w.write("small.yaml", "apiVersion: reconciler/v1alpha1\nkind: StoragePool"+doc)
	on := func(doc string) string { return strings.Replace(doc, "pool: fast", "pool: small", 1) }
	w.write("app.yaml", on(disk("app", "32Mi"))+
		vm("app", "rt.mode=writer rt.disk=/dev/vda rt.interval=2ms", "disks: [{disk: app}]"))
	w.write("goes.yaml", on(disk("goes", "1Mi"))+off("goes", "goes"))
	w.apply0()
	uid, dk := w.uid("VirtualMachine/app"), w.uid("Disk/app")
	serial := w.serial("app")
	serial.Wait(t, `^REC 5 `, bootTime)
	qemu := w.qemu(uid)

	filler, err := os.Create(filepath.Join(pool, "filler"))
	w.must(err)
	defer filler.Close()
	var free syscall.Statfs_t
	w.must(syscall.Statfs(pool, &free))
	w.must(syscall.Fallocate(int(filler.Fd()), 0, 0, int64(free.Bavail)*free.Bsize-256<<10))
	w.says(uid, "is full")
	if o := w.byUID("all", uid); o.Status["power"] != "IOError" || o.Health != "Degraded" {
		t.Errorf("the machine on the full pool: %s, %v", o.Health, o.Status)
	}
	// To the last byte: what the control plane writes has its room set aside.
	buf := make([]byte, 4096)
	for err = nil; err == nil; _, err = filler.Write(buf) {
	}

	t.Log("change what can be changed meanwhile")
	goes := w.uid("Disk/goes")
	w.remove("goes.yaml")
	w.write("comes.yaml", disk("comes", "1Mi")+bios("comes", "disks: [{disk: comes}]"))
	w.apply("one machine goes with its disk, another comes")
	all := w.objects("all")
	if _, there := all["VirtualMachine/goes"]; there {
		t.Error("a machine cannot be deleted while a pool is full")
	}
	if w.byUID("quarantine", goes) == nil {
		t.Errorf("a disk cannot be taken away while its pool is full: %s", w.reason(goes))
	}
	if w.qemu(all["VirtualMachine/comes"].UID).PID == 0 {
		t.Error("a machine on another pool does not start")
	}
	w.kill() // over a restart of the agent
	w.start()
	w.says(uid, "is full")

	w.must(filler.Truncate(0))
	serial.Skip()
	serial.Wait(t, `^REC \d+ `, passTime)
	if now := w.qemu(uid); now.PID != qemu.PID {
		t.Errorf("QEMU was %d, is %d: the machine was not resumed but started again", qemu.PID, now.PID)
	}
	w.must(os.Remove(filler.Name()))
	w.reconcile()
	w.settled()
	w.stop()
	logs := w.state("vms", uid+".console.log")
	w.must(testbed.KillAll(w.dir))
	if err := testbed.CheckLogs(filepath.Join(pool, dk+".img"), spec.Serial(dk), logs); err != nil {
		t.Error(err)
	}
	if acks, err := testbed.Acks(spec.Serial(dk), logs); err != nil || len(acks) != 1 {
		t.Errorf("writers: %+v, %v; want one, which was paused and went on", acks, err)
	}
}
