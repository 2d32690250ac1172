package target

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// qemuOpts is the volume as QEMU's own initiator opens it, CHAP included.
func (b *bed) qemuOpts(t *testing.T, user, password string) []string {
	t.Helper()
	file := filepath.Join(b.dir, "password")
	if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"--object", "secret,id=s,file=" + file,
		"--image-opts", fmt.Sprintf("driver=raw,discard=unmap,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=0,file.initiator-name=%s,file.user=%s,file.password-secret=s",
			b.portal, testIQN, testName, user),
	}
}

// QEMU writes, zeroes, discards and compares; every byte is looked at in the
// file.
func TestQEMU(t *testing.T) {
	b := newBed(t, nil)
	b.grant(Access{Epoch: 1, Initiators: []string{testName}, User: "vm", Password: secret("password1234")})
	opts := b.qemuOpts(t, "vm", "password1234")
	qemuIO := func(commands ...string) {
		t.Helper()
		args := append([]string(nil), opts...)
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out, err := exec.Command("qemu-io", args...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "failed") {
			t.Fatalf("qemu-io %q: %v\n%s", commands, err, out)
		}
	}
	want := make([]byte, testSize)
	fill := func(off, n int, v byte) {
		copy(want[off:off+n], bytes.Repeat([]byte{v}, n))
	}
	check := func(what string) {
		t.Helper()
		got, err := os.ReadFile(b.volume)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("%s: byte %d is %#x, not %#x", what, i, got[i], want[i])
				}
			}
			t.Fatalf("%s: %d bytes, not %d", what, len(got), len(want))
		}
	}
	const k, m = 1 << 10, 1 << 20
	qemuIO("write -P 1 0 8M", "write -P 2 8M 512", "write -f -P 3 9M 4k", "flush")
	fill(0, 8*m, 1)
	fill(8*m, 512, 2)
	fill(9*m, 4*k, 3)
	check("write")
	qemuIO("write -z 1M 1M", "write -z 3M 512", "write -z -u 4M 2M", "flush")
	fill(m, m, 0)
	fill(3*m, 512, 0)
	fill(4*m, 2*m, 0)
	check("write zeroes")
	qemuIO("discard 6M 1M", "flush")
	fill(6*m, m, 0) // LBPRZ says so
	check("discard")
	qemuIO("aio_write -P 4 16M 1M", "aio_write -P 5 17M 1M", "aio_write -P 6 18M 3M", "aio_flush", "flush")
	fill(16*m, m, 4)
	fill(17*m, m, 5)
	fill(18*m, 3*m, 6)
	check("asynchronous writes")
	qemuIO("read -P 1 0 1M", "read -P 0 1M 1M", "read -P 2 8M 512", "read -P 6 18M 3M", "read -P 0 32M 16M")

	// What is not allocated shows as such.
	out, err := exec.Command("qemu-img", append([]string{"map", "--output=json"}, opts...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var extents []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err := json.Unmarshal(out, &extents); err != nil {
		t.Fatal(err)
	}
	at := func(off int64) (data bool) {
		for _, e := range extents {
			if off >= e.Start && off < e.Start+e.Length {
				return e.Data
			}
		}
		t.Fatalf("offset %d is in no extent", off)
		return false
	}
	for off, data := range map[int64]bool{0: true, 5 * m: false, 6*m + 5: false, 7 * m: true, 17 * m: true, 40 * m: false} {
		if at(off) != data {
			t.Errorf("data at %d: %v", off, at(off))
		}
	}
}
