package e2e

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"reconciler/internal/testbed"
)

// shortKills is how often the agent is killed in `make test`; `make soak` does
// it soakKills times.
const shortKills = 14

// The agent is killed while it carries out every kind of change: at a step it
// logs, or at a random moment. The next one must finish, the guest must not
// notice, and nothing may be left over.
func TestKillAgent(t *testing.T) { killAgent(t, shortKills) }

func killAgent(t *testing.T, kills int) {
	w := newWorld(t)
	config := filepath.Join(w.dir, "config.yaml")
	w.must(os.WriteFile(config, []byte("limits: {budget: {count: 100000}}\n"), 0o600))
	w.args = []string{"--config", config, "--log-level", "debug"}
	c := &cluster{web: []string{"root"}, other: []string{"olddata"}, sizes: map[string]int{"root": 64, "olddata": 16}}
	c.write(w)
	w.commit("begin")
	w.start()
	w.reconcile()
	w.serial("web").Wait(t, `REC 5 vda`, bootTime)
	w.serial("other").Wait(t, `DISK add vda`, bootTime)

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	steps := c.steps()
	killed := 0
	for i := 0; killed < kills; i++ {
		s := steps[i%len(steps)]
		s.change()
		c.write(w)
		// The agent sees the push by itself; kill it at the n-th line of what it
		// then logs, or a while later.
		lines := w.follow()
		w.commit(s.name)
		n, pause := rnd.IntN(14), time.Duration(rnd.Int64N(int64(150*time.Millisecond)))
		where := lines.after(n, pause)
		w.kill()
		killed++
		w.start()
		w.reconcile()
		w.settled()
		if err := c.check(w); err != nil {
			t.Fatalf("%s, killed after %q: %v\n%s", s.name, where, err, w.tail())
		}
	}
	c.checkWriter(w)
}

// cluster is what the crash tests declare: two machines that exchange disks,
// and one that comes and goes.
type cluster struct {
	web, other []string // disks
	guest      bool     // the machine that comes and goes, with its disk
	sizes      map[string]int
}

type step struct {
	name   string
	change func()
}

// steps come back to where they began, so that they can be repeated.
func (c *cluster) steps() []step {
	return []step{
		{"create a machine", func() { c.guest, c.sizes["guest"] = true, 16 }},
		{"attach", func() { c.web, c.sizes["data"] = append(c.web, "data"), max(16, c.sizes["data"]) }},
		{"grow", func() { c.sizes["data"] += 16 }},
		{"swap", func() { c.web, c.other = []string{"root", "olddata"}, []string{"data"} }},
		{"swap back", func() { c.web, c.other = []string{"root", "data"}, []string{"olddata"} }},
		{"move", func() { c.web, c.other = []string{"root"}, []string{"olddata", "data"} }},
		{"delete a machine", func() { c.guest = false; delete(c.sizes, "guest") }},
		{"detach", func() { c.other = []string{"olddata"} }},
	}
}

func (c *cluster) write(w *world) {
	w.t.Helper()
	var b strings.Builder
	for _, name := range []string{"root", "olddata", "data", "guest"} {
		if c.sizes[name] > 0 {
			b.WriteString(disk(name, fmt.Sprintf("%dMi", c.sizes[name])))
		}
	}
	list := func(disks []string) string {
		return "disks: [{disk: " + strings.Join(disks, "}, {disk: ") + "}], nics: [{name: n, network: user}]"
	}
	b.WriteString(vm("web", writer, list(c.web)))
	b.WriteString(vm("other", "rt.mode=idle", list(c.other)))
	if c.guest {
		// It is removed before its guest has booted far enough to hear the button.
		b.WriteString(strings.Replace(vm("guest", "rt.mode=idle", list([]string{"guest"})), "timeout: 30s", "timeout: 1s", 1))
	}
	w.write("vms.yaml", b.String())
}

