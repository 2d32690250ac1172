package spec

import (
	"strings"
	"testing"
)

func TestDocuments(t *testing.T) {
	for text, want := range map[string]string{
		"a: &x 1\nb: *x\n---\na: &x 2\nb: *x\n": "",
		"a: &x 1\n---\nb: [{c: *x}]\n":          `line 3: the anchor "x" is another document's`,
		"a: &x [1]\n---\n*x : 1\n":              `the anchor "x" is another document's`,
		"a: *x\n---\na: &x 1\n":                 "unknown anchor 'x' referenced",
		"a: [\n":                                "did not find expected node content",
	} {
		roots, err := Documents([]byte(text))
		if want == "" && (err != nil || len(roots) != 2) {
			t.Errorf("%q: %d documents, %v", text, len(roots), err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
