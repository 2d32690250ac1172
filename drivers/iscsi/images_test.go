package iscsi

import (
	"os"
	"strings"
	"testing"

	"reconciler/reconcile"
	"reconciler/spec"
)

func TestImagesAreKeptWhileAnImageNeedsThem(t *testing.T) {
	w := newWorld(t)
	data := tinyImage()
	both := w.tree(imageYAML(w, "a", data), imageYAML(w, "b", data))
	w.converge(both)
	key := func(name string) reconcile.Key {
		return reconcile.Key{Kind: spec.KindImage, UID: uidOf(spec.KindImage, name)}
	}
	s := w.observe(both)
	if s.Objects[key("a")] == nil || s.Objects[key("b")] == nil {
		t.Fatal("the images are not there")
	}
	out, err := w.d.Apply(w.ctx(), reconcile.Action{Kind: spec.KindImage, UID: key("a").UID, Name: "a", Op: reconcile.OpCreate, Want: both.Objects[key("a")]}, reconcile.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out.File); err != nil || sha256Hex(got) != sha256Hex(data) {
		t.Errorf("%s: %v", out.File, err)
	}
	w.converge(w.tree(imageYAML(w, "a", data)))
	if _, err := os.Stat(out.File); err != nil {
		t.Errorf("b is gone, a needs the file: %v", err)
	}
	other := append([]byte("other"), data[5:]...)
	w.converge(w.tree(imageYAML(w, "a", other)))
	if _, err := os.Stat(out.File); !os.IsNotExist(err) {
		t.Errorf("nobody needs the old content: %v", err)
	}
	w.converge(w.tree())
	if left, err := os.ReadDir(w.dir + "/state/images"); err != nil || len(left) != 1 { // the reserve
		t.Errorf("left over: %v, %v", left, err)
	}
}

// Who knows the SHA-256 of another's image does not get its content by it.
func TestAnImageOfOthersIsNotHadByItsHash(t *testing.T) {
	w := newWorld(t)
	data := tinyImage()
	w.converge(w.tree(imageYAML(w, "theirs", data)))
	thief := strings.ReplaceAll(strings.Replace(imageYAML(w, "thief", data), "thief.img", "missing.img", 1), "path: thief", "path: missing")
	want := w.tree(imageYAML(w, "theirs", data), thief, w.poolYAML(""), diskYAML("loot", "size: 4Mi, source: {image: thief}"))
	key := reconcile.Key{Kind: spec.KindImage, UID: uidOf(spec.KindImage, "thief")}
	if err := w.apply(w.action(want, spec.KindImage, "thief")); err == nil {
		t.Error("the image was made, without its source")
	}
	w.converge(w.tree(imageYAML(w, "theirs", data), w.poolYAML("")))
	o := want.Objects[diskKey("loot")]
	if err := w.apply(reconcile.Action{Kind: spec.KindDisk, UID: o.UID, Name: o.Name, Op: reconcile.OpCreate, Want: o}); err == nil {
		t.Error("a disk was made of it")
	}
	if s := w.observe(want); s.Objects[key] != nil || s.Objects[diskKey("loot")] != nil {
		t.Error("it is there")
	}
	// With the source, it is its own.
	if err := os.WriteFile(w.dir+"/images/missing.img", data, 0o644); err != nil {
		t.Fatal(err)
	}
	s := w.converge(want)
	liveDisk(t, s, "loot")
	// Proved once, it is not asked for again.
	if err := os.Remove(w.dir + "/images/missing.img"); err != nil {
		t.Fatal(err)
	}
	again := w.action(want, spec.KindImage, "thief")
	again.Op = reconcile.OpCreate // as for a machine that boots from it
	if err := w.apply(again); err != nil {
		t.Error(err)
	}
}
