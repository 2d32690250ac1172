package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is a block device that is there now.
type disk struct {
	name   string
	serial string        // "-" where the device has none
	gone   chan struct{} // closed when it is removed
}

func (d *disk) path() string { return "/dev/" + d.name }

// uevent is a message of the kernel about a device.
type uevent map[string]string

// parseUevent reads a kernel uevent: "ACTION@PATH" and KEY=VALUE, each ended
// by a zero byte.
func parseUevent(msg []byte) uevent {
	ev := uevent{}
	for _, field := range bytes.Split(msg, []byte{0})[1:] {
		if key, value, ok := strings.Cut(string(field), "="); ok {
			ev[key] = value
		}
	}
	return ev
}

// watchDevices tells of every device that is there, then of every one that
// comes, changes or goes.
func (g *guest) watchDevices() {
	// Listening begins before looking, so that nothing falls between.
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	}
	if err != nil {
		g.say("GUEST error: uevents: %v", err)
		return
	}
	for _, word := range g.cfg.bad {
		g.say("GUEST error: cannot use %s", word)
	}
	g.sayMachine()
	for _, name := range names("/sys/class/net") {
		g.addNIC(name)
	}
	for _, name := range names("/sys/block") {
		g.addDisk(name)
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			// ENOBUFS: events were lost; the ones that follow still count.
			g.say("GUEST error: uevents: %v", err)
			continue
		}
		g.handle(parseUevent(buf[:n]))
	}
}

func (g *guest) handle(ev uevent) {
	switch action := ev["ACTION"]; ev["SUBSYSTEM"] {
	case "block":
		if ev["DEVTYPE"] != "disk" {
			return
		}
		switch action {
		case "add":
			g.addDisk(ev["DEVNAME"])
		case "change":
			g.sayDisk("change", ev["DEVNAME"])
		case "remove":
			g.removeDisk(ev["DEVNAME"])
		}
	case "net":
		switch action {
		case "add":
			g.addNIC(ev["INTERFACE"])
		case "remove":
			g.say("NIC remove %s", ev["INTERFACE"])
		}
	case "cpu":
		if action == "add" {
			online := filepath.Join("/sys", ev["DEVPATH"], "online")
			if err := os.WriteFile(online, []byte("1"), 0); err != nil {
				g.say("GUEST error: %v", err)
			}
		}
		g.sayMachine()
	case "memory":
		g.sayMachine()
	}
}

func (g *guest) addDisk(name string) {
	if virtual(name) {
		return
	}
	g.mu.Lock()
	if g.disks[name] != nil { // seen both by looking and by its event
		g.mu.Unlock()
		return
	}
	d := &disk{name: name, serial: diskSerial(name), gone: make(chan struct{})}
	g.disks[name] = d
	g.mu.Unlock()

	g.sayDisk("add", name)
	if d.serial == "cidata" { // not one of the machine's disks
		if g.cfg.showSeed {
			g.sayCloudInit(d)
		}
		return
	}
	if !g.cfg.wants(d) {
		return
	}
	switch g.cfg.mode {
	case "writer":
		g.writers.Go(func() { g.write(d) })
	case "fs":
		g.writers.Go(func() { g.useFileSystem(d) })
	}
}

func (g *guest) removeDisk(name string) {
	g.mu.Lock()
	d := g.disks[name]
	delete(g.disks, name)
	g.mu.Unlock()
	if d != nil {
		close(d.gone)
		g.say("DISK remove %s", name)
	}
}

func (g *guest) sayDisk(what, name string) {
	if virtual(name) {
		return
	}
	sectors, err := strconv.ParseUint(readAttr("/sys/block", name, "size"), 10, 64)
	if err != nil {
		g.say("GUEST error: size of %s: %v", name, err)
		return
	}
	g.say("DISK %s %s serial=%s size=%d", what, name, diskSerial(name), sectors*512)
}

func (g *guest) sayMachine() {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		g.say("GUEST error: %v", err)
		return
	}
	g.say("CPU online=%d", onlineCPUs(readAttr("/sys/devices/system/cpu/online")))
	g.say("MEM bytes=%d", info.Totalram*uint64(info.Unit))
}

// onlineCPUs counts a list such as "0-2,4".
func onlineCPUs(list string) int {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		if errA != nil || errB != nil {
			return runtime.NumCPU()
		}
		n += b - a + 1
	}
	return n
}

func diskSerial(name string) string {
	if s := readAttr("/sys/block", name, "serial"); s != "" {
		return s
	}
	return "-"
}

// virtual reports whether a block device is one of the kernel's own.
func virtual(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "dm-", "md"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func readAttr(elem ...string) string {
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		fmt.Fprintf(os.Stderr, "GUEST error: %v\n", err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
