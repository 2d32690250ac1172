package kvm

import (
	"fmt"

	"reconciler/spec"
)

const (
	sparePorts = 8 // free root ports of a new process, for devices plugged in later
	maxPorts   = spec.MaxDevices
	firstSlot  = 2 // of pcie.0, which has room for 224; 1 has the random number generator
)

func diskDevice(entry string) string { return "disk-" + entry }
func nicDevice(entry string) string  { return "nic-" + entry }

// assign gives each device a root port. A device keeps the port it ever had,
// so that a guest finds its cards at the same addresses; a port of a device
// that is not in use is given away only when no other is left. limit is the
// number of ports.
func assign(slots map[string]int, inUse []string, device string, limit int) error {
	taken := map[int]bool{}
	for _, id := range inUse {
		if id != device {
			taken[slots[id]] = true
		}
	}
	if port, ok := slots[device]; ok && !taken[port] && port < limit {
		return nil
	}
	owned := map[int]string{}
	for id, port := range slots {
		owned[port] = id
	}
	for port := range limit {
		if _, ok := owned[port]; !ok {
			slots[device] = port
			return nil
		}
	}
	for port := range limit {
		if !taken[port] {
			delete(slots, owned[port])
			slots[device] = port
			return nil
		}
	}
	return fmt.Errorf("all %d PCI slots of the machine are in use", limit)
}

// plan assigns ports for a new process and returns how many it has: those of
// the devices and spares, never fewer than the guest had. Devices that never
// had a port get theirs in the order given, the spec's: a guest names its disks
// by the order of their ports.
func plan(slots map[string]int, devices []string, had int) (int, error) {
	limit := max(had, min(len(devices)+sparePorts, maxPorts))
	for i, id := range devices {
		if err := assign(slots, devices[:i], id, limit); err != nil {
			return 0, err
		}
	}
	return limit, nil
}

func portID(port int) string { return fmt.Sprintf("port%d", port) }

func portAddr(port int) string { return fmt.Sprintf("0x%x.%d", firstSlot+port/8, port%8) }
