package claims

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"reconciler/claim"
)

var disks = []string{"8d7a2c1e-58a4-5f2e-9d68-0d6c8f1f2a01", "8d7a2c1e-58a4-5f2e-9d68-0d6c8f1f2a02"}

func vm(n int) claim.Owner {
	return claim.Owner{Host: "h", BootID: "b", VM: fmt.Sprintf("vm-%d", n/2), Launch: fmt.Sprintf("launch-%d", n)}
}

func operator(n int) claim.Owner {
	return claim.Owner{Host: "h", Access: fmt.Sprintf("access-%d", n)}
}

func grant(epoch uint64) Admission {
	return Admission{
		Initiators: []string{fmt.Sprintf("iqn.2026-11.x:%d", epoch)}, User: fmt.Sprint(epoch),
		Password: claim.NewSecret(fmt.Sprintf("secret-of-epoch-%d", epoch)), Since: time.Unix(int64(epoch), 0).UTC(),
	}
}

// What the store may be asked in any order, with restarts in between, against a
// model that only knows who holds what and the highest epoch ever seen.
func TestNeverTwoWritersAndEpochsOnlyGrow(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		dir := filepath.Join(root, fmt.Sprint(runs))
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		highest := map[string]uint64{}
		held := map[string]map[claim.Owner]Admission{}
		for _, d := range disks {
			held[d] = map[claim.Owner]Admission{}
		}
		writers := func(d string) (n int) {
			for _, a := range held[d] {
				if !a.ReadOnly {
					n++
				}
			}
			return n
		}
		anyDisk := rapid.SampledFrom(disks)
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				d, n := anyDisk.Draw(t, "disk"), rapid.IntRange(0, 3).Draw(t, "owner")
				o, ro := vm(n), false
				if rapid.Bool().Draw(t, "operator") {
					o, ro = operator(n), n%2 == 0
				}
				before, had := held[d][o]
				a, err := s.Acquire(d, o, ro, grant)
				var other *claim.HeldError
				switch {
				case errors.As(err, &other):
					if w, ok := held[d][other.Owner]; ro || !ok || w.ReadOnly {
						t.Fatalf("%v, but it is not", err)
					}
					if had && before.State == Held {
						t.Fatalf("%v, asked by its owner", err)
					}
				case err != nil:
					t.Fatal(err)
				case had && before.State == Held:
					if !reflect.DeepEqual(a, before) {
						t.Fatalf("not idempotent: %+v, before %+v", a, before)
					}
				default:
					if a.Epoch <= highest[d] {
						t.Fatalf("epoch %d after %d", a.Epoch, highest[d])
					}
					if !ro && writers(d) > 0 {
						t.Fatalf("a second writer: %+v beside %+v", a, held[d])
					}
					if had && ro {
						// A reader whose release has begun asks again: both stand until the
						// older one is free.
						held[d][claim.Owner{Access: fmt.Sprint("old-", before.Epoch)}] = before
					}
					highest[d] = a.Epoch
					held[d][o] = a
				}
			},
			"release": func(t *rapid.T) {
				d := anyDisk.Draw(t, "disk")
				for _, a := range held[d] {
					mine, err := s.BeginRelease(d, a.Owner)
					if err != nil || len(mine) == 0 {
						t.Fatalf("%v, %v", mine, err)
					}
					for k, b := range held[d] {
						if b.Owner == a.Owner {
							b.State = Releasing
							held[d][k] = b
						}
					}
					return
				}
				if mine, err := s.BeginRelease(d, vm(9)); err != nil || len(mine) != 0 {
					t.Fatalf("%v, %v", mine, err)
				}
			},
			"free": func(t *rapid.T) {
				d := anyDisk.Draw(t, "disk")
				for o, a := range held[d] {
					err := s.Free(d, a.Epoch, time.Unix(1, 0))
					if a.State == Held {
						if err == nil {
							t.Fatal("freed what was not released")
						}
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					delete(held[d], o)
					return
				}
			},
			"forget": func(t *rapid.T) {
				d := anyDisk.Draw(t, "disk")
				err := s.Forget(d)
				if (err == nil) != (len(held[d]) == 0) {
					t.Fatalf("forget with %d owners: %v", len(held[d]), err)
				}
			},
			"restart": func(t *rapid.T) {
				if s, err = Open(dir); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for _, d := range disks {
					r, err := s.Get(d)
					if err != nil {
						t.Fatal(err)
					}
					if r.Epoch < highest[d] {
						t.Fatalf("highest epoch %d, was %d", r.Epoch, highest[d])
					}
					want := map[uint64]Admission{}
					for _, a := range held[d] {
						want[a.Epoch] = a
					}
					got := map[uint64]Admission{}
					for _, a := range r.Admissions() {
						got[a.Epoch] = a
					}
					if !reflect.DeepEqual(got, want) {
						t.Fatalf("store has %+v, model %+v", got, want)
					}
				}
			},
		})
	})
}

func TestRecordIsPrivateAndSurvives(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.Acquire(disks[0], vm(1), false, grant)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, disks[0]+".json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	r, err := s.Get(disks[0])
	if err != nil || !reflect.DeepEqual(*r.Writer, a) || r.Writer.Password.Reveal() != "secret-of-epoch-1" {
		t.Errorf("%+v, %v", r, err)
	}
	if printed := fmt.Sprintf("%v %+v %#v", r, *r.Writer, *r.Writer); strings.Contains(printed, "secret-of") {
		t.Error("a record prints its secret")
	}
}

func TestADamagedRecordBlocksItsDiskOnly(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		if _, err := s.Acquire(d, vm(1), false, grant); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, disks[0]+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Acquire(disks[0], vm(2), false, grant); err == nil {
		t.Error("a disk whose record is damaged was given away")
	}
	if _, err := s.Acquire(disks[1], vm(1), false, grant); err != nil {
		t.Error(err)
	}
	if _, err := s.Acquire("../x", vm(1), false, grant); err == nil {
		t.Error("a disk that is no UID got a record")
	}
}
