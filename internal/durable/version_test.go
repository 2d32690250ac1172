package durable

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A record of a later build is neither read, nor replaced, nor removed.
func TestLaterVersionIsLeftAlone(t *testing.T) {
	d, err := Open(t.TempDir(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "x.json")
	text := `{"version":3,"N":1,"new":true}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var r rec
	for _, do := range []func() error{
		func() error { return d.ReadJSON("x.json", 2, &r) },
		func() error { return d.WriteJSON("x.json", 2, rec{}) },
		func() error { return d.Remove("x.json") },
	} {
		var later *VersionError
		if err := do(); !errors.As(err, &later) || later.Version != 3 || later.Reads != 2 || !strings.Contains(err.Error(), path) {
			t.Errorf("%v", err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != text || r != (rec{}) {
		t.Errorf("%s, %+v, %v", got, r, err)
	}
	// What was put right by hand counts again.
	if err := os.WriteFile(path, []byte(`{"version":2,"N":7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.ReadJSON("x.json", 2, &r), d.WriteJSON("x.json", 2, rec{N: 8}), d.Remove("x.json")); err != nil || r.N != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRecordsSayTheirVersion(t *testing.T) {
	for _, v := range []any{rec{N: 1}, struct{}{}, map[string]int{"n": 1}} {
		data, err := Marshal(4, v)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Version(data); err != nil || got != 4 {
			t.Errorf("%s: %d, %v", data, got, err)
		}
	}
	if _, err := Marshal(1, []int{1}); err == nil {
		t.Error("a list is taken for a record")
	}
}

func TestDamagedRecordsAreToldAsSuch(t *testing.T) {
	for text, want := range map[string]string{
		"": "empty", " \n": "empty", "\x00\x00\x00": "damaged", `{"N":1`: "damaged", "null": "damaged", "[]": "damaged",
		`{"version":0}`: "damaged", `{"version":"1"}`: "damaged", `{"N":1} {`: "damaged",
		`{"N":1}`: "", `{"version":1,"N":1}`: "", "{\"N\":1}\n\n\n": "",
	} {
		var r rec
		err := Unmarshal([]byte(text), 1, &r)
		if want == "" && (err != nil || r.N != 1) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
}

func TestOneDamagedRecordHarmsNoOther(t *testing.T) {
	d, err := Open(t.TempDir(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a.json": `{"N":1}`, "b.json": `{"N":`, "c.json": `{"version":9}`, "d.json": `{"N":4}`, "e.json": ""} {
		if err := os.WriteFile(filepath.Join(d.Path(), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good, broken, err := ReadAll(d, ".json", 1, func(name string, r *rec) error {
		if name == "d" {
			return errors.New("not what it should be")
		}
		return nil
	})
	if err != nil || len(good) != 1 || good["a"].N != 1 || len(broken) != 4 {
		t.Errorf("%v, %v, %v", good, broken, err)
	}
	for name, err := range broken {
		if !strings.Contains(err.Error(), filepath.Join(d.Path(), name+".json")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that cannot be read at this moment is not damaged, and stays where it is.
func TestWhatCannotBeReadIsNotDamaged(t *testing.T) {
	d, err := Open(t.TempDir(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "x.json")
	if err := os.Mkdir(path, 0o700); err != nil { // reading it fails, also for root
		t.Fatal(err)
	}
	var r rec
	err = d.ReadJSON("x.json", 1, &r)
	var damaged *DamagedError
	if err == nil || errors.As(err, &damaged) {
		t.Fatalf("%v", err)
	}
	if _, aerr := d.SetAside("x.json", err); aerr != err || !d.Has("x.json") {
		t.Errorf("set aside: %v", aerr)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	aside, err := d.SetAside("x.json", d.ReadJSON("x.json", 1, &r))
	if err != nil || aside != path+AsideSuffix || d.Has("x.json") || !d.Has("x.json"+AsideSuffix) {
		t.Errorf("%s, %v", aside, err)
	}
}
