package review

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func approval(change func(*Approval)) Approval {
	a := Approval{
		Cluster: "demo", Host: "host1", Base: strings.Repeat("a", 40), Tree: strings.Repeat("c", 40), State: strings.Repeat("5", 40),
		IDs: []string{strings.Repeat("2", 64), strings.Repeat("1", 64)}, Signed: testNow, Until: testNow.Add(time.Hour),
	}
	if change != nil {
		change(&a)
	}
	return a
}

func override(change func(*Override)) Override {
	o := Override{Cluster: "demo", Host: "host1", Digest: "sha256:" + strings.Repeat("d", 64), Reason: "the pool burns", Signed: testNow, Until: testNow.Add(time.Hour)}
	if change != nil {
		change(&o)
	}
	return o
}

func TestRecordsComeBack(t *testing.T) {
	data, err := approval(nil).Encode()
	if err != nil {
		t.Fatal(err)
	}
	a, err := ParseApproval(data)
	if err != nil || a.IDs[0] != strings.Repeat("1", 64) || !a.Until.Equal(testNow.Add(time.Hour)) {
		t.Errorf("%+v, %v", a, err)
	}
	data, err = override(nil).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if o, err := ParseOverride(data); err != nil || o.Reason != "the pool burns" {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := ParseApproval(data); err == nil {
		t.Error("an override is taken for an approval")
	}
}

// Whatever is not exactly what Encode gives is no record.
func TestRecordsAreCanonical(t *testing.T) {
	good, err := approval(nil).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(string) string{
		"space":       func(s string) string { return strings.Replace(s, ":", ": ", 1) },
		"more":        func(s string) string { return s + "{}" },
		"unknown key": func(s string) string { return strings.Replace(s, `"cluster"`, `"x":1,"cluster"`, 1) },
		"key twice":   func(s string) string { return strings.Replace(s, `"cluster"`, `"host":"other","cluster"`, 1) },
		"unsorted ids": func(s string) string {
			return strings.NewReplacer(strings.Repeat("1", 64), strings.Repeat("2", 64), strings.Repeat("2", 64), strings.Repeat("1", 64)).Replace(s)
		},
		"case of a key": func(s string) string { return strings.Replace(s, `"host"`, `"Host"`, 1) },
		"zone":          func(s string) string { return strings.Replace(s, "12:00:00Z", "13:00:00+01:00", 1) },
		"empty":         func(string) string { return "" },
		"garbage":       func(string) string { return "\x00\xff" },
		"null":          func(string) string { return "null\n" },
		"deep":          func(string) string { return strings.Repeat("[", 100_000) },
		"huge":          func(s string) string { return s + strings.Repeat(" ", MaxRecord) },
	} {
		if a, err := ParseApproval([]byte(change(string(good)))); err == nil {
			t.Errorf("%s: taken for %+v", name, a)
		}
	}
}

func TestRecordsThatDoNotHold(t *testing.T) {
	for name, change := range map[string]func(*Approval){
		"no host":      func(a *Approval) { a.Host = "" },
		"path as host": func(a *Approval) { a.Host = "../host1" },
		"no cluster":   func(a *Approval) { a.Cluster = "" },
		"short tree":   func(a *Approval) { a.Tree = "abc" },
		"short id":     func(a *Approval) { a.IDs = []string{"1234"} },
		"state":        func(a *Approval) { a.State = "HEAD" },
		"for ever":     func(a *Approval) { a.Until = testNow.Add(MaxApproval + time.Hour) },
		"backwards":    func(a *Approval) { a.Until = testNow },
		"no time":      func(a *Approval) { a.Signed = time.Time{} },
	} {
		if _, err := approval(change).Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	for name, change := range map[string]func(*Override){
		"both":       func(o *Override) { o.IDs = []string{strings.Repeat("1", 64)} },
		"neither":    func(o *Override) { o.Digest = "" },
		"short":      func(o *Override) { o.Digest = "sha256:abc" },
		"no reason":  func(o *Override) { o.Reason = " " },
		"too long":   func(o *Override) { o.Until = testNow.Add(MaxOverride + time.Minute) },
		"a part":     func(o *Override) { o.Digest, o.IDs = "", []string{"12345678"} },
		"other host": func(o *Override) { o.Host = "a/b" },
	} {
		if _, err := override(change).Encode(); err == nil {
			t.Errorf("override, %s: encoded", name)
		}
	}
}

func TestRecordsCountHereAndNow(t *testing.T) {
	a := approval(nil)
	for _, c := range []struct {
		cluster, host string
		at            time.Time
		want          error
	}{
		{"demo", "host1", testNow, nil},
		{"demo", "host1", testNow.Add(59 * time.Minute), nil},
		{"demo", "host1", testNow.Add(time.Hour), ErrExpired},
		{"demo", "host2", testNow, ErrForeign},
		{"prod", "host1", testNow, ErrForeign},
		{"demo", "host1", testNow.Add(-time.Minute), nil}, // clocks differ
	} {
		if err := a.Check(c.cluster, c.host, c.at); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s %s %s: %v, want %v", c.cluster, c.host, c.at, err, c.want)
		}
	}
	if err := a.Check("demo", "host1", testNow.Add(-time.Hour)); err == nil {
		t.Error("a record of the future counts")
	}
}

// The ref is bounded: what is expired, torn, unsigned, misplaced or of the
// future goes, and the oldest where there are too many.
func TestAddIsBounded(t *testing.T) {
	put := func(files map[string][]byte, a Approval) string {
		t.Helper()
		data, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		files[a.Path()], files[a.Path()+SignatureSuffix] = data, []byte("sig")
		return a.Path()
	}
	files := map[string][]byte{"README": []byte("x"), "approvals/x/y.json": []byte("{"), "big": bytes.Repeat([]byte("x"), 1<<20)}
	tree := func(i int) string { return fmt.Sprintf("%040x", i) }
	expired := put(files, approval(func(a *Approval) { a.Tree, a.Signed, a.Until = tree(1), testNow.Add(-2*time.Hour), testNow }))
	future := put(files, approval(func(a *Approval) {
		a.Tree, a.Signed, a.Until = tree(2), testNow.Add(time.Hour), testNow.Add(2*time.Hour)
	}))
	unsigned := put(files, approval(func(a *Approval) { a.Tree = tree(3) }))
	delete(files, unsigned+SignatureSuffix)
	misplaced := put(files, approval(func(a *Approval) { a.Tree = tree(4) }))
	files[ApprovalPath(tree(5), "host1")], files[ApprovalPath(tree(5), "host1")+SignatureSuffix] = files[misplaced], []byte("sig")
	for i := range MaxRecords + 10 {
		put(files, approval(func(a *Approval) { a.Tree, a.Signed = tree(1000+i), testNow.Add(-time.Duration(i)*time.Second) }))
	}
	fresh := approval(nil)
	data, err := fresh.Encode()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Add(files, testNow, Signed{fresh.Path(), data, []byte("sig")})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 2*MaxRecords {
		t.Errorf("%d files, want %d", len(out), 2*MaxRecords)
	}
	for _, gone := range []string{"README", "approvals/x/y.json", "big", expired, future, unsigned, ApprovalPath(tree(5), "host1"), ApprovalPath(tree(1000+MaxRecords), "host1")} {
		if _, ok := out[gone]; ok {
			t.Errorf("%s is kept", gone)
		}
	}
	for _, kept := range []string{fresh.Path(), ApprovalPath(tree(1000), "host1")} {
		if _, ok := out[kept]; !ok {
			t.Errorf("%s is not kept", kept)
		}
	}
	if _, err := Add(nil, testNow, Signed{"approvals/a/b.json", data, []byte("sig")}); err == nil {
		t.Error("a record is added where it does not belong")
	}
}

func TestFind(t *testing.T) {
	files := map[string][]byte{
		"approvals/t/host1.json": []byte("a"), "approvals/t/host1.json.sig": []byte("s"),
		"overrides/host1/b.json": []byte("b"), "overrides/host1/b.json.sig": []byte("s"), "overrides/host1/a.json": []byte("a"),
		"overrides/host10/c.json": []byte("c"), "overrides/host1/sub/d.json": []byte("d"), "overrides/host1/e.txt": []byte("e"),
	}
	if s, ok := ApprovalOf(files, "t", "host1"); !ok || string(s.Data) != "a" || string(s.Signature) != "s" {
		t.Errorf("%+v %v", s, ok)
	}
	if _, ok := ApprovalOf(files, "t", "host2"); ok {
		t.Error("another host's approval is found")
	}
	if l := OverridesOf(files, "host1"); len(l) != 2 || l[0].Path != "overrides/host1/a.json" || l[0].Signature != nil || string(l[1].Signature) != "s" {
		t.Errorf("%+v", l)
	}
}
