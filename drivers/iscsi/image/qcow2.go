package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// qcow2 header, docs/interop/qcow2.txt of QEMU.
const (
	qcow2Magic        = 0x514649fb
	qcow2HeaderV2     = 72
	qcow2HeaderV3     = 104
	extensionBacking  = 0xe2792aca // backing file format name
	extensionDataFile = 0x44415441 // external data file name
	extensionCrypto   = 0x0537be77 // full disk encryption header
	incompatExternal  = 1 << 2
	// dirty, corrupt, compression type, extended L2 entries
	incompatKnown = 1<<0 | 1<<1 | 1<<3 | 1<<4
)

// checkQCOW2 reads the header of a qcow2 image and returns its virtual size. An
// image that refers to any other file is refused here, before a program opens
// it: with a backing or a data file it would read whatever its maker named.
func checkQCOW2(r io.ReaderAt) (virtual int64, err error) {
	head := make([]byte, 64<<10)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return 0, err
	}
	head = head[:n]
	be := binary.BigEndian
	if n < qcow2HeaderV2 || be.Uint32(head) != qcow2Magic {
		return 0, errors.New("it is not a qcow2 image")
	}
	version, length := be.Uint32(head[4:]), uint32(qcow2HeaderV2)
	switch {
	case version == 2:
	case version == 3 && n >= qcow2HeaderV3:
		length = be.Uint32(head[100:])
		incompatible := be.Uint64(head[72:])
		if incompatible&incompatExternal != 0 {
			return 0, errors.New("a qcow2 image with an external data file is refused")
		}
		if unknown := incompatible &^ incompatKnown; unknown != 0 {
			return 0, fmt.Errorf("qcow2 image has unknown incompatible features %#x", unknown)
		}
		if length < qcow2HeaderV3 {
			return 0, fmt.Errorf("qcow2 header of %d bytes", length)
		}
	default:
		return 0, fmt.Errorf("qcow2 version %d is not supported", version)
	}
	if be.Uint64(head[8:]) != 0 || be.Uint32(head[16:]) != 0 {
		return 0, errors.New("a qcow2 image with a backing file is refused")
	}
	if be.Uint32(head[32:]) != 0 {
		return 0, errors.New("an encrypted qcow2 image is refused")
	}
	if err := checkExtensions(head, int64(length)); err != nil {
		return 0, err
	}
	size := be.Uint64(head[24:])
	if size == 0 || size > 1<<62 {
		return 0, fmt.Errorf("qcow2 image with a virtual size of %d bytes", size)
	}
	return int64(size), nil
}

// checkExtensions walks the header extensions, which end with type 0 or with
// the first cluster.
func checkExtensions(head []byte, off int64) error {
	be := binary.BigEndian
	bits := be.Uint32(head[20:])
	if bits < 9 || bits > 21 {
		return fmt.Errorf("qcow2 cluster size of 2^%d bytes", bits)
	}
	end := int64(1) << bits
	for off+8 <= end {
		if off+8 > int64(len(head)) {
			return fmt.Errorf("the qcow2 header does not end within %d bytes", len(head))
		}
		kind, length := be.Uint32(head[off:]), int64(be.Uint32(head[off+4:]))
		switch kind {
		case 0:
			return nil
		case extensionBacking:
			return errors.New("a qcow2 image with a backing file is refused")
		case extensionDataFile:
			return errors.New("a qcow2 image with an external data file is refused")
		case extensionCrypto:
			return errors.New("an encrypted qcow2 image is refused")
		}
		off += 8 + (length+7)&^7
	}
	return nil
}
