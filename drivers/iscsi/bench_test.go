package iscsi

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func BenchmarkObserve(b *testing.B) {
	for _, n := range []int{50, 1000} {
		b.Run(fmt.Sprintf("disks=%d", n), func(b *testing.B) {
			w := newWorldAt(b, tmpfs(b, "1G"))
			w.startTarget()
			w.open()
			docs := []string{strings.Replace(w.poolYAML(""), "256Mi", "64Gi", 1)}
			for i := range n {
				docs = append(docs, diskYAML(fmt.Sprintf("disk-%d", i), "size: 4Mi"))
			}
			want := w.tree(docs...)
			w.converge(want)
			b.Run("ensure", func(b *testing.B) {
				for b.Loop() {
					if err := w.d.Ensure(w.ctx()); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("observe", func(b *testing.B) {
				for b.Loop() {
					w.observe(want)
				}
			})
		})
	}
}

func BenchmarkClaim(b *testing.B) {
	w := newWorld(b)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := diskKey("web").UID
	var again, release time.Duration
	for i := 0; b.Loop(); i++ {
		o := owner(fmt.Sprint("launch-", i))
		if _, err := w.d.Claim(w.ctx(), uid, o); err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if _, err := w.d.Claim(w.ctx(), uid, o); err != nil {
			b.Fatal(err)
		}
		again += time.Since(began)
		began = time.Now()
		if err := w.d.Release(w.ctx(), uid, o); err != nil {
			b.Fatal(err)
		}
		release += time.Since(began)
	}
	b.ReportMetric(float64(again.Microseconds())/float64(b.N), "µs/again")
	b.ReportMetric(float64(release.Microseconds())/float64(b.N), "µs/release")
}
