package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"reconciler/reconcile"
	"reconciler/review"
	"reconciler/spec"
)

// An approval is of a change, and ends with it: what a later revision does not
// ask for any more is not approved when another one asks for it again.

// asked is what one revision asks of this host.
type asked struct {
	want *reconcile.Desired
	ids  map[string]bool
}

// maxSince bounds the revisions that may come between an approved one and the
// newest; what was approved before that is forgotten.
const maxSince = 100

// asks works out what a revision asks for. One that does not load, or does not
// declare this host, was never in force: nil.
func (a *Agent) asks(ctx context.Context, c Revision, base reconcile.Base, now time.Time) (*asked, error) {
	set, err := a.cfg.Source.Load(ctx, c.Hash)
	if _, invalid := errors.AsType[spec.Errors](err); invalid || errors.Is(err, spec.ErrEmpty) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("revision %s: %w", short(c.Hash), err)
	}
	if a.selfIn(set) == nil {
		return nil, nil
	}
	want := reconcile.NewDesired(set, a.nameIn(set), c.Hash)
	return &asked{want, review.Asked(want, base, now)}, nil
}

// withdraw leaves of an approval what a later revision still asks for.
func (p *approvedPlan) withdraw(since *asked) {
	if since == nil {
		return
	}
	p.IDs = slices.DeleteFunc(p.IDs, func(id string) bool { return !since.ids[id] })
	maps.DeleteFunc(p.Parts, func(object string, part approvedPart) bool {
		kind, uid, _ := strings.Cut(object, "/")
		w := since.want.Objects[reconcile.Key{Kind: spec.Kind(kind), UID: uid}]
		return w == nil || w.Generation() != part.Generation
	})
}

// forgetWithdrawn takes from the approvals that were accepted what the revisions
// up to next take back. It comes before next is in force. Where that cannot be
// told all is forgotten, and looked for anew.
func (a *Agent) forgetWithdrawn(ctx context.Context, good, next string) error {
	a.mu.Lock()
	none := len(a.review.Plans) == 0
	base := maps.Clone(a.base)
	a.mu.Unlock()
	if none || good == next {
		return nil
	}
	chain, err := a.cfg.Source.Between(ctx, good, next, true)
	if err == nil && len(chain) > maxSince {
		err = fmt.Errorf("%d revisions", len(chain))
	}
	for i := 0; i < len(chain) && err == nil; i++ {
		var since *asked
		if since, err = a.asks(ctx, chain[i], base, a.cfg.Now()); err != nil {
			break
		}
		a.mu.Lock()
		for j := range a.review.Plans {
			a.review.Plans[j].withdraw(since)
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.log.Warn("approvals are looked for anew: what came after them cannot be told", "error", err)
		a.review.Plans = nil
	}
	a.review.dirty = true
	return a.keepReview()
}
