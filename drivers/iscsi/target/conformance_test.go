package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reconciler/drivers/iscsi/scsi"
)

// conformanceList holds the tests that do not pass, one a line: its name, how it
// ends, and why. A test that ends otherwise fails, better or worse. Where a test of
// libiscsi depends on its own timing, the ends that it may have stand with a |
// between them.
const conformanceList = "testdata/conformance.txt"

const (
	conformanceAtOnce = 6
	conformanceLimit  = 60 * time.Second // for one test
)

// kindOf says what logical unit a suite is about.
func kindOf(test string) string {
	switch strings.Split(test, ".")[1] {
	case "NoMedia", "PreventAllow", "StartStopUnit":
		return "removable"
	case "ReadOnly":
		return "readonly"
	}
	return "plain"
}

// Every test of libiscsi's suite, each in a process of its own, several at a time
// against volumes of their own.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("the whole suite takes a while")
	}
	want := readConformance(t)
	dir, portal := shortDir(t), freePortal(t)
	c, _ := serveTest(t, dir, func(cfg *Config) {
		cfg.Open = func(e Export) (LogicalUnit, error) {
			kind := e.IQN[strings.LastIndexByte(e.IQN, ':')+1:]
			d, err := scsi.Open(scsi.Config{
				Path: e.Path, TargetName: e.IQN, Serial: e.Serial, UID: uidBytes(e.UID),
				ReadOnly: strings.HasPrefix(kind, "readonly"), Removable: strings.HasPrefix(kind, "removable"),
				ReservationFile: e.Path + ".pr",
			})
			if err != nil {
				return nil, err
			}
			return d, nil
		}
	})
	// A unit is a URL and the volume behind it, which is blank for every test: some
	// rely on that beyond what they write themselves.
	type unit struct{ url, volume string }
	units := make(map[string]chan unit)
	for _, kind := range []string{"plain", "removable", "readonly"} {
		units[kind] = make(chan unit, conformanceAtOnce)
		for n := range conformanceAtOnce {
			iqn := fmt.Sprintf("iqn.2026-11.test:%s%d", kind, n)
			e := Export{IQN: iqn, Path: newVolume(t, dir, fmt.Sprint(kind, n)), Serial: fmt.Sprintf("%020d", n), UID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n), Portals: []string{portal}}
			if err := c.Put(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			a := Access{Epoch: 1, Initiators: []string{name(1), name(2)}, User: "user", Password: secret("password1234")}
			if err := c.SetAccess(t.Context(), iqn, []Access{a}); err != nil {
				t.Fatal(err)
			}
			units[kind] <- unit{fmt.Sprintf("iscsi://user%%password1234@%s/%s/0", portal, iqn), e.Path}
		}
	}

	var mu sync.Mutex
	got := make(map[string]string)
	output := make(map[string]string)
	slots := make(chan struct{}, conformanceAtOnce)
	var wg sync.WaitGroup
	for _, test := range conformanceTests(t) {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			free := units[kindOf(test)]
			u := <-free
			defer func() { free <- u }()
			if err := errors.Join(os.Truncate(u.volume, 0), os.Truncate(u.volume, testSize)); err != nil {
				t.Error(err)
			}
			outcome, out := runConformance(t.Context(), test, u.url)
			mu.Lock()
			defer mu.Unlock()
			got[test], output[test] = outcome, out
		})
	}
	wg.Wait()

	counts := make(map[string]int)
	for test, outcome := range got {
		counts[outcome]++
		w := want[test]
		if w == "" && outcome == "pass" || slices.Contains(strings.Split(w, "|"), outcome) {
			continue
		}
		if want[test] == "" {
			t.Errorf("%s: %s, expected to pass\n%s", test, outcome, output[test])
		} else {
			t.Errorf("%s: %s, but %s lists it as %q", test, outcome, conformanceList, want[test])
		}
	}
	for test := range want {
		if got[test] == "" {
			t.Errorf("%s lists %s, which is no test", conformanceList, test)
		}
	}
	t.Logf("%d tests: %v", len(got), counts)
}

func readConformance(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(conformanceList))
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 3 {
			t.Fatalf("%s: no reason in %q", conformanceList, line)
		}
		want[f[0]] = f[1]
	}
	return want
}

// conformanceTests lists the tests of the families that are not made of others.
func conformanceTests(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("iscsi-test-cu", "--list").Output()
	if err != nil {
		t.Fatalf("iscsi-test-cu, of libiscsi-bin: %v", err)
	}
	var tests []string
	for test := range strings.FieldsSeq(string(out)) {
		if strings.Count(test, ".") == 2 && (strings.HasPrefix(test, "SCSI.") || strings.HasPrefix(test, "iSCSI.")) {
			tests = append(tests, test)
		}
	}
	slices.Sort(tests)
	if len(tests) < 200 {
		t.Fatalf("iscsi-test-cu lists %d tests", len(tests))
	}
	return tests
}

// runConformance runs one test. It passes when it ran, failed nothing and skipped
// nothing.
func runConformance(ctx context.Context, test, url string) (outcome, output string) {
	ctx, cancel := context.WithTimeout(ctx, conformanceLimit)
	defer cancel()
	args := []string{"--dataloss", "--allow-sanitize", "--normal", "-i", name(1), "-I", name(2), "--test=" + test, url}
	if strings.Contains(test, ".MultipathIO.") {
		args = append(args, url)
	}
	b, err := exec.CommandContext(ctx, "iscsi-test-cu", args...).CombinedOutput()
	output = string(b)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "hang", output
	case errors.As(err, &exit) && !exit.Exited():
		return "crash", output
	case err != nil && exit == nil:
		return "error", err.Error()
	case err != nil, strings.Contains(output, "had failures"), !strings.Contains(output, "Run Summary"):
		return "fail", output
	case strings.Contains(output, "[SKIPPED]"):
		return "skip", output
	}
	return "pass", output
}
