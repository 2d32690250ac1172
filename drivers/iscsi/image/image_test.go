package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"reconciler/spec"
)

func quiet(string, ...any) {}

// me is an image that has proved what it asks for.
var me = Prover{UID: "me", Proved: true}

func newStore(t *testing.T, adjust func(*Config)) *Store {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Dir: filepath.Join(dir, "store"), FileRoot: filepath.Join(dir, "images")}
	if err := os.Mkdir(cfg.FileRoot, 0o755); err != nil {
		t.Fatal(err)
	}
	if adjust != nil {
		adjust(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func fileImage(t *testing.T, s *Store, name string, data []byte) *spec.Image {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.cfg.FileRoot, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return &spec.Image{Source: spec.ImageSource{File: &spec.FileSource{Path: name}}, SHA256: sum(data)}
}

func TestFileSource(t *testing.T) {
	s := newStore(t, nil)
	data := noise(300_000)
	img := fileImage(t, s, "a.img", data)
	path, err := s.Ensure(context.Background(), img, me, quiet)
	if err != nil {
		t.Fatal(err)
	}
	// What happens to the source afterwards is of no interest.
	if err := os.WriteFile(filepath.Join(s.cfg.FileRoot, "a.img"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if again, err := s.Ensure(context.Background(), img, me, quiet); err != nil || again != path {
		t.Errorf("%s, %v", again, err)
	}
	if err := s.Drop(img.SHA256); err != nil {
		t.Fatal(err)
	}
	var mismatch *MismatchError
	if _, err := s.Ensure(context.Background(), img, me, quiet); !errors.As(err, &mismatch) {
		t.Errorf("changed content: %v", err)
	}
	if entries, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*"+img.SHA256+"*")); len(entries) != 0 {
		t.Errorf("left over: %v", entries)
	}
}

func TestFileSourceStaysBelowItsRoot(t *testing.T) {
	s := newStore(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := s.cfg.FileRoot
	for link, to := range map[string]string{"abs": secret, "up": "../../" + filepath.Base(filepath.Dir(secret)) + "/secret", "dir": filepath.Dir(secret), "proc": "/proc/self/root" + secret} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := exec.Command("mkfifo", filepath.Join(root, "fifo")).Run(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"abs", "up", "dir/secret", "proc", secret, "../images/../" + filepath.Base(secret), "fifo", ".", "missing"} {
		img := &spec.Image{Source: spec.ImageSource{File: &spec.FileSource{Path: path}}, SHA256: sum([]byte("secret"))}
		if got, err := s.Ensure(context.Background(), img, me, quiet); err == nil {
			t.Errorf("%s: got %s", path, got)
		}
	}
	// A link that stays below is fine.
	img := fileImage(t, s, "real", []byte("data"))
	if err := os.Symlink("real", filepath.Join(root, "alias")); err != nil {
		t.Fatal(err)
	}
	img.Source.File.Path = "alias"
	if _, err := s.Ensure(context.Background(), img, me, quiet); err != nil {
		t.Error(err)
	}
}

func httpImage(url string, data []byte) *spec.Image {
	return &spec.Image{Source: spec.ImageSource{HTTP: &spec.HTTPSource{URL: url}}, SHA256: sum(data)}
}

func TestDownloadGoesOnWhereItEnded(t *testing.T) {
	data := noise(3 << 20)
	var ranges []string
	var broken atomic.Int32
	broken.Store(2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if broken.Add(-1) >= 0 {
			var from int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			if from > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
			if from > 0 {
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(data[from : from+1<<20])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(data))
	}))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	s := newStore(t, nil)
	img := httpImage(srv.URL, data)
	for range 2 {
		if _, err := s.Ensure(context.Background(), img, me, quiet); err == nil {
			t.Fatal("a broken transfer was taken")
		}
		if _, ok := s.Have(img.SHA256); ok {
			t.Fatal("half an image counts as there")
		}
	}
	var said []string
	path, err := s.Ensure(context.Background(), img, me, func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) })
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, data) {
		t.Error("the content differs")
	}
	if want := fmt.Sprintf("bytes=%d-", 2<<20); len(ranges) != 3 || ranges[2] != want {
		t.Errorf("ranges %q, the last should be %s", ranges, want)
	}
	if len(said) == 0 || !strings.Contains(said[0], "% of 3Mi") {
		t.Errorf("progress: %q", said)
	}
}

