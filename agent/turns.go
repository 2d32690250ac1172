package agent

import (
	"context"
	"sync"
	"time"

	"reconciler/reconcile"
	"reconciler/spec"
)

// turn is how long an action keeps its place. One that takes longer waits for
// somebody else, a guest or a peer that may never answer, rather than for this
// host; the next one begins meanwhile. A download keeps its place: there it is the
// line that is shared.
const turn = 2 * time.Second

// lanes are what actions queue in, a few at a time in each. What brings a machine
// back queues behind nothing that makes one, and nothing behind a pool that it does
// not use; a tenant's downloads queue behind its own.
type lanes struct {
	room int // in each

	mu sync.Mutex
	by map[lane]chan struct{}
}

type lane struct {
	what string // back, keep, make, fetch
	of   string // the pool's name; the tenant's of fetch
}

// lane is the one of an action. a.mu is not held.
func (a *Agent) lane(act *reconcile.Action) lane {
	switch {
	case fetches(act):
		a.mu.Lock()
		defer a.mu.Unlock()
		return lane{"fetch", a.ownership(a.set).Tenant(act.UID)}
	case act.Op == reconcile.OpCreate:
		return lane{"make", poolOf(act)}
	case act.Kind == spec.KindVirtualMachine:
		return lane{"back", poolOf(act)}
	}
	return lane{"keep", poolOf(act)}
}

// fetches says whether an action may have to wait for a server of images.
func fetches(act *reconcile.Action) bool {
	if act.Kind == spec.KindImage {
		return true
	}
	if act.Kind != spec.KindDisk || act.Op != reconcile.OpCreate || act.Want == nil {
		return false
	}
	for _, r := range act.Want.Refs {
		if r.To.Kind == spec.KindImage {
			return true
		}
	}
	return false
}

// poolOf names the storage that an action depends on; empty for none.
func poolOf(act *reconcile.Action) string {
	const path = "spec.pool"
	switch {
	case act.Kind == spec.KindStoragePool:
		return act.Name
	case act.Kind == spec.KindDisk && act.Want != nil:
		return act.Want.Get(path)
	case act.Kind == spec.KindDisk && act.Have != nil:
		return act.Have.Get(path)
	case act.Want != nil:
		for _, r := range act.Want.Refs {
			if r.To.Kind == spec.KindDisk {
				return r.To.Get(path)
			}
		}
	}
	return ""
}

// enter waits for a place in a lane; leave gives it back.
func (l *lanes) enter(ctx context.Context, in lane) (leave func(), err error) {
	l.mu.Lock()
	if l.by == nil {
		l.by = map[lane]chan struct{}{}
	}
	places := l.by[in]
	if places == nil {
		places = make(chan struct{}, l.room)
		l.by[in] = places
	}
	l.mu.Unlock()
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	give := sync.OnceFunc(func() { <-places })
	if in.what == "fetch" {
		return give, nil
	}
	over := time.AfterFunc(turn, give)
	return func() { over.Stop(); give() }, nil
}
