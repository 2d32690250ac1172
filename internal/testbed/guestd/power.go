package main

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	evKey    = 1   // EV_KEY, linux/input-event-codes.h
	keyPower = 116 // KEY_POWER
)

// watchPower waits for the ACPI power button, which the kernel's button driver
// shows as an input device.
func (g *guest) watchPower() {
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(devices) == 0 {
		g.say("GUEST error: no power button")
		return
	}
	for _, name := range devices {
		f, err := os.Open(name)
		if err != nil {
			g.say("GUEST error: %v", err)
			continue
		}
		go func() {
			defer f.Close()
			for {
				pressed, err := readPowerKey(f)
				if err != nil {
					if !errors.Is(err, io.EOF) {
						g.say("GUEST error: %s: %v", name, err)
					}
					return
				}
				if !pressed {
					continue
				}
				g.say("POWER button")
				if g.cfg.ignorePower {
					g.say("POWER ignored")
					continue
				}
				g.down(unix.LINUX_REBOOT_CMD_POWER_OFF)
			}
		}()
	}
}

// readPowerKey reads one struct input_event (24 bytes on 64 bits: time, type,
// code, value) and reports whether it is the press of the power key.
func readPowerKey(r io.Reader) (bool, error) {
	var b [24]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return false, err
	}
	return binary.NativeEndian.Uint16(b[16:]) == evKey &&
		binary.NativeEndian.Uint16(b[18:]) == keyPower &&
		binary.NativeEndian.Uint32(b[20:]) == 1, nil
}
