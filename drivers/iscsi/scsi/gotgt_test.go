package scsi

import (
	"bytes"
	"testing"

	"github.com/gostor/gotgt/pkg/api"
	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// What gotgt refuses reaches the initiator as it said it; where it cut its own
// sense data short, as a failure of the target, never as GOOD.
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
	internal := check(gotgt.HARDWARE_ERROR, gotgt.ASC_INTERNAL_TGT_FAILURE)
	if f := ask(cdb6(opTestUnitReady)); f != internal {
		t.Errorf("an offline unit: %+v", f)
	}
	// An operation code that gotgt knows and this unit does not offer.
	if f := ask([]byte{0xa6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64}); !f.failed() {
		t.Errorf("EXCHANGE MEDIUM: %+v", f)
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
