package scsi

import (
	"encoding/binary"
	"testing"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

func (u *unit) wantMiscompare(a answer, at uint32) {
	u.t.Helper()
	u.wantSense(a, gotgt.MISCOMPARE, gotgt.ASC_MISCOMPARE_DURING_VERIFY_OPERATION)
	if a.Sense[0] != 0xf0 || binary.BigEndian.Uint32(a.Sense[3:]) != at {
		u.t.Fatalf("sense % x: want INFORMATION %d", a.Sense, at)
	}
}

// SBC-4 §5.36 to §5.38.
func TestVerify(t *testing.T) {
	kinds := map[string]func(flags byte, lba, blocks uint32) []byte{
		"10": func(f byte, lba, n uint32) []byte { return block10(opVerify10, f, lba, uint16(n)) },
		"12": func(f byte, lba, n uint32) []byte { return block12(opVerify12, f, lba, n) },
		"16": func(f byte, lba, n uint32) []byte { return block16(opVerify16, f, uint64(lba), n) },
	}
	for name, cdb := range kinds {
		t.Run(name, func(t *testing.T) {
			u := newUnit(t)
			data := append(pattern('a', 1), pattern('b', 2)...)
			u.wantGood(u.do(block10(opWrite10, 0, 4, 3), data, 0))

			u.wantGood(u.do(cdb(0x02, 4, 3), data, 0))
			u.wantGood(u.do(cdb(0x12, 4, 3), data, 0))
			bad := append([]byte{}, data...)
			bad[1300]++
			u.wantMiscompare(u.do(cdb(0x02, 4, 3), bad, 0), 1300)
			u.wantGood(u.do(cdb(0x00, 4, 3), nil, 0))
			u.wantGood(u.do(cdb(0x00, 0, testSize/512), nil, 0))
			u.wantGood(u.do(cdb(0x06, 5, 2), pattern('b', 1), 0))
			u.wantMiscompare(u.do(cdb(0x06, 4, 3), pattern('a', 1), 0), 0)
			u.wantIllegal(u.do(cdb(0x04, 4, 3), data, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
			u.wantIllegal(u.do(cdb(0x22, 4, 3), data, 0), gotgt.ASC_INVALID_FIELD_IN_CDB)
			u.wantIllegal(u.do(cdb(0x02, 4, 3), data[:1535], 0), ascIncompleteInitiatorData)
			u.wantIllegal(u.do(cdb(0x06, 4, 3), data[:511], 0), ascIncompleteInitiatorData)
			u.wantIllegal(u.do(cdb(0x00, testSize/512-1, 2), nil, 0), gotgt.ASC_LBA_OUT_OF_RANGE)
			u.wantIllegal(u.do(cdb(0x02, testSize/512-1, 2), pattern(0, 2), 0), gotgt.ASC_LBA_OUT_OF_RANGE)
			for flags, want := range map[byte]int{0: 0, 2: 1536, 6: 512} {
				if got := u.OutLen(cdb(flags, 4, 3)); got != want {
					t.Errorf("flags %#x: OutLen %d, want %d", flags, got, want)
				}
			}
		})
	}
}

func TestVerifyAcrossChunks(t *testing.T) {
	u := newUnit(t)
	u.fillAll('a')
	data := pattern('a', 3*chunk/512)
	data[chunk+5] = 'b'
	u.wantGood(u.do(block16(opVerify16, 6, 1, 3*chunk/512), pattern('a', 1), 0))
	u.wantGood(u.do(block10(opWrite10, 0, 1+2*chunk/512+7, 1), append(pattern('a', 1)[:500], "abcdefghijkl"...), 0))
	u.wantMiscompare(u.do(block16(opVerify16, 6, 1, 3*chunk/512), pattern('a', 1), 0), 501)
	u.fillAll('a')
	u.wantMiscompare(u.do(block16(opVerify16, 2, 1, 3*chunk/512), data, 0), chunk+5)
}
