package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"reconciler/reconcile"
	"reconciler/review"
)

type reviewResult struct {
	Compare, Render spread
	Comment         int
}

// reviewSuite plans a pull request that changes every machine and every disk.
func reviewSuite(ctx context.Context, b *bench) ([]row, error) {
	objects := b.pick(10_000, 500)
	var out reviewResult
	if err := spawn(ctx, b, "review", "review", planArgs{objects, b.pick(10, 2)}, &out); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("plan of a pull request that changes %d objects of 10 hosts", objects)
	return []row{
		within(what, out.Compare, 0),
		within(fmt.Sprintf("— beside that, its comment of %d bytes", out.Comment), out.Render, 0),
	}, nil
}

// reviewChild compares from parsed trees and read reports to the comment.
func reviewChild(a planArgs) (any, error) {
	e := estate{hosts: 10, objects: a.Objects}
	base, err := parseEstate(e, func(_, content string) string { return content })
	if err != nil {
		return nil, err
	}
	merge, err := parseEstate(e, func(_, content string) string {
		return strings.NewReplacer("size: 512Mi", "size: 768Mi", "retention: 168h", "retention: 240h").Replace(content)
	})
	if err != nil {
		return nil, err
	}
	in := review.Input{BaseRevision: "b", HeadRevision: "h", Tree: "t", Base: base, Merge: merge, Now: time.Now()}
	for i := range e.hosts {
		applied, have, err := asRecorded(reconcile.NewDesired(base, host(i), "b"))
		if err != nil {
			return nil, err
		}
		in.Hosts = append(in.Hosts, review.HostInput{Host: host(i), Base: applied, Have: have, ObservedAt: in.Now})
	}
	var out reviewResult
	for range a.Rounds {
		began := time.Now()
		r := review.Compare(in)
		compared := time.Now()
		comment := r.Markdown(65536, "plan.json")
		out.Compare, out.Render = append(out.Compare, compared.Sub(began)), append(out.Render, time.Since(compared))
		out.Comment = len(comment)
		changes := 0
		for i := range r.Actions {
			if r.Actions[i].Origin == review.PullRequest {
				changes++
			}
		}
		if want := e.disks() + e.machines(); changes != want {
			return nil, fmt.Errorf("the pull request causes %d actions, not %d", changes, want)
		}
	}
	return out, nil
}
