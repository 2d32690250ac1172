package kvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"reconciler/drivers/kvm/qmp"
)

// Trace is something that was done to a machine past this driver.
type Trace struct {
	At   time.Time
	Text string
}

// Limits of what is kept of a machine.
const (
	maxTraces  = 8
	aftermath  = 300 * time.Millisecond // after an action of ours, in which it is what resumed the guest
	sameCause  = time.Second            // between QEMU's events of one cause
	asking     = 5 * time.Minute        // from the press of the power button to the end of the guest
	lastEvents = 500 * time.Millisecond // for the link of a process that is gone to take in its last events
)

// history is what is remembered of who did what to a machine. It is lost with
// the agent: nothing that is decided depends on it but whose doing an end was,
// which is recorded.
type history struct {
	acting bool      // an action of ours is under way
	acted  time.Time // the end of the last
	traces []Trace
	// cause is the last event that makes QEMU stop the guest by itself.
	cause time.Time
	// asked is how somebody asked for the end of a launch, past us.
	asked, askedLaunch string
	askedAt            time.Time
}

// Traces are the last things that were done to a machine past this driver, as
// far as QEMU's events told, and who is connected to its monitor right now.
func (d *Driver) Traces(uid string) []Trace {
	m := d.machine(uid)
	m.mu.Lock()
	list := slices.Clone(m.past.traces)
	l := m.link
	m.mu.Unlock()
	if l == nil {
		return list
	}
	if who := clients(l.proc.pid); who != "" {
		list = append(list, Trace{At: time.Now(), Text: "connected to QEMU's monitor: " + who})
	}
	return list
}

// begin and done enclose an action of ours.
func (m *machine) begin() { m.remember(func(h *history) { h.acting = true }) }

func (m *machine) done() {
	m.remember(func(h *history) { h.acting, h.acted = false, time.Now() })
}

func (m *machine) remember(change func(*history)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.past)
}

// askedFor says how somebody asked for the end of a launch; empty if nobody
// is known to have.
func (m *machine) askedFor(launch string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.past.askedLaunch != launch || time.Since(m.past.askedAt) > asking {
		return ""
	}
	return m.past.asked
}

// witness takes down what an event says somebody else did.
func (l *link) witness(e qmp.Event) {
	m := l.d.machine(l.uid)
	text := ""
	m.remember(func(h *history) {
		switch e.Name {
		case "BLOCK_IO_ERROR", "GUEST_PANICKED", "WATCHDOG", "RESET":
			h.cause = e.Time
		}
		resumed := e.Name == "RESUME" && e.Time.Before(h.acted.Add(aftermath))
		if h.acting || resumed {
			return
		}
		var asked string
		text, asked = h.tell(e)
		if asked != "" {
			h.asked, h.askedLaunch, h.askedAt = asked, l.proc.launch, e.Time
		}
	})
	if text == "" {
		return
	}
	told := Trace{At: e.Time, Text: text}
	m.remember(func(h *history) {
		h.traces = append(h.traces, told)
		if n := len(h.traces) - maxTraces; n > 0 {
			h.traces = slices.Delete(h.traces, 0, n)
		}
	})
	// Who it was takes a look through the process table.
	who := clients(l.proc.pid)
	if who == "" {
		return
	}
	m.remember(func(h *history) {
		if at := slices.Index(h.traces, told); at >= 0 {
			h.traces[at].Text += "; connected to its monitor then: " + who
		}
	})
}

// tell reads an event that no action of ours explains. asked is set if it asks
// for the end of the guest.
func (h *history) tell(e qmp.Event) (text, asked string) {
	var data struct {
		Device string
		Path   string
		Reason string
		Guest  bool
	}
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &data) != nil {
		return "", ""
	}
	switch e.Name {
	case "DEVICE_DELETED":
		if data.Device == "" {
			return "", ""
		}
		return "device " + data.Device + " was unplugged from QEMU", ""
	case "POWERDOWN":
		h.cause = e.Time
		asked = "somebody pressed the power button over QMP"
		return asked, asked
	case "SHUTDOWN":
		h.cause = e.Time
		if data.Reason == "host-qmp-quit" {
			asked = "somebody told QEMU to quit over QMP"
			return asked, asked
		}
	case "STOP":
		if e.Time.Sub(h.cause) > sameCause {
			return "the guest was paused over QMP", ""
		}
	case "RESUME":
		return "the guest was resumed over QMP", ""
	}
	return "", ""
}

// clients names the processes other than ours that are connected to the
// monitors of a QEMU: the peers of its Unix sockets (sock_diag(7)).
func clients(pid int) string {
	mine, err := sockets(pid)
	if err != nil {
		return ""
	}
	all, err := netlink.UnixSocketDiagInfo()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return ""
	}
	peers := map[string]bool{}
	for _, s := range all {
		if s.Name == nil || s.Peer == nil {
			continue
		}
		name, _, _ := strings.Cut(*s.Name, "\x00") // the library leaves what follows the attribute
		monitor := strings.HasSuffix(name, "/qmp") || strings.HasSuffix(name, ".qmp")
		if monitor && *s.Peer != 0 && mine[inodeName(s.DiagMsg.INode)] {
			peers[inodeName(*s.Peer)] = true
		}
	}
	if len(peers) == 0 {
		return ""
	}
	var names []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		other, _ := strconv.Atoi(filepath.Base(dir))
		if other == os.Getpid() || other == pid {
			continue
		}
		open, err := sockets(other)
		if err != nil {
			continue
		}
		for peer := range peers {
			if open[peer] {
				names = append(names, describeProcess(other))
				break
			}
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func inodeName(inode uint32) string { return fmt.Sprintf("socket:[%d]", inode) }

// sockets are the sockets that a process has open, as /proc names them.
func sockets(pid int) (map[string]bool, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	open := map[string]bool{}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			open[to] = true
		}
	}
	return open, nil
}

// unsetLogin is the login uid of a process that nobody's login led to.
const unsetLogin = "4294967295"

// describeProcess says what a process is and whose: its name, its uid, and the
// uid that somebody once logged in with, which su and sudo keep.
func describeProcess(pid int) string {
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
		return strings.TrimSpace(string(b))
	}
	uid := "?"
	for line := range strings.Lines(read("status")) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				uid = f[0]
			}
		}
	}
	s := fmt.Sprintf("%s (pid %d, uid %s", read("comm"), pid, uid)
	if login := read("loginuid"); login != "" && login != unsetLogin {
		s += ", logged in as uid " + login
	}
	return s + ")"
}

// lastWords waits until the events that a process sent before its end are taken in.
func (l *link) lastWords() {
	timer := time.NewTimer(lastEvents)
	defer timer.Stop()
	select {
	case <-l.ctx.Done():
	case <-timer.C:
	}
}
