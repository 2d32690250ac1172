package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

const (
	poolUID = "0b6f6a53-0a3c-5d6c-8a52-6f0c2f0a9a10"
	uidA    = "8d7a2c1e-58a4-5f2e-9d68-0d6c8f1f2a01"
	uidB    = "8d7a2c1e-58a4-5f2e-9d68-0d6c8f1f2a02"
)

func newPool(t *testing.T) *Pool {
	t.Helper()
	p, err := Create(filepath.Join(t.TempDir(), "pool"), Marker{UID: poolUID, Cluster: "demo", Name: "fast"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func meta(uid string) Meta {
	return Meta{UID: uid, Name: "web", Cluster: "demo", Pool: poolUID, Size: 1 << 20}
}

func TestMakeGrowPurge(t *testing.T) {
	p := newPool(t)
	err := p.Make(context.Background(), meta(uidA), func(_ context.Context, f *os.File) error {
		_, err := f.WriteAt([]byte("hello"), 4096)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Get(uidA)
	if err != nil || v.Size != 1<<20 || v.Allocated > 64<<10 || v.State != Ready {
		t.Errorf("%+v, %v", v, err)
	}
	if err := p.Make(context.Background(), meta(uidA), nil); err == nil {
		t.Error("a volume was made over another")
	}
	if err := p.Grow(uidA, 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := p.Grow(uidA, 2<<20); err != nil {
		t.Fatal(err)
	}
	if v, _ := p.Get(uidA); v.Size != 3<<20 {
		t.Errorf("size %d", v.Size)
	}
	forgot := false
	if err := p.Purge(v.Meta, func() error { forgot = true; return nil }); err != nil || !forgot {
		t.Fatal(err)
	}
	if _, err := p.Get(uidA); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the purge: %v", err)
	}
}

func TestMakeThatFailsLeavesNothing(t *testing.T) {
	p := newPool(t)
	full := errors.New("full")
	err := p.Make(context.Background(), meta(uidA), func(_ context.Context, f *os.File) error {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return err
		}
		return full
	})
	if !errors.Is(err, full) {
		t.Fatal(err)
	}
	err = p.Make(context.Background(), meta(uidA), func(_ context.Context, f *os.File) error { return f.Truncate(2 << 20) })
	if err == nil {
		t.Error("content larger than the volume was taken")
	}
	if left, _ := filepath.Glob(filepath.Join(p.Dir(), "*"+uidA+"*")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(p.Dir(), creatingPrefix+"*")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestWhatIsNotOursIsNeverTouched(t *testing.T) {
	p := newPool(t)
	if err := p.Make(context.Background(), meta(uidA), nil); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(p.Dir(), uidB+imageSuffix)
	for _, f := range []string{precious, filepath.Join(p.Dir(), "notes.txt")} {
		if err := os.WriteFile(f, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Make(context.Background(), meta(uidB), nil); err == nil {
		t.Error("a volume was made over a file that is not ours")
	}
	volumes, strays, broken, err := p.List()
	if err != nil || len(volumes) != 1 || len(strays) != 2 || len(broken) != 0 {
		t.Errorf("%d volumes, strays %v, broken %v, %v", len(volumes), strays, broken, err)
	}
	if data, err := os.ReadFile(precious); err != nil || string(data) != "precious" {
		t.Errorf("%q, %v", data, err)
	}
	// A volume that was copied here from another pool.
	m := meta(uidB)
	m.Pool = "another"
	if err := os.Remove(precious); err != nil {
		t.Fatal(err)
	}
	if err := p.records.WriteJSON(uidB+recordSuffix, version, m); err != nil {
		t.Fatal(err)
	}
	if err := p.Make(context.Background(), meta(uidB), nil); err == nil {
		t.Error("a volume was made over another pool's")
	}
	// A link in the place of a volume leads nowhere.
	if err := os.Rename(p.Path(uidA), filepath.Join(t.TempDir(), "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", p.Path(uidA)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Get(uidA); err == nil {
		t.Error("a link counts as a volume")
	}
	if err := p.Grow(uidA, 1<<30); err == nil {
		t.Error("a link was followed to grow a volume")
	}
}

func TestADirectoryWithoutMarkerIsNotMounted(t *testing.T) {
	p := newPool(t)
	if err := p.Make(context.Background(), meta(uidA), nil); err != nil {
		t.Fatal(err)
	}
	away := p.Dir() + ".away"
	if err := os.Rename(p.Dir(), away); err != nil {
		t.Fatal(err)
	}
	var gone *NotMountedError
	for _, empty := range []bool{false, true} {
		if empty {
			if err := os.Mkdir(p.Dir(), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, _, err := p.List(); !errors.As(err, &gone) {
			t.Errorf("list: %v", err)
		}
		if err := p.Put(meta(uidB)); !errors.As(err, &gone) {
			t.Errorf("put: %v", err)
		}
		if err := p.Make(context.Background(), meta(uidB), nil); !errors.As(err, &gone) {
			t.Errorf("make: %v", err)
		}
		if _, err := Open(p.Dir(), poolUID, "demo"); !errors.As(err, &gone) {
			t.Errorf("open: %v", err)
		}
	}
	if entries, _ := os.ReadDir(p.Dir()); len(entries) != 0 {
		t.Errorf("made below the mount point: %v", entries)
	}
	if _, err := Open(away, poolUID, "other"); !errors.As(err, &gone) {
		t.Errorf("another cluster's: %v", err)
	}
	if _, err := Create(away, Marker{UID: poolUID, Cluster: "other"}); err == nil {
		t.Error("another cluster's pool was taken")
	}
}

// Whatever happens to clocks and whenever the agent looks, a quarantine is
// never over before the deadline and the uptime it needs, and a deadline never
// comes nearer.
func TestQuarantineNeverEndsEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hours := func(label string, most int) time.Duration {
			return time.Duration(rapid.IntRange(0, most*3600).Draw(t, label)) * time.Second
		}
		now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
		u := Uptime{"boot-0", hours("up at the start", 100)}
		needed := hours("retention", 200)
		q := NewQuarantine(now, needed, u)
		var up time.Duration // really
		boots := 0
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			until := q.Until
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0: // time goes by
				d := hours("time", 30)
				now, u.Up, up = now.Add(d), u.Up+d, up+d
			case 1: // the clock jumps
				now = now.Add(hours("jump", 1000) - 400*time.Hour)
			case 2:
				boots++
				u = Uptime{"boot-" + string(rune('0'+boots%10)) + string(rune('a'+boots/10)), hours("up after boot", 2)}
			case 3:
				r := hours("new retention", 300)
				q.Lengthen(r)
				needed = max(needed, r)
			case 4:
				q.Account(u)
			}
			if q.Until.Before(until) {
				t.Fatalf("the deadline moved from %s to %s", until, q.Until)
			}
			if q.Elapsed(now, u) && (now.Before(q.Until) || up < needed) {
				t.Fatalf("over at %s after %s of uptime; until %s, needs %s", now, up, q.Until, needed)
			}
		}
		q.Keep()
		if q.Elapsed(now.Add(1e6*time.Hour), u) || q.Lengthen(1e6*time.Hour) && !q.Until.IsZero() {
			t.Fatal("kept without a deadline, and over")
		}
	})
}

func TestQuarantineEnds(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	q := NewQuarantine(now, time.Hour, Uptime{"a", time.Minute})
	now = now.Add(2 * time.Hour)
	if q.Account(Uptime{"a", time.Minute + time.Second}) {
		t.Error("a second is worth writing")
	}
	if !q.Account(Uptime{"a", 31 * time.Minute}) || q.Elapsed(now, Uptime{"a", 31 * time.Minute}) {
		t.Error("half an hour")
	}
	if !q.Account(Uptime{"b", time.Minute}) || q.Elapsed(now, Uptime{"b", 30 * time.Minute}) {
		t.Error("59 minutes")
	}
	if !q.Elapsed(now, Uptime{"b", 31 * time.Minute}) {
		t.Error("60 minutes")
	}
	if !NewQuarantine(now, 0, Uptime{"a", 0}).Elapsed(now, Uptime{"a", 0}) {
		t.Error("no retention")
	}
}

func TestAFileTheFileSystemCannotHold(t *testing.T) {
	p := newPool(t)
	m := meta(uidA)
	m.Size = 64 << 40
	err := p.Make(context.Background(), m, nil)
	if err == nil {
		t.Skip("the file system of the temporary directory takes a file of 64 TiB, so there is nothing to refuse")
	}
	if !strings.Contains(err.Error(), "make the disk smaller") || !errors.Is(err, unix.EFBIG) {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(p.Dir(), "*"+uidA+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
