package iscsi

import (
	"os"
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