func TestDownloadBeginsAnewWhenTheFileChanged(t *testing.T) {
	data := noise(1 << 20)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(data))
	}))
	defer srv.Close()
	s := newStore(t, nil)
	img := httpImage(srv.URL, data)
	if err := os.WriteFile(s.partial(img.SHA256, me), []byte("of an older file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ensure(context.Background(), img, me, quiet); err != nil {
		t.Fatal(err)
	}
	// More than the server has.
	other := httpImage(srv.URL, data)
	if err := s.Drop(img.SHA256); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.partial(img.SHA256, me), make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ensure(context.Background(), other, me, quiet); err != nil {
		t.Fatal(err)
	}
}

func TestStalePartialsAreRemoved(t *testing.T) {
	s := newStore(t, nil)
	old, fresh := s.partial(sum([]byte("old")), me), s.partial(sum([]byte("fresh")), me)
	for _, f := range []string{old, fresh} {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * stalePartial)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("old: %v", err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Errorf("fresh: %v", err)
	}
}

func TestDownloadIsBounded(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}
	cases := map[string]struct {
		serve http.HandlerFunc
		want  string
	}{
		"no length":   {endless, "more than the"},
		"long length": {func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "99999999") }, "more than the"},
		"silent": {func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, "nothing came for"},
		"a byte now and then": {func(w http.ResponseWriter, r *http.Request) {
			for tick := time.Tick(50 * time.Millisecond); r.Context().Err() == nil; <-tick {
				_, _ = io.WriteString(w, "x")
				_ = http.NewResponseController(w).Flush()
			}
		}, "too slow"},
		"missing": {http.NotFound, "404"},
		"wrong":   {func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "other") }, "sha256"},
		"file: link": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "scheme"},
		"loop": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) }, "redirects"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(c.serve)
			defer srv.Close()
			s := newStore(t, func(c *Config) { c.MaxBytes, c.Window, c.MinBytes = 1<<20, 300*time.Millisecond, 64 })
			img := httpImage(srv.URL, []byte("wanted"))
			_, err := s.Ensure(context.Background(), img, me, quiet)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if st, err := os.Stat(s.partial(img.SHA256, me)); err == nil && st.Size() > 1<<20 {
				t.Errorf("%d bytes were kept", st.Size())
			}
		})
	}
}

func newDest(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "volume"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestRawCopyIsSparseAndVerified(t *testing.T) {
	s := newStore(t, nil)
	data := make([]byte, 8<<20)
	copy(data[5<<20:], noise(1000))
	img := fileImage(t, s, "a.img", data)
	img.Format, img.VirtualSize = Raw, 8*spec.MiB
	if _, err := s.Ensure(context.Background(), img, me, quiet); err != nil {
		t.Fatal(err)
	}
	dst := newDest(t)
	if err := s.Copy(context.Background(), img, dst, 16<<20, quiet); err != nil {
		t.Fatal(err)
	}
	if err := dst.Truncate(16 << 20); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(dst.Name())
	if !bytes.Equal(got[:len(data)], data) || bytes.ContainsFunc(got[len(data):], func(r rune) bool { return r != 0 }) {
		t.Error("the copy differs")
	}
	if out, _ := exec.Command("du", "-k", dst.Name()).Output(); !strings.HasPrefix(string(out), "64\t") && !strings.HasPrefix(string(out), "68\t") {
		t.Errorf("allocated: %s", out)
	}
	if err := s.Copy(context.Background(), img, newDest(t), 4<<20, quiet); err == nil || !strings.Contains(err.Error(), "more than the disk's") {
		t.Errorf("a smaller disk: %v", err)
	}
	stated := *img
	stated.VirtualSize = 9 * spec.MiB
	if err := s.Copy(context.Background(), &stated, newDest(t), 16<<20, quiet); err == nil || !strings.Contains(err.Error(), "the spec says") {
		t.Errorf("another virtual size: %v", err)
	}
	// The copy goes bad without its size or time telling.
	path := s.path(img.SHA256)
	st, _ := os.Stat(path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 6<<20); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	var mismatch *MismatchError
	if err := s.Copy(context.Background(), img, newDest(t), 16<<20, quiet); !errors.As(err, &mismatch) {
		t.Errorf("a copy gone bad: %v", err)
	}
	if _, ok := s.Have(img.SHA256); ok {
		t.Error("a copy gone bad is still there")
	}
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
}

// qcow2 makes an image by qemu-img and gives it to the store.
func qcow2(t *testing.T, s *Store, size spec.Size, args ...string) *spec.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.qcow2")
	qemuImg(t, append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, fmt.Sprint(int64(size)))...)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return qcow2Of(t, s, size, data)
}