// check finds what a crash may leave behind: a second QEMU, a missing one, a
// claim too many, a volume or an export nobody declared.
func (c *cluster) check(w *world) error {
	machines := 2
	if c.guest {
		machines++
	}
	byUUID := map[string]int{}
	for _, p := range w.qemus() {
		uuid := regexp.MustCompile(`-uuid (\S+)`).FindStringSubmatch(p.Cmdline)
		if uuid == nil {
			return fmt.Errorf("QEMU without a UUID: %s", p)
		}
		byUUID[uuid[1]]++
	}
	for uuid, n := range byUUID {
		if n != 1 {
			return fmt.Errorf("%d QEMU run for %s", n, uuid)
		}
	}
	if len(byUUID) != machines {
		return fmt.Errorf("%d machines run, want %d", len(byUUID), machines)
	}
	attached := map[string]string{}
	all := w.objects("all")
	claim := func(vm string, disks []string) {
		for _, d := range disks {
			attached["Disk/"+d] = all["VirtualMachine/"+vm].UID
		}
	}
	claim("web", c.web)
	claim("other", c.other)
	if c.guest {
		claim("guest", []string{"guest"})
	}
	for name, o := range all {
		if o.Kind != "Disk" || o.Quarantined {
			continue
		}
		by, _ := o.Status["claimedBy"].(string)
		if by != attached[name] {
			return fmt.Errorf("%s is claimed by %q, want %q", name, by, attached[name])
		}
		if n, _ := o.Status["sessions"].(float64); by != "" && n != 1 {
			return fmt.Errorf("%s has %v sessions, want 1", name, n)
		}
	}
	volumes, err := filepath.Glob(w.state("pools", "fast", "*.img"))
	w.must(err)
	known := len(c.sizes) + len(w.objects("quarantine"))
	if len(volumes) != known {
		return fmt.Errorf("%d volumes, of which %d are known", len(volumes), known)
	}
	p := w.plan()
	for _, u := range p.Unmanaged {
		// Machines of other tests are none of ours; anything else is a leak.
		if u.Kind != "Process" {
			return fmt.Errorf("left over: %s %s: %s", u.Kind, u.Name, u.Reason)
		}
	}
	return nil
}

// checkWriter compares what the guest's disk holds with what it was told is
// written.
func (c *cluster) checkWriter(w *world) {
	w.t.Helper()
	console := w.serialPath("web")
	all := w.objects("all")
	root := w.state("pools", "fast", all["Disk/root"].UID+".img")
	// What was acknowledged is looked at first: the guest goes on writing.
	data, err := os.ReadFile(console)
	w.must(err)
	last := regexp.MustCompile(`REC (\d+) vda`).FindAllStringSubmatch(string(data), -1)
	if len(last) == 0 {
		w.t.Fatal("the guest wrote nothing")
	}
	n, err := strconv.ParseUint(last[len(last)-1][1], 10, 64)
	w.must(err)
	w.must(testbed.CheckRecords(root, n))
	if strings.Count(string(data), "WRITER start") != 1 || strings.Contains(string(data), "WRITER error") {
		w.t.Errorf("the guest noticed:\n%s", strings.Join(regexp.MustCompile(`WRITER.*`).FindAllString(string(data), -1), "\n"))
	}
	w.t.Logf("%d records were acknowledged, none is missing", n)
}

// lineFollower reads what the agent logs from now on.
type lineFollower struct {
	w     *world
	lines chan string
	stop  chan struct{}
}

func (w *world) follow() *lineFollower {
	w.t.Helper()
	l := &lineFollower{w: w, lines: make(chan string, 4096), stop: make(chan struct{})}
	// tail knows about inotify, and ends with the agent.
	cmd := exec.Command("tail", "-n", "0", "-f", "--pid", strconv.Itoa(w.agent.Process.Pid), w.log.Name())
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(cmd.Start())
	go func() {
		defer close(l.lines)
		s := bufio.NewScanner(out)
		for s.Scan() {
			select {
			case l.lines <- s.Text():
			case <-l.stop:
			}
		}
		_ = cmd.Wait()
	}()
	return l
}

// after waits for the n-th line, or for the log to be quiet, then for a pause
// that moves the moment off the line itself.
func (l *lineFollower) after(n int, pause time.Duration) string {
	l.w.t.Helper()
	last := "the push"
	quiet := time.NewTimer(2 * time.Second)
	defer quiet.Stop()
	for i := 0; i < n; i++ {
		select {
		case line := <-l.lines:
			last = line
		case <-quiet.C:
			i = n
		}
	}
	moment := time.NewTimer(pause)
	defer moment.Stop()
	<-moment.C
	close(l.stop)
	return last
}
