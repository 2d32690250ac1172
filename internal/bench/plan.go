package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
)

type planArgs struct{ Objects, Rounds int }

type planResult struct {
	Desired, Diff, All, Render spread
	Peak                       int64
}

// planSuite plans a host on which nothing is to be done.
func planSuite(ctx context.Context, b *bench) ([]row, error) {
	const objects = 5000
	var many, once planResult
	err := spawn(ctx, b, "plan", "plan", planArgs{objects, b.pick(50, 5)}, &many)
	if err == nil {
		err = spawn(ctx, b, "plan", "plan-once", planArgs{objects, 1}, &once)
	}
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("no-op plan of %d objects", objects)
	return []row{
		within(what, many.All, 300*time.Millisecond),
		within("— of that, what the tree wants of the host (NewDesired)", many.Desired, 0),
		within("— of that, Diff and policy", many.Diff, 0),
		within("the plan as JSON, beside that", many.Render, 0),
		weighs(what+": most memory of a process that parses the tree and plans once", once.Peak, 100<<20),
		weighs(fmt.Sprintf("the same, %d times in a row", len(many.All)), many.Peak, 100<<20),
	}, nil
}

// planChild has want, base and have as the agent has them: want from the
// parsed tree, base and have decoded from records, sharing nothing with it.
func planChild(a planArgs) (any, error) {
	set, err := parseEstate(estate{hosts: 1, objects: a.Objects}, func(_, content string) string { return content })
	if err != nil {
		return nil, err
	}
	base, have, err := asRecorded(reconcile.NewDesired(set, host(0), "r"))
	if err != nil {
		return nil, err
	}
	var out planResult
	for range a.Rounds {
		began := time.Now()
		want := reconcile.NewDesired(set, host(0), "r")
		desired := time.Now()
		plan := reconcile.Diff(want, base, have, began)
		policy.Apply(&plan, policy.Input{Have: have, Limits: policy.DefaultLimits, Now: began})
		plan.Settle()
		planned := time.Now()
		if n := len(plan.Actions); !plan.Empty() || n != a.Objects {
			return nil, fmt.Errorf("the plan has %d actions: %s", n, plan.Headline())
		}
		if err := json.NewEncoder(io.Discard).Encode(&plan); err != nil {
			return nil, err
		}
		out.Desired = append(out.Desired, desired.Sub(began))
		out.Diff = append(out.Diff, planned.Sub(desired))
		out.All = append(out.All, planned.Sub(began))
		out.Render = append(out.Render, time.Since(planned))
	}
	out.Peak, err = memoryOf("self", "VmHWM")
	return out, err
}

// parseEstate is the set of an estate, its files edited.
func parseEstate(e estate, edit func(path, content string) string) (*spec.Set, error) {
	var objects []*spec.Object
	var parse error
	e.files(func(path, content string) {
		list, err := spec.Parse(path, []byte(edit(path, content)))
		if err != nil && parse == nil {
			parse = err
		}
		objects = append(objects, list...)
	})
	if parse != nil {
		return nil, parse
	}
	return spec.Build(objects)
}

// asRecorded is the world in which all of want was applied, read from records.
func asRecorded(want *reconcile.Desired) (reconcile.Base, reconcile.State, error) {
	base, err := reread(reconcile.BaseOf(want))
	if err != nil {
		return nil, reconcile.State{}, err
	}
	observed, err := reread(base)
	return base, reconcile.StateFromBase(observed), err
}

// reread is a base through its form on disk.
func reread(base reconcile.Base) (reconcile.Base, error) {
	out := make(reconcile.Base, len(base))
	for k, b := range base {
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		var a reconcile.Applied
		if err := json.Unmarshal(data, &a); err != nil {
			return nil, err
		}
		out[k] = &a
	}
	return out, nil
}
