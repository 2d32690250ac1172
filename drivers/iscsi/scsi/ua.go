package scsi

import (
	"slices"

	gotgt "github.com/gostor/gotgt/pkg/scsi"
)

// unitAttention is a condition to be reported to one nexus (SAM-5 §5.14).
type unitAttention additionalSense

// maxAttentions bounds a nexus's queue; the oldest is dropped, as SAM-5 §5.14.1
// allows a device server to do.
const maxAttentions = 8

func (n *Nexus) raise(ua unitAttention) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Contains(n.pending, ua) {
		return
	}
	switch {
	case ua == unitAttention(gotgt.ASC_POWERON_RESET):
		// A reset says all that was pending before it (SAM-5 §5.14.2).
		n.pending = n.pending[:0]
	case len(n.pending) == maxAttentions:
		n.pending = slices.Delete(n.pending, 0, 1)
	}
	n.pending = append(n.pending, ua)
	n.attentions.Store(true)
}

// take removes and returns the oldest unit attention.
func (n *Nexus) take() (unitAttention, bool) {
	if !n.attentions.Load() {
		return 0, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.pending) == 0 {
		return 0, false
	}
	ua := n.pending[0]
	n.pending = slices.Delete(n.pending, 0, 1)
	n.attentions.Store(len(n.pending) != 0)
	return ua, true
}

func (n *Nexus) clearAttentions() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending = nil
	n.attentions.Store(false)
}
