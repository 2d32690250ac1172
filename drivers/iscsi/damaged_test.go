package iscsi

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

// damages are what can have become of a file.
var damages = map[string]func([]byte) []byte{
	"empty":   func([]byte) []byte { return nil },
	"cut off": func(b []byte) []byte { return b[:len(b)/2] },
	"zeroes":  func(b []byte) []byte { return make([]byte, len(b)) },
	"garbled": func([]byte) []byte { return []byte("\xff{\"") },
	"another": func([]byte) []byte { return []byte(`{"uid":7,"disk":7,"epoch":"x","export":1}`) },
	"later":   func([]byte) []byte { return []byte(`{"version":99}`) },
}

// recordFiles are all records below the host's directories, of storage and target.
func (w *world) recordFiles() []string {
	w.t.Helper()
	var all []string
	for _, pattern := range []string{
		"state/storage/*/*.json", "state/storage/claims/.floor.json", "state/images/*.json",
		"state/pools/fast/*.json", "state/pools/fast/.reconciler-pool.json", "target/exports/*.json",
	} {
		list, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil || len(list) == 0 {
			w.t.Fatalf("%s: no record, %v", pattern, err)
		}
		all = append(all, list...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Whatever becomes of one record of the storage, the rest is observed and goes
// on; the object it speaks of is as before or unknown with the file's name, never
// absent; and with the record back, all is as it was.
func TestOneDamagedRecord(t *testing.T) {
	w := newWorld(t)
	content := []byte(strings.Repeat("x", 1<<20))
	if err := os.WriteFile(filepath.Join(w.dir, "images/tiny"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	image := fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: Image\nmetadata: {name: tiny}\nspec: {source: {file: {path: tiny}}, sha256: %q, format: raw, virtualSize: 1Mi}\n", sha256Hex(content))
	pool := w.poolYAML("")
	w.converge(w.tree(pool, image, diskYAML("gone", "size: 1Mi, retention: 1s, deletionPolicy: Delete")))
	mustClaim(t, w, uidOf(spec.KindDisk, "gone"), owner("old"))
	if err := w.d.Release(w.ctx(), uidOf(spec.KindDisk, "gone"), owner("old")); err != nil {
		t.Fatal(err)
	}
	want := w.tree(pool, image, diskYAML("web", "size: 1Mi, source: {image: tiny}"), diskYAML("db", "size: 1Mi"))
	w.converge(want) // purges gone
	w.converge(want)
	for _, name := range []string{"web", "db"} {
		mustClaim(t, w, uidOf(spec.KindDisk, name), owner("launch-"+name))
	}
	whole := w.converge(want)

	for _, path := range w.recordFiles() {
		was, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		ours := ""
		for k := range whole.Objects {
			if strings.Contains(path, k.UID) {
				ours = k.UID
			}
		}
		rel, _ := filepath.Rel(w.dir, path)
		for how, damage := range damages {
			t.Run(strings.ReplaceAll(rel, "/", " ")+" "+how, func(t *testing.T) {
				w.t = t
				if err := os.WriteFile(path, damage(was), 0o600); err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(rel, "target/") {
					w.stopTarget()
					w.startTarget()
				}
				w.open()
				ensured := w.d.Ensure(w.ctx())
				s := w.observe(want)
				for k, was := range whole.Objects {
					why, unknown := s.Unknown[k]
					now := s.Objects[k]
					switch {
					case unknown && !strings.Contains(why, path):
						t.Errorf("%s is unknown, and the reason does not name %s: %s", was.Name, path, why)
					case unknown && k.UID != ours && ours != "" && !strings.Contains(rel, "storage/pools"):
						t.Errorf("%s is unknown by a record that is not its own: %s", was.Name, why)
					case !unknown && now == nil && k.Kind != spec.KindImage:
						t.Errorf("%s is taken for absent; ensure: %v", was.Name, ensured)
					}
				}
				// A disk that the record does not speak of can be had by its owner.
				for _, name := range []string{"web", "db"} {
					uid := uidOf(spec.KindDisk, name)
					if _, unknown := s.Unknown[reconcile.Key{Kind: spec.KindDisk, UID: uid}]; unknown {
						continue
					}
					if g, err := w.d.Claim(w.ctx(), uid, owner("launch-"+name)); err != nil || g.Epoch != 1 && g.Epoch != 2 {
						t.Errorf("claim of %s: epoch %d, %v", name, g.Epoch, err)
					}
					if _, err := w.d.Claim(w.ctx(), uid, owner("another")); err == nil {
						t.Errorf("%s was given out twice", name)
					}
				}
				if err := os.WriteFile(path, was, 0o600); err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(rel, "target/") {
					w.stopTarget()
					w.startTarget()
				}
				w.open()
				if s := w.converge(want); !reflect.DeepEqual(keysOf(s), keysOf(whole)) || len(s.Unknown) > 0 {
					t.Errorf("with the record back: %v, unknown %v", keysOf(s), s.Unknown)
				}
			})
		}
		w.t = t
	}
}

// What docs/operating.md has for who has no backup of a pool's records.
func TestPoolRecordsFromEachOther(t *testing.T) {
	w := newWorld(t)
	want := w.tree(w.poolYAML(""), diskYAML("web", "size: 1Mi"))
	whole := w.converge(want)
	mustClaim(t, w, uidOf(spec.KindDisk, "web"), owner("launch-1"))
	record := filepath.Join(w.dir, "state/storage/pools", uidOf(spec.KindStoragePool, "fast")+".json")
	marker := filepath.Join(w.dir, "state/pools/fast/.reconciler-pool.json")
	check := func(what string) {
		t.Helper()
		w.open()
		if s := w.converge(want); !reflect.DeepEqual(keysOf(s), keysOf(whole)) || len(s.Unknown) > 0 {
			t.Errorf("%s: %v, unknown %v", what, keysOf(s), s.Unknown)
		}
		if g := mustClaim(t, w, uidOf(spec.KindDisk, "web"), owner("launch-1")); g.Epoch != 1 {
			t.Errorf("%s: epoch %d", what, g.Epoch)
		}
	}
	if err := os.Rename(record, record+".away"); err != nil {
		t.Fatal(err)
	}
	check("the record is moved away")
	var r struct{ UID, Name, Cluster string }
	data, err := os.ReadFile(record)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(marker, fmt.Appendf(nil, `{"version": 1, "uid": %q, "name": %q, "cluster": %q}`, r.UID, r.Name, r.Cluster), 0o600); err != nil {
		t.Fatal(err)
	}
	check("the marker is written from the record")
}

func keysOf(s reconcile.State) []string {
	var all []string
	for k, l := range s.Objects {
		all = append(all, fmt.Sprintf("%s/%s %s", k.Kind, l.Name, k.UID))
	}
	slices.Sort(all)
	return all
}
