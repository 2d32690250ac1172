package main

import (
	"bytes"
	"errors"
	"net"
	"os/exec"
	"strings"
)

// addNIC brings an interface up. IPv6 gives it a link-local address derived
// from its MAC, so it answers pings even where nothing else is configured.
func (g *guest) addNIC(name string) {
	if err := run("ip", "link", "set", name, "up"); err != nil {
		g.say("GUEST error: %v", err)
	}
	if name == "lo" {
		return
	}
	g.say("NIC add %s mac=%s", name, readAttr("/sys/class/net", name, "address"))
	switch addr := g.cfg.addrs[name]; {
	case addr != "":
		if err := run("ip", "addr", "add", addr, "dev", name); err != nil {
			g.say("GUEST error: %v", err)
			return
		}
		g.sayAddrs(name)
	case g.cfg.dhcp:
		go func() {
			err := run("udhcpc", "-f", "-q", "-i", name, "-t", "100", "-T", "1", "-s", "/etc/udhcpc")
			if err != nil {
				g.say("GUEST error: %v", err)
				return
			}
			g.sayAddrs(name)
		}()
	}
}

func (g *guest) sayAddrs(name string) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		g.say("GUEST error: %v", err)
		return
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		g.say("GUEST error: %v", err)
		return
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil {
			g.say("ADDR %s %s", name, ip)
		}
	}
}

// run runs a program to its end; its output is part of the error.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		words := strings.Join(append([]string{name}, args...), " ")
		return errors.New(words + ": " + err.Error() + ": " + string(bytes.TrimSpace(out)))
	}
	return nil
}
