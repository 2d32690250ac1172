package scsi

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/gostor/gotgt/pkg/api"
	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// gotgtRoom is larger than any parameter data asked of gotgt, in bytes.
const gotgtRoom = 1024

// gotgtUnit is the logical unit as gotgt's SCSI layer knows it: a private target
// with one unit, in none of gotgt's global maps. Its commands are called through
// the device protocol's table.
//
// gotgt copies parameter data without looking at how much room there is, by the
// allocation length of the CDB. So it is always asked for all of it, into a
// buffer that is large enough, and the answer is truncated here. It keeps state
// in the unit without locking, hence mu.
type gotgtUnit struct {
	mu     sync.Mutex
	target *api.SCSITarget
	unit   *api.SCSILu
}

func newGotgtUnit(d *Device) *gotgtUnit {
	lu := &api.SCSILu{
		BlockShift:     d.shift,
		DeviceProtocol: gotgt.NewSBCDevice(api.TYPE_DISK),
	}
	// InitLu only fills fields in, and reports no error.
	_ = lu.DeviceProtocol.InitLu(lu)
	lu.Attrs.VendorID = d.cfg.Vendor
	lu.Attrs.ProductID = d.cfg.Product
	lu.Attrs.ProductRev = d.cfg.Revision
	lu.Attrs.Removable = d.cfg.Removable
	lu.Attrs.Online = true
	lu.Attrs.ThinProvisioning = d.thin
	for p := d.physical >> d.shift; p > 1; p >>= 1 {
		lu.Attrs.Lbppbe++
	}
	// The newest standards that initiators in the field know the codes of
	// (SPC-5 §6.7): SPC-4, SBC-3, SAM-5, iSCSI.
	lu.Attrs.VersionDesction = [8]uint16{0x0460, 0x04c0, 0x00a0, 0x0960}
	return &gotgtUnit{
		target: &api.SCSITarget{Name: d.cfg.TargetName, Devices: api.LUNMap{0: lu}, LUN0: lu},
		unit:   lu,
	}
}

// ask runs a CDB and returns what gotgt put into its buffer: gotgtRoom bytes, of
// which the caller takes as many as the data's own length says. prepare, which
// may be nil, sets the unit up for this one command.
func (g *gotgtUnit) ask(size int64, cdb []byte, prepare func(*api.SCSILu)) ([]byte, fault) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unit.Size = uint64(size)
	if prepare != nil {
		prepare(g.unit)
	}
	cmd := &api.SCSICommand{
		OpCode:      cdb[0],
		Target:      g.target,
		Device:      g.unit,
		SCB:         cdb,
		SCBLength:   len(cdb),
		InSDBBuffer: &api.SCSIDataBuffer{Buffer: make([]byte, gotgtRoom), Length: gotgtRoom},
	}
	op := g.unit.DeviceProtocol.PerformCommand(int(cdb[0])).(gotgt.SCSIDeviceOperation)
	if st := op.CommandPerformFunc(0, cmd); st.Err != nil {
		return nil, gotgtFault(st, cmd.SenseBuffer)
	}
	return cmd.InSDBBuffer.Buffer, good
}

// gotgtFault reads key and additional sense code back out of gotgt's fixed-format
// sense data.
func gotgtFault(st api.SAMStat, sense *api.SenseBuffer) fault {
	if st.Stat != StatusCheckCondition {
		return fault{status: st.Stat}
	}
	if sense == nil || len(sense.Buffer) < 14 {
		return check(gotgt.HARDWARE_ERROR, gotgt.ASC_INTERNAL_TGT_FAILURE)
	}
	return check(sense.Buffer[2]&0x0f, additionalSense(binary.BigEndian.Uint16(sense.Buffer[12:])))
}

// withAllocation is a copy of a CDB that asks for gotgtRoom bytes.
func withAllocation(cdb []byte, at, size int) []byte {
	cdb = slices.Clone(cdb)
	switch size {
	case 2:
		binary.BigEndian.PutUint16(cdb[at:], gotgtRoom)
	case 4:
		binary.BigEndian.PutUint32(cdb[at:], gotgtRoom)
	}
	return cdb
}
