package agent

import (
	"context"
	"strings"

	"reconciler/api"
	"reconciler/reconcile"
)

// idDigits are those of a full id.
const idDigits = 64

// allowable finds what an operator means by the first digits of an id, or by
// KIND/NAME, in the plan of the last pass, else in one of now. What is released
// is that action and no other: digits of an id that a later commit was made to
// match, or another change of the same object, are not what was looked at.
func (a *Agent) allowable(ctx context.Context, name string) (string, error) {
	a.mu.Lock()
	last := a.plan
	a.mu.Unlock()
	id, err := allowableOf(last, name)
	if id != "" || err != nil {
		return id, err
	}
	now, err := a.Plan(ctx, api.PlanRequest{})
	if err != nil {
		return "", err
	}
	if id, err = allowableOf(now, name); id == "" && err == nil {
		err = &api.Error{Code: api.NotFound, Message: "no action of the present plan is " + name, Hint: "look at it with reconciler plan"}
	}
	return id, err
}

func allowableOf(p *reconcile.Plan, name string) (string, error) {
	if p == nil {
		return "", nil
	}
	var found []string
	for i := range p.Actions {
		switch act := &p.Actions[i]; {
		case act.Op == reconcile.OpUnchanged:
		case objectName(act) == name && act.ID == "":
			found = append(found, name)
		case objectName(act) == name, act.ID != "" && strings.HasPrefix(act.ID, name):
			found = append(found, act.ID)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", api.Errorf(api.Invalid, "%d actions of the plan are %s; give more of the id", len(found), name)
	case len(name) == idDigits && !strings.Contains(name, "/"):
		return name, nil
	}
	return "", nil
}
