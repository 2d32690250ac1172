package spec

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write the generated files")

func TestGeneratedFiles(t *testing.T) {
	for file, want := range map[string][]byte{
		"../docs/spec.md": Reference(),
		"../examples/cluster-repo/.schema/reconciler.schema.json": Schema(),
	} {
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not current: run go generate ./spec", file)
		}
	}
}
