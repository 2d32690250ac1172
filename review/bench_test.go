package review

import (
	"fmt"
	"testing"

	"reconciler/spec"
)

// A pull request that changes every one of 10,000 objects on one host.
func BenchmarkCompare(b *testing.B) {
	make := func(memory, size string) *spec.Set {
		var docs []string
		for i := range 5000 {
			docs = append(docs, disk(fmt.Sprintf("d%d", i), "size: "+size),
				vmOn("host1", fmt.Sprintf("v%d", i), fmt.Sprintf("cpu: {cores: 1}, memory: {size: %s}, disks: [{disk: d%d}]", memory, i)))
		}
		return tree(b, docs...)
	}
	base, merge := make("128Mi", "64Mi"), make("256Mi", "128Mi")
	in := input(base, merge, applied(base, "host1"))
	b.ResetTimer()
	for b.Loop() {
		r := Compare(in)
		if n := len(r.Markdown(65536, "")); n == 0 || len(r.Hosts[0].IDs) != 10_000 {
			b.Fatalf("%d bytes, %d ids", n, len(r.Hosts[0].IDs))
		}
	}
}
