package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"reconciler/gitrepo"
	"reconciler/spec"
	"reconciler/status"
	"reconciler/trust"
)

// Signing is whose commits may come into force.
type Signing struct {
	Required bool
	// Keys is a file of allowed signers, GPGKeys one of armored OpenPGP keys.
	// Either may be missing. They are read for every revision.
	Keys, GPGKeys string
	// Merges asks for signatures of the branch's own commits only, the chain of
	// first parents: with a forge that signs its merges, whoever may merge.
	Merges bool
	// TrustedBase is the commit up to which nothing is asked, besides what has
	// been in force.
	TrustedBase string
}

// keys reads who may sign.
func (s Signing) keys() (*trust.Keys, error) {
	keys := &trust.Keys{}
	if s.Keys != "" {
		data, err := os.ReadFile(s.Keys)
		if err == nil {
			if keys, err = trust.ParseAllowedSigners(data); err != nil {
				err = fmt.Errorf("%s: %w", s.Keys, err)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if s.GPGKeys != "" {
		data, err := os.ReadFile(s.GPGKeys)
		if err == nil {
			if err = keys.AddGPG(data); err != nil {
				err = fmt.Errorf("%s: %w", s.GPGKeys, err)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// trusted refuses a revision if what came since good was not signed by those who
// may. A key counts if it is valid now: a commit's date is its author's claim, so
// a key that leaked could otherwise sign for the past for ever.
func (a *Agent) trusted(ctx context.Context, good, hash string) error {
	s := a.cfg.Signing
	if !s.Required {
		return nil
	}
	keys, err := s.keys()
	if err != nil {
		return &refusal{"SigningKeysUnreadable", "the keys that may sign cannot be read: " + err.Error()}
	}
	from, err := a.trustedFrom(ctx, good, hash)
	if err != nil {
		return err
	}
	list, err := a.cfg.Source.Between(ctx, from, hash, s.Merges)
	if err != nil {
		return unreadable(err)
	}
	var first *refusal
	others := 0
	for _, c := range list {
		why, err := a.signedBy(ctx, keys, c)
		switch {
		case err != nil:
			return unreadable(err)
		case why == nil:
		case first == nil:
			first = why
		default:
			others++
		}
	}
	if first == nil {
		return nil
	}
	if others > 0 {
		first.message += fmt.Sprintf("; so it is with %d more", others)
	}
	return first
}

func unreadable(err error) *refusal {
	return &refusal{"HistoryUnreadable", "its history cannot be read: " + err.Error()}
}

// trustedFrom is the commit up to which nothing is asked: the last good one, or
// the configured one if that is further on or there is no other; "" if all of
// the history must be signed.
func (a *Agent) trustedFrom(ctx context.Context, good, hash string) (string, error) {
	base := a.cfg.Signing.TrustedBase
	if base == "" {
		return good, nil
	}
	ok, err := a.descends(ctx, base, hash)
	if err != nil {
		return "", unreadable(err)
	}
	if good == "" {
		if !ok {
			return "", &refusal{"UntrustedHistory", fmt.Sprintf("it does not descend from %s, which signing.trustedBase names", short(base))}
		}
		return base, nil
	}
	if ok {
		if ok, err = a.descends(ctx, good, base); err != nil {
			return "", unreadable(err)
		}
	}
	if ok {
		return base, nil
	}
	return good, nil
}

// descends is Descends for an ancestor that may be nowhere: then it is none.
func (a *Agent) descends(ctx context.Context, ancestor, hash string) (bool, error) {
	ok, err := a.cfg.Source.Descends(ctx, ancestor, hash)
	if errors.Is(err, gitrepo.ErrRevisionMissing) {
		return false, nil
	}
	return ok, err
}

// signedBy returns why a commit's signature does not count, nil if it does.
func (a *Agent) signedBy(ctx context.Context, keys *trust.Keys, c Revision) (*refusal, error) {
	payload, signature, err := a.cfg.Source.Signed(ctx, c.Hash)
	if err != nil {
		return nil, err
	}
	_, err = keys.Verify(payload, signature, trust.NamespaceGit, a.cfg.Now())
	if err == nil {
		return nil, nil
	}
	who := fmt.Sprintf("commit %s (%q by %q <%s>)", short(c.Hash), c.Subject, c.Author, c.AuthorEmail)
	if errors.Is(err, trust.ErrUnsigned) {
		return &refusal{"Unsigned", who + " is not signed (if it may pass all the same: signing.trustedBase)"}, nil
	}
	return &refusal{"UntrustedSignature", fmt.Sprintf("%s is signed, but that does not count: %v", who, err)}, nil
}

// witness asks, once, the host's own last report what was in force before the
// agent's memory was lost, so that nothing older comes into force.
func (a *Agent) witness(ctx context.Context) error {
	a.mu.Lock()
	known := a.mem.Good != "" || a.witnessed
	a.mu.Unlock()
	if known {
		return nil
	}
	ref := a.cfg.StatusRef + a.name()
	data, payload, signature, err := a.cfg.Source.Report(ctx, ref, status.StateFile)
	if errors.Is(err, gitrepo.ErrRevisionMissing) {
		return a.settleWitness("")
	}
	if err != nil {
		return &refusal{"ReportUnreadable", fmt.Sprintf("what this host last reported on %s cannot be read, and it may say that something newer was in force: %v", ref, err)}
	}
	if err := a.recall(data); err != nil {
		return err
	}
	if err := a.meetWitness(data); err != nil {
		return err
	}
	r, err := a.ownReport(data, payload, signature)
	switch {
	case err == nil:
		a.mu.Lock()
		a.recalled = r.State().Objects
		a.mu.Unlock()
		if r.Revision != "" {
			a.events.normal("", "ReportFound", fmt.Sprintf("the agent's memory is gone; by its own report on %s, revision %s was in force: nothing older comes into force now", ref, short(r.Revision)))
		}
		return a.settleWitness(r.Revision)
	case !a.keyUsed:
		a.events.warn("", "HostKeyNew", fmt.Sprintf("this host's key is new (%s), and its report on %s is not signed with it: %v. What was in force before cannot be told. Host.spec.signingKey has to be the key that reconciler key prints",
			a.hostKey.Fingerprint(), ref, err))
		return a.settleWitness("")
	}
	return &refusal{"ForgedReport", fmt.Sprintf("the report on %s was not written by this host: %v. Which revision was in force before cannot be told (remove the ref, or reconciler accept the revision, if this one is right)", ref, err)}
}

// ownReport reads a report that this host has signed.
func (a *Agent) ownReport(data, payload, signature []byte) (status.Recorded, error) {
	if err := a.ours(payload, signature); err != nil {
		return status.Recorded{}, err
	}
	r, err := status.ReadState(data)
	if err == nil && r.Host != a.name() {
		err = fmt.Errorf("it is of host %q", r.Host)
	}
	return r, err
}

// ours says whether a commit was signed with the key of this host.
func (a *Agent) ours(payload, signature []byte) error {
	keys, err := trust.ParsePublicKeys([]string{a.hostKey.Public()})
	if err == nil {
		_, err = keys.Verify(payload, signature, trust.NamespaceGit, a.cfg.Now())
	}
	return err
}

// lastKnown is the revision in force before the agent's memory was lost.
func (a *Agent) lastKnown() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mem.Witnessed
}

func (a *Agent) settleWitness(revision string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if revision != "" {
		if err := a.keep(func(m *memory) { m.Witnessed = revision }); err != nil {
			return err
		}
	}
	a.witnessed = true
	return nil
}

// pushOptions are of the refs of this host: what it writes, it signs.
func (a *Agent) pushOptions() gitrepo.PushOptions {
	return gitrepo.PushOptions{Sign: func(payload []byte) ([]byte, error) { return a.hostKey.Sign(payload, trust.NamespaceGit) }}
}

// signingKey is a condition of a host that does not sign with the key its Host
// object names. A plan in CI then takes its reports for forged.
const signingKey = "SigningKey"

// keyCondition compares the key in use with the one that is declared. a.mu is held.
func (a *Agent) keyCondition() (status.Condition, bool) {
	if a.set == nil {
		return status.Condition{}, false
	}
	o := a.selfIn(a.set)
	if o == nil {
		return status.Condition{}, false
	}
	declared, _ := o.Spec.(*spec.Host)
	if declared == nil || declared.SigningKey == "" || sameKey(declared.SigningKey, a.hostKey.Public()) {
		a.keyDiffers = ""
		return status.Condition{}, false
	}
	message := fmt.Sprintf("this host signs with %s, and Host/%s declares another spec.signingKey: plans in CI do not believe its reports (reconciler key prints the right one)", a.hostKey.Fingerprint(), o.Meta.Name)
	if a.keyDiffers != declared.SigningKey {
		a.keyDiffers = declared.SigningKey
		a.events.warn("", "SigningKeyDiffers", message)
	}
	return status.Condition{Type: signingKey, Status: status.False, Reason: "SigningKeyDiffers", Message: message}, true
}

// sameKey compares public keys without their comments.
func sameKey(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	return len(x) >= 2 && len(y) >= 2 && x[0] == y[0] && x[1] == y[1]
}
