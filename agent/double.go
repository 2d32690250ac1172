package agent

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"reconciler/api"
	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
	"reconciler/trust"
)

// A host is one machine with one agent. A state directory that was copied to a
// second one makes two, which would run the same machines. What tells them apart
// is the machine's id, and an id that every process of an agent makes up: both
// stand in the state and in the report. Who finds a report of another machine
// where its own should be does nothing any more until an operator says that this
// machine is the right one; then the other finds that out in the same way.

// Bounds of what is remembered of what was pushed.
const (
	maxTips      = 4
	maxInstances = 16
)

// errDouble says that the report was not written because another machine's is there.
var errDouble = errors.New("another machine reports as this host")

// MachineID is the id of this machine from a file such as /etc/machine-id, so
// that it can be shown to anybody: machine-id(5) wants the id itself kept to the
// machine. Without a file, or where it is empty, there is none.
func MachineID(file string) (string, error) {
	data, err := os.ReadFile(file)
	id := strings.TrimSpace(string(data))
	if err != nil || id == "" || id == "uninitialized" {
		return "", err
	}
	h := hmac.New(sha256.New, []byte(id))
	h.Write([]byte("reconciler host"))
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// double says why this machine does nothing; empty where it is the host's only
// one, as far as is known. a.mu is held.
func (a *Agent) double() string {
	const meant = "nothing is started, stopped or changed here, and what crashed is left alone, until it is said which machine is the host"
	switch was := a.mem.Machine; {
	case a.mem.Double != "":
		return a.mem.Double + ": " + meant
	case was != "" && a.cfg.Machine != "" && was != a.cfg.Machine:
		return fmt.Sprintf("the state directory is that of machine %.8s, and this is machine %.8s: %s", was, a.cfg.Machine, meant)
	}
	return ""
}

// acceptMachine is how an operator says which machine is the host.
const acceptMachine = "reconciler accept --machine"

func (a *Agent) isDouble() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.double() != ""
}

// settleMachine writes down which machine this is, before anything is done here.
func (a *Agent) settleMachine() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if why := a.double(); why != "" && !a.doubled {
		a.doubled = true
		a.events.warn("", "OtherMachine", why+" ("+acceptMachine+" --reason …)")
	}
	if a.mem.Machine != "" || a.cfg.Machine == "" {
		return nil
	}
	return a.keep(func(m *memory) { m.Machine = a.cfg.Machine })
}

// meet compares a report that is in the place of this host's with what this
// machine knows of itself, and says so where it is another machine's. a.mu is held.
func (a *Agent) meet(r status.Recorded) error {
	why := ""
	switch {
	case a.mem.Takeover:
	case r.Machine != "" && a.cfg.Machine != "" && r.Machine != a.cfg.Machine:
		why = fmt.Sprintf("machine %.8s reports as this host, last at %s, and this is machine %.8s", r.Machine, r.ObservedAt.UTC().Format("2006-01-02 15:04:05 UTC"), a.cfg.Machine)
	case r.Instance != "" && a.pushed && !slices.Contains(a.mem.Instances, r.Instance):
		// This process has reported, and then another one did that is none of ours.
		why = fmt.Sprintf("another agent reports as this host, last at %s, from a machine with the id of this one (a copy of its disk?)", r.ObservedAt.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	if why == "" {
		return nil
	}
	a.doubled = true
	a.events.warn("", "OtherMachine", why+" ("+acceptMachine+" --reason …)")
	if err := a.keep(func(m *memory) { m.Double = why }); err != nil {
		return err
	}
	return errDouble
}

// meetWitness meets the report that is there when this agent's memory is gone.
// Whoever may write the ref can keep a new machine waiting that way, and not more.
func (a *Agent) meetWitness(data []byte) error {
	r, err := status.ReadState(data)
	if err != nil {
		return nil // as a report it is judged elsewhere
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.meet(r); err != nil && !errors.Is(err, errDouble) {
		return err
	}
	return nil
}

// foreignTip is told of a tip of the status ref that is about to be replaced and
// that was not pushed from here, as far as the cache tells.
func (a *Agent) foreignTip(tip gitrepo.ForeignTip) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.mem.Tips, tip.Hash) {
		return nil // it arrived, and nobody heard of it
	}
	if err := a.ofHost(tip.Payload, tip.Signature); err != nil {
		a.events.warn("", "ReportReplaced", fmt.Sprintf("%s held a report that is not this host's: commit %s by %q <%s>: %v. It is replaced",
			a.cfg.StatusRef+a.name(), short(tip.Hash), tip.Author, tip.AuthorEmail, err))
		return nil
	}
	data, err := tip.File(status.StateFile)
	if err != nil {
		return nil // it says nothing of anybody
	}
	r, err := status.ReadState(data)
	if err != nil {
		return nil
	}
	return a.meet(r)
}

// ofHost says whether a report is signed as this host's: with the key of this
// agent, or the one that the tree declares. a.mu is held.
func (a *Agent) ofHost(payload, signature []byte) error {
	err := a.ours(payload, signature)
	if err == nil || a.set == nil {
		return err
	}
	if o := a.selfIn(a.set); o != nil {
		if keys, kerr := trust.ParsePublicKeys([]string{o.Spec.(*spec.Host).SigningKey}); kerr == nil {
			if _, kerr = keys.Verify(payload, signature, trust.NamespaceGit, a.cfg.Now()); kerr == nil {
				return nil
			}
		}
	}
	return err
}

// intend writes down a report before it is pushed, so that it is known for this
// agent's whatever becomes of the push.
func (a *Agent) intend(commit string) error {
	return a.remember(func(m *memory) {
		m.Tips = append(m.Tips, commit)
		m.Tips = m.Tips[max(0, len(m.Tips)-maxTips):]
		if !slices.Contains(m.Instances, a.instance) {
			m.Instances = append(m.Instances, a.instance)
			m.Instances = m.Instances[max(0, len(m.Instances)-maxInstances):]
		}
	})
}

// acceptThisMachine makes this machine the host.
func (a *Agent) acceptThisMachine(r api.AcceptRequest) error {
	a.mu.Lock()
	why := a.double()
	err := error(nil)
	if why != "" {
		err = a.keep(func(m *memory) { m.Machine, m.Double, m.Takeover = a.cfg.Machine, "", true })
	}
	if err == nil {
		a.doubled = false
	}
	a.mu.Unlock()
	if why == "" {
		return api.Errorf(api.Conflict, "nothing says that another machine is this host: there is nothing to accept")
	}
	a.audit("", "MachineAccepted", fmt.Sprintf("%s (%s)", r.Reason, why), r.Caller, err)
	a.wake(trigger{fetch: true, why: "machine accepted"})
	return err
}

// holdDouble holds all of a plan while it is not said which machine is the host.
// a.mu is held.
func (a *Agent) holdDouble(p *reconcile.Plan) {
	why := a.double()
	if why == "" {
		return
	}
	for i := range p.Actions {
		if act := &p.Actions[i]; (act.State == reconcile.Ready || act.State == reconcile.Waiting) && act.Op != reconcile.OpUnchanged {
			act.State, act.Reason = reconcile.Held, why+" ("+acceptMachine+" --reason …)"
		}
	}
	p.Settle()
}
