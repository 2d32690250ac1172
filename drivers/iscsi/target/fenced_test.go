package target

import "testing"

// A reader that is admitted all the time must not fall under the epochs that
// were fenced after it.
func TestFencedEpochsSpareTheAdmitted(t *testing.T) {
	s := saved{Access: []accessJSON{{Epoch: 5}}}
	for e := uint64(6); e < 6+3*maxFenced; e++ {
		s.fence(e)
		if s.isFenced(5) {
			t.Fatalf("epoch 5 is fenced after %d", e)
		}
	}
	if !s.isFenced(6) || !s.isFenced(6+2*maxFenced) {
		t.Error("a fenced epoch was forgotten")
	}
	s.Access = nil
	s.fence(6 + 3*maxFenced)
	if len(s.Fenced) > maxFenced {
		t.Errorf("%d epochs are listed, want at most %d", len(s.Fenced), maxFenced)
	}
	for e := uint64(1); e <= 6+3*maxFenced; e++ {
		if !s.isFenced(e) {
			t.Fatalf("epoch %d was forgotten", e)
		}
	}
}
