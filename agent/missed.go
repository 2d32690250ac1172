package agent

import (
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// recall takes what this host last reported to have for known, where the agent's
// memory is gone: what is not found now is missed, not new. It need not be signed.
// A forged report makes the host hold back, and nothing else.
func (a *Agent) recall(data []byte) error {
	r, err := status.ReadState(data)
	if err != nil || r.Host != a.cfg.Host {
		return nil // whoever reads the rest of it says so
	}
	missed := map[string]spec.Kind{}
	add := func(k reconcile.Key) {
		if k.Kind == spec.KindStoragePool || k.Kind == spec.KindDisk {
			missed[k.UID] = k.Kind
		}
	}
	have := r.State()
	for k := range have.Objects {
		add(k)
	}
	for k := range have.Unknown {
		if k.Kind == spec.KindStoragePool { // a disk that is unknown may never have been made
			add(k)
		}
	}
	base, _ := r.Base()
	for k, b := range base {
		if b.Done {
			add(k)
		}
	}
	if len(missed) == 0 {
		return nil
	}
	return a.remember(func(m *memory) { m.Missed = missed })
}

// hadHere are the pools and disks that were here, and what says so. a.mu is held.
func (a *Agent) hadHere() map[reconcile.Key]string {
	known := map[reconcile.Key]string{}
	for uid, kind := range a.mem.Missed {
		known[reconcile.Key{Kind: kind, UID: uid}] = "this host's last report has it"
	}
	for k, b := range a.base {
		if k.Kind == spec.KindStoragePool && b.Done {
			known[k] = "it was applied here before"
		}
	}
	return known
}

// found are the missed that are there again. a.mu is held.
func (a *Agent) found(have reconcile.State) (uids []string) {
	for uid, kind := range a.mem.Missed {
		if have.Objects[reconcile.Key{Kind: kind, UID: uid}] != nil {
			uids = append(uids, uid)
		}
	}
	return uids
}