func qcow2Of(t *testing.T, s *Store, size spec.Size, data []byte) *spec.Image {
	t.Helper()
	img := fileImage(t, s, "x.qcow2", data)
	img.Format, img.VirtualSize = QCOW2, size
	if _, err := s.Ensure(context.Background(), img, me, quiet); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestQCOW2IsConverted(t *testing.T) {
	s := newStore(t, nil)
	raw := make([]byte, 6<<20)
	copy(raw[1<<20:], noise(100_000))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, opt := range []string{"compat=1.1", "compat=0.10", "compression_type=zstd", "extended_l2=on,cluster_size=128k"} {
		out := filepath.Join(dir, "out.qcow2")
		qemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", opt, filepath.Join(dir, "raw"), out)
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		img := qcow2Of(t, s, 6*spec.MiB, data)
		dst := newDest(t)
		if err := s.Copy(context.Background(), img, dst, 8<<20, quiet); err != nil {
			t.Fatalf("%s: %v", opt, err)
		}
		if got, _ := os.ReadFile(dst.Name()); !bytes.Equal(got, raw) {
			t.Errorf("%s: the content differs", opt)
		}
		if out, _ := exec.Command("stat", "-c", "%u %g %a", dst.Name()).Output(); strings.TrimSpace(string(out)) != "0 0 644" {
			t.Errorf("%s: owner of the volume: %s", opt, out)
		}
	}
}

func TestQCOW2ThatRefersElsewhereIsRefused(t *testing.T) {
	s := newStore(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("top secret\n"), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, img *spec.Image, disk int64, want string) {
		t.Helper()
		dst := newDest(t)
		err := s.Copy(context.Background(), img, dst, disk, quiet)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
		if got, _ := os.ReadFile(dst.Name()); bytes.Contains(got, []byte("secret")) {
			t.Errorf("%s: leaked", what)
		}
	}
	refused("backing file", qcow2(t, s, 1<<20, "-b", secret, "-F", "raw"), 1<<20, "backing file")
	refused("data file", qcow2(t, s, 1<<20, "-o", "data_file="+filepath.Join(t.TempDir(), "data")+",data_file_raw=on"), 1<<20, "data file")
	encrypted, _ := os.ReadFile(s.path(qcow2(t, s, 1<<20).SHA256))
	encrypted[35] = 2 // LUKS; qemu-img needs a quiet machine to make a real one
	refused("encryption", qcow2Of(t, s, 1<<20, encrypted), 1<<20, "encrypted")
	refused("too large", qcow2(t, s, 4<<20), 2<<20, "larger than the disk")
	other := qcow2(t, s, 4<<20)
	other.VirtualSize = 3 << 20
	refused("other size", other, 8<<20, "the spec says")
	refused("not qcow2", qcow2Of(t, s, 1<<20, []byte("#!/bin/sh\n")), 1<<20, "not a qcow2")
	raw := fileImage(t, s, "raw", make([]byte, 1<<20))
	raw.Format = "vmdk"
	if _, err := s.Ensure(context.Background(), raw, me, quiet); err != nil {
		t.Fatal(err)
	}
	refused("other format", raw, 1<<20, "not supported")
	// Damage behind a sound header is qemu-img's to find; it ends with an error.
	good := qcow2(t, s, 1<<20)
	data, _ := os.ReadFile(s.path(good.SHA256))
	binary.BigEndian.PutUint64(data[40:], 3) // L1 table, not aligned
	refused("damaged", qcow2Of(t, s, 1<<20, data), 1<<20, "qemu-img")
}

// The header alone is enough to refuse, before any program opens the image.
func TestQCOW2HeaderIsChecked(t *testing.T) {
	be := binary.BigEndian
	sound := func() []byte {
		h := make([]byte, 64<<10)
		be.PutUint32(h, qcow2Magic)
		be.PutUint32(h[4:], 3)
		be.PutUint32(h[20:], 16)
		be.PutUint64(h[24:], 1<<20)
		be.PutUint32(h[100:], qcow2HeaderV3)
		return h
	}
	if size, err := checkQCOW2(bytes.NewReader(sound())); err != nil || size != 1<<20 {
		t.Fatalf("%d, %v", size, err)
	}
	for name, c := range map[string]struct {
		change func(h []byte) []byte
		want   string
	}{
		"magic":             {func(h []byte) []byte { h[0] = 0; return h }, "not a qcow2"},
		"empty":             {func(h []byte) []byte { return nil }, "not a qcow2"},
		"version":           {func(h []byte) []byte { h[7] = 4; return h }, "version"},
		"backing offset":    {func(h []byte) []byte { h[15] = 1; return h }, "backing file"},
		"backing length":    {func(h []byte) []byte { h[19] = 1; return h }, "backing file"},
		"encryption":        {func(h []byte) []byte { h[35] = 1; return h }, "encrypted"},
		"data file bit":     {func(h []byte) []byte { h[79] = incompatExternal; return h }, "data file"},
		"unknown feature":   {func(h []byte) []byte { h[78] = 1; return h }, "incompatible"},
		"cluster size":      {func(h []byte) []byte { h[23] = 40; return h }, "cluster size"},
		"no size":           {func(h []byte) []byte { clear(h[24:32]); return h }, "virtual size"},
		"header length":     {func(h []byte) []byte { h[103] = 8; return h }, "header of 8"},
		"backing extension": {func(h []byte) []byte { be.PutUint32(h[104:], extensionBacking); return h }, "backing file"},
		"data extension": {func(h []byte) []byte {
			be.PutUint32(h[104:], 0x6803f857) // feature names, 13 bytes
			be.PutUint32(h[108:], 13)
			be.PutUint32(h[128:], extensionDataFile)
			return h
		}, "data file"},
		"endless": {func(h []byte) []byte { be.PutUint32(h[104:], 1); return h[:108] }, "does not end"},
	} {
		if _, err := checkQCOW2(bytes.NewReader(c.change(sound()))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// qemu-img runs as somebody who can read nothing, reach nothing and not go on
// for ever.
func TestQemuImgIsConfined(t *testing.T) {
	probe := filepath.Join(t.TempDir(), "probe")
	script := `#!/bin/sh
id -u >&2; id -G >&2
cat /etc/shadow >&2
ip -o link show up >&2
ulimit -a >&2
env >&2
exit 1
`
	if err := os.WriteFile(probe, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	// The test's own directory is closed to others.
	if err := os.Chmod(filepath.Dir(filepath.Dir(probe)), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET_TOKEN", "hunter2")
	s := newStore(t, func(c *Config) { c.QemuImg = probe })
	img := qcow2(t, s, 1<<20)
	err := s.Copy(context.Background(), img, newDest(t), 1<<20, quiet)
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	out := err.Error()
	if !strings.HasSuffix(lines[0], "65534") || lines[1] != "65534" {
		t.Errorf("runs as %q, groups %q", lines[0], lines[1])
	}
	if !strings.Contains(out, "Permission denied") {
		t.Errorf("reads /etc/shadow: %s", out)
	}
	if strings.Contains(out, "hunter2") {
		t.Error("sees the agent's environment")
	}
	if strings.Contains(out, "eth") || strings.Contains(out, "lo:") {
		t.Errorf("has a network: %s", out)
	}
	loop := filepath.Join(filepath.Dir(probe), "loop")
	slow := newStore(t, func(c *Config) { c.QemuImg, c.Convert = loop, 300*time.Millisecond })
	if err := os.WriteFile(loop, []byte("#!/bin/sh\nsleep 60 &\nwait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = slow.Copy(context.Background(), qcow2(t, slow, 1<<20), newDest(t), 1<<20, quiet)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

func FuzzCheckQCOW2(f *testing.F) {
	dir := f.TempDir()
	for i, args := range [][]string{{}, {"-o", "compat=0.10"}, {"-u", "-b", "/etc/passwd", "-F", "raw"}, {"-o", "extended_l2=on"}} {
		path := filepath.Join(dir, fmt.Sprint(i))
		all := append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1048576")
		if out, err := exec.Command("qemu-img", all...).CombinedOutput(); err != nil {
			f.Fatalf("%v: %s", err, out)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[:min(len(data), 1024)])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		size, err := checkQCOW2(bytes.NewReader(data))
		if err != nil {
			return
		}
		if size <= 0 || binary.BigEndian.Uint64(data[8:]) != 0 || data[0] != 'Q' {
			t.Errorf("accepted, size %d", size)
		}
	})
}

// Another's copy does not count for an image that does not have the content
// itself: who knows a SHA-256 need not know what it is of.
func TestEachImageProvesItsOwnSource(t *testing.T) {
	s := newStore(t, nil)
	data := noise(2 << 20)
	theirs := fileImage(t, s, "theirs.img", data)
	path, err := s.Ensure(context.Background(), theirs, Prover{UID: "theirs"}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path+" "+r.Header.Get("Range"))
		switch r.URL.Path {
		case "/all":
			_, _ = w.Write(data)
		case "/enough": // as if all of it were here
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		case "/tail":
			var from int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[from:])
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	// What another image has got so far, all but the end.
	if err := os.WriteFile(s.partial(theirs.SHA256, Prover{UID: "other"}), data[:len(data)-10], 0o600); err != nil {
		t.Fatal(err)
	}
	thief := Prover{UID: "thief"}
	no := []*spec.Image{
		{Source: spec.ImageSource{File: &spec.FileSource{Path: "missing"}}, SHA256: theirs.SHA256},
		httpImage(srv.URL+"/missing", data),
		httpImage(srv.URL+"/enough", data),
		{SHA256: theirs.SHA256},
	}
	wrong := fileImage(t, s, "wrong.img", []byte("wrong"))
	wrong.SHA256 = theirs.SHA256
	for _, img := range append(no, wrong) {
		if got, err := s.Ensure(context.Background(), img, thief, quiet); err == nil {
			t.Errorf("%+v: got %s", img.Source, got)
		}
	}
	if left, _ := filepath.Glob(s.partial(theirs.SHA256, thief) + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, img := range []*spec.Image{httpImage(srv.URL+"/all", data), theirs} {
		asked = nil
		got, err := s.Ensure(context.Background(), img, Prover{UID: "honest"}, quiet)
		if err != nil || got != path {
			t.Errorf("%+v: %s, %v", img.Source, got, err)
		}
		if img.Source.HTTP != nil && len(asked) != 1 {
			t.Errorf("asked for %q", asked)
		}
	}
	// Once is enough, whatever becomes of the source.
	asked = nil
	if _, err := s.Ensure(context.Background(), httpImage(srv.URL+"/missing", data), Prover{UID: "honest", Proved: true}, quiet); err != nil || asked != nil {
		t.Errorf("%v, asked for %q", err, asked)
	}
	if names, _ := filepath.Glob(filepath.Join(s.cfg.Dir, partialPrefix+"*")); len(names) != 1 {
		t.Errorf("left: %v", names)
	}
}

func TestRawThatIsSomethingElse(t *testing.T) {
	s := newStore(t, nil)
	made := func(format string) []byte {
		path := filepath.Join(t.TempDir(), "a")
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", format, path, "1M").CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", format, err, out)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return append(data, make([]byte, 511-(len(data)+511)%512)...)
	}
	gz := append([]byte("\x1f\x8b\x08"), make([]byte, 509)...)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"a.qcow2":    {made("qcow2"), "looks like qcow2; say format: qcow2"},
		"a.vmdk":     {made("vmdk"), "qemu-img convert -f vmdk"},
		"a.vdi":      {made("vdi"), "qemu-img convert -f vdi"},
		"a.vhdx":     {made("vhdx"), "qemu-img convert -f vhdx"},
		"a.vhd":      {made("vpc"), "qemu-img convert -f vpc"},
		"a.img.gz":   {gz, "packed with gzip"},
		"a.tar.gz":   {gz, ""}, // may well be meant: a guest can read an archive from a disk
		"fs.img":     {make([]byte, 4096), ""},
		"short.img":  {[]byte("Q"), ""},
		"odd.img":    {noise(1000), ""},
		"qcow2.text": {append([]byte("see QFI\xfb"), make([]byte, 502)...), ""},
	} {
		img := fileImage(t, s, name, c.data)
		img.Format, img.VirtualSize = Raw, spec.Size((len(c.data)+511)/512*512)
		if _, err := s.Ensure(context.Background(), img, me, quiet); err != nil {
			t.Fatal(err)
		}
		dst := newDest(t)
		err := s.Copy(context.Background(), img, dst, 64<<20, quiet)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if c.want == "" {
			_ = dst.Truncate(64 << 20)
			head := make([]byte, img.VirtualSize)
			_, _ = dst.ReadAt(head, 0)
			if !bytes.Equal(head, append(bytes.Clone(c.data), make([]byte, len(head)-len(c.data))...)) {
				t.Errorf("%s: the disk begins otherwise", name)
			}
		}
		if c.want == "" && len(c.data) > 512 {
			img.VirtualSize -= 512
			if err := s.Copy(context.Background(), img, newDest(t), 64<<20, quiet); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("file has %d bytes", len(c.data))) {
				t.Errorf("%s, with another size stated: %v", name, err)
			}
		}
	}
}

// Nobody on the host reads the copies but root and the group that machines run
// as, also those that an earlier build left open.
func TestCopiesAreClosedToOthers(t *testing.T) {
	s := newStore(t, nil)
	img := fileImage(t, s, "a.img", []byte("secret"))
	path, err := s.Ensure(context.Background(), img, me, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for _, open := range []struct {
		path string
		mode os.FileMode
	}{{path, 0o444}, {s.cfg.Dir, 0o755}} {
		if err := os.Chmod(open.path, open.mode); err != nil {
			t.Fatal(err)
		}
	}
	s.cfg.Readers = 65533
	if s, err = Open(s.cfg); err != nil {
		t.Fatal(err)
	}
	fresh, err := s.Ensure(context.Background(), fileImage(t, s, "b.img", []byte("another")), me, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for p, mode := range map[string]os.FileMode{path: 0o440, fresh: 0o440, s.cfg.Dir: 0o750} {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if gid := st.Sys().(*syscall.Stat_t).Gid; st.Mode().Perm() != mode || gid != 65533 {
			t.Errorf("%s has mode %o and group %d", p, st.Mode().Perm(), gid)
		}
	}
	if _, ok := s.Have(img.SHA256); !ok {
		t.Error("the copy does not count any more")
	}
	if err := os.Chmod(filepath.Dir(filepath.Dir(s.cfg.Dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		gid  uint32
		want bool
	}{{65533, true}, {65534, false}} {
		cmd := exec.Command("cat", fresh)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: c.gid}}
		if out, err := cmd.CombinedOutput(); (err == nil) != c.want {
			t.Errorf("group %d: %v: %s", c.gid, err, out)
		}
	}
}
