package scsi

import (
	"errors"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
	"golang.org/x/sys/unix"
)

// readFault says what a failed read means to an initiator (SBC-4, medium errors).
func readFault(err error) fault {
	if retry(err) {
		return fault{status: StatusBusy}
	}
	return check(gotgt.MEDIUM_ERROR, gotgt.ASC_UNRECOVERED_READ)
}

// writeFault says what a failed write, unmap or flush means to an initiator. A
// volume without room is a provisioning matter (SBC-4, resource exhaustion), on which
// initiators pause instead of failing: QEMU takes it for ENOSPC.
func writeFault(err error) fault {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return check(gotgt.DATA_PROTECT, ascSpaceAllocationFailed)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EPERM):
		return check(gotgt.DATA_PROTECT, gotgt.ASC_WRITE_PROTECT)
	case retry(err):
		return fault{status: StatusBusy}
	}
	return check(gotgt.MEDIUM_ERROR, gotgt.ASC_WRITE_ERROR)
}

// retry says whether the same call may well succeed a moment later.
func retry(err error) bool {
	return errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EAGAIN)
}
