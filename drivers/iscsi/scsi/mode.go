package scsi

import (
	"context"
	"encoding/binary"
	"slices"
	"sync/atomic"

	"github.com/gostor/gotgt/pkg/api"
	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// Mode pages (SPC-5 §7.5, SBC-4 §6.5).
const (
	pageReadWriteRecovery = 0x01
	pageCaching           = 0x08
	pageControl           = 0x0a
	pageExceptions        = 0x1c
	pageAll               = 0x3f
	subpageAll            = 0xff

	// Page control field of MODE SENSE (SPC-5 §6.14.1.3).
	modeCurrent    = 0
	modeChangeable = 1
	modeDefault    = 2
	modeSaved      = 3

	controlDSense = 0x04 // byte 2 of the control page
	controlSWP    = 0x08 // byte 4
)

// modePage is a page without subpages, its two header bytes left out.
type modePage struct {
	code       byte
	data       []byte
	changeable []byte
}

// modeParameters are what MODE SELECT may change. Each nexus has its own (SPC-5
// §7.7.11, told in VPD page 87h): what one initiator sets for itself must not stop
// another that shares the unit with it, and it ends with the session.
type modeParameters struct {
	swp       atomic.Bool
	descSense atomic.Bool
}

func (m *modeParameters) reset() {
	m.swp.Store(false)
	m.descSense.Store(false)
}

// modePages returns the pages in ascending order. Values that MODE SELECT may
// change are as current says, or with nil as they are after power-on.
func modePages(current *modeParameters) []modePage {
	recovery := make([]byte, 10)
	recovery[0] = 0x80 // AWRE: a write always lands somewhere good
	caching := make([]byte, 18)
	caching[0] = 0x04 // WCE: writes are in the page cache until flushed. RCD 0
	control := make([]byte, 10)
	changeable := make([]byte, 10)
	control[0] = 0x02                               // TST 0, GLTSD
	control[1] = 0x10                               // QUEUE ALGORITHM MODIFIER: unrestricted reordering
	binary.BigEndian.PutUint16(control[6:], 0xffff) // BUSY TIMEOUT PERIOD: no limit
	if current != nil && current.descSense.Load() {
		control[0] |= controlDSense
	}
	if current != nil && current.swp.Load() {
		control[2] |= controlSWP
	}
	changeable[0], changeable[2] = controlDSense, controlSWP
	exceptions := make([]byte, 10)
	exceptions[0] = 0x08 // DEXCPT: no informational exception is ever reported
	return []modePage{
		{pageReadWriteRecovery, recovery, make([]byte, 10)},
		{pageCaching, caching, make([]byte, 18)},
		{pageControl, control, changeable},
		{pageExceptions, exceptions, make([]byte, 10)},
	}
}

// modeSense is MODE SENSE(6) and (10), SPC-5 §6.14 and §6.15. gotgt puts header,
// block descriptor and pages together; the pages are ours.
func (d *Device) modeSense(_ context.Context, c *Command) outcome {
	code, control, sub := c.CDB[2]&0x3f, c.CDB[2]>>6, c.CDB[3]
	if control == modeSaved {
		return fail(illegal(gotgt.ASC_SAVING_PARMS_UNSUP))
	}
	if sub != 0 && sub != subpageAll {
		return fail(invalidCDB(3))
	}
	var current *modeParameters
	if control == modeCurrent {
		current = &c.Nexus.mode
	}
	pages := modePages(current)
	if code != pageAll {
		pages = slices.DeleteFunc(pages, func(p modePage) bool { return p.code != code })
		if len(pages) == 0 {
			return fail(invalidCDB(2))
		}
	}
	cdb := slices.Clone(c.CDB)
	cdb[2] = control<<6 | pageAll
	allocation, header := int(cdb[4]), 1
	if cdb[0] == opModeSense10 {
		allocation, header = allocation16(cdb, 7), 2
		cdb = withAllocation(cdb, 7, 2)
	} else {
		cdb[4] = 0xff
	}
	data, f := d.gotgt.ask(d.Size(), cdb, func(lu *api.SCSILu) {
		lu.ModePages = lu.ModePages[:0]
		for _, p := range pages {
			lu.ModePages = append(lu.ModePages, api.ModePage{
				PageCode: p.code, Size: uint8(len(p.data)), Data: slices.Concat(p.data, p.changeable),
			})
		}
		lu.ModeBlockDescriptor = d.blockDescriptor()
		// WP says whether a write would be refused, be it by the medium, by the
		// software write protection or for this initiator only.
		lu.Attrs.Readonly = d.protected(c.Nexus)
	})
	if f.failed() {
		return fail(f)
	}
	n := header + int(data[0])
	if header == 2 {
		n = header + int(binary.BigEndian.Uint16(data))
	}
	return reply(c, data[:n], allocation)
}

// blockDescriptor is the short LBA mode parameter block descriptor, SBC-4 §6.5.
func (d *Device) blockDescriptor() []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint32(b, uint32(min(d.blocks(), 0xffffffff)))
	binary.BigEndian.PutUint32(b[4:], uint32(d.cfg.BlockSize))
	return b
}

