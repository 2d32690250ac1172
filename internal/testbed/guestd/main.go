// Command guestd is the init of the test guest. The kernel command line says
// what it does, so that one initramfs serves every test; it tells what it sees
// and does in lines on the serial console.
//
//	rt.mode=idle|writer|fs    default idle
//	rt.disk=DISK[,DISK]       for writer and fs: /dev/vda, serial:S or all;
//	                          a disk may come, go and come back at any time
//	rt.interval=50ms          between two records
//	rt.blocks=4096            the writer's ring, in blocks of 4 KiB
//	rt.net=dhcp               ask for an address on every NIC
//	rt.addr.eth0=10.0.0.2/24  or have this one
//	rt.onpower=ignore         do not react to the power button
//	rt.cidata=show            tell what is on the seed of cloud-init
//
// Every word of a line is separated by one space:
//
//	GUEST up boot=ID mode=MODE
//	DISK add|change vda serial=S size=BYTES · DISK remove vda
//	NIC add eth0 mac=M · NIC remove eth0 · ADDR eth0 10.0.2.15/24
//	CPU online=N · MEM bytes=N
//	WRITER start vda serial=S writer=W from=I · REC I vda S · WRITER stop vda serial=S: why
//	FS step … · FS ok files=N sum=SHA256 · FS fail: why
//	CIDATA NAME "TEXT" · CIDATA fail: why
//	POWER button · POWER ignored · GUEST poweroff
//
// A line typed on the console is run by the shell and answered with EXIT N;
// poweroff, reboot and panic do what they say.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	console := &console{f: os.Stdout}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guestd: not the init of a guest")
		os.Exit(1)
	}
	if err := boot(); err != nil {
		console.say("GUEST error: %v", err)
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		console.say("GUEST error: %v", err)
	}
	g := newGuest(console, parseConfig(string(cmdline)))
	g.run()
}

// guest is one boot.
type guest struct {
	*console
	cfg config

	stopping chan struct{}  // closed when the guest goes down
	stop     sync.Once      // closes stopping
	writers  sync.WaitGroup // record writers under way

	mu    sync.Mutex
	disks map[string]*disk // by name
}

func newGuest(c *console, cfg config) *guest {
	return &guest{console: c, cfg: cfg, stopping: make(chan struct{}), disks: map[string]*disk{}}
}

func (g *guest) run() {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		g.say("GUEST error: %v", err)
	}
	g.say("GUEST up boot=%s mode=%s", strings.TrimSpace(string(id)), g.cfg.mode)
	switch g.cfg.mode {
	case "idle", "writer", "fs":
	default:
		g.say("GUEST error: unknown rt.mode %q", g.cfg.mode)
	}
	go g.watchPower()
	go g.readCommands()
	g.watchDevices() // for as long as the guest lives
}

// console writes whole lines, whoever calls.
type console struct {
	mu sync.Mutex
	f  *os.File
}

func (c *console) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.f, format+"\n", args...)
}

// readCommands serves whoever types on the console.
func (g *guest) readCommands() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch line := strings.TrimSpace(in.Text()); line {
		case "":
		case "poweroff":
			g.down(unix.LINUX_REBOOT_CMD_POWER_OFF)
		case "reboot":
			g.down(unix.LINUX_REBOOT_CMD_RESTART)
		case "panic":
			if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
				g.say("GUEST error: %v", err)
			}
		default:
			out, err := exec.Command("/bin/sh", "-c", line).CombinedOutput()
			for text := range strings.Lines(string(out)) {
				g.say("%s", strings.TrimRight(text, "\r\n"))
			}
			code := 0
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				code = 127
			}
			g.say("EXIT %d", code)
		}
	}
}

// down ends the guest the way cmd says. A disk that answers nothing holds it
// up for a few seconds only, as an init system's stop timeout would.
func (g *guest) down(cmd int) {
	g.stop.Do(func() { close(g.stopping) })
	within(5*time.Second, g.writers.Wait)
	within(5*time.Second, unix.Sync)
	switch cmd {
	case unix.LINUX_REBOOT_CMD_POWER_OFF:
		g.say("GUEST poweroff")
	default:
		g.say("GUEST reboot")
	}
	if err := unix.Reboot(cmd); err != nil {
		g.say("GUEST error: reboot: %v", err)
	}
}

// within waits for f at most d and leaves it behind after that.
func within(d time.Duration, f func()) {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}
