package spec

import (
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// complete fills in defaults that follow from other fields of the same object.
func complete(s any) {
	switch s := s.(type) {
	case *Host:
		if s.Addresses.Storage == "" {
			s.Addresses.Storage = s.Addresses.Management
		}
		if s.Addresses.Migration == "" {
			s.Addresses.Migration = s.Addresses.Management
		}
	case *Disk:
		if s.Source.Image == "" {
			s.Source.Blank = &struct{}{}
		}
	case *VirtualMachine:
		if s.Boot.Kernel == nil && s.Boot.Firmware == "" {
			s.Boot.Firmware = FirmwareBIOS
		}
	}
}

// completeEntry does the same for the entry of a list.
func completeEntry(e any) {
	if d, ok := e.(*VMDisk); ok && d.Name == "" {
		d.Name = d.Disk
	}
}

// check holds the fields of an object against each other. Fields that could not
// be read are zero and prove nothing.
func (p *parser) check(o *Object, n *yaml.Node) {
	if last := len(o.Meta.MovedFrom) - 1; last >= 0 && o.Meta.MovedFrom[last] == o.Meta.Name {
		p.errAt(n, "metadata.movedFrom", last, "metadata.movedFrom ends with "+quote(o.Meta.Name)+", which is the name", "list former names only")
	}
	if s, ok := o.Spec.(*VirtualMachine); ok {
		p.checkMachine(n, s)
	}
}

func (p *parser) checkMachine(n *yaml.Node, s *VirtualMachine) {
	// A value that could not be read is zero; then the product is, too.
	count := s.CPU.Count()
	const most = 255
	if count > most {
		p.errAt(n, "spec.cpu", 0, "spec.cpu: "+strconv.Itoa(count)+" virtual CPUs are out of range", "sockets × cores × threads is at most "+strconv.Itoa(most))
	}
	if s.CPU.Max > 0 && count > 0 {
		switch block := s.CPU.Cores * s.CPU.Threads; {
		case s.CPU.Max < count:
			p.errAt(n, "spec.cpu.max", 0, "spec.cpu.max: "+strconv.Itoa(s.CPU.Max)+" is less than the "+strconv.Itoa(count)+" virtual CPUs the machine has", "")
		case s.CPU.Max%block != 0:
			p.errAt(n, "spec.cpu.max", 0, "spec.cpu.max: "+strconv.Itoa(s.CPU.Max)+" is not a multiple of "+strconv.Itoa(block), "CPUs come in whole sockets of cores × threads")
		}
	}
	p.checkCloudInit(n, s.CloudInit)
	if s.Memory.Max > 0 && s.Memory.Size > s.Memory.Max {
		p.errAt(n, "spec.memory.max", 0, "spec.memory.max: "+s.Memory.Max.String()+" is less than the size, "+s.Memory.Size.String(), "")
	}
	if s.Boot.Kernel == nil {
		const hint = "give boot.kernel, or leave it out"
		if s.Boot.Initrd != nil {
			p.errAt(n, "spec.boot.initrd", 0, "spec.boot.initrd needs a kernel", hint)
		}
		if s.Boot.Cmdline != "" {
			p.errAt(n, "spec.boot.cmdline", 0, "spec.boot.cmdline needs a kernel", hint)
		}
	} else if s.Boot.Firmware != "" {
		p.errAt(n, "spec.boot.firmware", 0, "spec.boot.firmware and spec.boot.kernel exclude each other", "remove one")
	}
	if has := len(s.Disks) + len(s.NICs); has > MaxDevices {
		at, i := "spec.nics[].name", MaxDevices-len(s.Disks)
		if i < 0 {
			at, i = "spec.disks[].disk", MaxDevices
		}
		p.errAt(n, at, i, strconv.Itoa(has)+" disks and NICs are more than a machine can have", "at most "+strconv.Itoa(MaxDevices)+" in all")
	}
	for i, d := range s.Disks {
		for _, e := range s.Disks[:i] {
			if d.Disk != "" && d.Disk == e.Disk && d.Name != e.Name {
				p.errAt(n, "spec.disks[].disk", i, "spec.disks["+d.Name+"].disk: "+quote(d.Disk)+" is attached as "+quote(e.Name)+" already", "a disk can be attached once")
				break
			}
		}
	}
	for i, c := range s.NICs {
		for _, e := range s.NICs[:i] {
			if c.MAC != "" && c.MAC == e.MAC {
				p.errAt(n, "spec.nics[].mac", i, "spec.nics["+c.Name+"].mac: "+c.MAC+" is the address of "+quote(e.Name)+" already", "")
				break
			}
		}
	}
}

// errAt reports an error at a field that was read, or else at what encloses it.
func (p *parser) errAt(root *yaml.Node, at string, entry int, msg, hint string) {
	for at != "" {
		for _, s := range p.seen {
			if s.field.path == at && (s.entry == entry || !s.field.inList && s.field.shape != shapeStrings) {
				p.at(s.node, msg, hint)
				return
			}
		}
		at = enclosing(at)
	}
	p.at(root, msg, hint)
}

// enclosing is the path of what a field stands in; empty for the document.
func enclosing(path string) string {
	return strings.TrimSuffix(path[:max(strings.LastIndexByte(path, '.'), 0)], "[]")
}