// modeSelect is MODE SELECT(6) and (10), SPC-5 §6.12 and §6.13. Nothing is
// changed unless all of the list is acceptable.
func (d *Device) modeSelect(_ context.Context, c *Command) outcome {
	o := outcome{want: d.OutLen(c.CDB)}
	// Parameters are in page format (PF), and none can be saved (SP).
	if c.CDB[1]&0x11 != 0x10 {
		o.fault = invalidCDB(1)
		return o
	}
	if o.want == 0 {
		return o
	}
	list := c.Out[:min(len(c.Out), o.want)]
	header, descriptors := 4, 3
	if c.CDB[0] == opModeSelect10 {
		header, descriptors = 8, 7
	}
	if len(list) < o.want || len(list) < header {
		o.fault = illegal(gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
		return o
	}
	at := header + int(list[descriptors])
	switch {
	case header == 8 && list[6] != 0, at != header && at != header+8:
		o.fault = invalidParameter(descriptors)
	case at > len(list):
		o.fault = illegal(gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
	case at > header && int(list[header+5])<<16|int(binary.BigEndian.Uint16(list[header+6:])) != d.cfg.BlockSize:
		o.fault = invalidParameter(header + 5)
	default:
		o.fault = c.Nexus.mode.set(list, at)
	}
	return o
}

// set applies the pages of a MODE SELECT list, which begin at byte at.
func (m *modeParameters) set(list []byte, at int) fault {
	swp, desc := m.swp.Load(), m.descSense.Load()
	pages := modePages(m)
	for at < len(list) {
		if len(list) < at+2 {
			return illegal(gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
		}
		if list[at]&0x40 != 0 { // SPF: there are no subpages
			return invalidParameter(at)
		}
		i := slices.IndexFunc(pages, func(p modePage) bool { return p.code == list[at]&0x3f })
		if i < 0 {
			return invalidParameter(at)
		}
		p := pages[i]
		if int(list[at+1]) != len(p.data) {
			return invalidParameter(at + 1)
		}
		data := list[at+2:]
		if len(data) < len(p.data) {
			return illegal(gotgt.ASC_PARAMETER_LIST_LENGTH_ERR)
		}
		data = data[:len(p.data)]
		for i, b := range data {
			if (b^p.data[i])&^p.changeable[i] != 0 {
				return invalidParameter(at + 2 + i)
			}
		}
		if p.code == pageControl {
			desc, swp = data[0]&controlDSense != 0, data[2]&controlSWP != 0
		}
		at += 2 + len(data)
	}
	m.swp.Store(swp)
	m.descSense.Store(desc)
	return good
}
