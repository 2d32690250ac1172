package main

import (
	"strconv"
	"strings"
	"time"

	"reconciler/internal/testbed/record"
)

// config is what the kernel command line asks for.
type config struct {
	mode        string
	disks       []string // /dev/NAME, serial:S or all
	interval    time.Duration
	blocks      uint64
	dhcp        bool
	addrs       map[string]string // by interface
	ignorePower bool
	showSeed    bool
	bad         []string // words that could not be read
}

func parseConfig(cmdline string) config {
	c := config{
		mode:     "idle",
		interval: 50 * time.Millisecond,
		blocks:   record.DefaultRing,
		addrs:    map[string]string{},
	}
	for word := range strings.FieldsSeq(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		if !strings.HasPrefix(key, "rt.") {
			continue
		}
		ok := true
		switch key {
		case "rt.mode":
			c.mode = value
		case "rt.disk":
			c.disks = strings.Split(value, ",")
		case "rt.interval":
			d, err := time.ParseDuration(value)
			if ok = err == nil && d > 0; ok {
				c.interval = d
			}
		case "rt.blocks":
			n, err := strconv.ParseUint(value, 10, 32)
			if ok = err == nil && n >= 2; ok {
				c.blocks = n
			}
		case "rt.net":
			c.dhcp, ok = value == "dhcp", value == "dhcp"
		case "rt.cidata":
			c.showSeed, ok = value == "show", value == "show"
		case "rt.onpower":
			c.ignorePower, ok = value == "ignore", value == "ignore" || value == "poweroff"
		default:
			name, isAddr := strings.CutPrefix(key, "rt.addr.")
			if ok = isAddr && value != ""; ok {
				c.addrs[name] = value
			}
		}
		if !ok {
			c.bad = append(c.bad, word)
		}
	}
	return c
}

// wants reports whether the mode's work is to be done on this disk.
func (c config) wants(d *disk) bool {
	for _, name := range c.disks {
		if name == "all" || name == "/dev/"+d.name || name == "serial:"+d.serial {
			return true
		}
	}
	return false
}
