package agent

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"reconciler/internal/durable"
	"reconciler/policy"
	"reconciler/status"
)

// lost says what is gone with each file of the agent.
var lost = map[string]string{
	placesFile: "which other hosts have had what, until the history of the repository was read again",
	stateFile:  "what was suspended, allowed, accepted and counted is lost, so this host is suspended: restore the file, or look at reconciler plan, then reconciler resume",
	baseFile:   "what was applied from Git is not known: nothing is deleted that the tree does not declare",
	ownersFile: "whose data is there is not known: where there are tenants, this host is suspended; restore the file, or look at reconciler plan, then reconciler resume",
	reviewFile: "approvals are looked for anew, and none counts that is older than what is applied",
	saidFile:   "statuses may be told to the forge again",
	driftFile:  "drift may be proposed again",
}

// loadRecord reads a file of the agent into out. A damaged one is set aside, so
// that it takes down nothing that it does not say: what it said is lost, and the
// agent's status names it until somebody takes it away.
func loadRecord[T any](a *Agent, name string, out *T) error {
	record := *out
	err := a.store.load(name, &record)
	if err == nil {
		*out = record
		return nil
	}
	aside, err := a.store.SetAside(name, err)
	if err != nil {
		return err
	}
	a.log.Error("a record of the agent is damaged", "aside", aside, "lost", lost[name])
	return nil
}

// suspendForLoss suspends the host where what was lost may have held something.
// It is told by what is in the directory, whenever the agent was killed meanwhile:
// the record was set aside, and there is no other yet.
func (a *Agent) suspendForLoss() error {
	isLost := func(name string) bool { return a.store.Has(name+durable.AsideSuffix) && !a.store.Has(name) }
	var why []string
	for _, name := range []string{stateFile, ownersFile} {
		if isLost(name) && (name != ownersFile || len(a.cfg.Tenants) > 0) {
			why = append(why, fmt.Sprintf("%s was damaged and is now %s", filepath.Join(a.store.Path(), name), name+durable.AsideSuffix))
		}
	}
	if len(why) == 0 {
		return nil
	}
	err := a.keep(func(m *memory) {
		m.Suspensions = append(m.Suspensions, policy.Suspension{Reason: strings.Join(why, "; "), By: "reconciler", Since: a.cfg.Now()})
	})
	if err != nil || !isLost(ownersFile) {
		return err
	}
	return a.store.save(ownersFile, a.owners.record())
}

// damagedCondition names the files that were set aside. a.mu is held.
func (a *Agent) damagedCondition() (status.Condition, bool) {
	names, err := a.store.Names(durable.AsideSuffix)
	if err != nil || len(names) == 0 {
		return status.Condition{}, false
	}
	slices.Sort(names)
	var text []string
	for _, n := range names {
		text = append(text, fmt.Sprintf("%s was damaged: %s", filepath.Join(a.store.Path(), n), lost[n]))
	}
	return status.Condition{
		Type: "RecordsIntact", Status: status.False, Reason: "RecordDamaged",
		Message: strings.Join(text, ". ") + ". Remove NAME" + durable.AsideSuffix + " when it has been dealt with.",
	}, true
}
