package reconcile

import (
	"strings"
	"testing"

	"reconciler/spec"
)

// To approve that a disk is made is to approve what it is made of: another
// content under the image's name is another request.
func TestDiskIsApprovedWithItsImage(t *testing.T) {
	ids := map[string]string{}
	for _, image := range []string{
		"sha256: " + strings.Repeat("a", 64) + ", virtualSize: 1Mi",
		"sha256: " + strings.Repeat("b", 64) + ", virtualSize: 1Mi",
		"sha256: " + strings.Repeat("a", 64) + ", virtualSize: 2Mi",
		"sha256: " + strings.Repeat("a", 64) + ", virtualSize: 1Mi, format: qcow2",
	} {
		p := Diff(desired(t,
			"apiVersion: reconciler/v1alpha1\nkind: Image\nmetadata: {name: i}\nspec: {source: {file: {path: i}}, "+image+"}\n",
			"apiVersion: reconciler/v1alpha1\nkind: Disk\nmetadata: {name: d}\nspec: {pool: fast, size: 1Gi, source: {image: i}}\n"),
			Base{}, StateFromBase(nil), testNow)
		id := find(t, p, spec.KindDisk, "d").ID
		if id == "" || ids[id] != "" {
			t.Errorf("%s: the same id as with %s", image, ids[id])
		}
		ids[id] = image
	}
}
