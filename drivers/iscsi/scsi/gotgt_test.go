package scsi

import (
	"bytes"
	"testing"

	"github.com/gostor/gotgt/pkg/api"
	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// What gotgt refuses reaches the initiator as it said it; a refusal without sense
// data as a failure of the target, never as GOOD.
func TestGotgtRefuses(t *testing.T) {
	u := newUnit(t)
	ask := func(cdb []byte) fault {
		t.Helper()
		_, f := u.gotgt.ask(testSize, cdb, func(lu *api.SCSILu) { lu.Attrs.Online = cdb[0] != opTestUnitReady })
		return f
	}
	if f := ask([]byte{opModeSense10, 0, modeSaved<<6 | pageAll, 0, 0, 0, 0, 4, 0, 0}); f != illegal(gotgt.ASC_SAVING_PARMS_UNSUP) {
		t.Errorf("saved mode pages: %+v", f)
	}
	if f := ask(cdb6(opTestUnitReady)); f != check(gotgt.NOT_READY, gotgt.ASC_BECOMING_READY) {
		t.Errorf("an offline unit: %+v", f)
	}
	if f := gotgtFault(api.SAMStatBusy, nil); f != (fault{status: StatusBusy}) {
		t.Errorf("BUSY: %+v", f)
	}
	if f := gotgtFault(api.SAMStatCheckCondition, nil); f != check(gotgt.HARDWARE_ERROR, gotgt.ASC_INTERNAL_TGT_FAILURE) {
		t.Errorf("no sense data: %+v", f)
	}
}

// Its answers are what they are whatever the allocation length: gotgt itself
// compares that with the wrong lengths.
func TestGotgtAnswersAreTruncatedHere(t *testing.T) {
	u := newUnit(t)
	cdb := block12(opReportLUNs, 0, 0, 0)
	cdb[9] = 16
	full := u.wantGood(u.do(cdb, nil, 64)).data
	for n := range 16 {
		if a := u.wantGood(u.do(cdb, nil, n)); !bytes.Equal(a.data, full[:n]) || a.Want != 16 {
			t.Errorf("room for %d: % x, Want %d", n, a.data, a.Want)
		}
	}
}
