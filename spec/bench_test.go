package spec

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// estate is a tree of files with n machines, one machine and its disk in a file.
func estate(n int) map[string]string {
	base := examples[KindCluster] + "---\n" + examples[KindHost] + "---\n" + examples[KindStoragePool] + "---\n" +
		examples[KindImage] + "---\n" + examples[KindNetwork]
	files := map[string]string{"base.yaml": base}
	body := strings.NewReplacer("  name: web-1\n", "  name: NAME\n", "name: web-1-root", "name: NAME-root", "disk: web-1-root", "disk: NAME-root").
		Replace(examples[KindVirtualMachine] + "---\n" + examples[KindDisk])
	body = strings.Replace(body, "{secret: web, key: user-data}", `{inline: "#cloud-config"}`, 1)
	for i := range n {
		name := fmt.Sprintf("vm-%06d", i)
		files["vms/"+name+".yaml"] = strings.ReplaceAll(body, "NAME", name)
	}
	return files
}

// parseAll parses files on all processors.
func parseAll(tb testing.TB, files map[string]string) []*Object {
	tb.Helper()
	var mu sync.Mutex
	var objects []*Object
	var wg sync.WaitGroup
	names := make(chan string, 256)
	for range 2 {
		wg.Go(func() {
			var own []*Object
			for name := range names {
				list, err := Parse(name, []byte(files[name]))
				if err != nil {
					tb.Error(err)
				}
				own = append(own, list...)
			}
			mu.Lock()
			defer mu.Unlock()
			objects = append(objects, own...)
		})
	}
	for name := range files {
		names <- name
	}
	close(names)
	wg.Wait()
	return objects
}

func build(tb testing.TB, objects []*Object) *Set {
	tb.Helper()
	set, err := Build(objects)
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

// processorTime reports what a benchmark takes of the processors, which says
// more than the clock where others use them, too.
func processorTime(b *testing.B) func() {
	now := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := now()
	return func() { b.ReportMetric(float64((now()-start).Microseconds())/1000/float64(b.N), "cpu-ms/op") }
}

func BenchmarkParse100k(b *testing.B) {
	files := estate(100_000)
	b.ReportAllocs()
	defer processorTime(b)()
	for b.Loop() {
		parseAll(b, files)
	}
}

func BenchmarkBuild100k(b *testing.B) {
	objects := parseAll(b, estate(100_000))
	b.ReportAllocs()
	defer processorTime(b)()
	for b.Loop() {
		build(b, objects)
	}
}

func BenchmarkDecodeAndBuild100k(b *testing.B) {
	data := Encode(parseAll(b, estate(100_000)))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	defer processorTime(b)()
	for b.Loop() {
		objects, err := Decode(data)
		if err != nil {
			b.Fatal(err)
		}
		build(b, objects)
	}
}

func BenchmarkUpdateOneOf100k(b *testing.B) {
	files := estate(100_000)
	set := build(b, parseAll(b, files))
	const name = "vms/vm-050000.yaml"
	b.ReportAllocs()
	defer processorTime(b)()
	for i := 0; b.Loop(); i++ {
		text := strings.Replace(files[name], "size: 512Mi", fmt.Sprintf("size: %dMi", 512+i%2), 1)
		objects, err := Parse(name, []byte(text))
		if err != nil {
			b.Fatal(err)
		}
		if set, err = set.Update(nil, map[string][]*Object{name: objects}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFlatten5000(b *testing.B) {
	objects := build(b, parseAll(b, estate(2500))).All()
	b.ReportAllocs()
	defer processorTime(b)()
	for b.Loop() {
		for _, o := range objects {
			Flatten(o)
		}
	}
}
